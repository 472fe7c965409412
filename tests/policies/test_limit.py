"""Token buckets."""

from __future__ import annotations

import pytest

import proxy.limit
from config.schema import RouteLimit
from proxy.limit import Limiter

ONE, TWO = b"192.0.2.1", b"192.0.2.2"


def limiter(rate: str, burst: int | None = None, per: str = "client") -> Limiter:
    return Limiter(RouteLimit.model_validate({"rate": rate, "burst": burst, "per": per}))


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    bucket = limiter("10/s", burst=3)
    assert [bucket.take(ONE, 100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(ONE, 100.0) == pytest.approx(0.1)
    assert bucket.take(ONE, 100.05) == pytest.approx(0.05)
    assert bucket.take(ONE, 100.1) == 0.0
    assert bucket.take(ONE, 100.1) == pytest.approx(0.1)


def test_the_wait_that_is_told_is_enough() -> None:
    bucket = limiter("7/s", burst=1)
    now = 1e6
    for _ in range(1000):
        assert bucket.take(ONE, now) == 0.0
        wait = bucket.take(ONE, now)
        assert wait > 0.0
        now += wait


def test_a_refusal_costs_nothing() -> None:
    bucket = limiter("1/s", burst=1)
    bucket.take(ONE, 0.0)
    assert [bucket.take(ONE, 0.5) for _ in range(100)] == [pytest.approx(0.5)] * 100
    assert bucket.take(ONE, 1.0) == 0.0


def test_a_quiet_time_earns_no_more_than_the_burst() -> None:
    bucket = limiter("10/s", burst=3)
    bucket.take(ONE, 0.0)
    assert [bucket.take(ONE, 1000.0) > 0.0 for _ in range(4)] == [False, False, False, True]


def test_the_burst_defaults_to_one_second_and_at_least_one() -> None:
    bucket = limiter("5/s")
    assert [bucket.take(ONE, 0.0) > 0.0 for _ in range(6)] == [False] * 5 + [True]
    slow = limiter("6/m")
    assert slow.take(ONE, 0.0) == 0.0
    assert slow.take(ONE, 0.0) == pytest.approx(10.0)


def test_clients_have_buckets_of_their_own_unless_the_route_has_one() -> None:
    own, shared = limiter("1/s", burst=1), limiter("1/s", burst=1, per="route")
    assert (own.take(ONE, 0.0), own.take(TWO, 0.0)) == (0.0, 0.0)
    assert (shared.take(ONE, 0.0), shared.take(TWO, 0.0)) == (0.0, pytest.approx(1.0))
    assert len(shared) == 1


def test_the_rate_is_kept_over_a_long_time() -> None:
    bucket = limiter("100/s", burst=10)
    passed = sum(bucket.take(ONE, step / 1000) == 0.0 for step in range(60_000))
    assert passed == pytest.approx(6010, abs=1)


def test_buckets_that_are_full_again_are_forgotten() -> None:
    bucket = limiter("1/s", burst=1)
    for number in range(1000):
        bucket.take(b"c%d" % number, 0.0)
    assert len(bucket) == 1000
    for number in range(500):
        bucket.take(b"d%d" % number, 10.0)
    assert len(bucket) == 500


def test_a_flood_of_clients_does_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy.limit, "_KEYS", 100)
    bucket = limiter("1/h", burst=1)
    bucket.take(ONE, 0.0)
    for number in range(1000):
        bucket.take(b"c%d" % number, 1.0)
        # One that goes on knocking stays remembered.
        assert bucket.take(ONE, 1.0) > 0.0
    assert len(bucket) == 100
