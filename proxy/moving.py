"""Tunnels that move: the sockets around a `proxy.relay.Relay`, and how many may move at once.

The relay decides; this file carries out: it reads, writes, dials the next instance with the first handshake,
and keeps the books of each endpoint that the tunnel was on.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from typing import Any

from config.schema import Replay, WebSocket
from proxy.choose import choose
from proxy.endpoint import Endpoint, Lease, State
from proxy.errors import ProxyError, Reason
from proxy.frames import CloseCode
from proxy.handover import Parked, is_secure
from proxy.head import RequestHead, ResponseHead, parse_request, parse_response
from proxy.phases import Phase, Port, Rules
from proxy.plane import RESPONSE_LIMITS, Plane
from proxy.relay import Relay
from proxy.replay import Keeping
from proxy.table import RouteState
from proxy.timers import NEVER
from proxy.tunnel import Origin, Tunnel
from proxy.upstream import Upstream, connect

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_OR_TOKEN = re.compile(rb"(?im)^(?:sec-websocket-key|holdfast-resume):[^\r\n]*\r\n")
_PROTOCOL = b"sec-websocket-protocol"
_ACCEPT = b"sec-websocket-accept"
_WAITS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds between looks for an instance while there is none."""
_SETTLED = 1.0
"""An instance that is left sooner than this has not taken over: the search goes on where it was."""
_ATTEMPTS = 4
"""One attempt may take this part of the time there is, so that an instance that hangs is not the only one."""
_LINGER = 3.0
"""Seconds in which what was still to be written must have gone out, before a connection is cut."""
_TOKEN = re.compile(rb"[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?")
"""What can be the value of a field (RFC 9110 section 5.5)."""
_BY_RELAY, _BY_SERVER = 1, 2
"""Who wants the client not to be read: bits of one number."""


def rules_of(config: WebSocket) -> Rules:
    """What a relay goes by, from a service's configuration."""
    replay = config.replay
    kept = replay or Replay()
    return Rules(
        quiet=config.migrate.quiet,
        patience=config.migrate.patience,
        whole=config.migrate.frame,
        keeping=Keeping(replay is not None, kept.hold, kept.messages, kept.bytes, kept.pace),
    )


def chosen_protocol(response: ResponseHead) -> bytes:
    """The subprotocol that an instance has chosen; empty for none."""
    return _value(response, _PROTOCOL)


def _value(response: ResponseHead, name: bytes) -> bytes:
    """A field of a response, by its name in lower case; empty when absent."""
    return next((value.strip() for field, value in response.fields if field.lower() == name), b"")


class Handshake:
    """The answer to an upgrade request, awaited on a connection of its own."""

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


