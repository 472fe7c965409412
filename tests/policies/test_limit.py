"""Token buckets."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

import proxy.limit
from config.schema import Limit
from proxy.head import RequestHead
from proxy.limit import Limiter, admit

ONE, TWO = b"192.0.2.1", b"192.0.2.2"


class Bucket:
    """A limiter as something that lets through or says how long to wait."""

    def __init__(self, **limit: object) -> None:
        self.limiter = Limiter(Limit.model_validate(limit))

    def take(self, client: bytes, now: float, head: object = None) -> float:
        within, wait = admit([self.limiter], head, client, now)  # type: ignore[arg-type]
        return -wait if within and wait else wait

    def __len__(self) -> int:
        return len(self.limiter)


def limiter(rate: str, burst: int | None = None, per: str = "client", **more: object) -> Bucket:
    return Bucket(rate=rate, burst=burst, per=per, **more)


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


def test_keys_may_come_from_what_the_request_says(request_head: Callable[..., RequestHead]) -> None:
    bucket = limiter("1/s", burst=1, per="header:X-Key")
    a, b, none = (request_head("/", *fields) for fields in (("X-Key: a",), ("x-key: b",), ()))
    assert [bucket.take(ONE, 0.0, head) for head in (a, b, none)] == [0.0, 0.0, 0.0]
    assert all(bucket.take(TWO, 0.0, head) > 0.0 for head in (a, b, none))


def test_who_may_wait_gets_a_turn_in_order_and_only_others_are_refused() -> None:
    bucket = limiter("10/s", burst=1, wait="250ms")
    assert bucket.take(ONE, 0.0) == 0.0
    assert bucket.take(ONE, 0.0) == pytest.approx(-0.1)
    assert bucket.take(ONE, 0.0) == pytest.approx(-0.2)
    assert bucket.take(ONE, 0.0) == pytest.approx(0.3)
    assert bucket.take(ONE, 0.1) == pytest.approx(-0.2)


def test_of_several_limits_all_hold_and_a_refusal_takes_from_none() -> None:
    each = Limiter(Limit.model_validate({"rate": "10/s", "burst": 2}))
    together = Limiter(Limit.model_validate({"rate": "1/s", "burst": 3, "per": "route"}))
    asked = [admit([each, together], None, client, 0.0) for client in (ONE, ONE, ONE, TWO, TWO)]  # type: ignore[arg-type]
    assert [within for within, _ in asked] == [True, True, False, True, False]
    assert asked[2][1] == pytest.approx(0.1)
    assert asked[4][1] == pytest.approx(1.0)
    assert each.wait(TWO, 0.0) == 0.0


def passed(bucket: Bucket, start: float, seconds: float) -> int:
    """How many of a thousand requests per second got through."""
    return sum(bucket.take(ONE, start + step / 1000) == 0.0 for step in range(int(seconds * 1000)))


def test_a_cold_bucket_starts_at_a_third_of_its_rate_and_grows_to_the_full_one() -> None:
    bucket = limiter("90/s", burst=2, warm_up="10s")
    first, last = passed(bucket, 0.0, 1.0), [passed(bucket, 1.0 + second, 1.0) for second in range(12)]
    assert first == pytest.approx(33, abs=3)
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(last))
    assert last[-1] == pytest.approx(90, abs=2)


def test_a_warm_bucket_cools_while_it_is_not_used() -> None:
    bucket = limiter("90/s", burst=1, warm_up="4s")
    passed(bucket, 0.0, 6.0)
    assert passed(bucket, 8.0, 0.5) == pytest.approx(30, abs=4)  # cooled by half
    passed(bucket, 8.5, 6.0)
    assert passed(bucket, 100.0, 0.5) == pytest.approx(17, abs=3)
