"""Tunnels that move: the sockets around a `proxy.relay.Relay`.

The relay decides; this file carries out: it reads, writes, has the next instance dialled by `proxy.dialing`,
and keeps the books of each endpoint that the tunnel was on.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from config.schema import Replay, WebSocket
from proxy.dialing import Dialer, NobodyError
from proxy.endpoint import Lease, State
from proxy.frames import CloseCode
from proxy.handover import Parked, is_secure
from proxy.phases import Phase, Port, Rules
from proxy.plane import FULL_READ, Plane
from proxy.relay import Relay
from proxy.replay import Keeping
from proxy.table import RouteState
from proxy.timers import NEVER
from proxy.tunnel import Origin, Tunnel
from proxy.upstream import Upstream

_LINGER = 3.0
"""Seconds in which what was still to be written must have gone out, before a connection is cut."""
_BY_RELAY, _BY_OTHER, _BY_TURN = 1, 2, 4
"""Who wants a side not to be read: bits of one number."""


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
        "_bytes_in",
        "_bytes_out",
        "_client",
        "_corked",
        "_dialer",
        "_dialing",
        "_ended",
        "_held_since",
        "_holds",
        "_relay",
        "_server",
        "_server_holds",
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
        self._dialer = Dialer(plane, route, origin.client, handshake, protocol, secure)
        self._relay = Relay(rules_of(self.rules), self, lambda: os.urandom(4))
        self._corked: list[bytes] | None = None
        """What is to be written to the instance at the end of this turn; None: write at once."""
        self._client: asyncio.Transport | None = None
        self._server: _ServerLeg | None = None
        self._alarm_at = NEVER
        self._aged = False
        """It is to leave an instance that stays."""
        self._held_since = NEVER
        """When the client's messages began to wait."""
        self._holds = 0
        """Who wants the client not to be read."""
        self._server_holds = 0
        """Who wants the instance not to be read."""
        self._dialing: asyncio.Task[None] | None = None
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
        self._server_holds &= ~_BY_TURN
        if not transport.is_closing() and not self._server_holds:
            transport.resume_reading()

    def save(self) -> tuple[dict[str, Any], tuple[asyncio.Transport, asyncio.Transport]] | None:
        """See `Tunnel.save`."""
        relay = self._relay.save()
        if relay is None or self._client is None or self._server is None:
            return None
        if (self._holds | self._server_holds) & _BY_TURN:
            return None
        saved = self.save_life() | {
            "relay": relay,
            "handshake": self._dialer.handshake,
            "protocol": self._dialer.protocol,
            "secure": self._dialer.secure,
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
        # One write: a message and the barrier behind it come to be read together.
        self._corked = []
        self._relay.client_data(data, self.plane.clock())
        self._uncork()
        if len(data) >= FULL_READ or self._relay.client_waits:
            self._hold(_BY_TURN, True)
            self.plane.loop.call_soon(self._go_on_with_client)

    def _go_on_with_client(self) -> None:
        if self._relay.client_waits:
            self.from_client(b"")
        if not self._relay.client_waits:
            self._hold(_BY_TURN, False)

    def from_server(self, leg: _ServerLeg, data: bytes) -> None:
        """Bytes from an instance; those of a former one are too late."""
        if leg is self._server:
            self._bytes_out += len(data)
            self._relay.server_data(data, self.plane.clock())
            if leg is self._server and (len(data) >= FULL_READ or self._relay.server_waits):
                self._hold_server(_BY_TURN, True)
                self.plane.loop.call_soon(self._go_on_with_server, leg)

    def _go_on_with_server(self, leg: _ServerLeg) -> None:
        if self._relay.server_waits:
            self.from_server(leg, b"")
        if leg is self._server and not self._relay.server_waits:
            self._hold_server(_BY_TURN, False)

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
        self._hold_server(_BY_OTHER, held)

    def _hold_server(self, who: int, held: bool) -> None:
        before = self._server_holds
        self._server_holds = before | who if held else before & ~who
        server = self._server
        if server is None or server.transport.is_closing() or bool(before) is bool(self._server_holds):
            return
        transport = server.transport
        transport.pause_reading() if held else transport.resume_reading()

    def hold_client(self, leg: _ServerLeg, held: bool) -> None:
        """The instance reads slowly, or has caught up."""
        if leg is self._server:
            self._hold(_BY_OTHER, held)

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
        if self._corked is not None:
            self._corked.append(data)
        elif self._server is not None:
            self._server.transport.write(data)

    def _uncork(self) -> None:
        corked, self._corked = self._corked, None
        if corked and self._server is not None:
            self._server.transport.write(corked[0] if len(corked) == 1 else b"".join(corked))

    def read_client(self, wanted: bool) -> None:
        """See `Port`."""
        self._hold(_BY_RELAY, not wanted)

    def may_barrier(self, urgent: bool) -> bool:
        """See `Port`."""
        return self.plane.moves.may_barrier(urgent)

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
        self._dialer.left(token, now)
        self.plane.moves.begin(self)

    def end(self, code: int, side: str) -> None:
        """See `Port`."""
        self._drop_server()
        self._ended = (code, side)
        self._stop_moving()
        if self._client is not None:
            self._part_from(self._client)
            self.alarm(self.plane.clock() + _LINGER)
        else:
            self._finish_books()

    def _part_from(self, client: asyncio.Transport) -> None:
        if client.is_closing() or not client.can_write_eof():
            client.close()
            return
        # RFC 6455 7.1.1: closed while bytes wait unread, the connection would be reset, and the client might
        # never read the Close.
        self._holds = 0
        client.resume_reading()
        client.write_eof()

    def _drop_server(self) -> None:
        self._uncork()
        server, self._server = self._server, None
        self._hold(_BY_OTHER, False)
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
        try:
            upstream, lease, rest = await self._dialer.dial(self.endpoint)
        except NobodyError as error:
            self._fail(str(error))
        else:
            self._arrive(upstream, lease, rest)

    def _arrive(self, upstream: Upstream, lease: Lease, rest: bytes) -> None:
        plane = self.plane
        now = plane.clock()
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
        elif self.endpoint.state is not State.READY and not self.endpoint.available:
            plane.on_late_tunnel(self)

    def _fail(self, why: str) -> None:
        plane = self.plane
        self._dialing = None
        plane.counters.moves_failed += 1
        plane.moves.done(self)
        self._relay.gave_up(why, plane.clock())

    def _stop_moving(self) -> None:
        dialing, self._dialing = self._dialing, None
        if dialing is not None:
            dialing.cancel()
        self.plane.moves.done(self)

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
        return self._server is not None and not self._server_holds if side else not self._holds

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
