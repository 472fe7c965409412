"""What an HTTP connection becomes after 101: two legs that copy bytes, and follow a WebSocket's frames.

Bytes are never changed. When a tunnel has to end, the client gets a Close frame between two messages; what
the client still says, its answering Close included, goes on to the instance, which so closes in order too.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from enum import Enum

from proxy.endpoint import Lease, State
from proxy.frames import CloseCode, FrameError, FrameFollower, encode_close
from proxy.metrics import record
from proxy.plane import Plane
from proxy.table import RouteState
from proxy.timers import NEVER
from proxy.upstream import Upstream

_GOODBYE = 3.0
"""Seconds in which a Close must be answered and the connections closed, before they are cut."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that a tunnel began with: what its log line says. Times are clock readings."""

    started: float
    opened: float
    client: str
    method: bytes
    target: bytes
    authority: bytes
    attempts: int
    request_id: bytes
    agent: bytes


class Mode(Enum):
    """What a leg does with the bytes that come from its side."""

    RELAY = "relay"
    """Pass them on."""
    UNTIL_BOUNDARY = "until_boundary"
    """Pass on what ends the message under way, then say Close to the other side."""
    DISCARD = "discard"
    """The other side has been told Close: nothing may follow."""


class Ending(Enum):
    """How far a tunnel's end is."""

    OPEN = "open"
    CLOSING = "closing"
    """Close was said, or is to be said at the next boundary."""
    CLOSED = "closed"


