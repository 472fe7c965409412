"""The counters as Prometheus samples, made when they are scraped.

Imported at the first scrape, and in a thread, since prometheus_client takes its time. Counters are read on
the loop; only the text is made elsewhere.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
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

from proxy.admin.control import Control
from proxy.admin.views import registry_name
from proxy.endpoint import Endpoint, State
from proxy.metrics import Histogram
from proxy.table import Table

_PROCESS = ProcessCollector(registry=CollectorRegistry())
"""`process_resident_memory_bytes`, `process_open_fds`, `process_cpu_seconds_total`, by their usual names."""


class _Snapshot(Collector):
    """Families that have been read already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def read(control: Control) -> Sequence[Metric]:
    """All families as they are now. For the loop's thread."""
    return [
        *_process(control),
        *_traffic(control.plane.table),
        *_instances(control.plane.table),
        *_discovery(control),
        *_PROCESS.collect(),
    ]


def render(families: Sequence[Metric], accept: str) -> tuple[bytes, str]:
    """The text and its content type, in the form that the scraper prefers. For any thread."""
    encode, content_type = choose_encoder(accept)
    return encode(_Snapshot(families)), content_type


def _process(control: Control) -> Iterator[Metric]:
    counters, log = control.plane.counters, control.plane.log
    yield InfoMetricFamily(
        "holdfast_build",
        "What is running.",
        {"version": installed_version("holdfast"), "python": platform.python_version()},
    )
    yield _gauge("ready", "Whether traffic should be sent here.", float(not control.unready()))
    for name, text, value in (
        ("connections", "Client connections accepted.", counters.connections_accepted),
        ("connections_refused", "Client connections refused by the limit.", counters.connections_refused),
        ("requests_received", "Request heads received.", counters.requests_total),
        ("retries", "Further tries after a first.", counters.retries),
        ("upstream_connects", "Connections opened to instances.", counters.upstream_connects),
        ("upstream_connect_failures", "Attempts that failed.", counters.upstream_connect_failures),
        ("tunnels", "Tunnels opened.", counters.tunnels_total),
        ("access_log_lines", "Access log lines handed to the writer.", log.lines),
        ("access_log_lines_dropped", "Access log lines lost.", log.dropped),
    ):
        yield CounterMetricFamily(f"holdfast_{name}", text, value)
    yield _gauge("connections_open", "Client connections now.", counters.connections_open)
    yield _gauge("tunnels_open", "Tunnels now.", counters.tunnels_open)
    refused = CounterMetricFamily(
        "holdfast_requests_refused", "Requests answered before they had a route.", labels=("reason",)
    )
    for reason, count in counters.bad_requests.items():
        refused.add_metric((reason,), count)
    yield refused
    closes = CounterMetricFamily(
        "holdfast_tunnel_closes", "Tunnels ended, by close code and who closed.", labels=("code", "side")
    )
    for (code, side), count in counters.tunnel_closes.items():
        closes.add_metric((str(code), side), count)
    yield closes
    lag = HistogramMetricFamily("holdfast_event_loop_lag_seconds", "Lateness of a periodic timer.")
    _add(lag, (), counters.loop_lag)
    yield lag


def _traffic(table: Table) -> Iterator[Metric]:
    names = ("route", "service", "version")
    requests = CounterMetricFamily(
        "holdfast_requests",
        "Finished exchanges; the reason is empty when an instance answered.",
        labels=(*names, "status", "reason"),
    )
    duration = HistogramMetricFamily(
        "holdfast_request_duration_seconds", "From the request head to the end of the answer.", labels=names
    )
    received = CounterMetricFamily(
        "holdfast_request_bytes", "Bytes of bodies and tunnels, from clients.", labels=names
    )
    sent = CounterMetricFamily("holdfast_response_bytes", "The same, to clients.", labels=names)
    for route in table.routes:
        for version, traffic in route.traffic.items():
            labels = (route.name, route.service.name, version)
            for (status_class, reason), count in traffic.outcomes.items():
                requests.add_metric((*labels, f"{status_class}xx", reason), count)
            _add(duration, labels, traffic.latency)
            received.add_metric(labels, traffic.bytes_in)
            sent.add_metric(labels, traffic.bytes_out)
    yield from (requests, duration, received, sent)


