"""A WebSocket that outlives the instance behind it: what is passed on, kept, sent again, and when.

Pure: bytes and times in, calls on a `Port` out; it owns no socket, no clock and no timer. The client's side
stays one valid WebSocket from its handshake to its Close, whatever happens behind it; the instance's side may
be replaced any number of times, always between two messages of the client.

How an instance is left (docs/architecture.md, "Life of a WebSocket", says why):

* Asked to (`leave`): the client is held at a message boundary; once the instance has said nothing for
  `quiet`, it is sent Close. Everything it still says goes to the client. Its own Close ends it.
* By itself (Close 1001 or 1012): it has chosen its moment; its Close is answered and not passed on.
* By death (its connection ends without a Close): with `replay`, what it may not have read is sent again.

Whoever wants to be resumed exactly can say so: the reason of an instance's Close, or else the last Ping with
the payload `holdfast-resume:TOKEN`, is the token that the next instance gets.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from proxy.frames import (
    PART,
    CloseCode,
    Cut,
    FrameCutter,
    FrameError,
    Opcode,
    encode_close,
    encode_frame,
    payload_of,
)

NEVER = math.inf
CHECKPOINT = b"holdfast-resume:"
"""Begins the payload of a Ping by which an instance says where a next one would have to go on."""
PING = b"holdfast-ping"
"""Payload of the pings that ask whether a side is alive; their pongs go no further."""
_BARRIER = b"holdfast-barrier:"
_GOODBYE = 3.0
"""Seconds in which a Close that we said must be answered."""
_LEAVING = (CloseCode.GOING_AWAY, CloseCode.SERVICE_RESTART)


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of one tunnel. Times in seconds, sizes in bytes."""

    quiet: float
    patience: float
    replay: bool
    hold: float
    messages: int
    kept: int
    """Most bytes of client messages that are kept for replay, or held back during a hand-over."""
    whole: int
    """Frames up to this size are passed on only whole."""
    pace: float
    """At least this between two barriers of one tunnel."""


class Phase(Enum):
    """Where a tunnel is in its life."""

    RELAYING = "relaying"
    SETTLING = "settling"
    """Asked to leave; the client is in the middle of a message."""
    QUIETING = "quieting"
    """The client is held; the instance may still be answering."""
    CLOSING = "closing"
    """Close was sent to the instance."""
    DIALING = "dialing"
    """There is no instance; the next one is being connected."""
    CLIENT_CLOSING = "client_closing"
    """The client has sent Close; the instance's answer ends it."""
    ENDING = "ending"
    """Close was sent to the client; its answer ends it."""
    OVER = "over"


_HELD = frozenset({Phase.QUIETING, Phase.CLOSING, Phase.DIALING})
"""Phases in which the client's messages wait."""


class Port(Protocol):
    """What a relay can do in the world."""

    def to_client(self, data: bytes) -> None:
        """Write to the client."""

    def to_server(self, data: bytes) -> None:
        """Write to the instance."""

    def read_client(self, wanted: bool) -> None:
        """Go on or stop reading from the client."""

    def dial(self, token: bytes, *, died: bool) -> None:
        """Drop the instance's connection after flushing it, and connect to the next instance.

        Answered by `Relay.connected` or `Relay.gave_up`. `token` is for the Holdfast-Resume field.
        """

    def may_barrier(self) -> bool:
        """Whether a barrier may be sent now, as far as the process as a whole is concerned."""

    def alarm(self, at: float) -> None:
        """Call `Relay.on_alarm` at that time; replaces what was asked for before. `NEVER`: no more."""

    def end(self, code: int, side: str) -> None:
        """Flush and close both connections: all is said. `side` is who closed."""

    def cut(self, reason: str) -> None:
        """Close both connections at once: not even a Close could be said."""


