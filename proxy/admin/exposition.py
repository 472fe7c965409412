"""The counters as Prometheus samples, made when they are scraped.

Imported at the first scrape, and in a thread, since prometheus_client takes its time. On the loop the figures
are only copied (half a millisecond for a hundred instances); the samples and their text are made in a thread.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from proxy.admin.control import Control, Source
from proxy.endpoint import State
from proxy.metrics import Histogram
from proxy.table import Table

_PROCESS = ProcessCollector(registry=CollectorRegistry())
"""`process_resident_memory_bytes`, `process_open_fds`, `process_cpu_seconds_total`, by their usual names."""

_STATES = tuple(state.value for state in State if state is not State.GONE)
_ROUTE = ("route", "service", "version")
_INSTANCE = ("service", "instance", "version")
_REGISTRY = ("registry", "kind")
_ENTRY = ("service", "instance", "registry")

Buckets = tuple[Sequence[float], Sequence[int], float]
"""A histogram: bounds, counts, sum."""


@dataclass(frozen=True, slots=True)
class _Traffic:
    """One version's share of a route; `labels` are those of `_ROUTE`."""

    labels: tuple[str, str, str]
    outcomes: list[tuple[tuple[int, str], int]]
    latency: Buckets
    first_byte: Buckets
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class _Service:
    """One service; `labels` is its name. The figures of places are 0 without a capacity."""

    labels: tuple[str]
    panicking: bool
    inflight: int
    waiting: int
    limit: int


@dataclass(frozen=True, slots=True)
class _Instance:
    """One endpoint; `labels` are those of `_INSTANCE`."""

    labels: tuple[str, str, str]
    state: str
    weight: int
    inflight: int
    tunnels_open: int
    latency: float
    connections: int
    tunnels: int
    requests: int
    failures: int
    messages: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """An application beside this process in one registry; `labels` are those of `_ENTRY`."""

    labels: tuple[str, str, str]
    registered: bool
    seconds: float
    beats_failed: int


@dataclass(frozen=True, slots=True)
class _Registry:
    """One source; `labels` are those of `_REGISTRY`."""

    labels: tuple[str, str]
    staleness: float
    held: int
    flapping: int
    remembered: int
    failures: int
    mass_losses: int
    refused: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All figures of one moment, as plain numbers."""

    ready: bool
    totals: list[tuple[str, str, int]]
    connections_open: int
    tunnels_open: int
    tasks: int
    refused: list[tuple[str, int]]
    admin_refused: list[tuple[str, int]]
    closes: list[tuple[tuple[int, str], int]]
    lag: Buckets
    pauses: Buckets
    traffic: list[_Traffic]
    services: list[_Service]
    connects: Buckets
    lookups: Buckets
    instances: list[_Instance]
    sources: list[_Registry]
    evictions: list[tuple[tuple[str, str], Buckets]]
    apps: list[tuple[tuple[str, str], bool]]
    entries: list[_Entry]
    notices: list[tuple[tuple[str, str, str], int]]


def read(control: Control) -> Snapshot:
    """The figures as they are now. For the loop's thread, and quick."""
    plane = control.plane
    counters, log, now = plane.counters, plane.log, plane.clock()
    plane.sessions.book()
    return Snapshot(
        ready=not control.unready(),
        totals=[
            ("connections", "Client connections accepted.", counters.connections_accepted),
            ("connections_refused", "Client connections refused by the limit.", counters.connections_refused),
            (
                "descriptors_exhausted",
                "Connections to instances for which no file descriptor was left.",
                counters.descriptors_exhausted,
            ),
            ("requests_received", "Request heads received.", counters.requests_total),
            ("retries", "Further tries after a first.", counters.retries),
            ("hedges", "Second tries beside a first.", counters.hedges),
            ("upstream_connects", "Connections opened to instances.", counters.upstream_connects),
            ("upstream_connect_failures", "Attempts that failed.", counters.upstream_connect_failures),
            ("tunnels", "Tunnels opened.", counters.tunnels_total),
            ("tunnel_moves_failed", "Moves that found no instance.", counters.moves_failed),
            ("access_log_lines", "Access log lines handed to the writer.", log.lines),
            ("access_log_lines_dropped", "Access log lines lost.", log.dropped),
        ],
        connections_open=counters.connections_open + plane.opening,
        tunnels_open=counters.tunnels_open,
        tasks=len(asyncio.all_tasks(plane.loop)),
        refused=list(counters.bad_requests.items()),
        admin_refused=list(counters.admin_refused.items()),
        closes=list(counters.tunnel_closes.items()),
        lag=_copied(counters.loop_lag),
        pauses=_copied(counters.move_pauses),
        traffic=_read_traffic(plane.table),
        services=[
            _Service(
                (state.name,),
                state.panicking,
                state.capacity.inflight,
                state.capacity.waiting,
                state.capacity.limit,
            )
            for state in plane.table.services.values()
        ],
        connects=_copied(counters.connect_times),
        lookups=_copied(counters.lookup_times),
        instances=_read_instances(plane.table),
        sources=[_read_registry(source, now) for source in control.sources],
        evictions=[(key, _copied(histogram)) for key, histogram in counters.evictions.items()],
        apps=[((e.instance.service, e.instance.id), e.app_ready) for e in control.sidecar.entries],
        entries=[
            _Entry(
                (entry.instance.service, entry.instance.id, seat.place.name),
                seat.registered,
                seat.seconds,
                seat.beats_failed,
            )
            for entry in control.sidecar.entries
            for seat in entry.seats
        ],
        notices=[
            ((entry.instance.service, webhook.form, result), count)
            for entry in control.sidecar.entries
            for webhook in entry.webhooks
            for result, count in (("sent", webhook.sent), ("lost", webhook.lost))
        ],
    )