class _ClientLeg(asyncio.Protocol):
    """The client's connection."""

    __slots__ = ("_tunnel",)

    def __init__(self, tunnel: MovingTunnel) -> None:
        self._tunnel = tunnel

    def data_received(self, data: bytes) -> None:
        self._tunnel.from_client(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._tunnel.client_lost()

    def pause_writing(self) -> None:
        self._tunnel.hold_server(True)

    def resume_writing(self) -> None:
        self._tunnel.hold_server(False)


class _ServerLeg(asyncio.Protocol):
    """The connection to the present instance."""

    __slots__ = ("_tunnel", "transport")

    def __init__(self, tunnel: MovingTunnel, transport: asyncio.Transport) -> None:
        self._tunnel = tunnel
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._tunnel.from_server(self, data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._tunnel.server_lost(self)

    def pause_writing(self) -> None:
        self._tunnel.hold_client(self, True)

    def resume_writing(self) -> None:
        self._tunnel.hold_client(self, False)


class MovingTunnel(Tunnel, Port):
    """A WebSocket whose instance may be replaced."""

    __slots__ = (
        "_aged",
        "_alarm_at",
        "_arrived_at",
        "_bytes_in",
        "_bytes_out",
        "_client",
        "_client_full",
        "_dial_until",
        "_dialing",
        "_ended",
        "_handshake",
        "_hasty",
        "_held_since",
        "_holds",
        "_protocol",
        "_relay",
        "_secure",
        "_server",
        "_token",
    )

    def __init__(
        self,
        plane: Plane,
        route: RouteState,
        lease: Lease,
        origin: Origin,
        handshake: bytes,
        protocol: bytes,
        *,
        secure: bool,
    ) -> None:
        """`handshake` is the request as it went to the first instance, `protocol` what that one chose."""
        super().__init__(plane, route, lease, origin, websocket=True)
        self._handshake = handshake
        self._protocol = protocol
        self._secure = secure
        self._relay = Relay(rules_of(self.rules), self, lambda: os.urandom(4))
        self._client: asyncio.Transport | None = None
        self._server: _ServerLeg | None = None
        self._alarm_at = NEVER
        self._aged = False
        """It is to leave an instance that stays."""
        self._held_since = NEVER
        """When the client's messages began to wait."""
        self._holds = 0
        """Who wants the client not to be read."""
        self._client_full = False
        """The client reads slowly: instances are not read."""
        self._dialing: asyncio.Task[None] | None = None
        self._dial_until = 0.0
        self._token = b""
        self._arrived_at = -NEVER
        self._hasty = 0
        """Instances in a row that were left before they had settled."""
        self._bytes_in = self._bytes_out = 0
        self._ended = (int(CloseCode.ABNORMAL), "client")
        """How it ended, once it has."""

    @property
    def rules(self) -> WebSocket:
        """The service's rules as they are now."""
        return self.route.service.config.websocket

    def open(
        self, client: asyncio.Transport, upstream: Upstream, from_client: bytes, from_server: bytes
    ) -> None:
        """Take both transports over; the bytes are those that came behind the two heads."""
        self._client = client
        client.set_protocol(_ClientLeg(self))
        self._attach(upstream)
        self.opened()
        if from_server and self._server is not None:
            self.from_server(self._server, from_server)
        if from_client:
            self.from_client(from_client)
        if not client.is_closing() and not self._holds:
            client.resume_reading()

    def _attach(self, upstream: Upstream) -> None:
        upstream.forget()
        transport = upstream.transport
        server = self._server = _ServerLeg(self, transport)
        transport.set_protocol(server)
        if not transport.is_closing() and not self._client_full:
            transport.resume_reading()

    def save(self) -> tuple[dict[str, Any], tuple[asyncio.Transport, asyncio.Transport]] | None:
        """See `Tunnel.save`."""
        relay = self._relay.save()
        if relay is None or self._client is None or self._server is None:
            return None
        saved = self.save_life() | {
            "relay": relay,
            "handshake": self._handshake,
            "protocol": self._protocol,
            "secure": self._secure,
            "bytes": (self._bytes_in, self._bytes_out),
        }
        return saved, (self._client, self._server.transport)

    def load(self, saved: dict[str, Any], client: Parked, server: Parked) -> None:
        """Go on with both connections, from what `save` gave in another process."""
        self.load_life(saved)
        self._bytes_in, self._bytes_out = saved["bytes"]
        self._client = client.transport
        leg = self._server = _ServerLeg(self, server.transport)
        self.opened()
        self._relay.load(saved["relay"], self.plane.clock())
        server.give_to(leg)
        client.give_to(_ClientLeg(self))

    # -- bytes ---------------------------------------------------------------------------------------------

    def from_client(self, data: bytes) -> None:
        """Bytes from the client."""
        self._bytes_in += len(data)
        self._relay.client_data(data, self.plane.clock())

    def from_server(self, leg: _ServerLeg, data: bytes) -> None:
        """Bytes from an instance; those of a former one are too late."""
        if leg is self._server:
            self._bytes_out += len(data)
            self._relay.server_data(data, self.plane.clock())

    def client_lost(self) -> None:
        """The client's connection has ended."""
        self._client = None
        if self._relay.phase is Phase.OVER:
            self._finish_books()
        else:
            self._relay.client_lost(self.plane.clock())

    def server_lost(self, leg: _ServerLeg) -> None:
        """An instance's connection has ended."""
        if leg is self._server:
            self._server = None
            now = self.plane.clock()
            self._held_since = min(self._held_since, now)
            self._relay.server_lost(now)

    def hold_server(self, held: bool) -> None:
        """The client reads slowly, or has caught up."""
        self._client_full = held
        if self._server is not None and not self._server.transport.is_closing():
            transport = self._server.transport
            transport.pause_reading() if held else transport.resume_reading()

    def hold_client(self, leg: _ServerLeg, held: bool) -> None:
        """The instance reads slowly, or has caught up."""
        if leg is self._server:
            self._hold(_BY_SERVER, held)

    def _hold(self, who: int, held: bool) -> None:
        before = self._holds
        self._holds = before | who if held else before & ~who
        if self._client is None or self._client.is_closing() or bool(before) is bool(self._holds):
            return
        self._client.pause_reading() if self._holds else self._client.resume_reading()

    # -- what the relay asks for (proxy.relay.Port) --------------------------------------------------------

    def to_client(self, data: bytes) -> None:
        """See `Port`."""
        if self._client is not None:
            self._client.write(data)

    def to_server(self, data: bytes) -> None:
        """See `Port`."""
        if self._server is not None:
            self._server.transport.write(data)

    def read_client(self, wanted: bool) -> None:
        """See `Port`."""
        self._hold(_BY_RELAY, not wanted)

    def may_barrier(self) -> bool:
        """See `Port`."""
        return self.plane.moves.may_barrier()

    def alarm(self, at: float) -> None:
        """See `Port`."""
        self._alarm_at = at
        self.rearm()

    def dial(self, token: bytes) -> None:
        """See `Port`; the former instance has nothing to do with the tunnel any more."""
        now = self.plane.clock()
        self._held_since = min(self._held_since, now)
        self._drop_server()
        self.leave_endpoint()
        self._token = token
        if now - self._arrived_at < _SETTLED:
            self._hasty += 1
        else:
            self._hasty = 0
            self._dial_until = now + self.rules.migrate.timeout
        self.plane.moves.begin(self)

    def end(self, code: int, side: str) -> None:
        """See `Port`."""
        self._drop_server()
        self._ended = (code, side)
        self._stop_moving()
        if self._client is not None:
            self._client.close()
            self.alarm(self.plane.clock() + _LINGER)
        else:
            self._finish_books()

    def _drop_server(self) -> None:
        server, self._server = self._server, None
        self._hold(_BY_SERVER, False)
        if server is not None and not server.transport.is_closing():
            server.transport.close()
            if server.transport.get_write_buffer_size():
                # An instance that hangs would never take it.
                self.plane.loop.call_later(_LINGER, server.transport.abort)

    # -- moving --------------------------------------------------------------------------------------------

    @property
    def service(self) -> str:
        """See `proxy.moves.Mover`."""
        return self.route.service.name

    @property
    def concurrency(self) -> int:
        """See `proxy.moves.Mover`."""
        return self.rules.migrate.concurrency

    @property
    def wants_to_move(self) -> bool:
        """See `proxy.moves.Mover`."""
        if self._relay.phase is Phase.DIALING:
            return self._dialing is None
        leaving = self._aged or self.endpoint.state is not State.READY
        return self._relay.phase is Phase.RELAYING and leaving and self._client is not None

    def leave(self, *, dead: bool) -> None:
        """See `Tunnel.leave`."""
        if dead:
            if self._server is not None:
                self._drop_server()
                now = self.plane.clock()
                self._held_since = min(self._held_since, now)
                self._relay.server_lost(now)
        elif self._relay.phase is Phase.RELAYING:
            self._aged = self.endpoint.state is State.READY
            self.plane.moves.begin(self)

    def expel(self) -> None:
        """See `Tunnel.expel`."""
        self._relay.hurry(self.plane.clock())
        self._note_hold()

    def begin(self) -> None:
        """See `proxy.moves.Mover`."""
        self._aged = False
        if self._relay.phase is Phase.DIALING:
            self._dialing = self.plane.loop.create_task(self._dial())
            self.plane.spawn(self._dialing)
        else:
            self._relay.leave(self.plane.clock())
            self._note_hold()

    def _note_hold(self) -> None:
        if self._relay.phase in (Phase.QUIETING, Phase.CLOSING):
            self._held_since = min(self._held_since, self.plane.clock())

    async def _dial(self) -> None:
        """Connect to another instance, as often as it takes within the time there is."""
        plane = self.plane
        tried: list[Endpoint] = [self.endpoint]
        waits = iter(_WAITS)
        why = "no other instance is ready"
        if self._hasty:
            await asyncio.sleep(_WAITS[min(self._hasty, len(_WAITS)) - 1])
        while plane.clock() < self._dial_until:
            head = self._request(self._token)
            client = self.origin.client.encode()
            now = plane.clock()
            endpoint, _ = choose(self.route, head, client, self._secure, now, plane.random, tried)
            if endpoint is None:
                # The same instance may have come back, or another may come up: look again shortly.
                tried.clear()
                await asyncio.sleep(next(waits, _WAITS[-1]))
                continue
            lease = endpoint.enter(now)
            try:
                upstream, answer = await self._shake_hands(endpoint, head)
            except (OSError, ProxyError) as error:
                why = f"{endpoint.instance.id}: {error or 'timed out'}"
                lease.exit(plane.clock(), failed=True)
                plane.table.failed(endpoint, plane.clock())
                tried.append(endpoint)
            except BaseException:
                lease.exit(plane.clock(), failed=False)
                raise
            else:
                self._arrive(upstream, lease, answer.rest)
                return
        self._fail(why)

    def _arrive(self, upstream: Upstream, lease: Lease, rest: bytes) -> None:
        plane = self.plane
        now = self._arrived_at = plane.clock()
        self._dialing = None
        self._attach(upstream)
        self.enter_endpoint(lease)
        plane.counters.moved(now - self._held_since)
        self._held_since = NEVER
        self._relay.connected(now)
        if rest and self._server is not None:
            self.from_server(self._server, rest)
        plane.moves.done(self)
        if upstream.transport.is_closing() and self._server is not None:
            # It was lost before it was ours: nobody else will say so.
            self.server_lost(self._server)
        elif self.endpoint.state is not State.READY:
            plane.on_late_tunnel(self)

    def _fail(self, why: str) -> None:
        plane = self.plane
        self._dialing = None
        plane.counters.moves_failed += 1
        plane.moves.done(self)
        self._relay.gave_up(f"no instance could take over ({why})", plane.clock())

    def _stop_moving(self) -> None:
        dialing, self._dialing = self._dialing, None
        if dialing is not None:
            dialing.cancel()
        self.plane.moves.done(self)

    def _request(self, token: bytes) -> RequestHead:
        """The first handshake again, with a fresh key and the token."""
        key = base64.b64encode(os.urandom(16))
        bare = _KEY_OR_TOKEN.sub(b"", self._handshake)
        added = b"Sec-WebSocket-Key: %b\r\n" % key
        if _TOKEN.fullmatch(token):
            added += b"Holdfast-Resume: %b\r\n" % token
        parsed = parse_request(bare[:-2] + added + b"\r\n", RESPONSE_LIMITS)
        assert parsed is not None
        return parsed[0]

    async def _shake_hands(self, endpoint: Endpoint, head: RequestHead) -> tuple[Upstream, Handshake]:
        """A connection on which the instance has switched to the same subprotocol.

        Raises `OSError` and `ProxyError`.
        """
        times = self.route.service.config.timeout
        most = self.rules.migrate.timeout / _ATTEMPTS
        upstream = await connect(self.plane, endpoint, min(times.connect, most))
        answer = Handshake(self.plane.loop)
        upstream.exchange = answer
        upstream.transport.write(b"%b %b HTTP/1.1\r\n%b\r\n" % (head.method, head.target, head.block))
        try:
            async with asyncio.timeout(min(times.response, most)):
                response = await answer.done
            key = head.get(b"sec-websocket-key") or b""
            accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
            if response.status != 101 or _value(response, _ACCEPT) != accept:
                raise ProxyError(Reason.UPSTREAM_INVALID, f"answered the handshake with {response.status}")
            if _value(response, _PROTOCOL) != self._protocol:
                raise ProxyError(Reason.UPSTREAM_INVALID, "chose another subprotocol")
        except BaseException:
            upstream.exchange = None
            upstream.abort()
            raise
        upstream.exchange = None
        return upstream, answer

    # -- the rest of a tunnel ------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """See `Tunnel.close`."""
        self._relay.finish(code, reason, self.plane.clock())

    def abort(self) -> None:
        """See `Tunnel.abort`."""
        if self._server is not None:
            self._server.transport.abort()
            self._server = None
        if self._client is not None:
            self._client.abort()

    def let_go(self) -> None:
        """See `Tunnel.let_go`."""
        super().let_go()
        self._client = self._server = None

    def ping(self, side: int) -> bool:
        """See `Tunnel.ping`."""
        return self._relay.ping(side)

    def hears(self, side: int) -> bool:
        """See `Tunnel.hears`."""
        return self._server is not None and not self._client_full if side else not self._holds

    def silent(self, side: int) -> None:
        """See `Tunnel.silent`."""
        if side and self._server is not None:
            self._server.transport.abort()
        elif not side and self._client is not None:
            self._client.abort()

    def look(self, now: float) -> None:
        """See `Tunnel.look`; a tunnel that has said Close is only waiting for the answer."""
        if self._relay.phase in (Phase.ENDING, Phase.CLIENT_CLOSING, Phase.OVER):
            self._looked = NEVER
            self.rearm()
        else:
            super().look(now)

    def rearm(self) -> None:
        """See `Tunnel.rearm`."""
        self.plane.wheel.set(self, min(self._looked, self._alarm_at))

    def on_deadline(self) -> None:
        """See `proxy.timers.Timed`."""
        now = self.plane.clock()
        if now >= self._alarm_at and self._relay.phase is Phase.OVER:
            self.abort()
            return
        if now >= self._alarm_at:
            self._alarm_at = NEVER
            self._relay.on_alarm(now)
            self._note_hold()
        if now >= self._looked:
            self.look(now)
        else:
            self.rearm()

    def _finish_books(self) -> None:
        self._stop_moving()
        self.settle(*self._ended)

    @property
    def pinned(self) -> bool:
        """See `Tunnel.pinned`."""
        server = self._server.transport if self._server is not None else None
        return any(is_secure(transport) for transport in (self._client, server) if transport is not None)

    @property
    def bytes(self) -> tuple[int, int]:
        """See `Tunnel.bytes`."""
        return self._bytes_in, self._bytes_out

    @property
    def messages(self) -> tuple[int, int]:
        """See `Tunnel.messages`."""
        return self._relay.messages_in, self._relay.messages_out

    @property
    def state(self) -> str:
        """See `Tunnel.state`."""
        return self._relay.phase.value
