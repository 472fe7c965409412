"""What an HTTP connection becomes after 101: two legs that copy bytes, and follow a WebSocket's frames.

Bytes are never changed. When a tunnel has to end, the client gets a Close frame between two messages; what
the client still says, its answering Close included, goes on to the instance, which so closes in order too.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from enum import Enum
from typing import Any

from config.schema import WebSocket
from proxy.endpoint import Lease, State
from proxy.frames import CloseCode, FrameError, FrameFollower, Opcode, encode_close, encode_frame
from proxy.handover import Parked, is_secure
from proxy.metrics import record
from proxy.plane import Plane
from proxy.relay import PING
from proxy.table import RouteState
from proxy.timers import NEVER
from proxy.upstream import Upstream

_ORDINARY = (1000, CloseCode.GOING_AWAY, CloseCode.NO_STATUS)
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

    __slots__ = ("_bytes", "_finished", "_follower", "_lost", "_mode", "_tunnel", "other", "transport")

    other: Leg

    def __init__(
        self, tunnel: PlainTunnel, transport: asyncio.Transport, follower: FrameFollower | None
    ) -> None:
        self._tunnel = tunnel
        self.transport = transport
        self._follower = follower
        self._mode = Mode.RELAY
        self._bytes = 0
        self._finished = False
        self._lost = False

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
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

    def save(self) -> tuple[int, tuple[int, bytes, bool, int, int] | None]:
        """What it knows, for `load` in another process."""
        return self._bytes, self._follower.save() if self._follower is not None else None

    def load(self, saved: tuple[int, tuple[int, bytes, bool, int, int] | None]) -> None:
        """Go on from where `save` was called."""
        self._bytes, follower = saved
        self._follower = FrameFollower.load(follower) if follower is not None else None

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
        """See `asyncio.Protocol`: one side has finished sending, the other may go on.

        Not in a WebSocket, where whoever finishes sending has left; and not when the other has finished too.
        """
        self._finished = True
        other = self.other
        if self._tunnel.websocket or other._finished or other.transport.is_closing():
            return False
        if not other.transport.can_write_eof():
            return False
        other.transport.write_eof()
        return True

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
    def between_frames(self) -> bool:
        """Whether what came from this side ends with a frame; unknown, hence false, for what is none."""
        return self._follower is not None and self._follower.between_frames

    @property
    def close_code(self) -> int:
        """Of the Close frame that this side has sent; 0 for none."""
        return self._follower.close_code if self._follower is not None else 0


class Tunnel(ABC):
    """One client's tunnel: its books, and the rules of its life. `websocket`: its frames are known."""

    __slots__ = (
        "_booked",
        "_expires",
        "_heard",
        "_lease",
        "_looked",
        "_moved_at",
        "_pinged",
        "_progress",
        "deadline",
        "due",
        "endpoint",
        "origin",
        "plane",
        "route",
        "websocket",
    )

    def __init__(
        self, plane: Plane, route: RouteState, lease: Lease, origin: Origin, *, websocket: bool
    ) -> None:
        assert lease.endpoint is not None
        self.plane = plane
        self.route = route
        self.origin = origin
        self.endpoint = lease.endpoint
        self.websocket = websocket
        self._lease = lease
        self._booked = (0, 0, 0, 0)
        """Bytes and messages that some endpoint has been credited with."""
        self._looked = NEVER
        """When the rules of its life are to be looked at next."""
        self._moved_at = origin.opened
        self._progress = 0
        """What `moved` said at the last look, and when it last said something new."""
        self._heard = [-1, -1]
        self._pinged = [False, False]
        """Bytes from the client and the instance at the last look, and whether they were pinged since."""
        age = self._rules.max_age
        self._expires = origin.opened + age * plane.random.uniform(1.0, 1.1) if age else NEVER
        self.deadline = self.due = NEVER

    @property
    def _rules(self) -> WebSocket:
        return self.route.service.config.websocket

    # -- what kinds of tunnels do each in their way --------------------------------------------------------

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Say Close to the client at the next message boundary, then end. What is no WebSocket is cut."""

    @abstractmethod
    def leave(self, *, dead: bool) -> None:
        """Its instance is leaving, or is dead: move on if this tunnel can, else close with 1012."""

    @abstractmethod
    def abort(self) -> None:
        """Cut both connections now."""

    @abstractmethod
    def save(self) -> tuple[dict[str, Any], tuple[asyncio.Transport, asyncio.Transport]] | None:
        """What another process needs to go on with it, and both connections; None if it cannot now."""

    @abstractmethod
    def expel(self) -> None:
        """The time in which its instance may leave is over: do at once what `leave` does with care."""

    @abstractmethod
    def ping(self, side: int) -> bool:
        """Send a ping to the client (0) or the instance (1); False if something is half said to it."""

    @abstractmethod
    def hears(self, side: int) -> bool:
        """Whether what the client (0) or the instance (1) says is being read."""

    @abstractmethod
    def silent(self, side: int) -> None:
        """The client (0) or the instance (1) has not answered a ping: it is dead."""

    @property
    @abstractmethod
    def pinned(self) -> bool:
        """It cannot change its process: a connection of it is TLS, whose keys are in this one's memory."""

    @property
    @abstractmethod
    def bytes(self) -> tuple[int, int]:
        """Bytes from the client, and from instances, in all."""

    @property
    @abstractmethod
    def messages(self) -> tuple[int, int]:
        """Messages from the client, and from instances, in all; zeros for what is no WebSocket."""

    @property
    @abstractmethod
    def state(self) -> str:
        """For people."""

    # -- life ----------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """Both sides are connected: enter the books."""
        plane = self.plane
        plane.sessions.add(self)
        plane.counters.tunnels_open += 1
        plane.counters.tunnels_total += 1
        self.look(plane.clock())
        if self.endpoint.state is not State.READY:
            plane.on_late_tunnel(self)

    def look(self, now: float) -> None:
        """Apply the rules of its life (age, idleness, pings), and say when to look again."""
        rules = self._rules
        if now >= self._expires:
            self._expires = now + rules.max_age
            self.leave(dead=False)
        progress = sum(self.messages) if self.websocket else sum(self.bytes)
        if progress != self._progress:
            self._progress, self._moved_at = progress, now
        if rules.idle and now - self._moved_at >= rules.idle:
            self.close(CloseCode.GOING_AWAY, "idle")
            return
        if rules.ping and self.websocket:
            self._ping_silent()
        steps = [rules.ping or NEVER, max(1.0, rules.idle / 4) if rules.idle else NEVER]
        self._looked = min(now + min(steps), self._expires)
        self.rearm()

    def _ping_silent(self) -> None:
        for side, heard in enumerate(self.bytes):
            if heard != self._heard[side] or not self.hears(side):
                self._heard[side] = heard
                self._pinged[side] = False
            elif self._pinged[side]:
                self._pinged[side] = False
                self.silent(side)
            else:
                self._pinged[side] = self.ping(side)

    def rearm(self) -> None:
        """Have `on_deadline` called when the next thing is due."""
        self.plane.wheel.set(self, self._looked)

    def on_deadline(self) -> None:
        """See `proxy.timers.Timed`."""
        self.look(self.plane.clock())

    def leave_endpoint(self) -> None:
        """It goes on without this endpoint; which one is next is not known yet."""
        self._leave_books()
        self.plane.sessions.part(self)

    def enter_endpoint(self, lease: Lease) -> None:
        """Go on at another endpoint."""
        assert lease.endpoint is not None
        self._lease, self.endpoint = lease, lease.endpoint
        self.plane.sessions.add(self)

    def _leave_books(self) -> None:
        """The present endpoint has nothing to do with this tunnel any more."""
        self.plane.sessions.remove(self)
        self._lease.exit(self.plane.clock(), failed=False)
        endpoint, so_far = self.endpoint, (*self.bytes, *self.messages)
        fresh = [total - before for total, before in zip(so_far, self._booked, strict=True)]
        endpoint.bytes_in += fresh[0]
        endpoint.bytes_out += fresh[1]
        endpoint.messages_in += fresh[2]
        endpoint.messages_out += fresh[3]
        self._booked = so_far

    def settle(self, code: int, side: str) -> None:
        """It is over: close the books. `code` is that of the Close, `side` who closed."""
        plane, origin, endpoint = self.plane, self.origin, self.endpoint
        plane.wheel.cancel(self)
        self._leave_books()
        plane.left()
        now = plane.clock()
        bytes_in, bytes_out = self.bytes
        plane.counters.tunnel_closed(code, side)
        record(self.route, endpoint, 101, "", now - origin.started, bytes_in, bytes_out)
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
                    self.route,
                    endpoint,
                    101,
                    "" if code in _ORDINARY else f"closed_{code}_by_{side}",
                    bytes_in,
                    bytes_out,
                    origin.attempts,
                    origin.request_id,
                    "websocket" if self.websocket else "tunnel",
                    origin.agent,
                )
            )

    def save_life(self) -> dict[str, Any]:
        """What every kind of tunnel needs to go on in another process."""
        return {
            "origin": astuple(self.origin),
            "route": self.route.name,
            "service": self.endpoint.instance.service,
            "instance": self.endpoint.instance.id,
            "address": self.endpoint.instance.address,
            "websocket": self.websocket,
            "booked": self._booked,
            "moved_at": self._moved_at,
            "progress": self._progress,
            "expires": self._expires,
        }

    def load_life(self, saved: dict[str, Any]) -> None:
        """Go on from what `save_life` gave."""
        self._booked = tuple(saved["booked"])
        self._moved_at, self._progress = saved["moved_at"], saved["progress"]
        self._expires = saved["expires"]
        # It is not a new one, there or here.
        self.plane.counters.tunnels_total -= 1
        self.endpoint.tunnels_total -= 1

    def let_go(self) -> None:
        """Another process has it now: leave this one's books without ending it."""
        plane = self.plane
        plane.wheel.cancel(self)
        plane.sessions.remove(self)
        self._lease.exit(plane.clock(), failed=False)
        plane.counters.tunnels_open -= 1
        plane.left()

    def describe(self) -> dict[str, object]:
        """Who is connected, since when (seconds), and what has passed so far."""
        origin = self.origin
        (bytes_in, bytes_out), (messages_in, messages_out) = self.bytes, self.messages
        return {
            "client": origin.client,
            "target": origin.target.decode("latin-1"),
            "route": self.route.name,
            "service": self.endpoint.instance.service,
            "instance": self.endpoint.instance.id,
            "protocol": "websocket" if self.websocket else "tunnel",
            "seconds": round(self.plane.clock() - origin.started, 3),
            "messages_in": messages_in,
            "messages_out": messages_out,
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "state": self.state,
        }


