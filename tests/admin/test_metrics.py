"""What is counted on the way of a request."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.model import Instance
from proxy.endpoint import Endpoint
from proxy.metrics import LATENCY_BOUNDS, Counters, Histogram, Traffic, record


class Route:
    def __init__(self) -> None:
        self.traffic: dict[str, Traffic] = {}


def endpoint(version: str) -> Endpoint:
    metadata = {"version": version} if version else {}
    return Endpoint(Instance("s", "i", "127.0.0.1", 1, metadata=metadata), 100, 0.0, b"")


def test_exchanges_are_counted_by_version_class_and_reason():
    route, stable = Route(), endpoint("stable")
    for status, reason in ((200, ""), (204, ""), (404, ""), (502, "connect_failed")):
        record(route, stable, status, reason, 0.002, 0.001, 3, 5)
    record(route, None, 503, "no_healthy_instance", 0.0, -1.0, 0, 0)
    assert route.traffic["stable"].outcomes == {(2, ""): 2, (4, ""): 1, (5, "connect_failed"): 1}
    assert (route.traffic["stable"].bytes_in, route.traffic["stable"].bytes_out) == (12, 20)
    assert route.traffic[""].outcomes == {(5, "no_healthy_instance"): 1}


def test_a_tunnel_counts_but_its_length_is_no_latency():
    route = Route()
    record(route, endpoint(""), 101, "", 3600.0, -1.0, 1, 1)
    traffic = route.traffic[""]
    assert traffic.outcomes == {(1, ""): 1}
    assert sum(traffic.latency.buckets) == 0
    assert traffic.latency.sum == 0.0


@given(st.floats(0, 100))
def test_each_duration_falls_into_the_first_bucket_that_holds_it(seconds):
    route = Route()
    record(route, None, 200, "", seconds, seconds, 0, 0)
    buckets = route.traffic[""].latency.buckets
    index = buckets.index(1)
    assert sum(buckets) == 1
    assert index == len(LATENCY_BOUNDS) or seconds <= LATENCY_BOUNDS[index]
    assert index == 0 or seconds > LATENCY_BOUNDS[index - 1]


def test_releases_do_not_add_up_for_ever():
    route = Route()
    for number in range(100):
        record(route, endpoint(f"v{number}"), 200, "", 0.001, 0.001, 0, 0)
    assert len(route.traffic) == 32
    assert "v99" in route.traffic
    assert "v0" not in route.traffic


@given(st.lists(st.floats(0, 10)))
def test_a_histogram_counts_every_value_once(values):
    histogram = Histogram((0.5, 1.0, 5.0))
    for value in values:
        histogram.observe(value)
    assert sum(histogram.buckets) == len(values)
    assert histogram.sum == pytest.approx(sum(values))
    for index in range(4):
        assert histogram.buckets[index] == sum(bisect_left((0.5, 1.0, 5.0), v) == index for v in values)


def test_tunnels_are_counted_open_until_they_close():
    counters = Counters()
    counters.tunnels_open = 2
    counters.tunnel_closed(1000, "client")
    counters.tunnel_closed(1000, "client")
    assert counters.tunnels_open == 0
    assert counters.tunnel_closes == {(1000, "client"): 2}


def test_eviction_delays_are_kept_by_registry_and_cause():
    counters = Counters()
    counters.observe_eviction("consul", "gone", 0.002)
    counters.observe_eviction("consul", "gone", 0.3)
    counters.observe_eviction("file", "dead", 0.001)
    assert sum(counters.evictions["consul", "gone"].buckets) == 2
    assert counters.evictions["consul", "gone"].sum == pytest.approx(0.302)
    assert sum(counters.evictions["file", "dead"].buckets) == 1
