"""From the live state to what the API says of it. Only reads."""

from __future__ import annotations

from collections import Counter
from typing import Any

from proxy.admin.control import Change, Control, Source
from proxy.admin.models import (
    ChangeView,
    EntryRegistryView,
    EntryView,
    InstanceView,
    OverrideView,
    RegistryView,
    RouteView,
    ServiceDetailView,
    ServiceView,
    SplitView,
    StatusView,
    TotalsView,
    TrafficView,
    VersionView,
)
from proxy.endpoint import Endpoint, State
from proxy.metrics import Traffic
from proxy.sidecar.entry import Entry
from proxy.table import RouteState, ServiceState, Table


def instance_view(table: Table, endpoint: Endpoint, now: float) -> InstanceView:
    """An endpoint as it is now."""
    return InstanceView(**_instance_facts(table, endpoint, now))


def _instance_facts(table: Table, endpoint: Endpoint, now: float) -> dict[str, Any]:
    instance = endpoint.instance
    override = table.overridden(endpoint)
    said = override is not None and (override.weight is not None or override.draining)
    return {
        "service": instance.service,
        "id": instance.id,
        "address": instance.address,
        "state": endpoint.state,
        "registry": instance.status,
        "version": instance.version,
        "backup": instance.backup,
        "metadata": dict(instance.metadata),
        "weight": endpoint.weight,
        "registered_weight": instance.weight,
        "effective_weight": round(endpoint.weight_at(now), 2),
        "override": OverrideView(weight=override.weight, draining=override.draining)
        if override is not None and said
        else None,
        "inflight": endpoint.inflight,
        "tunnels": endpoint.tunnels,
        "tunnels_total": endpoint.tunnels_total,
        "requests": endpoint.finished,
        "failed": endpoint.failed,
        "failures": endpoint.failures,
        "latency_ms": round(endpoint.latency * 1000, 3),
        "messages_in": endpoint.messages_in,
        "messages_out": endpoint.messages_out,
        "bytes_in": endpoint.bytes_in,
        "bytes_out": endpoint.bytes_out,
        "connections": len(endpoint.connections),
        "ejected_for": round(max(0.0, endpoint.ejected_until - now), 3)
        if endpoint.state is State.EJECTED
        else None,
    }


def service_view(state: ServiceState) -> ServiceView:
    """A service and its sums."""
    return ServiceView(**_service_facts(state))


def service_detail(table: Table, state: ServiceState, now: float) -> ServiceDetailView:
    """A service with its instances."""
    instances = [instance_view(table, endpoint, now) for endpoint in state.endpoints.values()]
    return ServiceDetailView(**_service_facts(state), instances=instances)


def _service_facts(state: ServiceState) -> dict[str, Any]:
    endpoints = state.endpoints.values()
    sticky = state.config.sticky
    counts = Counter(endpoint.state for endpoint in endpoints)
    return {
        "name": state.name,
        "balance": state.config.balance.value,
        "sticky": sticky.by.value if sticky is not None else None,
        "known": state.known,
        "states": {kind.value: counts[kind] for kind in State if kind is not State.GONE},
        "versions": dict(Counter(endpoint.instance.version for endpoint in endpoints)),
        "inflight": sum(endpoint.inflight for endpoint in endpoints),
        "tunnels": sum(endpoint.tunnels for endpoint in endpoints),
        "requests": sum(endpoint.finished for endpoint in endpoints),
        "failed": sum(endpoint.failed for endpoint in endpoints),
        "on_drain": str(state.config.websocket.on_drain),
        "drain_timeout": state.config.drain.timeout,
    }


def split_view(route: RouteState) -> SplitView:
    """A route's split."""
    return SplitView(route=route.name, **_shares(route))


def _shares(route: RouteState) -> dict[str, Any]:
    split, configured = route.split, route.configured_split
    present: Counter[str] = Counter()
    ready: Counter[str] = Counter()
    for endpoint in route.service.endpoints.values():
        present[endpoint.instance.version] += 1
        ready[endpoint.instance.version] += endpoint.state is State.READY
    names = sorted({*present, *(split.shares if split else ()), *(configured.shares if configured else ())})
    return {
        "split": dict(split.shares) if split is not None else None,
        "configured": dict(configured.shares) if configured is not None else None,
        "versions": {name: VersionView(instances=present[name], ready=ready[name]) for name in names},
    }


def route_view(route: RouteState) -> RouteView:
    """A route with its figures."""
    compiled = route.compiled
    return RouteView(
        **_shares(route),
        name=route.name,
        service=route.service.name,
        match=compiled.match.model_dump(mode="json", exclude_defaults=True),
        limits=[limiter.limit for limiter in route.limiters],
        mirror=compiled.mirror.model_dump(mode="json") if compiled.mirror is not None else None,
        traffic={version: _traffic_view(traffic) for version, traffic in route.traffic.items()},
    )


def _traffic_view(traffic: Traffic) -> TrafficView:
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for (status_class, reason), count in traffic.outcomes.items():
        statuses[f"{status_class}xx"] += count
        if reason:
            reasons[reason] += count
    return TrafficView(
        requests=statuses.total(),
        statuses=dict(statuses),
        reasons=dict(reasons),
        bytes_in=traffic.bytes_in,
        bytes_out=traffic.bytes_out,
    )


def registry_view(source: Source, now: float) -> RegistryView:
    """A registry as it is doing now."""
    return RegistryView(
        name=source.name,
        kind=source.kind,
        state=str(source.state.value),
        staleness=round(source.staleness(now), 3),
        held=source.held,
        failures=source.failures,
        error=source.last_error,
    )


def entry_view(entry: Entry) -> EntryView:
    """An application beside this process, as it is doing."""
    return EntryView(
        service=entry.instance.service,
        id=entry.instance.id,
        address=entry.instance.address,
        app_ready=entry.app_ready,
        app_error=entry.wrong,
        registries=[
            EntryRegistryView(
                name=seat.place.name, registered=seat.registered, shown=seat.confirmed, error=seat.error
            )
            for seat in entry.seats
        ],
    )


def status_view(control: Control, version: str, pid: int, uptime: float) -> StatusView:
    """The process as a whole."""
    plane = control.plane
    counters = plane.counters
    reasons = control.unready()
    now = plane.clock()
    return StatusView(
        version=version,
        pid=pid,
        uptime=round(uptime, 3),
        ready=not reasons,
        reasons=reasons,
        totals=TotalsView(
            requests=counters.requests_total,
            refused=sum(counters.bad_requests.values()),
            retries=counters.retries,
            connections=counters.connections_accepted,
            connections_open=counters.connections_open,
            connections_refused=counters.connections_refused,
            tunnels=counters.tunnels_total,
            tunnels_open=counters.tunnels_open,
            log_lines_dropped=plane.log.dropped,
        ),
        registries=[registry_view(source, now) for source in control.sources],
        entries=[entry_view(entry) for entry in control.sidecar.entries],
        services=[service_view(state) for state in plane.table.services.values()],
    )


def change_view(change: Change) -> ChangeView:
    """A difference, in both forms."""
    return ChangeView(
        path=change.path,
        before=change.before,
        after=change.after,
        effect=str(change.effect),
        line=str(change),
    )