class Leg(asyncio.Protocol):
    """One side's connection: what it sends goes to the other leg."""

    __slots__ = ("_bytes", "_follower", "_lost", "_mode", "_tunnel", "other", "transport")

    other: Leg

    def __init__(self, tunnel: Tunnel, transport: asyncio.Transport, follower: FrameFollower | None) -> None:
        self._tunnel = tunnel
        self.transport = transport
        self._follower = follower
        self._mode = Mode.RELAY
        self._bytes = 0
        self._lost = False

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._tunnel.active = True
        self._bytes += len(data)
        if self._mode is not Mode.RELAY:
            self._data_while_closing(data)
            return
        self.other.transport.write(data)
        follower = self._follower
        if follower is not None:
            try:
                follower.feed(data)
            except FrameError:
                # Not for us to judge: both sides go on, only their boundaries are unknown from here on.
                self._follower = None

    def _data_while_closing(self, data: bytes) -> None:
        follower = self._follower
        if self._mode is Mode.UNTIL_BOUNDARY and follower is not None:
            try:
                end = follower.split(data)
            except FrameError:
                self._follower = None
                self._tunnel.abort()
                return
            if end < 0:
                self.other.transport.write(data)
                return
            self.other.transport.write(data[:end])
            self._tunnel.say_close()

    def close_other(self, farewell: bytes) -> bool:
        """Say Close to the other side now, if nothing that comes from this one is half said."""
        if self._follower is not None and not self._follower.boundary:
            self._mode = Mode.UNTIL_BOUNDARY
            return False
        self._mode = Mode.DISCARD
        self.other.transport.write(farewell)
        return True

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`: one side has finished sending, the other may go on."""
        other = self.other.transport
        if other.can_write_eof() and not other.is_closing():
            other.write_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._lost = True
        self._tunnel.leg_lost(self)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: this side reads slowly, so the other has to wait."""
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    @property
    def lost(self) -> bool:
        """Whether its connection is gone."""
        return self._lost

    @property
    def transferred(self) -> int:
        """Bytes that came from this side."""
        return self._bytes

    @property
    def messages(self) -> int:
        """Messages that came from this side; 0 for what is not a WebSocket."""
        return self._follower.messages if self._follower is not None else 0

    @property
    def close_code(self) -> int:
        """Of the Close frame that this side has sent; 0 for none."""
        return self._follower.close_code if self._follower is not None else 0


class Tunnel:
    """One client's tunnel to one instance. `websocket`: its frames are followed."""

    __slots__ = (
        "_client",
        "_ending",
        "_farewell",
        "_lease",
        "_origin",
        "_plane",
        "_route",
        "_server",
        "active",
        "deadline",
        "due",
        "endpoint",
        "websocket",
    )

    _client: Leg
    _server: Leg

    def __init__(
        self, plane: Plane, route: RouteState, lease: Lease, origin: Origin, *, websocket: bool
    ) -> None:
        assert lease.endpoint is not None
        self._plane = plane
        self._route = route
        self._lease = lease
        self._origin = origin
        self._ending = Ending.OPEN
        self._farewell = b""
        self.endpoint = lease.endpoint
        self.websocket = websocket
        self.active = True
        """Whether anything moved since the last look. Owner: the legs; the idle check clears it."""
        self.deadline = self.due = NEVER

    def open(
        self, client: asyncio.Transport, upstream: Upstream, from_client: bytes, from_server: bytes
    ) -> None:
        """Take both transports over; the bytes are those that came behind the two heads."""
        plane = self._plane
        upstream.forget()
        follow = self.websocket
        self._client = Leg(self, client, FrameFollower() if follow else None)
        self._server = Leg(self, upstream.transport, FrameFollower() if follow else None)
        self._client.other, self._server.other = self._server, self._client
        client.set_protocol(self._client)
        upstream.transport.set_protocol(self._server)
        plane.sessions.add(self)
        plane.counters.tunnels_open += 1
        plane.counters.tunnels_total += 1
        for leg, data in ((self._client, from_client), (self._server, from_server)):
            if data:
                leg.data_received(data)
            if not leg.transport.is_closing():
                leg.transport.resume_reading()
        self._watch()
        if self.endpoint.state is not State.READY:
            plane.on_late_tunnel(self)

    # -- ending --------------------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """Say Close to the client at the next message boundary, then end. What is no WebSocket is cut."""
        if self._ending is not Ending.OPEN:
            return
        if not self.websocket or self._server.lost or self._client.lost:
            self.abort()
            return
        self._ending = Ending.CLOSING
        self._farewell = encode_close(code, reason)
        self._plane.wheel.set(self, self._plane.clock() + _GOODBYE)
        if self._server.close_code:
            return  # the instance has said Close itself; the client is answering it
        self.say_close()

    def say_close(self) -> None:
        """Write the Close to the client if nothing is half said; else the server's leg asks again."""
        if self._server.close_other(self._farewell):
            # A message that is never finished must not hold the end up for ever.
            self._plane.wheel.set(self, self._plane.clock() + _GOODBYE)

    def abort(self) -> None:
        """Cut both connections now."""
        self._client.transport.abort()
        self._server.transport.abort()

    def leg_lost(self, leg: Leg) -> None:
        """One connection is gone: flush and close the other; when both are, settle the books."""
        if self._ending is Ending.CLOSED:
            return
        other = leg.other
        if not other.lost:
            if other is self._server and not self._client.close_code and self.websocket:
                # The client went without a Close, and the instance need not wait for one.
                self._tell_server()
            other.transport.close()
            return
        self._settle()

    def _tell_server(self) -> None:
        server, client = self._server.transport, self._client
        follower = client._follower
        if follower is not None and follower.boundary and not server.is_closing():
            server.write(encode_close(CloseCode.GOING_AWAY, "", os.urandom(4)))

    def on_deadline(self) -> None:
        """See `proxy.timers.Timed`: idle for too long, or a Close that nobody answered."""
        if self._ending is Ending.CLOSING:
            self.abort()
        elif self._ending is Ending.OPEN:
            if self.active:
                self._watch()
            else:
                self.close(CloseCode.GOING_AWAY, "idle")

    def _watch(self) -> None:
        """Look again after the idle time whether anything has moved."""
        self.active = False
        idle = self._route.service.config.websocket.idle
        if idle:
            self._plane.wheel.set(self, self._plane.clock() + idle)

    def _settle(self) -> None:
        self._ending = Ending.CLOSED
        plane, client, server, origin = self._plane, self._client, self._server, self._origin
        plane.wheel.cancel(self)
        plane.sessions.remove(self)
        plane.left()
        now = plane.clock()
        self._lease.exit(now, failed=False)
        endpoint = self.endpoint
        endpoint.bytes_in += client.transferred
        endpoint.bytes_out += server.transferred
        endpoint.messages_in += client.messages
        endpoint.messages_out += server.messages
        code, side = self._how_it_ended()
        plane.counters.tunnel_closed(code, side)
        seconds = now - origin.started
        record(self._route, endpoint, 101, "", seconds, client.transferred, server.transferred)
        if plane.log.enabled:
            plane.log.append(
                (
                    now,
                    origin.started,
                    origin.opened,
                    origin.client,
                    origin.method,
                    origin.target,
                    origin.authority,
                    self._route,
                    endpoint,
                    101,
                    "" if code in (1000, CloseCode.GOING_AWAY) else f"closed_{code}_by_{side}",
                    client.transferred,
                    server.transferred,
                    origin.attempts,
                    origin.request_id,
                    "websocket" if self.websocket else "tunnel",
                    origin.agent,
                )
            )

    def _how_it_ended(self) -> tuple[int, str]:
        if self._farewell:
            return int.from_bytes(self._farewell[2:4], "big"), "proxy"
        if self._server.close_code and self._server.close_code != CloseCode.NO_STATUS:
            return self._server.close_code, "upstream"
        if self._client.close_code:
            return self._client.close_code, "client"
        return int(CloseCode.ABNORMAL), "client" if self._client.lost else "upstream"

    def describe(self) -> dict[str, object]:
        """Who is connected, since when (seconds), and what has passed so far."""
        origin = self._origin
        return {
            "client": origin.client,
            "target": origin.target.decode("latin-1"),
            "route": self._route.name,
            "service": self.endpoint.instance.service,
            "instance": self.endpoint.instance.id,
            "protocol": "websocket" if self.websocket else "tunnel",
            "seconds": round(self._plane.clock() - origin.started, 3),
            "messages_in": self._client.messages,
            "messages_out": self._server.messages,
            "bytes_in": self._client.transferred,
            "bytes_out": self._server.transferred,
            "state": self._ending.value,
        }
