"""Connections to instances, and the pool of idle ones that each endpoint keeps.

A connection carries one exchange at a time. It knows nothing of HTTP beyond that: what arrives goes to its
exchange, and data or an end that comes while it is idle closes it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, cast

from proxy.descriptors import EXHAUSTED
from proxy.endpoint import Endpoint
from proxy.errors import Reason
from proxy.plane import FULL_READ, Plane
from proxy.timers import NEVER


class Carried(Protocol):
    """The exchange on a connection."""

    more: bool
    """It has not looked at all that it was given yet: to be given nothing, in another turn of the loop."""
    held: bool
    """The client reads slowly: the instance is not to be read."""

    def response_data(self, data: bytes) -> None:
        """Bytes from the instance."""

    def response_timed_out(self) -> None:
        """The instance did not begin its answer in time, or does not go on with it."""

    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection is gone; `exc` is None when the instance closed it in order."""

    def hold_request(self) -> None:
        """The instance reads slowly."""

    def unhold_request(self) -> None:
        """It has caught up."""

    def cut_short(self, reason: Reason) -> None:
        """End now, with this reason."""


class Upstream(asyncio.Protocol):
    """One connection to one instance."""

    __slots__ = ("_plane", "deadline", "due", "endpoint", "exchange", "reused", "transport")

    transport: asyncio.Transport

    def __init__(self, plane: Plane, endpoint: Endpoint) -> None:
        self._plane = plane
        self.endpoint = endpoint
        self.exchange: Carried | None = None
        self.reused = False
        """Whether it has carried an exchange before: an instance may be closing it this very moment."""
        self.deadline = self.due = NEVER

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # uvloop's transports are not asyncio.Transport by inheritance.
        self.transport = cast(asyncio.Transport, transport)
        self.endpoint.connections.add(self)
        if not self.endpoint.instance.path:
            keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        exchange = self.exchange
        if exchange is not None:
            exchange.response_data(data)
            if len(data) >= FULL_READ or exchange.more:
                self._yield()
        else:
            self.abort()

    def _yield(self) -> None:
        """Let others have their turn before more is read."""
        if not self.transport.is_closing():
            self.transport.pause_reading()
            self._plane.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        exchange, transport = self.exchange, self.transport
        if exchange is not None and exchange.more:
            exchange.response_data(b"")
            if exchange.more:
                self._yield()
                return
        exchange = self.exchange
        # As a tunnel's, the connection is read when its tunnel says so.
        if transport.get_protocol() is self and not (transport.is_closing() or (exchange and exchange.held)):
            transport.resume_reading()

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`. An instance that has finished sending is of no further use."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.forget()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.upstream_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: the instance reads slowly, so the client has to wait."""
        if self.exchange is not None:
            self.exchange.hold_request()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        if self.exchange is not None:
            self.exchange.unhold_request()

    def on_deadline(self) -> None:
        """The instance did not answer in time, or nobody needed the connection for a while."""
        if self.exchange is not None:
            self.exchange.response_timed_out()
        else:
            self.close()

    def release(self) -> None:
        """Back into the pool, or closed when its endpoint must not be given anything more."""
        self.exchange = None
        endpoint = self.endpoint
        service = self._plane.table.services.get(endpoint.instance.service)
        if (
            not endpoint.available
            or service is None
            or len(endpoint.idle) >= service.config.pool.idle
            or self.transport.is_closing()
        ):
            self.close()
            return
        self.reused = True
        endpoint.idle.append(self)
        self._plane.wheel.set(self, self._plane.clock() + service.config.timeout.idle)

    def forget(self) -> None:
        """Leave the endpoint's sets and the timers; the transport may go on under another protocol."""
        endpoint = self.endpoint
        endpoint.connections.discard(self)
        if self in endpoint.idle:
            endpoint.idle.remove(self)
        self._plane.wheel.cancel(self)

    def close(self) -> None:
        """Close; what was not sent yet belongs to an exchange that is over, and is of no use to anybody."""
        self.exchange = None
        self.forget()
        self.transport.abort()

    def abort(self) -> None:
        """Close at once. An exchange that it carries is told."""
        self.transport.abort()


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out within two minutes that a silent peer is gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def take_idle(endpoint: Endpoint) -> Upstream | None:
    """The most recently used idle connection: the one least likely to be about to be closed."""
    idle = endpoint.idle
    while idle:
        upstream = idle.pop()
        assert isinstance(upstream, Upstream)
        if not upstream.transport.is_closing():
            return upstream
    return None


def close_idle(endpoint: Endpoint) -> None:
    """Close what is pooled; what is busy is closed when it is released."""
    while (upstream := take_idle(endpoint)) is not None:
        upstream.close()


def make_room(endpoints: Iterable[Endpoint], most: int) -> None:
    """Close idle connections of a service until all fit into `most` that its leases need."""
    everybody = list(endpoints)
    excess = sum(e.inflight + len(e.idle) for e in everybody) - most
    while excess > 0 and (richest := max(everybody, key=lambda e: len(e.idle), default=None)) is not None:
        if (upstream := take_idle(richest)) is None:
            return
        upstream.close()
        excess -= 1


def cut_busy(endpoint: Endpoint, reason: Reason) -> int:
    """End the exchanges that are still under way on an endpoint; how many there were."""
    busy = [u for u in tuple(endpoint.connections) if isinstance(u, Upstream) and u.exchange is not None]
    for upstream in busy:
        if upstream.exchange is not None:
            upstream.exchange.cut_short(reason)
    return len(busy)


async def connect(plane: Plane, endpoint: Endpoint, timeout: float) -> Upstream:
    """A new connection. Raises `TimeoutError` after `timeout` seconds, `OSError` when there can be none."""
    counters, clock = plane.counters, plane.clock
    counters.upstream_connects += 1
    instance = endpoint.instance
    try:
        async with asyncio.timeout(timeout):
            if instance.path:
                begun = clock()
                upstream = await _open(plane, endpoint, plane.loop.create_unix_connection, instance.path)
            else:
                addresses = await plane.resolver.resolve(instance.host)
                begun = clock()
                upstream = await _connect_to_one(plane, endpoint, addresses, timeout)
    except OSError:
        counters.upstream_connect_failures += 1
        raise
    except (ValueError, OverflowError) as error:  # a port that is no port
        counters.upstream_connect_failures += 1
        raise OSError(str(error)) from error
    counters.connect_times.observe(clock() - begun)
    return upstream


async def _open(
    plane: Plane, endpoint: Endpoint, make: Callable[..., Coroutine[Any, Any, Any]], *where: str | int
) -> Upstream:
    """A connection; when descriptors have run out, in the place of one that idles."""
    try:
        _, upstream = await make(lambda: Upstream(plane, endpoint), *where)
    except OSError as error:
        if error.errno not in EXHAUSTED:
            raise
        plane.counters.descriptors_exhausted += 1
        close_longest_idle(plane)
        _, upstream = await make(lambda: Upstream(plane, endpoint), *where)
    return cast(Upstream, upstream)


def close_longest_idle(plane: Plane, most: int = 16) -> None:
    """Close some idle connections to instances, those first that were not needed for longest."""
    idle = [
        upstream
        for state in plane.table.services.values()
        for endpoint in state.endpoints.values()
        for upstream in endpoint.idle
        if isinstance(upstream, Upstream)
    ]
    for upstream in sorted(idle, key=lambda upstream: upstream.deadline)[:most]:
        upstream.close()


async def _connect_to_one(
    plane: Plane, endpoint: Endpoint, addresses: Sequence[str], timeout: float
) -> Upstream:
    """To the first address that accepts; one that says nothing leaves time for the others."""
    port, last = endpoint.instance.port, addresses[-1]
    for address in addresses:
        try:
            async with asyncio.timeout(None if address is last else timeout / len(addresses)):
                return await _open(plane, endpoint, plane.loop.create_connection, address, port)
        except OSError:
            if address is last:
                raise
    raise OSError(f"{endpoint.instance.host} has no address")
