"""Slow start: the ramp, and what a reload may do to it."""

from __future__ import annotations

import pytest

from discovery.model import Instance
from proxy.endpoint import Endpoint


def warming(slow_start: float) -> Endpoint:
    endpoint = Endpoint(Instance("s", "i", "127.0.0.1", 1), 100, slow_start, b"")
    endpoint.warm_at = 20.0
    return endpoint


@pytest.mark.parametrize(
    ("now", "weight"), [(10.0, 10.0), (15.0, 50.0), (19.0, 90.0), (20.0, 100.0), (99.0, 100.0)]
)
def test_the_weight_grows_from_a_tenth_to_the_whole(now, weight):
    assert warming(10.0).weight_at(now) == pytest.approx(weight)


def test_slow_start_taken_away_under_way_gives_the_full_weight():
    endpoint = warming(10.0)
    endpoint.slow_start = 0.0
    assert endpoint.weight_at(15.0) == 100.0


def test_slow_start_shortened_under_way_never_gives_less_than_a_tenth():
    endpoint = warming(10.0)
    endpoint.slow_start = 2.0
    assert endpoint.weight_at(12.0) == pytest.approx(10.0)
