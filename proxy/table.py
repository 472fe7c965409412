"""Services, their endpoints and pools: the one place that changes them.

Every method is synchronous. It changes state, publishes a new immutable `Pool` in one assignment, and returns
the departures that `proxy.drain` must act on. Registry updates, health checks, outlier detection and the
admin API all come through here; the data plane only reads the pools.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from config import schema
from config.schema import Balance, Config, Limit, Outlier, Service
from discovery.model import Instance, Status, Update
from proxy.balance import Balancer, make_balancer
from proxy.capacity import Capacity
from proxy.endpoint import TRANSITIONS, Endpoint, Event, State, instance_from
from proxy.keys import KeyOf, key_reader
from proxy.limit import Limiter
from proxy.metrics import Traffic, load_traffic, save_traffic
from proxy.outlier import ejection_time, may_eject, remembered, unlike_the_others
from proxy.retry import Budget
from proxy.route import CompiledRoute, Router, compile_routes
from proxy.split import Split
from proxy.sticky import Stickiness


class Cause(Enum):
    """Why an endpoint gets nothing new, which decides how what it holds is ended."""

    DRAINING = "draining"
    """Asked to leave: what it has may finish until the deadline."""
    GONE = "gone"
    """No longer registered: likewise, and its connections are not kept."""
    DEAD = "dead"
    """Its registry says it is down: act now."""


@dataclass(frozen=True, slots=True)
class Departure:
    """An endpoint that has to be emptied."""

    endpoint: Endpoint
    cause: Cause


@dataclass(slots=True)
class Override:
    """What an operator has said of one instance; holds for as long as that instance is registered."""

    weight: int | None = None
    draining: bool = False


class Pool:
    """An immutable view of who may be picked, replaced whole whenever that changes."""

    __slots__ = ("_kind", "_previous", "_subsets", "balancer", "by_token", "ready", "versions")

    def __init__(self, ready: tuple[Endpoint, ...], service: Service, previous: Pool | None) -> None:
        self.ready = ready
        self.versions = {endpoint.instance.version for endpoint in ready}
        self.by_token = {endpoint.token: endpoint for endpoint in ready if endpoint.token}
        self._kind = service.balance
        # Only balancers that exist are carried on: a chain of pools would keep every old one alive.
        self._previous = previous._subsets if previous is not None else {}
        self.balancer: Balancer[Endpoint] = make_balancer(
            service.balance, ready, previous.balancer if previous is not None else None
        )
        self._subsets: dict[str, Balancer[Endpoint]] = {}

    def subset(self, version: str) -> Balancer[Endpoint]:
        """The balancer over the ready endpoints of one version, made when it is first asked for."""
        balancer = self._subsets.get(version)
        if balancer is None:
            members = [e for e in self.ready if e.instance.version == version]
            balancer = make_balancer(self._kind, members, self._previous.get(version))
            self._subsets[version] = balancer
        return balancer


class ServiceState:
    """One service: its configuration, its endpoints by id, and the pool that the data plane reads."""

    __slots__ = (
        "budget",
        "capacity",
        "config",
        "counted",
        "endpoints",
        "judged_at",
        "key_of",
        "known",
        "limited",
        "limiters",
        "name",
        "panicking",
        "pool",
        "stickiness",
    )

    def __init__(self, name: str, config: Service, stickiness: Stickiness | None) -> None:
        self.name = name
        self.config = config
        self.stickiness = stickiness
        self.endpoints: dict[str, Endpoint] = {}
        self.known = False
        """Whether any source has said anything of this service yet."""
        self.pool = Pool((), config, None)
        self.panicking = False
        """Whether the pool has those that should not be used, because too few others are left."""
        self.counted: dict[Endpoint, tuple[int, int]] = {}
        self.judged_at = 0.0
        """Requests and failures of each endpoint when they were compared last, and when that was."""
        self.budget = Budget(config.retry.budget)
        self.limiters = _limiters(config.limit)
        self.capacity = Capacity(config.capacity)
        self.limited = False
        """Whether its requests need an admission. Owner: `regard_limits`."""
        self.regard_limits()
        self.key_of = _key_of(config)
        """Reads what the balancer hashes; None for balancers that do not hash."""

    def regard_limits(self) -> None:
        """To be called after each change of `limiters` or of what `capacity` holds."""
        self.limited = bool(self.limiters) or not self.capacity.unlimited

    @property
    def tunnels(self) -> int:
        """How many tunnels there are to all its endpoints, as far as its capacity depends on that."""
        config = self.capacity.config
        if not config.tunnels and not config.connections:
            return 0
        return sum(endpoint.tunnels for endpoint in self.endpoints.values())


def _key_of(config: Service) -> KeyOf | None:
    if config.balance is Balance.IP_HASH:
        return key_reader("ip")
    if config.balance in (Balance.RING_HASH, Balance.MAGLEV):
        return key_reader(config.hash_on)
    return None


def _limiters(limits: Iterable[Limit], former: Iterable[Limiter] = ()) -> tuple[Limiter, ...]:
    """Those of `former` that say the same keep their buckets."""
    kept = {limiter.limit: limiter for limiter in former}
    return tuple(kept.get(limit) or Limiter(limit) for limit in limits)


def _said(limiters: Iterable[Limiter]) -> list[dict[str, Any]]:
    """Limits as plain values."""
    return [limiter.limit.model_dump() for limiter in limiters]


class RouteState:
    """One route at run time: what it matches (by its compiled form), where it leads, and its own policies."""

    __slots__ = (
        "compiled",
        "configured_split",
        "key",
        "limiters",
        "mirrored",
        "name",
        "service",
        "split",
        "traffic",
    )

    def __init__(self, compiled: CompiledRoute, service: ServiceState) -> None:
        self.name = compiled.name
        self.key = self.name.encode()
        self.mirrored = compiled.mirror is not None
        self.compiled = compiled
        self.service = service
        self.configured_split = compiled.split
        """What the file says; `split` is what holds now."""
        self.split: Split | None = compiled.split
        self.limiters = _limiters(compiled.limits)
        self.traffic: dict[str, Traffic] = {}
        """By version label. Owner: proxy.metrics."""


class UnknownName(LookupError):
    """A service, instance or route that does not exist; the message says which, and what there is."""


def _unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    return UnknownName(f"there is no {kind} {name!r}; known: {', '.join(sorted(known)) or 'none'}")


EventSink = Callable[..., None]
"""Called as `emit(kind, **facts)` for everything that changes."""


class Table:
    """All services and routes of one process."""

    def __init__(self, emit: EventSink, key: bytes | None = None) -> None:
        self._emit = emit
        self._key = key or secrets.token_bytes(32)
        self._overrides: dict[tuple[str, str], Override] = {}
        self._stickiness: dict[str, tuple[object, Stickiness]] = {}
        self.services: dict[str, ServiceState] = {}
        self.router: Router = compile_routes(())
        self.routes: tuple[RouteState, ...] = ()

    # -- configuration -------------------------------------------------------------------------------------

    def configure(self, config: Config, now: float) -> list[Departure]:
        """Take over a new configuration. Endpoints, counts, overrides and run-time splits live on."""
        departures: list[Departure] = []
        for name in [name for name in self.services if name not in config.services]:
            departures += self._remove(self.services.pop(name), lambda _: True)
        for name, wanted in config.services.items():
            state = self.services.get(name)
            if state is None:
                self.services[name] = ServiceState(name, wanted, self._make_stickiness(name, wanted))
            elif state.config != wanted:
                departures += self._reconfigure(state, wanted, now)
        router = compile_routes(config.routes)
        former = {route.name: route for route in self.routes}
        routes = []
        for compiled in router.routes:
            route = RouteState(compiled, self.services[compiled.service])
            old = former.get(route.name)
            if old is not None:
                route.traffic = old.traffic
                if old.configured_split == route.configured_split:
                    route.split = old.split
                if old.compiled.limits == compiled.limits:
                    route.limiters = old.limiters
            routes.append(route)
        self.router, self.routes = router, tuple(routes)
        return departures

    def _make_stickiness(self, name: str, config: Service) -> Stickiness | None:
        sticky = config.sticky
        if sticky is None:
            return None
        key = sticky.key.get_secret_value().encode() if sticky.key is not None else self._key
        return Stickiness(sticky, name, key)

    def _reconfigure(self, state: ServiceState, wanted: Service, now: float) -> list[Departure]:
        if state.config.sticky != wanted.sticky:
            state.stickiness = self._make_stickiness(state.name, wanted)
        if state.config.retry != wanted.retry:
            state.budget = Budget(wanted.retry.budget)
        if state.config.balance != wanted.balance:
            state.pool = Pool((), wanted, None)
        if state.config.limit != wanted.limit:
            state.limiters = _limiters(wanted.limit, state.limiters)
        if state.config.capacity != wanted.capacity:
            state.capacity.reconfigure(wanted.capacity)
        state.regard_limits()
        state.config = wanted
        state.key_of = _key_of(wanted)
        departures = []
        for endpoint in state.endpoints.values():
            endpoint.token = self._token(state, endpoint.instance)
            endpoint.slow_start = wanted.slow_start
            departures += self._reconcile(state, endpoint, now)
        self._publish(state, now)
        return departures

    # -- what registries say -------------------------------------------------------------------------------

    def apply(self, update: Update, now: float) -> list[Departure]:
        """Make the endpoints of one service what the update says. An equal set changes nothing."""
        state = self.services.get(update.service)
        if state is None:
            return []
        state.known = True
        wanted = {instance.id: instance for instance in update.instances or ()}
        departures = self._remove(
            state,
            lambda endpoint: (
                (instance := wanted.get(endpoint.instance.id)) is None
                or instance.address != endpoint.instance.address
            ),
        )
        changed = bool(departures)
        for instance in wanted.values():
            endpoint = state.endpoints.get(instance.id)
            if endpoint is None:
                weight = self._weight(instance)
                endpoint = Endpoint(instance, weight, state.config.slow_start, self._token(state, instance))
                state.endpoints[instance.id] = endpoint
                self._tell("instance_added", endpoint, address=instance.address, version=instance.version)
            elif endpoint.instance == instance:
                continue
            else:
                died = instance.status is Status.DOWN and endpoint.instance.status is not Status.DOWN
                endpoint.instance = instance
                endpoint.weight = self._weight(instance)
                if died:
                    departures.append(Departure(endpoint, Cause.DEAD))
            changed = True
            departures += self._reconcile(state, endpoint, now)
        if changed:
            self._publish(state, now)
        return departures

    def _remove(self, state: ServiceState, leaves: Callable[[Endpoint], bool]) -> list[Departure]:
        departures = []
        for endpoint in [e for e in state.endpoints.values() if leaves(e)]:
            del state.endpoints[endpoint.instance.id]
            self._overrides.pop((state.name, endpoint.instance.id), None)
            self._fire(endpoint, Event.REMOVE)
            departures.append(Departure(endpoint, Cause.GONE))
        return departures

    # -- what health checks and traffic say ----------------------------------------------------------------

    def health(
        self,
        endpoint: Endpoint,
        passed: bool,
        now: float,
        detail: str = "",
        *,
        silent: bool = False,
        early: bool = False,
    ) -> list[Departure]:
        """Record one active check. A new instance needs one pass; thresholds hold for changes after that.

        `silent`: nothing answered, not even with a refusal. `early`: the instance may still be starting.
        """
        state = self.services.get(endpoint.instance.service)
        if state is None or state.config.health is None or endpoint.state is State.GONE:
            return []
        config = state.config.health
        endpoint.silences = endpoint.silences + 1 if silent else 0
        if passed:
            endpoint.passes, endpoint.fails = endpoint.passes + 1, 0
            enough = endpoint.passes >= config.healthy or endpoint.state is State.STARTING
            if enough and endpoint.instance.status is not Status.DOWN and self._fire(endpoint, Event.PASS):
                self._publish(state, now)
        else:
            endpoint.passes, endpoint.fails = 0, endpoint.fails + 1
            starting = endpoint.state is State.STARTING
            enough = not early if starting else endpoint.fails >= config.unhealthy
            if enough and self._fire(endpoint, Event.FAIL, detail=detail):
                self._publish(state, now)
            if config.dead and endpoint.silences == config.dead and not starting:
                self._tell("instance_dead", endpoint, detail=detail)
                return [Departure(endpoint, Cause.DEAD)]
        return []

    def failed(self, endpoint: Endpoint, now: float) -> None:
        """Look at an endpoint whose exchange has just failed, and eject it when its service says so."""
        state = self.services.get(endpoint.instance.service)
        if state is None or state.config.outlier is None or endpoint.state is not State.READY:
            return
        if endpoint.failures >= state.config.outlier.consecutive_failures:
            self._eject_by_traffic(state, state.config.outlier, endpoint, now, "outlier")

    def _eject_by_traffic(
        self, state: ServiceState, config: Outlier, endpoint: Endpoint, now: float, by: str
    ) -> None:
        out = sum(e.state is State.EJECTED for e in state.endpoints.values())
        if may_eject(config, out, len(state.endpoints)):
            endpoint.ejections = remembered(config, endpoint.ejections, now - endpoint.ejected_until)
            self._eject(state, endpoint, ejection_time(config, endpoint.ejections), now, by)

    def compare(self, now: float) -> None:
        """Eject those that fail far more than their peers; to be called about once a second."""
        for state in self.services.values():
            outlier = state.config.outlier
            if outlier is None or outlier.success_rate is None:
                continue
            if now - state.judged_at < outlier.success_rate.interval:
                continue
            before, state.judged_at = state.counted, now
            state.counted = {e: (e.finished, e.failed) for e in state.endpoints.values()}
            counts = {
                endpoint: (finished - before[endpoint][0], failed - before[endpoint][1])
                for endpoint, (finished, failed) in state.counted.items()
                if endpoint in before and endpoint.state is State.READY
            }
            for endpoint in unlike_the_others(outlier.success_rate, counts):
                self._eject_by_traffic(state, outlier, endpoint, now, "success_rate")

    def expire(self, now: float) -> float | None:
        """Let those back whose ejection is over. Returns when the next one is, or None."""
        upcoming: list[float] = []
        for state in self.services.values():
            ejected = [e for e in state.endpoints.values() if e.state is State.EJECTED]
            over = [endpoint for endpoint in ejected if endpoint.ejected_until <= now]
            upcoming += [endpoint.ejected_until for endpoint in ejected if endpoint.ejected_until > now]
            for endpoint in over:
                self._let_back(state, endpoint, now)
            if over:
                self._publish(state, now)
        return min(upcoming, default=None)

    def _let_back(self, state: ServiceState, endpoint: Endpoint, now: float) -> None:
        """End an ejection. Not straight to work: it may have died, or been called down, meanwhile."""
        endpoint.failures = 0
        self._fire(endpoint, Event.RETURN)
        self._reconcile(state, endpoint, now)
        if endpoint.state is State.STARTING and endpoint.passes:
            self._fire(endpoint, Event.PASS)

    # -- what operators say --------------------------------------------------------------------------------

    def find_service(self, name: str) -> ServiceState:
        """One service by name. Raises `UnknownName`."""
        state = self.services.get(name)
        if state is None:
            raise _unknown("service", name, self.services)
        return state

    def find(self, service: str, instance: str) -> Endpoint:
        """One endpoint by name. Raises `UnknownName`."""
        state = self.find_service(service)
        endpoint = state.endpoints.get(instance)
        if endpoint is None:
            raise _unknown(f"instance of {service}", instance, state.endpoints)
        return endpoint

    def find_route(self, name: str) -> RouteState:
        """One route by name. Raises `UnknownName`."""
        for route in self.routes:
            if route.name == name:
                return route
        raise _unknown("route", name, (route.name for route in self.routes))

    def set_weight(self, service: str, instance: str, weight: int | None, now: float) -> None:
        """Override an instance's weight; None gives it back its registered one. Raises `UnknownName`."""
        endpoint = self.find(service, instance)
        before = endpoint.weight
        self._override(endpoint).weight = weight
        endpoint.weight = self._weight(endpoint.instance)
        if endpoint.weight != before:
            self._tell("weight_changed", endpoint, before=before, after=endpoint.weight)
            self._publish(self.services[service], now)

    def drain(self, service: str, instance: str, now: float) -> list[Departure]:
        """Take an instance out gently. Raises `UnknownName`."""
        return self._set_draining(self.find(service, instance), True, now)

    def undrain(self, service: str, instance: str, now: float) -> list[Departure]:
        """Take a drain back. A mark in the registry stays in force. Raises `UnknownName`."""
        return self._set_draining(self.find(service, instance), False, now)

    def eject(self, service: str, instance: str, seconds: float, now: float) -> None:
        """Take an instance out for some seconds. Raises `UnknownName`."""
        self._eject(self.services[service], self.find(service, instance), seconds, now, "operator")

    def set_split(self, route: str, shares: dict[str, int] | None) -> None:
        """Replace a route's shares; None sends everybody everywhere. Raises `UnknownName`, `ValueError`."""
        state = self.find_route(route)
        before = state.split
        state.split = Split(shares) if shares is not None else None
        self._emit(
            "split_changed",
            route=route,
            before=dict(before.shares) if before else None,
            after=shares,
        )

    def set_route_limits(self, route: str, limits: Sequence[Limit] | None) -> None:
        """Replace a route's rate limits; None gives back those of the file. Raises `UnknownName`."""
        state = self.find_route(route)
        before = _said(state.limiters)
        state.limiters = _limiters(state.compiled.limits if limits is None else limits, state.limiters)
        self._emit("limits_changed", route=route, before=before, after=_said(state.limiters))

    def set_service_limits(self, service: str, limits: Sequence[Limit] | None) -> None:
        """The same for a service's own. Raises `UnknownName`."""
        state = self.find_service(service)
        before = _said(state.limiters)
        state.limiters = _limiters(state.config.limit if limits is None else limits, state.limiters)
        state.regard_limits()
        self._emit("limits_changed", service=service, before=before, after=_said(state.limiters))

    def set_capacity(self, service: str, capacity: schema.Capacity | None) -> None:
        """Replace what a service may have under way; None gives back the file's. Raises `UnknownName`."""
        state = self.find_service(service)
        before = state.capacity.config
        state.capacity.reconfigure(state.config.capacity if capacity is None else capacity)
        state.regard_limits()
        after = state.capacity.config
        self._emit("capacity_changed", service=service, before=before.model_dump(), after=after.model_dump())

    # -- between processes ---------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """What a process that takes over has to know, as plain values; see `load`."""
        return {
            "key": self._key,
            "overrides": [(*names, o.weight, o.draining) for names, o in self._overrides.items()],
            "splits": {
                route.name: dict(route.split.shares) if route.split is not None else None
                for route in self.routes
                if route.split != route.configured_split
            },
            "limits": {
                "routes": {
                    route.name: _said(route.limiters)
                    for route in self.routes
                    if tuple(limiter.limit for limiter in route.limiters) != route.compiled.limits
                },
                "services": {
                    name: _said(state.limiters)
                    for name, state in self.services.items()
                    if tuple(limiter.limit for limiter in state.limiters) != state.config.limit
                },
                "capacities": {
                    name: state.capacity.config.model_dump()
                    for name, state in self.services.items()
                    if state.capacity.config != state.config.capacity
                },
            },
            "services": {
                name: [endpoint.save() for endpoint in state.endpoints.values()]
                for name, state in self.services.items()
                if state.known
            },
            "bindings": {
                name: state.stickiness.save()
                for name, state in self.services.items()
                if state.stickiness is not None
            },
        }

    def load(self, saved: dict[str, Any], config: Config, now: float) -> None:
        """Configure, and go on from what `save` gave in another process. Only on a new table.

        Endpoints keep their states: an instance that was ready need not prove it again, one that was not
        does not get a second chance by it.
        """
        self._key = saved["key"]
        for service, instance, weight, draining in saved["overrides"]:
            self._overrides[service, instance] = Override(weight, draining)
        self.configure(config, now)
        for route in self.routes:
            if route.name in saved["splits"]:
                shares = saved["splits"][route.name]
                route.split = Split(shares) if shares is not None else None
        self._load_limits(saved["limits"])
        for name, endpoints in saved["services"].items():
            state = self.services.get(name)
            if state is None:
                continue
            found = tuple(instance_from(name, entry) for entry in endpoints)
            self.apply(Update(name, found, now), now)
            for entry in endpoints:
                state.endpoints[entry["id"]].load(entry)
            self._publish(state, now)
            if state.stickiness is not None and name in saved["bindings"]:
                state.stickiness.load(saved["bindings"][name])

    def _load_limits(self, saved: dict[str, Any]) -> None:
        routes, services = {route.name for route in self.routes}, self.services
        for name in saved["routes"].keys() & routes:
            self.set_route_limits(name, [Limit(**limit) for limit in saved["routes"][name]])
        for name in saved["services"].keys() & services:
            self.set_service_limits(name, [Limit(**limit) for limit in saved["services"][name]])
        for name in saved["capacities"].keys() & services:
            self.set_capacity(name, schema.Capacity(**saved["capacities"][name]))

    def save_traffic(self) -> dict[str, Any]:
        """The figures of every route, as plain values, by name."""
        return {route.name: save_traffic(route.traffic) for route in self.routes}

    def load_traffic(self, saved: dict[str, Any]) -> None:
        """Replace figures by what `save_traffic` gave, as far as there are such routes."""
        for route in self.routes:
            load_traffic(route.traffic, saved.get(route.name, {}))

    # -- inside --------------------------------------------------------------------------------------------

    def _override(self, endpoint: Endpoint) -> Override:
        key = (endpoint.instance.service, endpoint.instance.id)
        return self._overrides.setdefault(key, Override())

    def overridden(self, endpoint: Endpoint) -> Override | None:
        """What an operator has said of this endpoint, if anything."""
        return self._overrides.get((endpoint.instance.service, endpoint.instance.id))

    def _weight(self, instance: Instance) -> int:
        override = self._overrides.get((instance.service, instance.id))
        return instance.weight if override is None or override.weight is None else override.weight

    @staticmethod
    def _token(state: ServiceState, instance: Instance) -> bytes:
        return state.stickiness.token(instance.id) if state.stickiness is not None else b""

    def _set_draining(self, endpoint: Endpoint, draining: bool, now: float) -> list[Departure]:
        state = self.services[endpoint.instance.service]
        self._override(endpoint).draining = draining
        before = endpoint.state
        departures = self._reconcile(state, endpoint, now)
        if endpoint.state is not before:
            self._publish(state, now)
        return departures

    def _eject(self, state: ServiceState, endpoint: Endpoint, seconds: float, now: float, by: str) -> None:
        if self._fire(endpoint, Event.EJECT, by=by, seconds=seconds):
            endpoint.ejected_until = now + seconds
            endpoint.ejections += 1
            self._publish(state, now)

    def _reconcile(self, state: ServiceState, endpoint: Endpoint, now: float) -> list[Departure]:
        """Fire the events that follow from what registry and operator say of an endpoint."""
        status = endpoint.instance.status
        override = self.overridden(endpoint)
        if status is Status.DRAINING or (override is not None and override.draining):
            if self._fire(endpoint, Event.DRAIN):
                return [Departure(endpoint, Cause.DRAINING)]
            return []
        self._fire(endpoint, Event.UNDRAIN)
        if status is Status.DOWN:
            self._fire(endpoint, Event.FAIL, detail="critical in the registry")
        elif state.config.health is None:
            self._fire(endpoint, Event.PASS)
        return []

    def _fire(self, endpoint: Endpoint, event: Event, **facts: object) -> bool:
        before = endpoint.state
        after = TRANSITIONS[before].get(event)
        if after is None:
            return False
        endpoint.state = after
        self._tell("state_changed", endpoint, before=before.value, after=after.value, **facts)
        return True

    def _publish(self, state: ServiceState, now: float) -> None:
        ready = [e for e in state.endpoints.values() if e.state is State.READY and e.weight > 0]
        listed = [e for e in ready if e.instance.status is not Status.DOUBTFUL]
        primaries = [e for e in listed if not e.instance.backup] or listed
        chosen = tuple(self._everybody(state, ready) or primaries or ready)
        for endpoint in _newcomers(chosen, state.pool.ready):
            endpoint.ready_at = now
            endpoint.warm_at = now + endpoint.slow_start
        for endpoint in state.pool.ready:
            endpoint.available = False
        for endpoint in chosen:
            endpoint.available = True
        state.pool = Pool(chosen, state.config, state.pool)

    def _everybody(self, state: ServiceState, ready: Sequence[Endpoint]) -> list[Endpoint]:
        """All that may be alive, when too few are ready for what the service says of panic; else nobody."""
        alive: list[Endpoint] = []
        if state.config.panic:
            alive = [e for e in state.endpoints.values() if e.state in _MAYBE_ALIVE and e.weight > 0]
            alive = [e for e in alive if e.instance.status is not Status.DOWN]
        panicking = len(ready) < state.config.panic * len(alive)
        if panicking is not state.panicking:
            state.panicking = panicking
            facts = {"ready": len(ready), "used": len(alive) if panicking else len(ready)}
            self._emit("panic_began" if panicking else "panic_ended", service=state.name, **facts)
        return alive if panicking else []

    def _tell(self, kind: str, endpoint: Endpoint, **facts: object) -> None:
        self._emit(kind, service=endpoint.instance.service, instance=endpoint.instance.id, **facts)


_MAYBE_ALIVE = (State.READY, State.UNHEALTHY, State.EJECTED)


def _newcomers(chosen: Sequence[Endpoint], former: Sequence[Endpoint]) -> list[Endpoint]:
    before = set(map(id, former))
    return [endpoint for endpoint in chosen if id(endpoint) not in before]
