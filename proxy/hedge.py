"""A second try beside a first that takes long: whichever instance answers first, answers.

Only for requests that may be repeated and have no body. Until the second instance has said something this is
a small exchange of its own; with its first byte the connection is given to the exchange that it is of.
"""

from __future__ import annotations

from typing import Protocol

from proxy.endpoint import Endpoint, Lease
from proxy.errors import Reason
from proxy.plane import Plane
from proxy.table import ServiceState
from proxy.timers import NEVER
from proxy.upstream import Upstream, connect, take_idle


class Hedged(Protocol):
    """The exchange whose first try takes long."""

    def pick_second(self) -> Endpoint | None:
        """An instance other than those that were tried; None when there is none."""

    def take_over(self, upstream: Upstream, lease: Lease, data: bytes) -> None:
        """The second instance has answered first; `data` is what it has said so far."""


class Hedge:
    """One second try, made `service.config.retry.hedge` seconds from now unless it is cancelled before."""

    __slots__ = ("_exchange", "_lease", "_plane", "_request", "_service", "_timer", "_upstream")
    held = more = False

    def __init__(self, plane: Plane, service: ServiceState, exchange: Hedged, request: bytes) -> None:
        self._plane = plane
        self._service = service
        self._exchange: Hedged | None = exchange
        self._request = request
        self._lease: Lease | None = None
        self._upstream: Upstream | None = None
        self._timer = plane.loop.call_later(service.config.retry.hedge, self._begin)

    @property
    def waits(self) -> bool:
        """Whether the second instance has been asked, so that its answer may still come."""
        return self._upstream is not None

    def cancel(self) -> None:
        """The first try has answered, or the client has gone."""
        self._exchange = None
        self._timer.cancel()
        self._end(failed=False)

    def _begin(self) -> None:
        exchange, plane = self._exchange, self._plane
        if exchange is None or not self._service.budget.take(plane.clock()):
            return
        endpoint = exchange.pick_second()
        if endpoint is None:
            return
        plane.counters.hedges += 1
        self._lease = endpoint.enter(plane.clock())
        upstream = take_idle(endpoint)
        if upstream is not None:
            self._send(upstream)
        else:
            plane.spawn(plane.loop.create_task(self._connect(endpoint)))

    async def _connect(self, endpoint: Endpoint) -> None:
        try:
            upstream = await connect(self._plane, endpoint, self._service.config.timeout.connect)
        except OSError:
            self._end(failed=True)
            return
        if self._exchange is None or not endpoint.available:
            upstream.release()
            self._end(failed=False)
        else:
            self._send(upstream)

    def _send(self, upstream: Upstream) -> None:
        self._upstream = upstream
        upstream.exchange = self
        upstream.deadline = NEVER  # the exchange's own is the one that counts
        upstream.transport.write(self._request)

    def give(self, data: bytes = b"") -> None:
        """Hand the connection over to the exchange, with what came on it."""
        upstream, lease, exchange = self._upstream, self._lease, self._exchange
        assert upstream is not None and lease is not None and exchange is not None
        self._upstream = self._lease = self._exchange = None
        exchange.take_over(upstream, lease, data)

    def response_data(self, data: bytes) -> None:
        """See `proxy.upstream.Carried`."""
        self.give(data)

    def response_timed_out(self) -> None:
        """It has no deadline of its own."""

    def upstream_lost(self, exc: Exception | None) -> None:
        """See `proxy.upstream.Carried`: the first try goes on alone."""
        self._upstream = None
        self._end(failed=True)

    def cut_short(self, reason: Reason) -> None:
        """See `proxy.upstream.Carried`: likewise."""
        self._end(failed=False)

    def hold_request(self) -> None:
        """It is written already."""

    def unhold_request(self) -> None:
        """It is written already."""

    def _end(self, *, failed: bool) -> None:
        upstream, self._upstream = self._upstream, None
        lease, self._lease = self._lease, None
        if upstream is not None:
            upstream.exchange = None
            upstream.abort()
        if lease is not None and (endpoint := lease.endpoint) is not None:
            now = self._plane.clock()
            lease.exit(now, failed=failed)
            if failed:
                self._plane.table.failed(endpoint, now)
