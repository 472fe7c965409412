"""The next instance for a WebSocket that has lost its own: choosing one, and shaking hands with it.

The client took part in one handshake, its first. Each later instance is sent that same request again, with a
fresh key and the token it may resume by, and has to choose the same subprotocol.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re

from proxy.choose import choose
from proxy.endpoint import Endpoint, Lease
from proxy.errors import ProxyError, Reason
from proxy.handshake import accept_for as accept_for
from proxy.head import RequestHead, ResponseHead, parse_request, parse_response
from proxy.plane import RESPONSE_LIMITS, Plane
from proxy.table import RouteState
from proxy.timers import NEVER
from proxy.upstream import Upstream, connect

_KEY_OR_TOKEN = re.compile(rb"(?im)^(?:sec-websocket-key|holdfast-resume):[^\r\n]*\r\n")
_PROTOCOL = b"sec-websocket-protocol"
_ACCEPT = b"sec-websocket-accept"
_WAITS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds between looks for an instance while there is none."""
_SETTLED = 1.0
"""An instance that is left sooner than this has not taken over: the search goes on where it was."""
_ATTEMPTS = 4
"""One attempt may take this part of the time there is, so that an instance that hangs is not the only one."""
_TOKEN = re.compile(rb"[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?")
"""What can be the value of a field (RFC 9110 section 5.5)."""


class NobodyError(Exception):
    """No instance has taken over within the time there was."""


def chosen_protocol(response: ResponseHead) -> bytes:
    """The subprotocol that an instance has chosen; empty for none."""
    return field_value(response, _PROTOCOL)


def field_value(response: ResponseHead, name: bytes) -> bytes:
    """A field of a response, by its name in lower case; empty when absent."""
    return next((value.strip() for field, value in response.fields if field.lower() == name), b"")


class Handshake:
    """The answer to an upgrade request, awaited on a connection of its own."""

    held = more = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[ResponseHead] = loop.create_future()
        """The final response head. Raises `ProxyError`."""
        self.rest = b""
        """What has come behind it."""

    def response_data(self, data: bytes) -> None:
        """See `proxy.upstream.Carried`."""
        self.rest += data
        while not self.done.done():
            try:
                parsed = parse_response(self.rest, b"GET", RESPONSE_LIMITS)
            except ProxyError as error:
                self.done.set_exception(error)
                return
            if parsed is None:
                return
            head, end = parsed
            self.rest = self.rest[end:]
            if head.status == 101 or head.status >= 200:
                self.done.set_result(head)

    def upstream_lost(self, exc: Exception | None) -> None:
        """See `proxy.upstream.Carried`."""
        self._fail(Reason.UPSTREAM_RESET)

    def response_timed_out(self) -> None:
        """See `proxy.upstream.Carried`."""
        self._fail(Reason.UPSTREAM_TIMEOUT)

    def cut_short(self, reason: Reason) -> None:
        """See `proxy.upstream.Carried`."""
        self._fail(reason)

    def hold_request(self) -> None:
        """See `proxy.upstream.Carried`: a handshake is too small to have to wait."""

    def unhold_request(self) -> None:
        """See `proxy.upstream.Carried`."""

    def _fail(self, reason: Reason) -> None:
        if not self.done.done():
            self.done.set_exception(ProxyError(reason))


