"""What is counted on the way of a request: plain additions in slots, and nothing else.

`record` is called once for each finished exchange, `Counters` holds what belongs to no route. Nothing here
knows Prometheus: `proxy.admin.exposition` turns all of it into samples when it is scraped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol

from proxy.endpoint import Endpoint

LATENCY_BOUNDS: tuple[float, ...] = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Upper bounds, in seconds, of the request duration buckets; one more bucket holds everything above."""

EVICTION_BOUNDS: tuple[float, ...] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
)  # fmt: skip
"""The same for eviction delays: the promise is 0.01 at p99."""

PAUSE_BOUNDS: tuple[float, ...] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The same for the pauses of WebSockets that move."""

CONNECT_BOUNDS: tuple[float, ...] = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""The same for making connections to instances, and for looking up their names."""

LAG_BOUNDS: tuple[float, ...] = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""The same for the lateness of the event loop."""

_MOST_VERSIONS = 32
"""Versions with figures of their own per route; the oldest gives way, so that releases never add up."""


class Histogram:
    """Counts by bucket, and their sum."""

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        """Not cumulative; the last one is for what lies above every bound."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to its bucket (`le`)."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Traffic:
    """What one route has sent to one version of its service."""

    __slots__ = ("bytes_in", "bytes_out", "first_byte", "latency", "outcomes")

    def __init__(self) -> None:
        self.outcomes: dict[tuple[int, str], int] = {}
        """Exchanges by status class (2 for 200 to 299) and reason code (empty: the instance's own answer)."""
        self.latency = Histogram(LATENCY_BOUNDS)
        self.first_byte = Histogram(LATENCY_BOUNDS)
        """Of those that an instance answered, the time to the head of its answer."""
        self.bytes_in = 0
        self.bytes_out = 0


class Measured(Protocol):
    """A route, as far as it is measured."""

    traffic: dict[str, Traffic]
    """By version label; empty for versions without one and for what never got to an instance."""


