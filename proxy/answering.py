"""The second half of an exchange: the answer's way to the client, and the books that are kept of it.

What has begun to go out cannot be taken back: from the response head on there are only two ends, the answer's
own and breaking off so that nobody takes it for whole.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Protocol

from proxy.admission import Admission
from proxy.body import BodyError, Decoder, encode_chunk, encode_last_chunk, make_decoder
from proxy.endpoint import Endpoint, Lease
from proxy.errors import ProxyError, Reason, Side
from proxy.head import CHUNKED, NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead
from proxy.headers import Peer, forward_response
from proxy.hedge import Hedge
from proxy.metrics import record
from proxy.plane import Plane
from proxy.request_body import RequestBody
from proxy.table import RouteState
from proxy.timers import NEVER
from proxy.tunnel import Origin
from proxy.upstream import Upstream


class Client(Protocol):
    """What an exchange needs of the client connection it answers on."""

    transport: asyncio.Transport
    peer: Peer
    stalled: bool
    leaving: bool

    def hold(self) -> None: ...
    def unhold(self) -> None: ...
    def await_body(self) -> None: ...
    def exchange_over(self, rest: bytes, keep: bool) -> None: ...
    def hand_over(self) -> bytes: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Phase(Enum):
    """How far an exchange is."""

    QUEUED = "queued"
    """It waits for its turn; its body is not read."""
    CONNECTING = "connecting"
    """A task is making a connection; the client is not read."""
    WAITING = "waiting"
    """The request is on its way; no final response head yet."""
    ANSWERING = "answering"
    """The response head has gone to the client."""
    OVER = "over"


# Members as globals: looking one up on its class costs ten times as much, and these are on the hot path.
_ANSWERING, _OVER = Phase.ANSWERING, Phase.OVER


class Answering:
    """What `proxy.exchange.Exchange` does from the head of an answer on. Its attributes are set there."""

    __slots__ = (
        "_address",
        "_admission",
        "_answer",
        "_attempts",
        "_body",
        "_bytes_out",
        "_chunked_out",
        "_committed",
        "_cookie",
        "_head",
        "_head_at",
        "_hedge",
        "_keep",
        "_last",
        "_lease",
        "_phase",
        "_plane",
        "_request_id",
        "_response",
        "_rest",
        "_route",
        "_started",
        "_upstream",
        "_watched",
        "downstream",
        "held",
        "more",
        "request_done",
    )

    downstream: Client
    request_done: bool
    """Whether the whole request body has come."""
    held: bool
    """See `proxy.upstream.Carried`; so for `more`."""
    more: bool
    _plane: Plane
    _head: RequestHead
    _address: str
    _started: float
    _phase: Phase
    _request_id: bytes
    _body: RequestBody | None
    _rest: bytes
    """What the client sent behind the request."""
    _route: RouteState | None
    _admission: Admission | None
    """Only where there are limits."""
    _attempts: int
    _lease: Lease | None
    _last: Endpoint | None
    """The endpoint that answered, or failed last."""
    _upstream: Upstream | None
    _hedge: Hedge | None
    """A second try beside the first."""
    _cookie: bytes
    _response: ResponseHead | None
    _answer: Decoder | None
    _committed: bool
    """A part of an answer has gone out: no other instance may give another one."""
    _chunked_out: bool
    _keep: bool
    _head_at: float
    _bytes_out: int
    _watched: int
    """`_bytes_out` at the last look at how the answer comes; only while there is one to look at."""

    # -- the answer ----------------------------------------------------------------------------------------

    def _interim(self, response: ResponseHead) -> None:
        """Pass a 1xx on (RFC 9110 15.2), but never to HTTP/1.0."""
        if self._head.minor:
            self._committed = True
            self.downstream.transport.write(forward_response(response, 1))

    def _answer_with(self, response: ResponseHead, rest: bytes) -> None:
        """Begin the answer to the client; most answers are also over then."""
        plane, head, upstream = self._plane, self._head, self._upstream
        assert upstream is not None
        now = plane.clock()
        upstream.deadline = NEVER
        if self._hedge is not None:
            self._end_hedge()
        self._response = response
        self._head_at = now
        self._phase = _ANSWERING
        body = response.body
        framed = body in (CHUNKED, UNTIL_CLOSE)
        self._chunked_out = framed and head.minor == 1
        whole = body == NO_BODY or len(rest) == body
        keep = self._keep = (
            head.keep_alive
            and not (plane.draining or self.downstream.leaving)
            and (self._chunked_out or not framed)
            # An answer that is over before its request leaves bytes nobody reads.
            and (self.request_done or not whole)
        )
        cookie = self._cookie
        message = forward_response(
            response,
            head.minor,
            chunked=self._chunked_out,
            keep_alive=keep,
            date=plane.date,
            extra=b"Set-Cookie: %b\r\n" % cookie if cookie else b"",
        )
        if whole:
            # The whole answer is here, as it mostly is: no decoder, one write.
            self._bytes_out = len(rest) if body else 0
            self.downstream.transport.write(message + rest if body else message)
            self._finish(clean=body != NO_BODY or not rest)
            return
        self._answer = make_decoder(body)
        self._watch(upstream, now)
        self._relay(rest, message)

    def _watch(self, upstream: Upstream, now: float) -> None:
        """Have `response_timed_out` called later. One look now and then costs less than a clock per piece."""
        assert self._route is not None
        limit = self._route.service.config.timeout.read
        self._watched = self._bytes_out
        if limit:
            self._plane.wheel.set(upstream, now + limit)

    def _look_at_answer(self) -> None:
        """Break an answer off that has not gone on since the last look, if it is its turn to."""
        waits = self.held or not self.request_done
        if (waits or self._bytes_out != self._watched) and self._upstream is not None:
            self._watch(self._upstream, self._plane.clock())
        else:
            self._break(ProxyError(Reason.UPSTREAM_TIMEOUT))

    def _relay(self, data: bytes, head: bytes = b"") -> None:
        """Pass body bytes on to the client, behind `head` if it is still to be written."""
        decoder = self._answer
        assert decoder is not None
        try:
            payload = decoder.feed(data) if data or self.more else b""
        except BodyError as error:
            if head:
                self.downstream.transport.write(head)
            self._break(ProxyError(Reason.UPSTREAM_INVALID, str(error)))
            return
        self.more = decoder.more
        self._bytes_out += len(payload)
        if self._chunked_out:
            message = head + encode_chunk(payload) if payload else head
            if decoder.done:
                message += encode_last_chunk(decoder.trailers)
        else:
            message = head + payload if head else payload
        if message:
            self.downstream.transport.write(message)
        if decoder.done:
            self._finish(clean=not decoder.rest)

    def _finish(self, *, clean: bool) -> None:
        """The answer is complete. `clean`: the instance sent nothing behind it."""
        upstream, response = self._upstream, self._response
        assert upstream is not None and response is not None
        self._phase = _OVER
        self._upstream = None
        # Servers are known that take a request's trailers for fields of the next one on the connection, which
        # would be somebody else's.
        trailed = self._body is not None and self._body.has_trailers
        if response.keep_alive and clean and self.request_done and not trailed:
            if self.held:
                upstream.transport.resume_reading()
            upstream.release()
        else:
            upstream.close()
        self._leave(failed=response.status in (502, 503, 504))
        self._record(response.status, "")
        # An answer that came before the whole request leaves bytes nobody reads: no further request then.
        self.downstream.exchange_over(self._rest, self._keep and self.request_done)

    def _end_with_close(self, response: ResponseHead) -> None:
        """The end of the connection was the end of the answer."""
        if self._chunked_out:
            self.downstream.transport.write(encode_last_chunk())
        self._phase = _OVER
        self._leave(failed=False)
        self._record(response.status, "")
        self.downstream.exchange_over(self._rest, self._keep and self.request_done)

    def _break(self, error: ProxyError) -> None:
        """The answer has begun and cannot go on: break it off so that nobody takes it for whole."""
        assert self._response is not None
        self._phase = _OVER
        self._end_upstream()
        self._leave(failed=error.reason.side is Side.UPSTREAM)
        self._record(self._response.status, error.reason.code)
        if self._chunked_out or self._response.body > 0:
            self.downstream.close()  # what came so far is delivered; its framing says that more was due
        else:
            self.downstream.abort()

    def hold_response(self) -> None:
        """The client reads slowly: stop reading from the instance."""
        self.held = True
        upstream = self._upstream
        if upstream is not None and not upstream.transport.is_closing():
            upstream.transport.pause_reading()

    def unhold_response(self) -> None:
        """The client has caught up."""
        self.held = False
        upstream = self._upstream
        if upstream is not None and not self.more and not upstream.transport.is_closing():
            upstream.transport.resume_reading()

    # -- the books -----------------------------------------------------------------------------------------

    def _end_hedge(self) -> None:
        hedge, self._hedge = self._hedge, None
        if hedge is not None:
            hedge.cancel()

    def _end_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.exchange = None
            upstream.abort()

    def _leave(self, *, failed: bool) -> None:
        """End the lease on the endpoint."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        endpoint = self._last = lease.endpoint
        if endpoint is None:
            return
        now = self._plane.clock()
        lease.exit(now, failed=failed, latency=self._head_at - lease.started if self._head_at >= 0 else -1.0)
        if failed:
            self._plane.table.failed(endpoint, now)

    def _leave_place(self) -> None:
        """Let the next one have what the limits allow."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.leave(self._head_at - self._started if self._head_at >= 0 else -1.0)

    @property
    def _received(self) -> int:
        """Bytes of the request's body."""
        return self._body.received if self._body is not None else 0

    def _record(self, status: int, reason: str) -> None:
        """Count the exchange and write its line."""
        plane, route = self._plane, self._route
        now = plane.clock()
        if self._admission is not None:
            self._leave_place()
        if self._hedge is not None:
            self._end_hedge()
        if route is None:
            plane.counters.bad_request(reason)
        else:
            first_byte = self._head_at - self._started if self._head_at >= 0.0 else -1.0
            seconds = now - self._started
            record(route, self._last, status, reason, seconds, first_byte, self._received, self._bytes_out)
        if plane.log.enabled:
            head = self._head
            plane.log.append(
                (
                    now,
                    self._started,
                    self._head_at,
                    self._address,
                    head.method,
                    head.target,
                    head.authority,
                    route,
                    self._last,
                    status,
                    reason,
                    self._received,
                    self._bytes_out,
                    self._attempts,
                    self._request_id,
                    "http",
                    head.agent,
                )
            )

    def _origin(self) -> Origin:
        """What a tunnel's log line will need of this request."""
        head = self._head
        return Origin(
            started=self._started,
            opened=self._head_at,
            client=self._address,
            method=head.method,
            target=head.target,
            authority=head.authority,
            attempts=self._attempts,
            request_id=self._request_id,
            agent=head.agent,
        )
