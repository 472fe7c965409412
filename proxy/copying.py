"""Tunnels that copy bytes: two legs, which follow a WebSocket's frames and change nothing in them.

When such a tunnel has to end, the client gets a Close frame between two messages; what the client still says,
its answering Close included, goes on to the instance, which so closes in order too.
"""

from __future__ import annotations

import asyncio
import os
from enum import Enum
from typing import Any

from proxy.endpoint import Lease
from proxy.frames import CloseCode, FrameError, FrameFollower, Opcode, encode_close, encode_frame
from proxy.handover import Parked, is_secure
from proxy.plane import FULL_READ, Plane
from proxy.relay import PING
from proxy.table import RouteState
from proxy.tunnel import Origin, Tunnel
from proxy.upstream import Upstream

_GOODBYE = 3.0
"""Seconds in which a Close must be answered and the connections closed, before they are cut."""


_BY_OTHER, _BY_TURN = 1, 2
"""Why a leg is not read: bits of one number."""

_GONE = "this instance is gone, please reconnect"


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
    PARTING = "parting"
    """The instance has ended it; the client has yet to close its side."""
    CLOSED = "closed"


class Leg(asyncio.Protocol):
    """One side's connection: what it sends goes to the other leg."""

    __slots__ = (
        "_bytes",
        "_finished",
        "_follower",
        "_holds",
        "_lost",
        "_mode",
        "_tunnel",
        "_waiting",
        "other",
        "transport",
    )

    other: Leg

    def __init__(
        self, tunnel: PlainTunnel, transport: asyncio.Transport, follower: FrameFollower | None
    ) -> None:
        self._tunnel = tunnel
        self.transport = transport
        self._follower = follower
        self._mode = Mode.RELAY
        self._bytes = 0
        self._holds = 0
        """Why it is not read."""
        self._waiting = b""
        """What is passed on in the next turns of the loop: it has more frames than one turn has time for."""
        self._finished = False
        self._lost = False

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._bytes += len(data)
        if self._mode is not Mode.RELAY:
            self._data_while_closing(data)
            return
        follower = self._follower
        if follower is not None:
            try:
                end = follower.feed(data)
            except FrameError:
                # Not for us to judge: both sides go on, only their boundaries are unknown from here on.
                self._follower = None
            else:
                if follower.close_code:
                    self._tunnel.close_passed(self)
                if end >= 0:
                    self._pass_part(data, end)
                    return
        self.other.transport.write(data)
        if len(data) >= FULL_READ:
            self._yield()

    def _pass_part(self, data: bytes, end: int) -> None:
        """Pass on as much as one turn has time for; the rest waits, and so does the side that sends it."""
        self.other.transport.write(data[:end])
        self._waiting = data[end:]
        self._yield()

    def _yield(self) -> None:
        self.hold(_BY_TURN)
        self._tunnel.plane.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, b""
        if waiting:
            self._bytes -= len(waiting)  # counted when it came
            self.data_received(waiting)
        if not self._waiting:
            self.release(_BY_TURN)

    def hold(self, who: int) -> None:
        """Stop reading from this side."""
        self._holds |= who
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def release(self, who: int) -> None:
        """One reason for not reading is gone."""
        self._holds &= ~who
        if not self._holds and not self.transport.is_closing():
            self.transport.resume_reading()

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
            if not follower.boundary:
                self._pass_part(data, end)
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

    def part(self) -> bool:
        """Finish a WebSocket's side, and read it without use until it has closed too; False if it cannot.

        Closed while bytes wait unread, the connection would be reset, and a Close on its way with it
        (RFC 6455 section 7.1.1).
        """
        transport = self.transport
        if not self._tunnel.websocket or transport.is_closing() or not transport.can_write_eof():
            return False
        self._mode = Mode.DISCARD
        transport.resume_reading()
        transport.write_eof()
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
        waiting, self._waiting = self._waiting, b""
        if waiting and self._mode is Mode.RELAY and not self.other.transport.is_closing():
            self.other.transport.write(waiting)
            self._follower = None
        self._tunnel.leg_lost(self)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: this side reads slowly, so the other has to wait."""
        self.other.hold(_BY_OTHER)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.other.release(_BY_OTHER)

    @property
    def resting(self) -> bool:
        """Whether all that came has been passed on."""
        return not self._waiting

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


class PlainTunnel(Tunnel):
    """Two legs that copy bytes; it ends with its instance."""

    __slots__ = ("_client", "_closer", "_ending", "_farewell", "_first_lost", "_server")

    _client: Leg
    _server: Leg

    def __init__(
        self, plane: Plane, route: RouteState, lease: Lease, origin: Origin, *, websocket: bool
    ) -> None:
        super().__init__(plane, route, lease, origin, websocket=websocket)
        self._ending = Ending.OPEN
        self._farewell = b""
        """The Close that we have said to the client, or are to say."""
        self._closer: Leg | None = None
        """The side whose Close came first."""
        self._first_lost: Leg | None = None
        """The side whose connection ended first."""

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
            leg.release(_BY_OTHER)  # it may have been paused before it was a leg

    def save(self) -> tuple[dict[str, Any], tuple[asyncio.Transport, asyncio.Transport]] | None:
        """See `Tunnel.save`."""
        if self._ending is not Ending.OPEN or self._client.lost or self._server.lost:
            return None
        if not (self._client.resting and self._server.resting):
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
        self._first_lost = leg
        gone_silently = self.websocket and leg.between_frames and not leg.close_code
        if gone_silently and not other.transport.is_closing():
            # It went without a Close: the other side need not guess.
            if other is self._server:
                other.transport.write(encode_close(CloseCode.GOING_AWAY, "", os.urandom(4)))
            elif not self._farewell:
                self._farewell = encode_close(CloseCode.SERVICE_RESTART, _GONE)
                other.transport.write(self._farewell)
        if other is self._client and other.part():
            if self._ending is Ending.OPEN:
                self._ending = Ending.PARTING
                self.plane.wheel.set(self, self.plane.clock() + _GOODBYE)
        else:
            other.transport.close()

    def close_passed(self, leg: Leg) -> None:
        """A Close frame has come from one side; the first one tells who closed."""
        if self._closer is None:
            self._closer = leg

    def on_deadline(self) -> None:
        """See `proxy.timers.Timed`: time for a look, or a Close that nobody has answered."""
        if self._ending is Ending.PARTING:
            # It reads slowly, or never closes: once all is written, so is its connection.
            self._ending = Ending.OPEN
            self._client.transport.close()
        if self._ending is Ending.OPEN:
            super().on_deadline()
        else:
            self.abort()

    def _how_it_ended(self) -> tuple[int, str]:
        if self._farewell:
            return int.from_bytes(self._farewell[2:4], "big"), "proxy"
        if self._closer is not None:
            return self._closer.close_code, "client" if self._closer is self._client else "upstream"
        return int(CloseCode.ABNORMAL), "client" if self._first_lost is self._client else "upstream"
