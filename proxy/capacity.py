"""How much of a service's work may be under way at once, and who waits for a place.

Synchronous and without I/O: what frees a place returns whose turn it is, and the caller tells them.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from config import schema
from proxy.gradient import Gradient


class Waiter(Protocol):
    """Somebody in the queue."""

    def called(self) -> None:
        """A place has become free, and is the waiter's."""


class Entry(Enum):
    """What somebody who wants a place is told."""

    ADMITTED = "admitted"
    QUEUED = "queued"
    REFUSED = "refused"


class Capacity:
    """The places of one service. Owner of the counts: the admissions that enter and leave."""

    __slots__ = ("_queue", "config", "gradient", "inflight", "shaking_hands")

    def __init__(self, config: schema.Capacity) -> None:
        self.config = config
        self.gradient = Gradient(config.adaptive) if config.adaptive is not None else None
        self.inflight = 0
        """Requests that have a place, handshakes included."""
        self.shaking_hands = 0
        """Of them, those that would become tunnels."""
        self._queue: dict[Waiter, bool] = {}
        """In order; whether each is a handshake."""

    @property
    def unlimited(self) -> bool:
        """Whether everybody has a place."""
        return not (self.config.tunnels or self.config.connections or self.config.requests or self.gradient)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    @property
    def limit(self) -> int:
        """Requests that may be under way now; 0: no limit."""
        limit = self.config.requests
        if self.gradient is not None:
            return min(limit, self.gradient.limit) if limit else self.gradient.limit
        return limit

    def reconfigure(self, config: schema.Capacity) -> None:
        """Other limits from now on. Who has a place keeps it, who waits goes on waiting."""
        if config.adaptive != self.config.adaptive:
            self.gradient = Gradient(config.adaptive) if config.adaptive is not None else None
        self.config = config

    def enter(self, waiter: Waiter, tunnels: int, *, handshake: bool) -> Entry:
        """Ask for a place. `tunnels`: how many there are of the service. Whoever is queued is told later."""
        if handshake:
            most = self.config.tunnels
            if most and tunnels + self.shaking_hands >= most:
                return Entry.REFUSED
        if not self._queue and self._has_room(tunnels):
            self.inflight += 1
            self.shaking_hands += handshake
            return Entry.ADMITTED
        if len(self._queue) >= self.config.queue:
            return Entry.REFUSED
        self._queue[waiter] = handshake
        return Entry.QUEUED

    def leave(self, tunnels: int, *, handshake: bool) -> list[Waiter]:
        """Give a place back. Returns whose turn it is; they have their places already."""
        self.inflight -= 1
        self.shaking_hands -= handshake
        return self.call_up(tunnels)

    def call_up(self, tunnels: int) -> list[Waiter]:
        """Whose turn it is; they have their places from now on."""
        called = []
        while self._queue and self._has_room(tunnels):
            waiter = next(iter(self._queue))
            self.shaking_hands += self._queue.pop(waiter)
            self.inflight += 1
            called.append(waiter)
        return called

    def step_out(self, waiter: Waiter) -> bool:
        """Leave the queue without a place. False when the waiter was not in it."""
        return self._queue.pop(waiter, None) is not None

    def _has_room(self, tunnels: int) -> bool:
        limit, connections = self.limit, self.config.connections
        if limit and self.inflight >= limit:
            return False
        return not connections or self.inflight + tunnels < connections
