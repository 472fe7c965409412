"""The books and the rules of a tunnel's life, the same whatever carries its bytes.

What an HTTP connection becomes after 101 is a `Tunnel`: `proxy.copying` has the one that copies bytes and
ends with its instance, `proxy.moving` the one that outlives it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from typing import Any

from config.schema import WebSocket
from proxy.endpoint import Lease, State
from proxy.frames import CloseCode
from proxy.metrics import record
from proxy.plane import Plane
from proxy.table import RouteState
from proxy.timers import NEVER

_ORDINARY = (1000, CloseCode.GOING_AWAY, CloseCode.NO_STATUS)
"""Close codes that need no reason in the log."""


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
        if self.endpoint.state is not State.READY and not self.endpoint.available:
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
        self.book()

    def book(self) -> None:
        """Credit the present endpoint with what has passed since it was last credited."""
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
        record(self.route, endpoint, 101, "", now - origin.started, -1.0, bytes_in, bytes_out)
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
