"""Live tunnels by endpoint. Synchronous; the only owner of who is connected through whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Protocol

from proxy.endpoint import Endpoint


class Tunnel(Protocol):
    """What the others need of a live tunnel."""

    endpoint: Endpoint

    def close(self, code: int, reason: str) -> None:
        """Say goodbye at the next message boundary, then end."""

    def leave(self, *, dead: bool) -> None:
        """Its instance is leaving, or is dead: move on if this tunnel can, else close with 1012."""

    def save(self) -> tuple[dict[str, Any], tuple[asyncio.Transport, asyncio.Transport]] | None:
        """What another process needs to go on with it, and both connections; None if it cannot now."""

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

    def add(self, tunnel: Tunnel) -> None:
        """A tunnel is open from now on."""
        endpoint = tunnel.endpoint
        self._by_endpoint.setdefault(endpoint, set()).add(tunnel)
        endpoint.tunnels += 1
        endpoint.tunnels_total += 1

    def remove(self, tunnel: Tunnel) -> None:
        """A tunnel has ended."""
        endpoint = tunnel.endpoint
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

    def __iter__(self) -> Iterator[Tunnel]:
        for tunnels in tuple(self._by_endpoint.values()):
            yield from tuple(tunnels)

    def __len__(self) -> int:
        return sum(map(len, self._by_endpoint.values()))