class PlainTunnel(Tunnel):
    """Two legs that copy bytes; it ends with its instance."""

    __slots__ = ("_client", "_ending", "_farewell", "_server")

    _client: Leg
    _server: Leg

    def __init__(
        self, plane: Plane, route: RouteState, lease: Lease, origin: Origin, *, websocket: bool
    ) -> None:
        super().__init__(plane, route, lease, origin, websocket=websocket)
        self._ending = Ending.OPEN
        self._farewell = b""

    def open(
        self, client: asyncio.Transport, upstream: Upstream, from_client: bytes, from_server: bytes
    ) -> None:
        """Take both transports over; the bytes are those that came behind the two heads."""
        upstream.forget()
        follow = self.websocket
        self._client = Leg(self, client, FrameFollower() if follow else None)
        self._server = Leg(self, upstream.transport, FrameFollower() if follow else None)
        self._client.other, self._server.other = self._server, self._client
        client.set_protocol(self._client)
        upstream.transport.set_protocol(self._server)
        self.opened()
        for leg, data in ((self._client, from_client), (self._server, from_server)):
            if data:
                leg.data_received(data)
            if not leg.transport.is_closing():
                leg.transport.resume_reading()

    def save(self) -> tuple[dict[str, Any], tuple[asyncio.Transport, asyncio.Transport]] | None:
        """See `Tunnel.save`."""
        if self._ending is not Ending.OPEN or self._client.lost or self._server.lost:
            return None
        saved = self.save_life() | {"client": self._client.save(), "server": self._server.save()}
        return saved, (self._client.transport, self._server.transport)

    def load(self, saved: dict[str, Any], client: Parked, server: Parked) -> None:
        """Go on with both connections, from what `save` gave in another process."""
        self.load_life(saved)
        self._client, self._server = Leg(self, client.transport, None), Leg(self, server.transport, None)
        self._client.other, self._server.other = self._server, self._client
        self._client.load(saved["client"])
        self._server.load(saved["server"])
        self.opened()
        client.give_to(self._client)
        server.give_to(self._server)

    @property
    def pinned(self) -> bool:
        """See `Tunnel.pinned`."""
        return is_secure(self._client.transport) or is_secure(self._server.transport)

    @property
    def bytes(self) -> tuple[int, int]:
        """See `Tunnel.bytes`."""
        return self._client.transferred, self._server.transferred

    @property
    def messages(self) -> tuple[int, int]:
        """See `Tunnel.messages`."""
        return self._client.messages, self._server.messages

    @property
    def state(self) -> str:
        """See `Tunnel.state`."""
        return self._ending.value

    def close(self, code: int, reason: str) -> None:
        """See `Tunnel.close`."""
        if self._ending is not Ending.OPEN:
            return
        if not self.websocket or self._server.lost or self._client.lost:
            self.abort()
            return
        self._ending = Ending.CLOSING
        self._farewell = encode_close(code, reason)
        self.plane.wheel.set(self, self.plane.clock() + _GOODBYE)
        if not self._server.close_code:  # else the instance has said Close, and the client is answering it
            self.say_close()

    def leave(self, *, dead: bool) -> None:
        """See `Tunnel.leave`."""
        self.close(CloseCode.SERVICE_RESTART, "this instance is leaving, please reconnect")

    def expel(self) -> None:
        """See `Tunnel.expel`."""
        self.leave(dead=False)

    def say_close(self) -> None:
        """Write the Close to the client if nothing is half said; else the server's leg asks again."""
        if self._server.close_other(self._farewell):
            # A message that is never finished must not hold the end up for ever.
            self.plane.wheel.set(self, self.plane.clock() + _GOODBYE)

    def abort(self) -> None:
        """See `Tunnel.abort`."""
        self._client.transport.abort()
        self._server.transport.abort()

    def ping(self, side: int) -> bool:
        """See `Tunnel.ping`."""
        leg = self._server if side else self._client
        if not leg.other.between_frames or leg.transport.is_closing():
            return False
        leg.transport.write(encode_frame(Opcode.PING, PING, os.urandom(4) if side else b""))
        return True

    def hears(self, side: int) -> bool:
        """See `Tunnel.hears`."""
        return (self._server if side else self._client).transport.is_reading()

    def silent(self, side: int) -> None:
        """See `Tunnel.silent`."""
        self.abort()

    def leg_lost(self, leg: Leg) -> None:
        """One connection is gone: flush and close the other; when both are, settle the books."""
        if self._ending is Ending.CLOSED:
            return
        other = leg.other
        if other.lost:
            self._ending = Ending.CLOSED
            self.settle(*self._how_it_ended())
            return
        if other is self._server and self.websocket and leg.between_frames and not leg.close_code:
            # The client went without a Close; the instance need not wait for one.
            other.transport.write(encode_close(CloseCode.GOING_AWAY, "", os.urandom(4)))
        other.transport.close()

    def on_deadline(self) -> None:
        """See `proxy.timers.Timed`: time for a look, or a Close that nobody has answered."""
        if self._ending is Ending.OPEN:
            super().on_deadline()
        else:
            self.abort()

    def _how_it_ended(self) -> tuple[int, str]:
        if self._farewell:
            return int.from_bytes(self._farewell[2:4], "big"), "proxy"
        if self._server.close_code and self._server.close_code != CloseCode.NO_STATUS:
            return self._server.close_code, "upstream"
        if self._client.close_code:
            return self._client.close_code, "client"
        return int(CloseCode.ABNORMAL), "client" if self._client.lost else "upstream"
