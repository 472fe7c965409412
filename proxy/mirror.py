"""Copies of requests for another version, whose answers nobody sees.

A copy never delays or fails the request that it is of: it is sent after it, on connections that take part in
the same pools, and is dropped when too many are under way.
"""

from __future__ import annotations

from proxy.body import BodyError, Decoder, make_decoder
from proxy.endpoint import Endpoint, Lease
from proxy.errors import ProxyError, Reason
from proxy.head import NO_BODY, UNTIL_CLOSE, ResponseHead, parse_response
from proxy.plane import RESPONSE_LIMITS, Plane
from proxy.table import RouteState
from proxy.upstream import Upstream, connect, take_idle

_MOST = 64
"""Copies under way at once in one process: a version that hangs costs no more than their memory."""


def mirror(plane: Plane, route: RouteState, method: bytes, request: bytes) -> None:
    """Send a copy of `request` (head and whole body, as for an instance) where the route's mirror leads."""
    rules = route.compiled.mirror
    if rules is None or plane.copies >= _MOST or plane.random.random() >= rules.share:
        return
    now = plane.clock()
    endpoint = route.service.pool.subset(rules.to).pick(b"", now, plane.random)
    if endpoint is None:
        return
    copy = _Copy(plane, route, endpoint.enter(now), method, request)
    upstream = take_idle(endpoint)
    if upstream is not None:
        copy.send(upstream)
    else:
        plane.spawn(plane.loop.create_task(copy.connect(endpoint)))


class _Copy:
    """One copy: an exchange without a client (see `proxy.upstream.Carried`)."""

    __slots__ = (
        "_decoder",
        "_head",
        "_lease",
        "_method",
        "_partial",
        "_plane",
        "_request",
        "_route",
        "_upstream",
        "more",
    )
    held = False

    def __init__(self, plane: Plane, route: RouteState, lease: Lease, method: bytes, request: bytes) -> None:
        self._plane = plane
        self._route = route
        self._lease = lease
        self._method = method
        self._request = request
        self._upstream: Upstream | None = None
        self._partial = b""
        self._head: ResponseHead | None = None
        self._decoder: Decoder | None = None
        self.more = False
        """See `proxy.upstream.Carried`."""
        plane.copies += 1

    async def connect(self, endpoint: Endpoint) -> None:
        """Make a connection and send the copy on it."""
        try:
            upstream = await connect(self._plane, endpoint, self._route.service.config.timeout.connect)
        except OSError:
            self._end(keep=False, failed=True)
            return
        self.send(upstream)

    def send(self, upstream: Upstream) -> None:
        """Write the copy."""
        self._upstream = upstream
        upstream.exchange = self
        upstream.transport.write(self._request)
        self._plane.wheel.set(upstream, self._plane.clock() + self._route.service.config.timeout.response)

    def response_data(self, data: bytes) -> None:
        """Bytes of the answer: only its end is of interest."""
        try:
            while self._decoder is None:
                parsed = parse_response(self._partial + data, self._method, RESPONSE_LIMITS)
                if parsed is None:
                    self._partial += data
                    return
                self._head, end = parsed
                data, self._partial = (self._partial + data)[end:], b""
                if self._head.status >= 200:
                    self._decoder = make_decoder(self._head.body)
                elif self._head.status == 101:
                    self._end(keep=False, failed=True)
                    return
            self._decoder.feed(data)
            self.more = self._decoder.more
        except (ProxyError, BodyError):
            self._end(keep=False, failed=True)
            return
        if self._decoder.done or (self._head is not None and self._head.body == NO_BODY):
            assert self._head is not None
            self._end(keep=self._head.keep_alive and not self._decoder.rest, failed=False)

    def response_timed_out(self) -> None:
        """The version that is tried out is slow: let go of it."""
        self._end(keep=False, failed=True)

    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection has ended, which ends an answer without a length."""
        self._upstream = None
        ended = self._head is not None and self._head.body == UNTIL_CLOSE and exc is None
        self._end(keep=False, failed=not ended)

    def cut_short(self, reason: Reason) -> None:
        """The instance's drain deadline is over."""
        self._end(keep=False, failed=False)

    def hold_request(self) -> None:
        """The copy is written already."""

    def unhold_request(self) -> None:
        """The copy is written already."""

    def _end(self, *, keep: bool, failed: bool) -> None:
        plane, upstream = self._plane, self._upstream
        self._upstream = None
        plane.copies -= 1
        self._lease.exit(plane.clock(), failed=failed)
        if upstream is not None:
            upstream.exchange = None
            upstream.release() if keep else upstream.abort()
