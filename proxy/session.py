"""Live tunnels by endpoint. Synchronous; the only owner of who is connected through whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Protocol

from proxy.endpoint import Endpoint


class Tunnel(Protocol):
    """What the others need of a live tunnel."""

    endpoint: Endpoint

    @property
    def pinned(self) -> bool:
        """It cannot change its process: a connection of it is TLS, whose keys are in this one's memory."""

    def close(self, code: int, reason: str) -> None:
        """Say goodbye at the next message boundary, then end."""

    def leave(self, *, dead: bool) -> None:
        """Its instance is leaving, or is dead: move on if this tunnel can, else close with 1012."""

    def expel(self) -> None:
        """The time in which its instance may leave is over: do at once what `leave` does with care."""

    def save(self) -> tuple[dict[str, Any], tuple[asyncio.Transport, asyncio.Transport]] | None:
        """What another process needs to go on with it, and both connections; None if it cannot now."""

    def book(self) -> None:
        """Credit its endpoint with what has passed since the last time."""

    def let_go(self) -> None:
        """Another process has it now."""

    def abort(self) -> None:
        """Cut both connections now."""

    def describe(self) -> dict[str, object]:
        """Who is connected, since when, and what has passed: for the admin API."""


class Sessions:
    """All tunnels of one process."""

    def __init__(self) -> None:
        self._by_endpoint: dict[Endpoint, set[Tunnel]] = {}
        self._between: set[Tunnel] = set()
        """Those that have left one endpoint and not reached another."""

    def add(self, tunnel: Tunnel) -> None:
        """A tunnel is open from now on, or has reached another endpoint."""
        endpoint = tunnel.endpoint
        self._between.discard(tunnel)
        self._by_endpoint.setdefault(endpoint, set()).add(tunnel)
        endpoint.tunnels += 1
        endpoint.tunnels_total += 1

    def part(self, tunnel: Tunnel) -> None:
        """A tunnel has left its endpoint for another."""
        self.remove(tunnel)
        self._between.add(tunnel)

    def remove(self, tunnel: Tunnel) -> None:
        """A tunnel has ended."""
        endpoint = tunnel.endpoint
        self._between.discard(tunnel)
        tunnels = self._by_endpoint.get(endpoint)
        if tunnels is None or tunnel not in tunnels:
            return
        tunnels.remove(tunnel)
        endpoint.tunnels -= 1
        if not tunnels:
            del self._by_endpoint[endpoint]

    def of(self, endpoint: Endpoint) -> tuple[Tunnel, ...]:
        """The tunnels of one endpoint, as they are now."""
        return tuple(self._by_endpoint.get(endpoint, ()))

    def book(self) -> None:
        """Bring the figures of every endpoint up to date: called before they are read, not on the way."""
        for tunnels in self._by_endpoint.values():
            for tunnel in tunnels:
                tunnel.book()

    def __iter__(self) -> Iterator[Tunnel]:
        for tunnels in tuple(self._by_endpoint.values()):
            yield from tuple(tunnels)
        yield from tuple(self._between)

    def __len__(self) -> int:
        return sum(map(len, self._by_endpoint.values())) + len(self._between)