def _read_registry(source: Source, now: float) -> _Registry:
    return _Registry(
        (source.name, source.kind),
        staleness=source.staleness(now),
        held=source.held,
        flapping=source.flapping,
        remembered=source.remembered,
        failures=source.failed_total,
        mass_losses=source.mass_losses,
        refused=source.refused_total,
    )


def _read_traffic(table: Table) -> list[_Traffic]:
    return [
        _Traffic(
            (route.name, route.service.name, version),
            list(traffic.outcomes.items()),
            _copied(traffic.latency),
            _copied(traffic.first_byte),
            traffic.bytes_in,
            traffic.bytes_out,
        )
        for route in table.routes
        for version, traffic in route.traffic.items()
    ]


def _read_instances(table: Table) -> list[_Instance]:
    return [
        _Instance(
            (state.name, endpoint.instance.id, endpoint.instance.version),
            endpoint.state.value,
            endpoint.weight,
            endpoint.inflight,
            endpoint.tunnels,
            endpoint.latency,
            len(endpoint.connections),
            endpoint.tunnels_total,
            endpoint.finished,
            endpoint.failed,
            (endpoint.messages_in, endpoint.messages_out),
            (endpoint.bytes_in, endpoint.bytes_out),
        )
        for state in table.services.values()
        for endpoint in state.endpoints.values()
    ]


def _copied(histogram: Histogram) -> Buckets:
    return histogram.bounds, tuple(histogram.buckets), histogram.sum


