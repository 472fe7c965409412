"""What a client has said and no instance is known to have read: kept, confirmed, and given once more.

Pure: the time is an argument, and what is to be done is what comes back; `proxy.relay` does it. A frame of
the client is *held* while there is no instance that could be given it. A message is *sent* once an instance
was given it, and *confirmed* when the pong to a barrier, which is a ping behind it, says that the instance's
library has read it. Because its application may not have, it is kept for `Keeping.hold` longer, and then
forgotten. An instance that *counts* what it has dealt with (`proxy.checkpoint`) is asked for no pong, and
believed in nothing else: what it has not counted is kept.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.frames import Cut

NEVER = math.inf
BARRIER = b"holdfast-barrier:"
"""Begins the payload of a barrier; their pongs go no further."""
_DEATHS = 5
"""Instances in a row that may die on the same messages before the messages are to blame."""
_HASTE = 0.1
"""Share of `Keeping.pace` between two barriers when the client has to wait for them."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How much of what one client says is kept, and how long. Times in seconds."""

    replay: bool
    """Whether whole messages are kept; one that is half said always is, so that it can begin anew."""
    hold: float
    messages: int
    bytes: int
    """Most bytes of client messages that are kept for replay, or held back during a hand-over."""
    pace: float
    """At least this between two barriers of one tunnel."""


