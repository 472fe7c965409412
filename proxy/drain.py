"""Emptying endpoints that leave: what the table decided, carried out over time.

What is in flight may finish until the service's drain timeout; tunnels move, or are closed with Close 1012
between two messages, spread over the jitter so that their clients do not all come back in the same moment. A
limit on closes per second goes before the timeout: it is there to protect what the clients come back to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from random import Random

from config.schema import OnDrain, Service
from proxy.endpoint import Endpoint, State
from proxy.errors import Reason
from proxy.plane import Plane
from proxy.session import Tunnel
from proxy.table import Cause, Departure
from proxy.upstream import close_idle, cut_busy

_DOWN_JITTER = 1.0
"""Clients of a dead instance are cut off already: they are not made to wait longer than this."""
_AFTER_CLOSE = 5.0
"""Seconds after the deadline in which said Closes may still be answered."""
_REPORT = 1.0
"""Seconds between two events of how far the emptying has got."""


class Drainer:
    """Acts on departures, by timers. An endpoint is empty when its last lease is over."""

    def __init__(
        self,
        plane: Plane,
        random: Random | None = None,
        emit: Callable[..., None] = lambda kind, **facts: None,
    ) -> None:
        """`emit` is told of progress, as `proxy.events.EventLog.emit` is."""
        self._plane = plane
        self._emit = emit
        self._random = random or Random()
        self._timers: dict[Endpoint, set[asyncio.TimerHandle]] = {}
        self._turns: dict[str, float] = {}
        """When each service's last paced close is due."""
        self._configs: dict[Endpoint, Service] = {}
        plane.on_late_tunnel = self._late

    def depart(self, departures: Iterable[Departure], deadline: float | None = None) -> None:
        """Begin to empty each endpoint, within `deadline` seconds or its service's drain timeout."""
        for departure in departures:
            self._begin(departure.endpoint, departure.cause, deadline)

    def _config(self, endpoint: Endpoint) -> Service:
        service = self._plane.table.services.get(endpoint.instance.service)
        if service is not None:
            self._configs[endpoint] = service.config
        return self._configs.get(endpoint) or Service()

    def _begin(self, endpoint: Endpoint, cause: Cause, deadline: float | None) -> None:
        close_idle(endpoint)
        if cause is Cause.GONE and endpoint in self._timers:
            return  # it was draining already: deregistering is the next step of that, not a new one
        self._cancel(endpoint)
        config = self._config(endpoint)
        left = self._left(endpoint)
        self._later(endpoint, _REPORT, lambda: self._report(endpoint, left))
        if cause is Cause.DEAD:
            self._leave_all(endpoint, _DOWN_JITTER, dead=True)
        else:
            self._schedule(endpoint, config.drain.timeout if deadline is None else deadline, config)

    def _left(self, endpoint: Endpoint) -> tuple[int, int]:
        """Requests and tunnels that are still there."""
        tunnels = len(self._plane.sessions.of(endpoint))
        return endpoint.inflight - tunnels, tunnels

    def _report(self, endpoint: Endpoint, before: tuple[int, int]) -> None:
        if endpoint.state is State.READY:
            return  # the drain was taken back
        left = requests, tunnels = self._left(endpoint)
        if left != before:
            instance = endpoint.instance
            self._emit(
                "drain_progress",
                service=instance.service,
                instance=instance.id,
                requests=requests,
                tunnels=tunnels,
            )
        if any(left):
            self._later(endpoint, _REPORT, lambda: self._report(endpoint, left))

    def _schedule(self, endpoint: Endpoint, deadline: float, config: Service) -> None:
        last = 0.0
        if config.websocket.on_drain is not OnDrain.WAIT:
            last = self._leave_all(endpoint, min(config.drain.jitter, deadline))
        self._later(endpoint, deadline, lambda: self._deadline(endpoint))
        self._later(endpoint, max(deadline, last), lambda: self._expel(endpoint))

    def _leave_all(self, endpoint: Endpoint, spread: float, *, dead: bool = False) -> float:
        """Have every tunnel leave within the spread, or as the pace allows; returns the last's seconds."""
        tunnels = self._plane.sessions.of(endpoint)
        # In order, so that nobody's pace is set by somebody who happens to come late.
        delays = sorted(self._random.uniform(0.0, spread) for _ in tunnels)
        turns = [
            self._leave_later(endpoint, tunnel, delay, dead=dead)
            for tunnel, delay in zip(tunnels, delays, strict=True)
        ]
        return max(turns, default=0.0)

    def _late(self, tunnel: Tunnel) -> None:
        """A tunnel whose handshake was under way when its endpoint began to leave."""
        endpoint = tunnel.endpoint
        config = self._config(endpoint)
        if config.websocket.on_drain is not OnDrain.WAIT or endpoint not in self._timers:
            self._leave_later(endpoint, tunnel, self._random.uniform(0.0, config.drain.jitter))

    def _leave_later(
        self, endpoint: Endpoint, tunnel: Tunnel, seconds: float, *, dead: bool = False
    ) -> float:
        return self._act_later(endpoint, tunnel, seconds, lambda: tunnel.leave(dead=dead))

    def _act_later(
        self, endpoint: Endpoint, tunnel: Tunnel, seconds: float, act: Callable[[], None]
    ) -> float:
        def unless_it_may_stay() -> None:
            # An undrain may have come in between, or the tunnel may have moved on by itself.
            if endpoint.state is not State.READY and tunnel.endpoint is endpoint:
                act()

        turn = self._pace(endpoint, seconds)
        self._later(endpoint, turn, unless_it_may_stay)
        return turn

    def _pace(self, endpoint: Endpoint, seconds: float) -> float:
        """Not before the service's next free turn, when closes per second are limited. A move is none."""
        websocket = self._config(endpoint).websocket
        most = websocket.max_closes_per_second
        if not most or websocket.on_drain is OnDrain.MIGRATE:
            return seconds
        now = self._plane.clock()
        name = endpoint.instance.service
        turn = self._turns[name] = max(self._turns.get(name, 0.0) + 1.0 / most, now + seconds)
        return turn - now

    def _deadline(self, endpoint: Endpoint) -> None:
        if endpoint.state not in (State.READY, State.STARTING):
            cut_busy(endpoint, Reason.DRAIN_DEADLINE)

    def _expel(self, endpoint: Endpoint) -> None:
        """Whoever is still there has had the time to leave."""
        if endpoint.state in (State.READY, State.STARTING):
            return
        turns = [
            self._act_later(endpoint, tunnel, 0.0, tunnel.expel)
            for tunnel in self._plane.sessions.of(endpoint)
        ]
        self._later(endpoint, max(turns, default=0.0) + _AFTER_CLOSE, lambda: self._give_up(endpoint))

    def _give_up(self, endpoint: Endpoint) -> None:
        for tunnel in self._plane.sessions.of(endpoint):
            tunnel.leave(dead=True)

    def _later(self, endpoint: Endpoint, seconds: float, act: Callable[[], None]) -> None:
        timers = self._timers.setdefault(endpoint, set())

        def fire() -> None:
            timers.discard(handle)
            act()
            if not timers and self._timers.get(endpoint) is timers:
                del self._timers[endpoint]
                self._configs.pop(endpoint, None)

        handle = self._plane.loop.call_later(seconds, fire)
        timers.add(handle)

    def _cancel(self, endpoint: Endpoint) -> None:
        for handle in self._timers.pop(endpoint, ()):
            handle.cancel()

    def close(self) -> None:
        """Forget every timer."""
        for endpoint in list(self._timers):
            self._cancel(endpoint)