def _instances(table: Table) -> Iterator[Metric]:
    endpoints = [e for state in table.services.values() for e in state.endpoints.values()]
    state = GaugeMetricFamily(
        "holdfast_instance_state", "1 for the state an instance is in.", labels=(*_INSTANCE, "state")
    )
    for endpoint in endpoints:
        for kind in State:
            if kind is not State.GONE:
                state.add_metric((*_labels(endpoint), kind.value), float(endpoint.state is kind))
    yield state
    yield _per(endpoints, "weight", "Share relative to the others.", [e.weight for e in endpoints])
    yield _per(endpoints, "inflight", "Requests and tunnels under way.", [e.inflight for e in endpoints])
    yield _per(endpoints, "tunnels_open", "Tunnels now.", [e.tunnels for e in endpoints])
    yield _per(
        endpoints, "latency_seconds", "Peak EWMA of the time to the head.", [e.latency for e in endpoints]
    )
    yield _per(endpoints, "connections", "Open connections to it.", [len(e.connections) for e in endpoints])
    yield _per(
        endpoints, "tunnels", "Tunnels opened.", [e.tunnels_total for e in endpoints], CounterMetricFamily
    )
    yield _per(
        endpoints,
        "requests",
        "Requests and tunnels that have ended.",
        [e.finished for e in endpoints],
        CounterMetricFamily,
    )
    yield _per(
        endpoints,
        "failures",
        "Of them, those that the instance did wrong.",
        [e.failed for e in endpoints],
        CounterMetricFamily,
    )
    yield _both_ways(endpoints, "messages", "Messages of tunnels.", "messages_in", "messages_out")
    yield _both_ways(endpoints, "tunnel_bytes", "Bytes of ended tunnels.", "bytes_in", "bytes_out")


def _discovery(control: Control) -> Iterator[Metric]:
    now = control.plane.clock()
    staleness = GaugeMetricFamily(
        "holdfast_registry_staleness_seconds",
        "Since the registry was last known to be right.",
        labels=("registry", "kind"),
    )
    held = GaugeMetricFamily(
        "holdfast_registry_held_instances",
        "Instances that stay although the registry no longer lists them.",
        labels=("registry", "kind"),
    )
    for source in control.sources:
        labels = (registry_name(source), source.kind)
        staleness.add_metric(labels, source.staleness(now))
        held.add_metric(labels, source.held)
    delay = HistogramMetricFamily(
        "holdfast_eviction_delay_seconds",
        "From a registry event's arrival to the swap after which nothing starts on the instance.",
        labels=("registry", "kind"),
    )
    for key, histogram in control.plane.counters.evictions.items():
        _add(delay, key, histogram)
    yield from (staleness, held, delay)


_INSTANCE = ("service", "instance", "version")


def _labels(endpoint: Endpoint) -> tuple[str, str, str]:
    instance = endpoint.instance
    return instance.service, instance.id, instance.version


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"holdfast_{name}", text, value)


def _per(
    endpoints: Sequence[Endpoint],
    name: str,
    text: str,
    values: Sequence[float],
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily] = GaugeMetricFamily,
) -> Metric:
    family = kind(f"holdfast_instance_{name}", text, labels=_INSTANCE)
    for endpoint, value in zip(endpoints, values, strict=True):
        family.add_metric(_labels(endpoint), value)
    return family


def _both_ways(endpoints: Sequence[Endpoint], name: str, text: str, into: str, out: str) -> Metric:
    family = CounterMetricFamily(f"holdfast_instance_{name}", text, labels=(*_INSTANCE, "direction"))
    for endpoint in endpoints:
        family.add_metric((*_labels(endpoint), "in"), getattr(endpoint, into))
        family.add_metric((*_labels(endpoint), "out"), getattr(endpoint, out))
    return family


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.buckets), strict=True))
    family.add_metric(labels, buckets, sum_value=histogram.sum)
