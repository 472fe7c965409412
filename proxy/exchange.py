"""One request and its answer: from the parsed head to the last byte, over as many attempts as are allowed.

Nothing here waits: with an idle connection at hand, a request is routed, leased and written in the call that
brought it. A task is made only to connect. Once a byte of the answer has gone to the client nothing is
retried, and an answer that breaks off breaks off at the client too.
"""

from __future__ import annotations

from config.schema import OnDrain
from proxy.admission import Admission, Refused
from proxy.answering import Answering, Client, Phase
from proxy.body import BodyError
from proxy.choose import choose
from proxy.copying import PlainTunnel
from proxy.dialing import chosen_protocol
from proxy.endpoint import Endpoint, Lease
from proxy.errors import ProxyError, Reason, error_response
from proxy.handshake import PROTOCOL, check_answer, check_request
from proxy.head import NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead, parse_response
from proxy.headers import forward_request, forward_response, prepare_to_move
from proxy.hedge import Hedge
from proxy.mirror import mirror
from proxy.moving import MovingTunnel
from proxy.plane import RESPONSE_LIMITS, Plane
from proxy.request_body import RequestBody
from proxy.retry import IDEMPOTENT, Failure, may_retry
from proxy.route import SEVERAL_PATHS, CompiledRoute
from proxy.table import RouteState, ServiceState
from proxy.timers import NEVER
from proxy.upstream import Upstream, close_idle, connect, make_room, take_idle

# Members as globals: looking one up on its class costs ten times as much, and these are on the hot path.
_QUEUED, _CONNECTING, _WAITING, _ANSWERING, _OVER = Phase


