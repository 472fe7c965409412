"""A WebSocket that outlives the instance behind it: what is passed on, when an instance is left, and how.

Pure: bytes and times in, calls on a `Port` out; it owns no socket, no clock and no timer. What may have to be
sent again is kept by `proxy.replay`. The client's side stays one valid WebSocket from its handshake to its
Close, whatever happens behind it; the instance's side may be replaced any number of times, always between two
messages of the client.

How an instance is left (docs/architecture.md, "Life of a WebSocket", says why):

* Asked to (`leave`): the client is held at a message boundary; once the instance has said nothing for
  `quiet`, it is sent Close. Everything it still says goes to the client. Its own Close ends it.
* By itself (Close 1001 or 1012): it has chosen its moment; its Close is answered and not passed on.
* By death (its connection ends without a Close): with `replay`, what it may not have read is sent again.

Whoever wants to be resumed exactly can say so: the reason of an instance's Close, or else its last checkpoint
(`proxy.checkpoint`), is the token that the next instance gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from proxy.checkpoint import Checkpoint, checkpoint_in
from proxy.frames import (
    CloseCode,
    Cut,
    FrameCutter,
    FrameError,
    Opcode,
    encode_close,
    encode_frame,
    payload_of,
)
from proxy.phases import ATTACHED, HELD, OPEN, Phase, Port, Rules
from proxy.replay import BARRIER, NEVER, Outbox

PING = b"holdfast-ping"
"""Payload of the pings that ask whether a side is alive; their pongs go no further."""
_GOODBYE = 3.0
"""Seconds in which a Close that we said must be answered; an instance's time begins anew while it speaks."""
_LAST_WORDS = 10.0
"""Seconds after which an instance that only speaks and never answers Close is left all the same."""
_LEAVING = (CloseCode.GOING_AWAY, CloseCode.SERVICE_RESTART)


