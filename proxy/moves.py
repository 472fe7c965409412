"""How many WebSockets move at once, and how many barriers are sent: what all tunnels of a process share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

_BARRIERS_PER_SECOND = 500.0
"""Barriers of the whole process: a ping and its pong cost some 20 µs, so this is at most 1 % of a core."""
_RESERVED = 0.5
"""Share of what has been saved up that is left to clients who have to wait for their barrier."""


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
        """Whether it still has something to begin."""

    def begin(self) -> None:
        """Its turn has come: leave the instance, or, if there is none any more, connect to the next."""


class Moves:
    """How many tunnels of each service are moving, and the barriers of all of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._moving: dict[Mover, str] = {}
        """The tunnels whose turn it is, and the service that each counts towards."""
        self._active: dict[str, int] = {}
        """How many those are, by service."""
        self._waiting: dict[str, deque[Mover]] = {}
        self._barriers = _BARRIERS_PER_SECOND
        self._filled = clock()

    def active(self, service: str) -> int:
        """How many tunnels of a service are moving now."""
        return self._active.get(service, 0)

    def begin(self, tunnel: Mover) -> None:
        """Let a tunnel begin now, or when its turn comes; one whose turn it is goes on with it."""
        name = tunnel.service
        if tunnel in self._moving:
            tunnel.begin()
        elif self.active(name) < tunnel.concurrency:
            self._start(tunnel, name)
        else:
            self._waiting.setdefault(name, deque()).append(tunnel)

    def _start(self, tunnel: Mover, name: str) -> None:
        self._moving[tunnel] = name
        self._active[name] = self.active(name) + 1
        tunnel.begin()

    def done(self, tunnel: Mover) -> None:
        """A tunnel has arrived, or ended: the next ones may begin. Nothing, if it was not its turn."""
        name = self._moving.pop(tunnel, None)
        if name is None:
            return
        self._active[name] -= 1
        waiting = self._waiting.get(name) or deque()
        while waiting and self.active(name) < waiting[0].concurrency:
            following = waiting.popleft()
            if following.wants_to_move and following not in self._moving:
                self._start(following, name)
        if not waiting:
            self._waiting.pop(name, None)
        if not self._active[name]:
            del self._active[name]

    def may_barrier(self, urgent: bool) -> bool:
        """Take one of the process's barriers, if there is one left for now."""
        now = self._clock()
        self._barriers = min(
            _BARRIERS_PER_SECOND, self._barriers + (now - self._filled) * _BARRIERS_PER_SECOND
        )
        self._filled = now
        if self._barriers < 1.0 + (0.0 if urgent else _BARRIERS_PER_SECOND * _RESERVED):
            return False
        self._barriers -= 1.0
        return True