def record(
    route: Measured,
    endpoint: Endpoint | None,
    status: int,
    reason: str,
    seconds: float,
    first_byte: float,
    bytes_in: int,
    bytes_out: int,
) -> None:
    """Count one finished exchange. `endpoint` is the one that answered or failed last, if any was tried.

    `seconds` is the whole duration, `first_byte` how much of it the head of the answer took (negative: there
    was none). A tunnel (status 101) is counted when it ends, and left out of the latencies: how long people
    stay connected says nothing of how fast they are answered.
    """
    version = "" if endpoint is None else endpoint.instance.version
    traffic = route.traffic.get(version)
    if traffic is None:
        traffic = _newcomer(route.traffic, version)
    outcomes = traffic.outcomes
    key = (status // 100, reason)
    outcomes[key] = outcomes.get(key, 0) + 1
    if status != 101:
        latency = traffic.latency
        latency.buckets[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        latency.sum += seconds
        if first_byte >= 0.0:
            latency = traffic.first_byte
            latency.buckets[bisect_left(LATENCY_BOUNDS, first_byte)] += 1
            latency.sum += first_byte
    traffic.bytes_in += bytes_in
    traffic.bytes_out += bytes_out


def _newcomer(versions: dict[str, Traffic], version: str) -> Traffic:
    if len(versions) >= _MOST_VERSIONS:
        del versions[next(iter(versions))]
    traffic = versions[version] = Traffic()
    return traffic


def save_traffic(traffic: dict[str, Traffic]) -> dict[str, Any]:
    """A route's figures as plain values, for `load_traffic` in another process."""
    return {
        version: (
            t.outcomes,
            (t.latency.buckets, t.latency.sum),
            (t.first_byte.buckets, t.first_byte.sum),
            t.bytes_in,
            t.bytes_out,
        )
        for version, t in traffic.items()
    }


def load_traffic(traffic: dict[str, Traffic], saved: dict[str, Any]) -> None:
    """Go on from what `save_traffic` gave."""
    for version, (outcomes, latency, first_byte, bytes_in, bytes_out) in saved.items():
        there = traffic[version] = Traffic()
        there.outcomes, there.bytes_in, there.bytes_out = outcomes, bytes_in, bytes_out
        there.latency.buckets, there.latency.sum = latency
        there.first_byte.buckets, there.first_byte.sum = first_byte


class Counters:
    """Process-wide figures. The data plane adds to the plain ones directly."""

    __slots__ = (
        "admin_refused",
        "bad_requests",
        "connect_times",
        "connections_accepted",
        "connections_open",
        "connections_refused",
        "descriptors_exhausted",
        "evictions",
        "hedges",
        "lookup_times",
        "loop_lag",
        "move_pauses",
        "moves_failed",
        "requests_total",
        "retries",
        "tunnel_closes",
        "tunnels_open",
        "tunnels_total",
        "upstream_connect_failures",
        "upstream_connects",
    )

    def __init__(self) -> None:
        self.connections_accepted = 0
        self.connections_open = 0
        self.connections_refused = 0
        """Because of `limits.connections`: answered 503, or closed when too many were not so far yet."""
        self.requests_total = 0
        self.bad_requests: dict[str, int] = {}
        """By reason code: requests that were answered before they had a route."""
        self.admin_refused: dict[str, int] = {}
        """By code: requests that the admin API did not let in."""
        self.retries = 0
        self.descriptors_exhausted = 0
        """Connections to instances that could not be opened at once for want of file descriptors."""
        self.hedges = 0
        """Second tries beside a first one."""
        self.connect_times = Histogram(CONNECT_BOUNDS)
        self.lookup_times = Histogram(CONNECT_BOUNDS)
        """Seconds to make a connection to an instance, and to look up one's name."""
        self.upstream_connects = 0
        self.upstream_connect_failures = 0
        self.tunnels_open = 0
        self.tunnels_total = 0
        self.tunnel_closes: dict[tuple[int, str], int] = {}
        """By close code (RFC 6455 section 7.4; 1006: without a Close frame) and the side that closed."""
        self.evictions: dict[tuple[str, str], Histogram] = {}
        """By registry and cause."""
        self.move_pauses = Histogram(PAUSE_BOUNDS)
        """Seconds that clients' messages waited while their WebSocket moved to another instance."""
        self.moves_failed = 0
        """Moves that found no instance and ended in a Close."""
        self.loop_lag = Histogram(LAG_BOUNDS)
        """Lateness of a periodic timer, in seconds."""

    def save(self) -> dict[str, Any]:
        """The totals as plain values, for `load` in another process."""
        return {name: getattr(self, name) for name in _TOTALS} | {
            **{name: (getattr(self, name).buckets, getattr(self, name).sum) for name in _HISTOGRAMS},
            "evictions": {names: (h.buckets, h.sum) for names, h in self.evictions.items()},
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` gave."""
        for name in _TOTALS:
            setattr(self, name, saved.get(name, getattr(self, name)))  # an earlier version counts less
        for name in _HISTOGRAMS:
            own: Histogram = getattr(self, name)
            own.buckets, own.sum = saved[name]
        for names, (buckets, total) in saved["evictions"].items():
            histogram = self.evictions[names] = Histogram(EVICTION_BOUNDS)
            histogram.buckets, histogram.sum = buckets, total

    def bad_request(self, reason: str) -> None:
        """Count a request that was answered before it had a route."""
        self.bad_requests[reason] = self.bad_requests.get(reason, 0) + 1

    def tunnel_closed(self, code: int, side: str) -> None:
        """Count the end of a tunnel: its close code, and `client`, `upstream` or `proxy` for who closed."""
        self.tunnels_open -= 1
        self.tunnel_closes[code, side] = self.tunnel_closes.get((code, side), 0) + 1

    def moved(self, pause: float) -> None:
        """Count a WebSocket that has moved, and the seconds that its client had to wait."""
        self.move_pauses.observe(pause)

    def observe_eviction(self, registry: str, kind: str, seconds: float) -> None:
        """Record the time from a registry event's arrival to the swap after which nothing starts there.

        `registry` is the watcher's kind, `kind` why the instance went: `draining`, `gone` or `dead`.
        """
        histogram = self.evictions.get((registry, kind))
        if histogram is None:
            histogram = self.evictions[registry, kind] = Histogram(EVICTION_BOUNDS)
        histogram.observe(seconds)


_TOTALS = (
    "admin_refused",
    "bad_requests",
    "connections_accepted",
    "connections_refused",
    "descriptors_exhausted",
    "hedges",
    "moves_failed",
    "requests_total",
    "retries",
    "tunnel_closes",
    "tunnels_total",
    "upstream_connect_failures",
    "upstream_connects",
)
"""Counters that only grow. How many are open now is for each process to say of itself."""
_HISTOGRAMS = ("connect_times", "lookup_times", "move_pauses")