class Relay:
    """One tunnel's two directions. `mask` makes four random bytes."""

    def __init__(self, rules: Rules, port: Port, mask: Callable[[], bytes]) -> None:
        self._rules = rules
        self._port = port
        self._mask = mask
        self.phase = Phase.RELAYING
        self._client = FrameCutter(masked=True, most=rules.whole)
        self._client_open = False
        """Whether what was sent to the instance ends within a message."""
        self._server = FrameCutter(masked=False, most=rules.whole)
        self._server_open = False
        """Whether what was sent to the client ends within a message."""
        self.messages_in = 0
        self.messages_out = 0
        """Whole messages from the client and from instances."""
        self.token = b""
        """For the next instance: the last Close's reason, or checkpoint."""
        self._backlog: deque[Cut] = deque()
        """Client frames that wait for the next instance."""
        self._backlog_bytes = 0
        self._sent: deque[tuple[int, bytes]] = deque()
        """Client messages by number, sent and not known to have been read."""
        self._read: deque[tuple[float, bytes]] = deque()
        """Client messages that a barrier has confirmed, and until when they are kept all the same."""
        self._kept = 0
        """Bytes in `_sent`, `_read` and `_message`."""
        self._message: list[bytes] = []
        """Frames of the client message under way."""
        self._beyond_keeping = False
        """The client message under way is larger than what can be kept."""
        self._number = 0
        self._barrier = 0
        """Number of the last message before the barrier that is out; 0: none is."""
        self._barrier_after = 0.0
        self._client_paused = False
        self._pings: deque[bytes] = deque(maxlen=8)
        """Payloads of client pings that nobody has answered yet."""
        self._settle_by = NEVER
        self._alarm = NEVER
        self._farewell = (0, "")

    # -- the client ----------------------------------------------------------------------------------------

    def client_data(self, data: bytes, now: float) -> None:
        """Bytes from the client."""
        if self.phase is Phase.OVER:
            return
        try:
            cuts = self._client.feed(data)
        except FrameError as error:
            self.finish(CloseCode.PROTOCOL_ERROR, str(error), now)
            return
        for cut in cuts:
            self._from_client(cut, now)
        if self._rules.replay and self.phase is Phase.RELAYING:
            self._confirm_more(now)

    def _from_client(self, cut: Cut, now: float) -> None:
        phase = self.phase
        first, data, ends = cut
        if first != PART and first & 0x08:
            self._client_control(first & 0x0F, data, now)
        elif phase in _HELD:
            self._backlog.append(cut)
            self._backlog_bytes += len(data)
            if self._backlog_bytes > self._rules.kept:
                self._pause_client(True)
        elif phase in (Phase.RELAYING, Phase.SETTLING):
            self._send_part(data, ends, now)

    def _client_control(self, opcode: int, frame: bytes, now: float) -> None:
        phase = self.phase
        if opcode == Opcode.CLOSE:
            self._client_close(frame, now)
        elif opcode == Opcode.PONG and payload_of(frame) == PING:
            pass
        elif phase in _HELD:
            if opcode == Opcode.PING:
                self._pong(payload_of(frame))
        elif phase in (Phase.RELAYING, Phase.SETTLING):
            if opcode == Opcode.PING:
                self._pings.append(payload_of(frame))
            self._port.to_server(frame)

    def _client_close(self, frame: bytes, now: float) -> None:
        code = int.from_bytes(payload_of(frame)[:2], "big") or int(CloseCode.NO_STATUS)
        if self.phase is Phase.ENDING:
            if self._farewell[1] == "upstream":
                self._port.to_server(frame)
            self._over(*self._farewell)
        elif self.phase in (Phase.RELAYING, Phase.SETTLING):
            self.phase = Phase.CLIENT_CLOSING
            self._farewell = (code, "client")
            self._port.to_server(frame)
            self._set_alarm(now + _GOODBYE)
        elif self.phase in _HELD:
            # Nobody is there to answer it but us.
            if not self._server.within_frame:
                self._port.to_client(encode_frame(Opcode.CLOSE, payload_of(frame)))
            self._over(code, "client")

    def _send_part(self, data: bytes, ends: bool, now: float) -> None:
        self._port.to_server(data)
        self._client_open = not ends
        if self._rules.replay:
            self._keep(data, ends)
        if ends:
            self.messages_in += 1
            if self.phase is Phase.SETTLING:
                self._hold_client(now)

    # -- keeping and confirming ----------------------------------------------------------------------------

    def _keep(self, data: bytes, ends: bool) -> None:
        if not self._beyond_keeping:
            self._message.append(data)
            self._kept += len(data)
            if sum(map(len, self._message)) > self._rules.kept:
                self._kept -= sum(map(len, self._message))
                self._message = []
                self._beyond_keeping = True
        if ends:
            self._number += 1
            if not self._beyond_keeping:
                whole = self._message[0] if len(self._message) == 1 else b"".join(self._message)
                self._sent.append((self._number, whole))
                if self._kept > self._rules.kept or len(self._sent) + len(self._read) > self._rules.messages:
                    self._pause_client(True)
            self._message = []
            self._beyond_keeping = False

    def _confirm_more(self, now: float) -> None:
        """Send a barrier when one is due, else see to it that it will be looked at again."""
        if self.phase is not Phase.RELAYING:
            return
        self._forget(now)
        if not self._sent or self._barrier:
            return
        crowded = self._client_paused or self._kept * 2 > self._rules.kept
        if (now >= self._barrier_after or crowded) and not self._client.within_frame:
            if self._port.may_barrier() or crowded:
                self._barrier = self._number
                self._barrier_after = now + self._rules.pace
                self._port.to_server(
                    encode_frame(Opcode.PING, _BARRIER + str(self._barrier).encode(), self._mask())
                )
                return
            self._barrier_after = now + self._rules.pace
        self._set_alarm(min(self._alarm, max(self._barrier_after, now)))

    def _confirmed(self, number: int, now: float) -> None:
        if number != self._barrier:
            return
        self._barrier = 0
        until = now + self._rules.hold
        while self._sent and self._sent[0][0] <= number:
            self._read.append((until, self._sent.popleft()[1]))
        self._set_alarm(min(self._alarm, until))
        self._confirm_more(now)

    def _forget(self, now: float) -> None:
        """Let go of what was confirmed long enough ago."""
        while self._read and self._read[0][0] <= now:
            self._kept -= len(self._read.popleft()[1])
        if (
            self._client_paused
            and self.phase is Phase.RELAYING
            and self._kept <= self._rules.kept
            and len(self._sent) + len(self._read) < self._rules.messages
        ):
            self._pause_client(False)

    def _forget_all(self) -> None:
        self._sent.clear()
        self._read.clear()
        self._kept = sum(map(len, self._message))
        self._barrier = 0

    def _pause_client(self, paused: bool) -> None:
        if paused is not self._client_paused:
            self._client_paused = paused
            self._port.read_client(not paused)

    # -- the instance --------------------------------------------------------------------------------------

    def server_data(self, data: bytes, now: float) -> None:
        """Bytes from the instance."""
        if self.phase in (Phase.OVER, Phase.DIALING, Phase.ENDING):
            return
        try:
            cuts = self._server.feed(data)
        except FrameError:
            self.server_lost(now)
            return
        for cut in cuts:
            self._from_server(cut, now)
        if self.phase is Phase.QUIETING and now < self._settle_by:
            self._set_alarm(min(now + self._rules.quiet, self._settle_by))

    def _from_server(self, cut: Cut, now: float) -> None:
        if self.phase in (Phase.OVER, Phase.DIALING, Phase.ENDING):
            return
        first, data, ends = cut
        if first != PART and first & 0x08:
            self._server_control(first & 0x0F, data, now)
            return
        self._port.to_client(data)
        self._server_open = not ends
        if ends:
            self.messages_out += 1

    def _server_control(self, opcode: int, frame: bytes, now: float) -> None:
        payload = payload_of(frame)
        if opcode == Opcode.CLOSE:
            self._server_close(frame, payload, now)
        elif opcode == Opcode.PONG and payload.startswith(_BARRIER):
            number = payload[len(_BARRIER) :]
            if number.isdigit():
                self._confirmed(int(number), now)
        elif opcode == Opcode.PONG and payload == PING:
            pass
        elif opcode == Opcode.PING and payload.startswith(CHECKPOINT):
            self.token = payload[len(CHECKPOINT) :]
            if self.phase in (Phase.RELAYING, Phase.SETTLING, Phase.QUIETING):
                self._port.to_server(encode_frame(Opcode.PONG, payload, self._mask()))
        else:
            if opcode == Opcode.PONG and payload in self._pings:
                self._pings.remove(payload)
            self._port.to_client(frame)

    def _server_close(self, frame: bytes, payload: bytes, now: float) -> None:
        code = int.from_bytes(payload[:2], "big") or int(CloseCode.NO_STATUS)
        if self.phase is Phase.CLIENT_CLOSING:
            self._port.to_client(frame)
            self._over(self._farewell[0], "client")
            return
        if self.phase is Phase.CLOSING:
            self.token = payload[2:] or self.token
            self._forget_all()
            self._dial(died=False, now=now)
        elif code in _LEAVING:
            self.token = payload[2:] or self.token
            self._port.to_server(encode_close(code, "", self._mask()))
            self._dial(died=True, now=now)
        else:
            self._port.to_client(frame)
            self._farewell = (code, "upstream")
            self.phase = Phase.ENDING
            self._set_alarm(now + _GOODBYE)

    def server_lost(self, now: float) -> None:
        """The instance's connection has ended without a Close, or says what no WebSocket says."""
        phase = self.phase
        if phase is Phase.CLIENT_CLOSING:
            if not self._server.within_frame:
                self._port.to_client(encode_close(CloseCode.GOING_AWAY))
            self._over(self._farewell[0], "client")
        elif phase in (Phase.RELAYING, Phase.SETTLING, Phase.QUIETING, Phase.CLOSING):
            if not self._rules.replay and phase is not Phase.CLOSING:
                self.finish(CloseCode.SERVICE_RESTART, "the instance died", now)
            else:
                self._dial(died=True, now=now)

    def _dial(self, *, died: bool, now: float) -> None:
        if self._server_open:
            # Half a message of the old instance is with the client: no other can finish it.
            self.finish(CloseCode.SERVICE_RESTART, "the instance left within a message", now)
            return
        if self._client_open and not self._message:
            # Half a message of the client is with the old instance, and was not kept.
            self.finish(CloseCode.SERVICE_RESTART, "the instance left within a message", now)
            return
        self.phase = Phase.DIALING
        self._barrier = 0
        self._set_alarm(NEVER)
        self._port.dial(self.token, died=died)

    # -- hand-over -----------------------------------------------------------------------------------------

    def leave(self, now: float) -> None:
        """The instance is to be left as soon as that disturbs nobody. Nothing happens while it already is."""
        if self.phase is not Phase.RELAYING:
            return
        self._settle_by = now + self._rules.patience
        if self._client_open:
            self.phase = Phase.SETTLING
        else:
            self._hold_client(now)

    def _hold_client(self, now: float) -> None:
        self.phase = Phase.QUIETING
        self._set_alarm(min(now + self._rules.quiet, max(self._settle_by, now)))

    def connected(self, now: float) -> None:
        """The next instance has accepted: send it what waits, and go on."""
        self._server = FrameCutter(masked=False, most=self._rules.whole)
        self.phase = Phase.RELAYING
        again = [message for _, message in self._read] + [message for _, message in self._sent]
        again += self._message
        if again:
            self._port.to_server(b"".join(again))
        # What was confirmed by the old instance is confirmed by nobody now.
        while self._read:
            self._sent.appendleft((0, self._read.pop()[1]))
        while self._pings:
            self._pong(self._pings.popleft())
        backlog, self._backlog = self._backlog, deque()
        self._backlog_bytes = 0
        for _, data, ends in backlog:
            self._send_part(data, ends, now)
        if self._client_paused:
            self._forget(now)
            if self._kept <= self._rules.kept:
                self._pause_client(False)
        if self._rules.replay:
            self._barrier_after = now
            self._confirm_more(now)

    def gave_up(self, reason: str, now: float) -> None:
        """No instance could be had."""
        self.finish(CloseCode.SERVICE_RESTART, reason, now)

    def _pong(self, payload: bytes) -> None:
        if not self._server.within_frame:
            self._port.to_client(encode_frame(Opcode.PONG, payload))

    def ping(self, side: int) -> None:
        """Ask the client (0) or the instance (1) whether it is alive."""
        if self.phase is not Phase.RELAYING:
            return
        if side and not self._client.within_frame:
            self._port.to_server(encode_frame(Opcode.PING, PING, self._mask()))
        elif not side and not self._server.within_frame:
            self._port.to_client(encode_frame(Opcode.PING, PING))

    # -- ending --------------------------------------------------------------------------------------------

    def finish(self, code: int, reason: str, now: float) -> None:
        """Say Close to the client, and to the instance; end when the client has answered."""
        if self.phase in (Phase.OVER, Phase.ENDING):
            return
        if self._server.within_frame:
            self.phase = Phase.OVER
            self._set_alarm(NEVER)
            self._port.cut(reason)
            return
        listening = self.phase in (Phase.RELAYING, Phase.SETTLING, Phase.QUIETING)
        if listening and not self._client.within_frame:
            self._port.to_server(encode_close(CloseCode.GOING_AWAY, "", self._mask()))
        self.phase = Phase.ENDING
        self._farewell = (int(code), "proxy")
        self._port.to_client(encode_close(code, reason))
        self._pause_client(False)
        self._set_alarm(now + _GOODBYE)

    def client_lost(self, now: float) -> None:
        """The client's connection has ended."""
        if self.phase is Phase.OVER:
            return
        code, side = int(CloseCode.ABNORMAL), "client"
        if self.phase in (Phase.ENDING, Phase.CLIENT_CLOSING) and self._farewell[0]:
            code, side = self._farewell
        elif self.phase not in (Phase.DIALING, Phase.CLOSING) and not self._client.within_frame:
            self._port.to_server(encode_close(CloseCode.GOING_AWAY, "", self._mask()))
        self._over(code, side)

    def on_alarm(self, now: float) -> None:
        """The time asked for by `Port.alarm` has come."""
        self._alarm = NEVER
        phase = self.phase
        if phase is Phase.RELAYING:
            if self._rules.replay:
                self._forget(now)
                self._confirm_more(now)
                if self._read:
                    self._set_alarm(min(self._alarm, self._read[0][0]))
        elif phase is Phase.QUIETING:
            self.phase = Phase.CLOSING
            self._port.to_server(encode_close(CloseCode.GOING_AWAY, "", self._mask()))
            self._set_alarm(now + _GOODBYE)
        elif phase is Phase.CLOSING:
            self._dial(died=True, now=now)
        elif phase in (Phase.ENDING, Phase.CLIENT_CLOSING):
            self._over(*self._farewell)

    def _over(self, code: int, side: str) -> None:
        self.phase = Phase.OVER
        self._set_alarm(NEVER)
        self._port.end(code, side)

    def _set_alarm(self, at: float) -> None:
        if at != self._alarm:
            self._alarm = at
            self._port.alarm(at)