class Relay:
    """One tunnel's two directions. `mask` makes four random bytes."""

    __slots__ = (
        "_ahead",
        "_alarm",
        "_breach",
        "_client",
        "_client_paused",
        "_farewell",
        "_goodbye",
        "_leave_by",
        "_mask",
        "_outbox",
        "_pings",
        "_port",
        "_replay",
        "_rules",
        "_server",
        "_server_open",
        "messages_in",
        "messages_out",
        "phase",
        "token",
    )

    def __init__(self, rules: Rules, port: Port, mask: Callable[[], bytes]) -> None:
        self._rules = rules
        self._port = port
        self._mask = mask
        self.phase = Phase.RELAYING
        self._client = FrameCutter(masked=True, most=rules.whole)
        self._server = FrameCutter(masked=False, most=rules.whole)
        self._server_open = False
        """Whether what was sent to the client ends within a message."""
        self.messages_in = 0
        self.messages_out = 0
        """Whole messages from the client and from instances."""
        self.token = b""
        """For the next instance: the last Close's reason, or checkpoint."""
        self._ahead: Checkpoint | None = None
        """The checkpoint that will hold with the instance's next whole message."""
        self._outbox = Outbox(rules.keeping)
        self._replay = rules.keeping.replay
        self._client_paused = False
        self._pings: deque[bytes] = deque(maxlen=8)
        """Payloads of client pings that nobody has answered yet."""
        self._leave_by = NEVER
        """When the present step of leaving an instance has to be over."""
        self._alarm = NEVER
        self._farewell = (0, "")
        self._goodbye: bytes | None = None
        """Payload of the client's Close, once it has come."""
        self._breach = ""
        """By what the client has broken the protocol, if it has: nothing of what follows is read."""

    # -- the client ----------------------------------------------------------------------------------------

    def client_data(self, data: bytes, now: float) -> None:
        """Bytes from the client."""
        if self.phase is Phase.OVER or self._breach:
            return
        try:
            cuts = self._client.feed(data)
        except FrameError as error:
            for cut in error.before:
                self._from_client(cut, now)
            self._client_broke(str(error), now)
            return
        for cut in cuts:
            self._from_client(cut, now)
        outbox = self._outbox
        if outbox.sent and not outbox.barrier:
            self._confirm_more(now)

    @property
    def client_waits(self) -> bool:
        """Whether more of what the client has said is to be looked at: with nothing, in another turn."""
        heard_out = self._goodbye is not None or self._breach or self.phase is Phase.OVER
        return self._client.more and not heard_out

    @property
    def server_waits(self) -> bool:
        """The same of what the instance has said."""
        return self._server.more and self._hears

    def _from_client(self, cut: Cut, now: float) -> None:
        first, data, ends = cut
        if self._goodbye is not None:
            return  # RFC 6455 5.5.1: nothing follows a Close
        if first & 0x08:
            self._client_control(first & 0x0F, data, now)
        elif self.phase in OPEN:
            self._send_part(data, ends, now)
        elif self.phase in HELD:
            self._hold_back(cut)

    def _hold_back(self, cut: Cut) -> None:
        """Nobody is there who could be given it."""
        if self._outbox.hold(cut):
            self._pause_client(True)

    def _client_control(self, opcode: int, frame: bytes, now: float) -> None:
        phase, payload = self.phase, payload_of(frame)
        if opcode == Opcode.CLOSE:
            self._client_close(frame, payload, now)
        elif opcode == Opcode.PONG:
            if phase in ATTACHED and payload != PING:
                self._port.to_server(frame)
        elif phase in OPEN:
            self._pings.append(payload)
            self._port.to_server(frame)
        elif phase in HELD:
            self._pong(payload)

    def _client_close(self, frame: bytes, payload: bytes, now: float) -> None:
        self._goodbye = payload
        phase = self.phase
        if phase is Phase.ENDING:
            if self._farewell[1] == "upstream":
                self._port.to_server(frame)
            self._over(*self._farewell)
        elif phase in ATTACHED:
            # While it is only being waited for, the old instance can still be given everything.
            self._send_held(now)
            self._client_closing(frame, now)
        elif self._outbox.owes:
            # Somebody has yet to read what was said before.
            self._hold_back((frame[0], frame, False))
        elif phase is Phase.CLOSING:
            self._client_closing(b"", now)
        else:
            self._answer_close()

    def _client_broke(self, why: str, now: float) -> None:
        """What came before the breach is answered as before a Close; then the client is told 1002."""
        if self.phase is Phase.OVER or self._goodbye is not None:
            return
        self._breach = why
        frame = encode_close(CloseCode.PROTOCOL_ERROR, why, self._mask())
        self._client_close(frame, payload_of(frame), now)

    def _client_closing(self, frame: bytes, now: float) -> None:
        """The client's Close is passed on; the instance's answer ends the tunnel."""
        self.phase = Phase.CLIENT_CLOSING
        self._farewell = (_code_of(self._goodbye or b""), "proxy" if self._breach else "client")
        if frame:
            self._port.to_server(frame)
        self._set_alarm(now + _GOODBYE)

    def _answer_close(self) -> None:
        """Nobody but us is there to answer the client's Close."""
        payload = self._goodbye or b""
        self._port.to_client(encode_frame(Opcode.CLOSE, payload if self._breach else payload[:2]))
        self._over(_code_of(payload), "proxy" if self._breach else "client")

    def _send_part(self, data: bytes, ends: bool, now: float) -> None:
        self._port.to_server(data)
        if ends:
            self.messages_in += 1
        outbox = self._outbox
        if (self._replay or not ends or outbox.within_message) and outbox.add(data, ends):
            self._pause_client(True)
        if ends and self.phase is Phase.SETTLING:
            self._hold_client(now)

    def _send_held(self, now: float) -> None:
        for first, data, ends in self._outbox.take_held():
            if first & 0x08:
                self._client_closing(data, now)
            else:
                self._send_part(data, ends, now)

    def _confirm_more(self, now: float) -> None:
        """Send a barrier if one is due, and see to it that what waits for its time is looked at again."""
        if self.phase not in OPEN:
            return
        payload, due = self._outbox.next_barrier(now, self._client_paused, self._port.may_barrier)
        if payload:
            self._port.to_server(encode_frame(Opcode.PING, payload, self._mask()))
        else:
            self._set_alarm(min(self._alarm, due))

    def _forget(self, now: float) -> None:
        """Let go of what was confirmed long enough ago, and of the client, if there is room again."""
        due = self._outbox.forget(now)
        self._set_alarm(min(self._alarm, due))
        if self._client_paused and self._outbox.has_room:
            self._pause_client(False)

    def _pause_client(self, paused: bool) -> None:
        if paused is not self._client_paused:
            self._client_paused = paused
            self._port.read_client(not paused)

    # -- the instance --------------------------------------------------------------------------------------

    def server_data(self, data: bytes, now: float) -> None:
        """Bytes from the instance."""
        broken = False
        try:
            cuts = self._server.feed(data) if self._hears else []
        except FrameError as error:
            cuts, broken = error.before, True
        for cut in cuts:
            if self._hears:
                self._from_server(cut, now)
        if broken and self._hears:
            self.server_lost(now)
        elif self.phase is Phase.QUIETING:
            self._set_alarm(max(now, min(now + self._rules.quiet, self._leave_by)))
        elif self.phase is Phase.CLOSING:
            self._set_alarm(max(now, min(now + _GOODBYE, self._leave_by)))

    @property
    def _hears(self) -> bool:
        """Whether what the instance says still matters."""
        return self.phase not in (Phase.OVER, Phase.DIALING, Phase.ENDING)

    def _from_server(self, cut: Cut, now: float) -> None:
        first, data, ends = cut
        if first & 0x08:
            self._server_control(first & 0x0F, data, now)
            return
        self._port.to_client(data)
        self._server_open = not ends
        if ends:
            self.messages_out += 1
            if self._ahead is not None:
                self._adopt(self._ahead, now)

    def _server_control(self, opcode: int, frame: bytes, now: float) -> None:
        payload = payload_of(frame)
        if opcode == Opcode.CLOSE:
            self._server_close(frame, payload, now)
        elif opcode == Opcode.PING and (checkpoint := checkpoint_in(payload)) is not None:
            if self.phase in ATTACHED:
                self._port.to_server(encode_frame(Opcode.PONG, payload, self._mask()))
            if checkpoint.ahead:
                self._ahead = checkpoint
            else:
                self._adopt(checkpoint, now)
        elif opcode == Opcode.PONG and payload in self._pings:
            self._pings.remove(payload)
            self._port.to_client(frame)
        elif opcode == Opcode.PONG and payload.startswith(BARRIER):
            if self._outbox.confirm(payload, now) and self.phase in OPEN:
                self._forget(now)
                self._confirm_more(now)
        elif opcode != Opcode.PONG or payload != PING:
            self._port.to_client(frame)

    def _adopt(self, checkpoint: Checkpoint, now: float) -> None:
        """What the instance has said of itself holds now."""
        self._ahead = None
        self.token = checkpoint.token
        if checkpoint.read is not None:
            self._outbox.dealt_with(checkpoint.read)
            if self.phase in OPEN:
                self._forget(now)

    def _server_close(self, frame: bytes, payload: bytes, now: float) -> None:
        code = _code_of(payload)
        if self.phase is Phase.CLIENT_CLOSING and self._breach:
            self._answer_close()
        elif self.phase is Phase.CLIENT_CLOSING:
            self._port.to_client(frame)
            self._over(self._farewell[0], "client")
        elif self.phase is Phase.CLOSING:
            self.token = payload[2:] or self.token
            self._outbox.close_answered()
            self._dial(now)
        elif code in _LEAVING:
            self.token = payload[2:] or self.token
            self._port.to_server(encode_close(code, "", self._mask()))
            self._outbox.forget_read()
            self._dial(now)
        else:
            self._port.to_client(frame)
            self._farewell = (code, "upstream")
            self.phase = Phase.ENDING
            self._pause_client(False)
            self._set_alarm(now + _GOODBYE)

    def server_lost(self, now: float) -> None:
        """The instance's connection has ended without a Close, or says what no WebSocket says."""
        phase = self.phase
        if phase is Phase.CLIENT_CLOSING:
            self._answer_close()
        elif phase is Phase.CLOSING or (self._replay and phase in ATTACHED):
            self._outbox.died()
            self._dial(now)
        elif phase in ATTACHED:
            self.finish(CloseCode.SERVICE_RESTART, "the instance died", now)

    def _dial(self, now: float) -> None:
        self.phase = Phase.DIALING
        self._ahead = None
        why = self._outbox.hopeless()
        if self._server_open:
            why = "the instance left within a message"
        if why:
            self.finish(CloseCode.SERVICE_RESTART, why, now)
            return
        self._server = FrameCutter(masked=False, most=self._rules.whole)
        self._set_alarm(NEVER)
        # Those that nobody has answered and nobody else will.
        while self._pings:
            self._pong(self._pings.popleft())
        self._port.dial(self.token)

    # -- hand-over -----------------------------------------------------------------------------------------

    def leave(self, now: float) -> None:
        """The instance is to be left as soon as that disturbs nobody. Nothing happens while it already is."""
        if self.phase is not Phase.RELAYING:
            return
        if self._outbox.within_message:
            self.phase = Phase.SETTLING
            self._leave_by = now + self._rules.patience
            self._set_alarm(min(self._alarm, self._leave_by))
        else:
            self._hold_client(now)

    def hurry(self, now: float) -> None:
        """The instance is to be left at once: nobody waits for quiet any more."""
        if self.phase not in ATTACHED:
            return
        if self._outbox.too_large:
            self.finish(CloseCode.SERVICE_RESTART, "the time for a message too large to be kept is over", now)
        else:
            self._say_leaving(now)

    def _hold_client(self, now: float) -> None:
        self.phase = Phase.QUIETING
        self._leave_by = now + self._rules.patience
        self._set_alarm(now + min(self._rules.quiet, self._rules.patience))

    def _say_leaving(self, now: float) -> None:
        self.phase = Phase.CLOSING
        self._leave_by = now + _LAST_WORDS
        self._port.to_server(encode_close(CloseCode.GOING_AWAY, "", self._mask()))
        self._set_alarm(now + _GOODBYE)

    def connected(self, now: float) -> None:
        """The next instance has accepted: send it what waits, and go on."""
        self.phase = Phase.RELAYING
        again = self._outbox.again(now)
        if again:
            self._port.to_server(again)
        self._send_held(now)
        if self.phase is Phase.RELAYING:
            self._forget(now)
            self._confirm_more(now)

    def gave_up(self, reason: str, now: float) -> None:
        """No instance could be had."""
        self.finish(CloseCode.SERVICE_RESTART, reason, now)

    def _pong(self, payload: bytes) -> None:
        self._port.to_client(encode_frame(Opcode.PONG, payload))

    def ping(self, side: int) -> bool:
        """Ask the client (0) or the instance (1) whether it is alive; False if it cannot be asked now."""
        if side:
            if self.phase not in ATTACHED:
                return False
            self._port.to_server(encode_frame(Opcode.PING, PING, self._mask()))
        else:
            if self._client_paused or self._goodbye is not None or self.phase not in OPEN | HELD:
                return False
            self._port.to_client(encode_frame(Opcode.PING, PING))
        return True

    # -- ending --------------------------------------------------------------------------------------------

    def finish(self, code: int, reason: str, now: float) -> None:
        """Say Close to the client, and to the instance; end when the client has answered."""
        if self.phase in (Phase.OVER, Phase.ENDING):
            return
        if self.phase in ATTACHED:
            self._port.to_server(encode_close(CloseCode.GOING_AWAY, "", self._mask()))
        self._port.to_client(encode_close(code, reason))
        self.phase = Phase.ENDING
        self._farewell = (int(code), "proxy")
        if self._goodbye is not None:
            self._over(*self._farewell)
            return
        self._pause_client(False)
        self._set_alarm(now + _GOODBYE)

    def client_lost(self, now: float) -> None:
        """The client's connection has ended."""
        if self.phase is Phase.OVER:
            return
        code, side = int(CloseCode.ABNORMAL), "client"
        if self.phase in (Phase.ENDING, Phase.CLIENT_CLOSING):
            code, side = self._farewell
        elif self.phase in ATTACHED:
            self._port.to_server(encode_close(CloseCode.GOING_AWAY, "", self._mask()))
        self._over(code, side)

    def on_alarm(self, now: float) -> None:
        """The time asked for by `Port.alarm` has come."""
        self._alarm = NEVER
        phase = self.phase
        if phase is Phase.SETTLING and now >= self._leave_by and not self._outbox.too_large:
            # What is half said was kept, and will be said anew.
            self._hold_client(now)
        elif phase in OPEN:
            if phase is Phase.SETTLING and now < self._leave_by:
                self._set_alarm(self._leave_by)
            self._forget(now)
            self._confirm_more(now)
        elif phase is Phase.QUIETING:
            self._say_leaving(now)
        elif phase is Phase.CLOSING:
            self._dial(now)
        elif phase is Phase.CLIENT_CLOSING:
            self._answer_close()
        elif phase is Phase.ENDING:
            self._over(*self._farewell)

    def _over(self, code: int, side: str) -> None:
        self.phase = Phase.OVER
        self._outbox = Outbox(self._rules.keeping)  # nobody asks for the old one's messages any more
        self._set_alarm(NEVER)
        self._port.end(code, side)

    def _set_alarm(self, at: float) -> None:
        if at != self._alarm:
            self._alarm = at
            self._port.alarm(at)

    # -- between processes ---------------------------------------------------------------------------------

    def save(self) -> dict[str, Any] | None:
        """Everything it knows, as plain values, for `load` in another process; None while it is moving."""
        if self.phase is not Phase.RELAYING:
            return None
        return {name: getattr(self, name) for name in _SAVED} | {
            "pings": list(self._pings),
            "client": self._client.save(),
            "server": self._server.save(),
            "outbox": self._outbox.save(),
            "ahead": self._ahead and (self._ahead.token, self._ahead.read),
        }

    def load(self, saved: dict[str, Any], now: float) -> None:
        """Go on from where `save` was called; both processes read the same machine's clock."""
        for name in _SAVED:
            setattr(self, name, saved[name])
        self._pings.extend(saved["pings"])
        self._client.load(saved["client"])
        self._server.load(saved["server"])
        self._outbox.load(saved["outbox"])
        # A process of an earlier version knows nothing of it.
        if ahead := saved.get("ahead"):
            self._ahead = Checkpoint(ahead[0], ahead[1], ahead=True)
        if self._client_paused:
            self._port.read_client(False)
        if self._replay:
            self._set_alarm(now)


_SAVED = ("messages_in", "messages_out", "token", "_server_open", "_client_paused")


def _code_of(payload: bytes) -> int:
    """The status code that a Close's payload begins with; 1005 for none."""
    return int.from_bytes(payload[:2], "big") or int(CloseCode.NO_STATUS)
