"""Deadlines of connections: one coarse wheel per loop instead of a timer per request.

Moving a deadline later, which every request does, is one attribute; the wheel looks again when the old slot
comes round. Owner of the slots: the wheel. Owner of `deadline`: the connection.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

NEVER = math.inf


class Timed(Protocol):
    """Something with a deadline. `due` belongs to the wheel; start it with `NEVER`."""

    deadline: float
    due: float

    def on_deadline(self) -> None:
        """Called once the deadline has passed, from the loop. May set a new one."""
        ...


class Wheel:
    """Calls `on_deadline` of what is past its deadline, at most one `tick` (seconds) late."""

    def __init__(self, clock: Callable[[], float], tick: float = 0.1) -> None:
        self._clock = clock
        self._tick = tick
        self._slots: dict[int, set[Timed]] = {}
        self._reached = int(clock() / tick)
        self._handle: asyncio.TimerHandle | None = None

    def set(self, timed: Timed, deadline: float) -> None:
        """Give it a deadline, in the clock's seconds; `NEVER` for none."""
        timed.deadline = deadline
        if deadline < timed.due:
            self._place(timed, deadline)

    def cancel(self, timed: Timed) -> None:
        """Forget it, as when its connection is closed."""
        timed.deadline = NEVER
        if timed.due != NEVER:
            self._unplace(timed)

    def _place(self, timed: Timed, deadline: float) -> None:
        if timed.due != NEVER:
            self._unplace(timed)
        slot = max(int(deadline / self._tick), self._reached) + 1
        timed.due = slot * self._tick
        self._slots.setdefault(slot, set()).add(timed)

    def _unplace(self, timed: Timed) -> None:
        slot = round(timed.due / self._tick)
        members = self._slots.get(slot)
        if members is not None:
            members.discard(timed)
            if not members:
                del self._slots[slot]
        timed.due = NEVER

    def advance(self) -> None:
        """Serve every slot that the clock has passed."""
        now = self._clock()
        target = int(now / self._tick)
        if target - self._reached > len(self._slots):
            passed = sorted(slot for slot in self._slots if slot <= target)
        else:
            passed = [slot for slot in range(self._reached + 1, target + 1) if slot in self._slots]
        self._reached = target
        for slot in passed:
            for timed in self._slots.pop(slot, ()):
                if timed.due != slot * self._tick:
                    continue  # cancelled or moved by one that was served just before
                timed.due = NEVER
                if timed.deadline <= now:
                    timed.deadline = NEVER
                    timed.on_deadline()
                elif timed.deadline != NEVER:
                    self._place(timed, timed.deadline)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tick by itself on `loop` until `stop`."""

        def tick() -> None:
            self._handle = loop.call_later(self._tick, tick)
            self.advance()

        self._handle = loop.call_later(self._tick, tick)

    def stop(self) -> None:
        """End ticking."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