class Outbox:
    """One client's messages, from when they come until nobody can ask for them again."""

    __slots__ = (
        "_barrier_after",
        "_deaths",
        "_held",
        "_held_bytes",
        "_keeping",
        "_message",
        "_number",
        "_read",
        "barrier",
        "counting",
        "kept",
        "sent",
        "too_large",
        "within_message",
    )

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping
        self._held: deque[Cut] = deque()
        """Client frames that wait for the next instance."""
        self._held_bytes = 0
        self.sent: deque[tuple[int, bytes]] = deque()
        """Client messages by number on this connection, sent and not known to have been read; an empty one is
        too large to be kept."""
        self._read: deque[tuple[float, bytes]] = deque()
        """Client messages that a barrier has confirmed, and until when they are kept all the same."""
        self._message = bytearray()
        """Frames of the client message under way, when it comes in several."""
        self.kept = 0
        """Bytes of all those."""
        self.within_message = False
        """Whether what was sent to the instance ends within a message."""
        self.too_large = False
        """The client message under way is larger than what can be kept."""
        self._number = 0
        self.barrier = 0
        """Number of the last message before the barrier that is out; 0: none is."""
        self.counting = False
        """The present instance says itself how many messages it has dealt with."""
        self._barrier_after = 0.0
        self._deaths = 0
        """Instances that died since one has confirmed anything."""

    # -- what comes ----------------------------------------------------------------------------------------

    def hold(self, cut: Cut) -> bool:
        """Keep a frame for the next instance. True: the client is to wait, for want of room."""
        self._held.append(cut)
        self._held_bytes += len(cut[1])
        return self._held_bytes > self._keeping.bytes or len(self._held) > self._keeping.messages

    def take_held(self) -> deque[Cut]:
        """The frames that were held back, in their order; they are not held any more."""
        held, self._held = self._held, deque()
        self._held_bytes = 0
        return held

    def add(self, data: bytes, ends: bool) -> bool:
        """A frame has been sent; does a message end with it? True: the client is to wait, for want of room.

        Without replay this has to be called only for messages of several frames.
        """
        most = self._keeping.bytes
        if ends and not self.within_message:
            whole = data if len(data) <= most else b""
            self.kept += len(whole)
        else:
            self.within_message = not ends
            if not self.too_large:
                self._message += data
                self.kept += len(data)
                if len(self._message) > most:
                    self.kept -= len(self._message)
                    self._message.clear()
                    self.too_large = True
            if not ends:
                return False
            whole = bytes(self._message)
            self._message.clear()
            self.too_large = False
            if not self._keeping.replay:
                self.kept -= len(whole)
                return False
        self._number += 1
        self.sent.append((self._number, whole))
        return self.kept > most or len(self.sent) + len(self._read) > self._keeping.messages

    @property
    def has_room(self) -> bool:
        """Whether a client that waits may go on."""
        keeping = self._keeping
        return self.kept <= keeping.bytes and len(self.sent) + len(self._read) < keeping.messages

    @property
    def owes(self) -> bool:
        """Whether some instance has yet to read, or to be given, what the client has said."""
        return bool(self._held or self.sent or self._read or self.within_message)

    # -- what is confirmed ---------------------------------------------------------------------------------

    def next_barrier(self, now: float, waiting: bool, may: Callable[[bool], bool]) -> tuple[bytes, float]:
        """The payload of the ping to be sent now, or nothing; and when to ask again if nothing else happens.

        `waiting` says whether the client waits for room, `may` whether the process as a whole can afford one,
        given whether it is urgent.
        """
        if self.barrier or self.counting or not self.sent:
            return b"", NEVER
        keeping = self._keeping
        crowded = waiting or self.kept * 2 > keeping.bytes
        early = keeping.pace * (1.0 - _HASTE) if crowded else 0.0
        if now < self._barrier_after - early:
            return b"", self._barrier_after - early
        self._barrier_after = now + keeping.pace
        if may(crowded):
            self.barrier = self._number
            return BARRIER + str(self.barrier).encode(), NEVER
        return b"", self._barrier_after - early

    def confirm(self, pong: bytes, now: float) -> bool:
        """The payload of a barrier has come back; False if it is not the one that is out."""
        number = pong[len(BARRIER) :]
        if self.counting or not self.barrier or not number.isdigit() or int(number) != self.barrier:
            return False
        until = now + self._keeping.hold
        while self.sent and self.sent[0][0] <= self.barrier:
            self._read.append((until, self.sent.popleft()[1]))
        self.barrier = 0
        self._deaths = 0
        return True

    def dealt_with(self, count: int) -> None:
        """The instance says how many messages it has dealt with on the present connection."""
        self.counting = True
        while self.sent and self.sent[0][0] <= count:
            self.kept -= len(self.sent.popleft()[1])
            self._deaths = 0

    def forget(self, now: float) -> float:
        """Let go of what was confirmed long enough ago; when there will be more of that."""
        read = self._read
        while read and read[0][0] <= now:
            self.kept -= len(read.popleft()[1])
        return read[0][0] if read else NEVER

    def forget_read(self) -> None:
        """The instance has closed by itself: what it has read it has dealt with, in its own time."""
        while self._read:
            self.kept -= len(self._read.popleft()[1])

    def close_answered(self) -> None:
        """The instance has answered a Close of ours: it has read everything, or has said how much."""
        if self.counting:
            return
        self.sent.clear()
        self._read.clear()
        self.kept = len(self._message)
        self.barrier = 0

    # -- what is said once more ----------------------------------------------------------------------------

    def died(self) -> None:
        """An instance is gone without having answered a Close."""
        self._deaths += 1

    def hopeless(self) -> str:
        """Why no other instance could go on; empty when one can."""
        if self.too_large:
            return "the instance left within a message that is too large to be kept"
        if not all(message for _, message in (*self.sent, *self._read)):
            return "the instance may not have read a message that is too large to be kept"
        if self._deaths >= _DEATHS and (self.sent or self._read or self.within_message):
            return "one instance after the other died on the same messages"
        return ""

    def again(self, now: float) -> bytes:
        """What another instance has to be sent before anything new: nobody there has confirmed anything."""
        unread = [message for _, message in (*self._read, *self.sent)]
        self._read.clear()
        self.sent = deque(enumerate(unread, 1))
        self._number = len(unread)
        self.barrier = 0
        self.counting = False
        self._barrier_after = now
        return b"".join(unread) + self._message

    # -- between processes ---------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Everything it knows while nothing is held back, as plain values for `load`."""
        return {name: getattr(self, name) for name in _SAVED} | {
            "sent": list(self.sent),
            "read": list(self._read),
            "message": bytes(self._message),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from where `save` was called."""
        for name in _SAVED:
            # A process of an earlier version knows nothing of what has been added since.
            setattr(self, name, saved.get(name, getattr(self, name)))
        self.sent.extend(saved["sent"])
        self._read.extend(saved["read"])
        self._message.extend(saved["message"])


_SAVED = (
    "_barrier_after",
    "_deaths",
    "_number",
    "barrier",
    "counting",
    "kept",
    "too_large",
    "within_message",
)