class Dialer:
    """Finds the next instance for one tunnel, as often as it needs one."""

    __slots__ = (
        "_arrived_at",
        "_client",
        "_hasty",
        "_plane",
        "_route",
        "_token",
        "_until",
        "handshake",
        "protocol",
        "secure",
    )

    def __init__(
        self, plane: Plane, route: RouteState, client: str, handshake: bytes, protocol: bytes, secure: bool
    ) -> None:
        self._plane = plane
        self._route = route
        self._client = client.encode()
        self.handshake = handshake
        """The request as it went to the first instance."""
        self.protocol = protocol
        """The subprotocol that the first instance chose; empty for none."""
        self.secure = secure
        """Whether the client came by TLS."""
        self._token = b""
        self._until = 0.0
        """When the search for the next instance is given up."""
        self._arrived_at = -NEVER
        self._hasty = 0
        """Instances in a row that were left before they had settled."""

    @property
    def _time(self) -> float:
        """Seconds in which some instance has to have accepted."""
        return self._route.service.config.websocket.migrate.timeout

    def left(self, token: bytes, now: float) -> None:
        """An instance was left: its time begins in which another has to be found, and given the token."""
        self._token = token
        if now - self._arrived_at < _SETTLED:
            self._hasty += 1
        else:
            self._hasty = 0
            self._until = now + self._time

    async def dial(self, former: Endpoint) -> tuple[Upstream, Lease, bytes]:
        """A connection to an instance that has accepted, its lease, and what it has said already.

        As often as it takes; `former` is tried only when there is no other. Raises `NobodyError`.
        """
        plane = self._plane
        tried = [former]
        waits = iter(_WAITS)
        why = "no other instance is ready"
        if self._hasty:
            await asyncio.sleep(_WAITS[min(self._hasty, len(_WAITS)) - 1])
        while plane.clock() < self._until:
            head = self._request()
            now = plane.clock()
            endpoint, _ = choose(self._route, head, self._client, self.secure, now, plane.random, tried)
            if endpoint is None:
                # The same instance may have come back, or another may come up: look again shortly.
                tried.clear()
                await asyncio.sleep(next(waits, _WAITS[-1]))
                continue
            lease = endpoint.enter(now)
            try:
                upstream, rest = await self._shake_hands(endpoint, head)
            except (OSError, ProxyError) as error:
                why = f"{endpoint.instance.id}: {error or 'timed out'}"
                lease.exit(plane.clock(), failed=True)
                plane.table.failed(endpoint, plane.clock())
                tried.append(endpoint)
            except BaseException:
                lease.exit(plane.clock(), failed=False)
                raise
            else:
                self._arrived_at = plane.clock()
                return upstream, lease, rest
        raise NobodyError(f"no instance could take over ({why})")

    def _request(self) -> RequestHead:
        """The first handshake again, with a fresh key and the token."""
        key = base64.b64encode(os.urandom(16))
        bare = _KEY_OR_TOKEN.sub(b"", self.handshake)
        added = b"Sec-WebSocket-Key: %b\r\n" % key
        if _TOKEN.fullmatch(self._token):
            added += b"Holdfast-Resume: %b\r\n" % self._token
        parsed = parse_request(bare[:-2] + added + b"\r\n", RESPONSE_LIMITS)
        assert parsed is not None
        return parsed[0]

    async def _shake_hands(self, endpoint: Endpoint, head: RequestHead) -> tuple[Upstream, bytes]:
        """A connection on which the instance has switched protocols, and what has come behind its answer.

        Raises `OSError` and `ProxyError`.
        """
        times = self._route.service.config.timeout
        most = self._time / _ATTEMPTS
        upstream = await connect(self._plane, endpoint, min(times.connect, most))
        answer = Handshake(self._plane.loop)
        upstream.exchange = answer
        upstream.transport.write(b"%b %b HTTP/1.1\r\n%b\r\n" % (head.method, head.target, head.block))
        try:
            async with asyncio.timeout(min(times.response, most)):
                response = await answer.done
            self._check(response, head)
        except BaseException:
            upstream.exchange = None
            upstream.abort()
            raise
        upstream.exchange = None
        return upstream, answer.rest

    def _check(self, response: ResponseHead, head: RequestHead) -> None:
        """Whether an instance has accepted as the first did (RFC 6455 section 4.1). Raises `ProxyError`."""
        key = head.get(b"sec-websocket-key") or b""
        if response.status != 101 or field_value(response, _ACCEPT) != accept_for(key):
            raise ProxyError(Reason.UPSTREAM_INVALID, f"answered the handshake with {response.status}")
        if field_value(response, _PROTOCOL) != self.protocol:
            raise ProxyError(Reason.UPSTREAM_INVALID, "chose another subprotocol")