class Exchange(Answering):
    """One request and its answer. `address` is the client's, as far as it can be believed."""

    __slots__ = ("_answer_by", "_partial", "_trace", "_tried", "request_more")

    def __init__(self, plane: Plane, downstream: Client, head: RequestHead, address: str) -> None:
        self._plane = plane
        self.downstream = downstream
        self._head = head
        self._address = address
        self._started = plane.clock()
        self._phase = _WAITING
        self._route = None
        self._lease = None
        self._admission = None
        self._hedge = None
        self._answer_by = NEVER
        """When all tries together have taken too long; only where one try has a limit of its own."""
        self._last = None
        self._upstream = None
        self._tried: list[Endpoint] = []
        self._attempts = 0
        self._cookie = b""
        trusted = downstream.peer.trusted
        self._request_id = head.request_id if head.request_id and trusted else plane.request_id()
        self._trace = b"" if head.trace else plane.traceparent()
        self.request_done = True
        self._body = None
        self._committed = False
        self._rest = b""
        self._partial = b""
        """The beginning of a response head."""
        self._response = None
        self._answer = None
        self._chunked_out = False
        self._keep = False
        self.held = False
        self.more = False
        self.request_more = False
        """There is more of the request's body to be looked at: with `request_data` and nothing, in another
        turn of the loop."""
        self._head_at = -1.0
        self._bytes_out = 0

    # -- the request ---------------------------------------------------------------------------------------

    def begin(self, rest: bytes) -> None:
        """Route the request and send it on; `rest` is what has come behind its head."""
        plane, head = self._plane, self._head
        plane.counters.requests_total += 1
        if head.body != NO_BODY:
            self._body = RequestBody(head.body)
            self.request_done = False
            if rest or not head.body:
                try:
                    self._take_body(rest)
                except BodyError as error:
                    self._fail(ProxyError(Reason.BAD_REQUEST, str(error)))
                    return
        else:
            self._rest = rest
        compiled = plane.table.router.match(head)
        if compiled is None:
            self._fail(ProxyError(Reason.NO_ROUTE))
            return
        route = self._route = plane.table.routes[compiled.index]
        if head.readings or head.upgrade:
            try:
                self._check(compiled)
            except ProxyError as error:
                self._fail(error)
                return
        if (route.limiters or route.service.limited) and not self._admit(route):
            return
        route.service.budget.request(self._started)
        self._attempt(self._started)

    def _check(self, compiled: CompiledRoute) -> None:
        """What few requests need. Raises `ProxyError`."""
        if self._head.readings and not self._plane.table.router.agrees(self._head, compiled):
            raise ProxyError(Reason.BAD_REQUEST, SEVERAL_PATHS)
        if self._head.upgrade:
            check_request(self._head)

    def _admit(self, route: RouteState) -> bool:
        """Whether the limits let the request go on at once; if not, it waits or is answered."""
        admission = self._admission = Admission(self._plane, route, self._head, self._go_on, self._refuse)
        try:
            if admission.enter(route, self._head, self._address.encode(), self._started):
                return True
        except Refused as error:
            self._refuse(error)
            return False
        self._phase = _QUEUED
        if not self.request_done:
            self.downstream.hold()  # else it is read, so that its end is seen
        return False

    def _go_on(self) -> None:
        """Its turn has come."""
        route = self._route
        assert route is not None
        self._phase = _WAITING
        if not self.request_done:
            self.downstream.unhold()
        route.service.budget.request(self._started)
        self._attempt(self._plane.clock())

    def _refuse(self, error: Refused) -> None:
        """It has no turn, or has waited in vain."""
        if self._phase is _QUEUED and not self.request_done:
            self.downstream.unhold()
        self._fail(error, retry_after=error.retry_after)

    def _attempt(self, now: float, error: ProxyError | None = None) -> None:
        """Choose an endpoint and send the request there. `error` is why the last attempt failed."""
        plane, route = self._plane, self._route
        assert route is not None
        peer = self.downstream.peer
        endpoint, self._cookie = choose(
            route,
            self._head,
            self._address.encode() if peer.trusted else peer.key,
            peer.scheme == "https",
            now,
            plane.random,
            self._tried,
        )
        if endpoint is None:
            nobody = ProxyError(Reason.NO_HEALTHY_INSTANCE, f"no instance of {route.service.name} is ready")
            self._fail(error or nobody)
            return
        self._attempts += 1
        self._lease = endpoint.enter(now)
        upstream = take_idle(endpoint)
        if upstream is not None:
            self._send(upstream)
            return
        if connections := route.service.capacity.config.connections:
            make_room(route.service.endpoints.values(), connections)
        self._phase = _CONNECTING
        self.downstream.hold()
        plane.spawn(plane.loop.create_task(self._connect(endpoint, route.service.config.timeout.connect)))

    async def _connect(self, endpoint: Endpoint, timeout: float) -> None:
        try:
            upstream = await connect(self._plane, endpoint, timeout)
        except OSError as error:
            if self._phase is _CONNECTING:
                self._connect_failed(endpoint, error)
            return
        if self._phase is not _CONNECTING:
            upstream.release()  # the client has gone meanwhile; somebody else may need it
            return
        self.downstream.unhold()
        if not endpoint.available:
            # It left while we were connecting: nothing may start there any more, and nothing has.
            upstream.close()
            self._leave(failed=False)
            self._attempts -= 1
            self._attempt(self._plane.clock())
            return
        self._send(upstream)

    def _connect_failed(self, endpoint: Endpoint, error: OSError) -> None:
        self.downstream.unhold()
        reason = Reason.CONNECT_TIMEOUT if isinstance(error, TimeoutError) else Reason.CONNECT_FAILED
        self._retry_or_fail(ProxyError(reason, f"{reason.detail}: {endpoint.instance.id}"), Failure.CONNECT)

    def _send(self, upstream: Upstream) -> None:
        """Write the request, with as much of its body as has come."""
        self._phase = _WAITING
        self._upstream = upstream
        upstream.exchange = self
        upstream.deadline = NEVER  # its idle time is over
        if self._moves:
            prepare_to_move(self._head)
        request = forward_request(self._head, self.downstream.peer, self._request_id, self._trace)
        if self._body is not None:
            request += self._body.unsent()
        upstream.transport.write(request)
        if self.request_done:
            self._await_answer(upstream)
            route = self._route
            if route is not None and not self._tried and not self._head.upgrade:
                if route.mirrored:
                    mirror(self._plane, route, self._head.method, request)
                if route.service.config.retry.hedge and self._body is None and self._hedge is None:
                    self._may_hedge(route.service, request)
        else:
            self.downstream.await_body()

    def _await_answer(self, upstream: Upstream) -> None:
        plane = self._plane
        assert self._route is not None
        config = self._route.service.config
        now = plane.clock()
        deadline = now + config.timeout.response
        if config.retry.timeout:
            # The limit for all tries counts from the first one.
            deadline = self._answer_by = min(deadline, self._answer_by)
            deadline = min(deadline, now + config.retry.timeout)
        plane.wheel.set(upstream, deadline)

    def _may_hedge(self, service: ServiceState, request: bytes) -> None:
        if self._head.method in IDEMPOTENT:
            self._hedge = Hedge(self._plane, service, self, request)

    def pick_second(self) -> Endpoint | None:
        """See `proxy.hedge.Hedged`."""
        route, lease = self._route, self._lease
        if route is None or lease is None or lease.endpoint is None or self._phase is not _WAITING:
            return None
        peer, plane = self.downstream.peer, self._plane
        client = self._address.encode() if peer.trusted else peer.key
        tried = (lease.endpoint, *self._tried)
        found, _ = choose(
            route, self._head, client, peer.scheme == "https", plane.clock(), plane.random, tried
        )
        return found

    def take_over(self, upstream: Upstream, lease: Lease, data: bytes) -> None:
        """See `proxy.hedge.Hedged`: what the first try still does is of no use to anybody."""
        self._hedge = None
        self._end_upstream()
        self._leave(failed=False)
        self._partial = b""
        self._lease, self._upstream = lease, upstream
        upstream.exchange = self
        self._await_answer(upstream)
        if data:
            self.response_data(data)

    def request_data(self, data: bytes) -> None:
        """More of the request's body has come."""
        try:
            self._take_body(data)
        except BodyError as error:
            self._fail(ProxyError(Reason.BAD_REQUEST, str(error)))
            return
        upstream = self._upstream
        if upstream is not None:
            assert self._body is not None
            if wire := self._body.unsent():
                upstream.transport.write(wire)
            if self.request_done and self._phase is _WAITING:
                self._await_answer(upstream)
        if not self.request_done:
            self.downstream.await_body()

    def _take_body(self, data: bytes) -> None:
        """Decode what came. Raises `BodyError`."""
        body = self._body
        assert body is not None
        if body.take(data):
            self.request_done = True
            self._rest = body.rest
        self.request_more = body.more

    def request_cut(self) -> None:
        """The client ended its side in the middle of the body."""
        self._fail(ProxyError(Reason.BAD_REQUEST, "the request body is not complete"))

    def request_timed_out(self) -> None:
        """The client stopped sending in the middle of the body."""
        self._fail(ProxyError(Reason.BODY_TIMEOUT))

    # -- the answer ----------------------------------------------------------------------------------------

    def response_data(self, data: bytes) -> None:
        """Bytes from the instance."""
        if self._phase is _ANSWERING:
            self._relay(data)
            return
        if self._partial:
            data = self._partial + data
            self._partial = b""
        while True:
            try:
                parsed = parse_response(data, self._head.method, RESPONSE_LIMITS)
            except ProxyError as error:
                self._end_upstream()
                self._fail(error, failed=True)
                return
            if parsed is None:
                self._partial = data
                return
            response, end = parsed
            data = data[end:]
            if response.status == 101:
                self._switch(response, data)
                return
            if response.status >= 200:
                break
            self._interim(response)
            if not data:
                return
        if response.status in (502, 503, 504) and self._retry_status(response.status):
            return
        self._answer_with(response, data)

    def _switch(self, response: ResponseHead, rest: bytes) -> None:
        """101: both connections become a tunnel."""
        head, upstream, lease = self._head, self._upstream, self._lease
        assert upstream is not None and lease is not None and self._route is not None
        asked = head.upgrade.split(b", ") if head.upgrade and self.request_done else ()
        try:
            if response.upgrade not in asked:
                raise ProxyError(Reason.UPSTREAM_INVALID, "the instance switched protocols unasked")
            if response.upgrade == PROTOCOL:
                check_answer(head, response)
        except ProxyError as error:
            self._end_upstream()
            self._fail(error, failed=True)
            return
        self._phase = _OVER
        self._upstream = None
        upstream.exchange = None
        client = self.downstream
        cookie = self._cookie
        client.transport.write(
            forward_response(response, 1, extra=b"Set-Cookie: %b\r\n" % cookie if cookie else b"")
        )
        ahead = client.hand_over()
        self._head_at = self._plane.clock()
        plane, route, origin = self._plane, self._route, self._origin()
        tunnel: MovingTunnel | PlainTunnel
        if self._moves:
            handshake = forward_request(head, client.peer, self._request_id, self._trace)
            secure = client.peer.scheme == "https"
            tunnel = MovingTunnel(
                plane, route, lease, origin, handshake, chosen_protocol(response), secure=secure
            )
        else:
            tunnel = PlainTunnel(plane, route, lease, origin, websocket=response.upgrade == PROTOCOL)
        tunnel.open(client.transport, upstream, self._rest + ahead, rest)
        self._leave_place()

    @property
    def _moves(self) -> bool:
        """Whether this asks for a WebSocket that is to outlive its instance."""
        route = self._route
        return (
            self._head.upgrade == PROTOCOL
            and route is not None
            and route.service.config.websocket.on_drain is OnDrain.MIGRATE
        )

    # -- flow control --------------------------------------------------------------------------------------

    def hold_request(self) -> None:
        """The instance reads slowly: stop reading from the client, and do not wait for ever."""
        self.downstream.hold()
        if self._phase is _WAITING and self._upstream is not None:
            self._await_answer(self._upstream)

    def unhold_request(self) -> None:
        """The instance has caught up."""
        self.downstream.unhold()
        if self._phase is _WAITING and self._upstream is not None and not self.request_done:
            self._upstream.deadline = self._answer_by = NEVER

    # -- what goes wrong -----------------------------------------------------------------------------------

    def response_timed_out(self) -> None:
        """The instance did not begin its answer in time, or has been silent for too long in the middle.

        It may have acted on the request.
        """
        if self._phase is _ANSWERING:
            self._look_at_answer()
            return
        error = ProxyError(Reason.UPSTREAM_TIMEOUT)
        if self._plane.clock() < self._answer_by < NEVER:
            self._retry_or_fail(error, Failure.TIMEOUT)
        else:
            self._end_upstream()
            self._fail(error, failed=True)

    def upstream_lost(self, exc: Exception | None) -> None:
        """The instance closed or broke the connection."""
        upstream, self._upstream = self._upstream, None
        if self._phase is _OVER or upstream is None:
            return
        if self._phase is _WAITING:
            if self._hedge is not None and self._hedge.waits:
                self._leave(failed=True)
                self._hedge.give()  # its answer may still come
                return
            stale = upstream.reused and not self._partial
            self._retry_or_fail(ProxyError(Reason.UPSTREAM_RESET), Failure.RESET, stale=stale)
            return
        response = self._response
        if response is not None and response.body == UNTIL_CLOSE and exc is None:
            self._end_with_close(response)
        else:
            self._break(ProxyError(Reason.UPSTREAM_RESET))

    def cut_short(self, reason: Reason) -> None:
        """End it from outside, as when its instance's drain deadline is over."""
        if self._phase is _ANSWERING:
            self._break(ProxyError(reason))
        elif self._phase is not _OVER:
            self._end_upstream()
            self._fail(ProxyError(reason))

    def client_lost(self) -> None:
        """The client has closed: the instance must notice, so that it can stop working on the answer."""
        if self._phase is _OVER:
            return
        status = self._response.status if self._response is not None else Reason.CLIENT_GONE.status
        reason = Reason.CLIENT_STALLED if self.downstream.stalled else Reason.CLIENT_GONE
        self._phase = _OVER
        self._end_upstream()
        self._leave(failed=False)
        self._record(status, reason.code)

    def _retry_status(self, status: int) -> bool:
        """Try elsewhere because of a status, if that is allowed."""
        route, lease = self._route, self._lease
        assert route is not None and lease is not None
        other = any(e is not lease.endpoint and e not in self._tried for e in route.service.pool.ready)
        if not other or not self._may_retry(Failure.STATUS, status=status):
            return False  # an instance's own word is better than ours
        self._end_upstream()
        self._again(ProxyError(Reason.UPSTREAM_RESET))
        return True

    def _retry_or_fail(self, error: ProxyError, failure: Failure, *, stale: bool = False) -> None:
        """`stale`: an idle connection was used that the instance may have closed long before."""
        self._end_upstream()
        if self._may_retry(failure, stale=stale):
            self._again(error, stale=stale)
        else:
            self._fail(error, failed=True)

    def _may_retry(self, failure: Failure, *, stale: bool = False, status: int = 0) -> bool:
        route, body = self._route, self._body
        assert route is not None
        if self._committed:
            return False
        allowed = may_retry(
            route.service.config.retry,
            failure,
            method=self._head.method,
            attempt=self._attempts - 1,
            body_sent=self._phase is not _CONNECTING and body is not None and not body.repeatable,
            reused=stale,
            status=status,
        )
        return allowed and (stale or route.service.budget.take(self._plane.clock()))

    def _again(self, error: ProxyError, *, stale: bool = False) -> None:
        """Send the request once more: to another endpoint, or over a new connection if that was stale."""
        lease = self._lease
        assert lease is not None and lease.endpoint is not None
        if stale:
            close_idle(lease.endpoint)
        else:
            self._tried.append(lease.endpoint)
        self._plane.counters.retries += 1
        self._leave(failed=not stale)
        self._partial = b""
        if self._phase is not _CONNECTING and self._body is not None:
            self._body.rewind()
        self._attempt(self._plane.clock(), error)

    def _fail(self, error: ProxyError, *, failed: bool = False, retry_after: float | None = None) -> None:
        """Answer with an error of the proxy's own, or break off what has begun."""
        if self._phase is _ANSWERING:
            self._break(error)
            return
        self._phase = _OVER
        self._end_upstream()
        reason = error.reason
        if reason.status == 503 and retry_after is None:
            retry_after = 1.0
        head, plane = self._head, self._plane
        leaving = plane.draining or self.downstream.leaving
        keep = head.keep_alive and head.minor == 1 and self.request_done and not leaving
        self.downstream.transport.write(
            error_response(
                error,
                close=not keep,
                head_only=head.method == b"HEAD",
                retry_after=retry_after,
                date=plane.date,
            )
        )
        self._leave(failed=failed)
        self._record(reason.status, reason.code)
        self.downstream.exchange_over(self._rest, keep)

    # -- the books -----------------------------------------------------------------------------------------