def render(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """The text and its content type, in the form that the scraper prefers. For any thread."""
    encode, content_type = choose_encoder(accept)
    return encode(_Families(snapshot)), content_type


class _Families(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield from _process(snapshot)
        yield from _traffic(snapshot.traffic)
        yield from _services(snapshot.services)
        yield from _instances(snapshot.instances)
        yield from _discovery(snapshot)
        yield from _entries(snapshot)
        yield from _PROCESS.collect()


def _process(snapshot: Snapshot) -> Iterator[Metric]:
    running = {"version": installed_version("holdfast"), "python": platform.python_version()}
    yield InfoMetricFamily("holdfast_build", "What is running.", running)
    ready = "Whether traffic should be sent here."
    yield GaugeMetricFamily("holdfast_ready", ready, float(snapshot.ready))
    for name, text, value in snapshot.totals:
        yield CounterMetricFamily(f"holdfast_{name}", text, value)
    connections = "Client connections now."
    yield GaugeMetricFamily("holdfast_connections_open", connections, snapshot.connections_open)
    yield GaugeMetricFamily("holdfast_tunnels_open", "Tunnels now.", snapshot.tunnels_open)
    yield GaugeMetricFamily("holdfast_tasks", "Tasks of the event loop now.", snapshot.tasks)
    refused = CounterMetricFamily(
        "holdfast_requests_refused", "Requests answered before they had a route.", labels=("reason",)
    )
    for reason, count in snapshot.refused:
        refused.add_metric((reason,), count)
    yield refused
    turned_away = CounterMetricFamily(
        "holdfast_admin_refused", "Requests that the admin API did not let in.", labels=("code",)
    )
    for refusal, count in snapshot.admin_refused:
        turned_away.add_metric((refusal,), count)
    yield turned_away
    closes = CounterMetricFamily(
        "holdfast_tunnel_closes", "Tunnels ended, by close code and who closed.", labels=("code", "side")
    )
    for (code, side), count in snapshot.closes:
        closes.add_metric((str(code), side), count)
    yield closes
    pauses = HistogramMetricFamily(
        "holdfast_tunnel_move_pause_seconds",
        "How long clients' messages waited while their WebSocket moved to another instance.",
    )
    _add(pauses, (), snapshot.pauses)
    yield pauses
    connects = HistogramMetricFamily(
        "holdfast_upstream_connect_seconds", "To make a connection to an instance."
    )
    _add(connects, (), snapshot.connects)
    lookups = HistogramMetricFamily(
        "holdfast_upstream_lookup_seconds", "To look up the name of an instance that has one."
    )
    _add(lookups, (), snapshot.lookups)
    yield from (connects, lookups)
    lag = HistogramMetricFamily("holdfast_event_loop_lag_seconds", "Lateness of a periodic timer.")
    _add(lag, (), snapshot.lag)
    yield lag


def _traffic(versions: Sequence[_Traffic]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "holdfast_requests",
        "Finished exchanges; the reason is empty when an instance answered.",
        labels=(*_ROUTE, "status", "reason"),
    )
    duration = HistogramMetricFamily(
        "holdfast_request_duration_seconds", "From the request head to the end of the answer.", labels=_ROUTE
    )
    first_byte = HistogramMetricFamily(
        "holdfast_first_byte_seconds", "From the request head to the head of its answer.", labels=_ROUTE
    )
    received = CounterMetricFamily("holdfast_request_bytes", "Bodies and tunnels, in.", labels=_ROUTE)
    sent = CounterMetricFamily("holdfast_response_bytes", "Bodies and tunnels, out.", labels=_ROUTE)
    for traffic in versions:
        for (status_class, reason), count in traffic.outcomes:
            requests.add_metric((*traffic.labels, f"{status_class}xx", reason), count)
        _add(duration, traffic.labels, traffic.latency)
        _add(first_byte, traffic.labels, traffic.first_byte)
        received.add_metric(traffic.labels, traffic.bytes_in)
        sent.add_metric(traffic.labels, traffic.bytes_out)
    yield from (requests, duration, first_byte, received, sent)


def _services(services: Sequence[_Service]) -> Iterator[Metric]:
    for name, text, values in (
        ("panicking", "Whether all instances are used, ready or not.", [s.panicking for s in services]),
        ("admitted", "Requests that have a place.", [s.inflight for s in services]),
        ("waiting", "Requests that wait for a place.", [s.waiting for s in services]),
        ("places", "Requests that may be under way; 0: no limit.", [s.limit for s in services]),
    ):
        gauge = GaugeMetricFamily(f"holdfast_service_{name}", text, labels=("service",))
        for service, value in zip(services, values, strict=True):
            gauge.add_metric(service.labels, float(value))
        yield gauge


def _instances(instances: Sequence[_Instance]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "holdfast_instance_state", "1 for the state an instance is in.", labels=(*_INSTANCE, "state")
    )
    for instance in instances:
        for name in _STATES:
            state.add_metric((*instance.labels, name), float(instance.state == name))
    yield state
    for name, text, now in (
        ("weight", "Share relative to the others.", [i.weight for i in instances]),
        ("inflight", "Requests and tunnels under way.", [i.inflight for i in instances]),
        ("tunnels_open", "Tunnels now.", [i.tunnels_open for i in instances]),
        ("latency_seconds", "Peak EWMA of the time to the head.", [i.latency for i in instances]),
        ("connections", "Open connections to it.", [i.connections for i in instances]),
    ):
        gauge = GaugeMetricFamily(f"holdfast_instance_{name}", text, labels=_INSTANCE)
        for instance, value in zip(instances, now, strict=True):
            gauge.add_metric(instance.labels, value)
        yield gauge
    for name, text, so_far in (
        ("tunnels", "Tunnels opened.", [i.tunnels for i in instances]),
        ("requests", "Requests and tunnels that have ended.", [i.requests for i in instances]),
        ("failures", "Of them, those that the instance did wrong.", [i.failures for i in instances]),
    ):
        counter = CounterMetricFamily(f"holdfast_instance_{name}", text, labels=_INSTANCE)
        for instance, value in zip(instances, so_far, strict=True):
            counter.add_metric(instance.labels, value)
        yield counter
    for name, text, ways in (
        (
            "messages",
            "Messages in tunnels.",
            [i.messages for i in instances],
        ),
        ("tunnel_bytes", "Bytes in tunnels.", [i.bytes for i in instances]),
    ):
        both = CounterMetricFamily(f"holdfast_instance_{name}", text, labels=(*_INSTANCE, "direction"))
        for instance, (received, sent) in zip(instances, ways, strict=True):
            both.add_metric((*instance.labels, "in"), received)
            both.add_metric((*instance.labels, "out"), sent)
        yield both


def _discovery(snapshot: Snapshot) -> Iterator[Metric]:
    sources = snapshot.sources
    for name, text, now in (
        ("staleness_seconds", "Since it was last known to be right.", [s.staleness for s in sources]),
        ("held_instances", "Instances that stay although it lists them no more.", [s.held for s in sources]),
        ("flapping_instances", "Last choice because they come and go.", [s.flapping for s in sources]),
        ("remembered_services", "Known from disk, for want of an answer.", [s.remembered for s in sources]),
    ):
        gauge = GaugeMetricFamily(f"holdfast_registry_{name}", text, labels=_REGISTRY)
        for source, value in zip(sources, now, strict=True):
            gauge.add_metric(source.labels, value)
        yield gauge
    for name, text, so_far in (
        ("failures", "Attempts that failed, and watches that broke.", [s.failures for s in sources]),
        ("mass_losses", "Answers whose losses were not believed at once.", [s.mass_losses for s in sources]),
        ("refused_entries", "Entries that made no sense and were left out.", [s.refused for s in sources]),
    ):
        counter = CounterMetricFamily(f"holdfast_registry_{name}", text, labels=_REGISTRY)
        for source, count in zip(sources, so_far, strict=True):
            counter.add_metric(source.labels, count)
        yield counter
    delay = HistogramMetricFamily(
        "holdfast_eviction_delay_seconds",
        "From a registry event's arrival to the swap after which nothing starts on the instance.",
        labels=_REGISTRY,
    )
    for key, histogram in snapshot.evictions:
        _add(delay, key, histogram)
    yield delay


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Buckets) -> None:
    bounds, counts, total = histogram
    limits = [*(str(bound) for bound in bounds), "+Inf"]
    family.add_metric(labels, list(zip(limits, accumulate(counts), strict=True)), sum_value=total)


def _entries(snapshot: Snapshot) -> Iterator[Metric]:
    ready = GaugeMetricFamily(
        "holdfast_app_ready", "Whether the application beside this process is.", labels=_ENTRY[:2]
    )
    for app, value in snapshot.apps:
        ready.add_metric(app, float(value))
    yield ready
    registered = GaugeMetricFamily(
        "holdfast_registered", "Whether a registry has the application's entry.", labels=_ENTRY
    )
    seconds = GaugeMetricFamily(
        "holdfast_register_seconds", "From the application's readiness until it was shown.", labels=_ENTRY
    )
    beats = CounterMetricFamily(
        "holdfast_register_beats_failed", "Beats that a registry did not take.", labels=_ENTRY
    )
    for entry in snapshot.entries:
        registered.add_metric(entry.labels, float(entry.registered))
        seconds.add_metric(entry.labels, entry.seconds)
        beats.add_metric(entry.labels, entry.beats_failed)
    yield from (registered, seconds, beats)
    notices = CounterMetricFamily(
        "holdfast_notices", "Notices to webhooks.", labels=("service", "form", "result")
    )
    total: dict[tuple[str, str, str], int] = {}
    for labels, count in snapshot.notices:
        total[labels] = total.get(labels, 0) + count
    for labels, count in total.items():
        notices.add_metric(labels, count)
    yield notices
