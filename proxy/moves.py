"""How many WebSockets move at once, and how many barriers are sent: what all tunnels of a process share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

_BARRIERS_PER_SECOND = 500.0
"""Barriers of the whole process: a ping and its pong cost some 20 µs, so this is at most 1 % of a core."""


class Mover(Protocol):
    """A tunnel that can leave its instance."""

    @property
    def service(self) -> str:
        """Whose limit it counts towards."""

    @property
    def concurrency(self) -> int:
        """That limit."""

    @property
    def wants_to_move(self) -> bool:
        """Whether it is still where it was to leave."""

    def begin(self) -> None:
        """Its turn has come."""


class Moves:
    """How many tunnels of each service are moving, and the barriers of all of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._active: dict[str, int] = {}
        self._waiting: dict[str, deque[Mover]] = {}
        self._barriers = _BARRIERS_PER_SECOND
        self._filled = clock()

    def begin(self, tunnel: Mover) -> None:
        """Let a tunnel leave its instance now, or when its turn comes."""
        name = tunnel.service
        if self._active.get(name, 0) >= tunnel.concurrency:
            self._waiting.setdefault(name, deque()).append(tunnel)
            return
        self._active[name] = self._active.get(name, 0) + 1
        tunnel.begin()

    def done(self, tunnel: Mover) -> None:
        """A tunnel that was let go has arrived, or ended: the next one may go."""
        name = tunnel.service
        self._active[name] -= 1
        waiting = self._waiting.get(name)
        while waiting:
            following = waiting.popleft()
            if following.wants_to_move:
                self.begin(following)
                return

    def may_barrier(self) -> bool:
        """Take one of the process's barriers, if there is one left for now."""
        now = self._clock()
        self._barriers = min(
            _BARRIERS_PER_SECOND, self._barriers + (now - self._filled) * _BARRIERS_PER_SECOND
        )
        self._filled = now
        if self._barriers < 1.0:
            return False
        self._barriers -= 1.0
        return True
