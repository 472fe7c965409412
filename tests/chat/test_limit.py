"""The token bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.limit import RateLimit, TokenBucket


@given(
    st.floats(0.1, 100),
    st.integers(1, 50),
    st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=200),
)
def test_never_more_than_burst_and_rate_allow(rate: float, burst: int, gaps: list[float]) -> None:
    bucket, now, taken = TokenBucket(rate, burst, burst, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now) == 0
    assert taken <= burst + rate * now + 1e-6


def test_the_wait_that_is_told_is_enough_and_needed() -> None:
    bucket = TokenBucket(2.0, 1, 1, 0.0)
    assert bucket.take(0.0) == 0
    wait = bucket.take(0.1)
    assert wait == pytest.approx(0.4)
    assert bucket.take(0.1 + wait - 0.01) > 0
    assert bucket.take(0.1 + wait + 0.01) == 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(1000.0, 1, 1, 100.0)
    assert bucket.take(100.0) == 0
    assert bucket.take(0.0) > 0


def test_keys_do_not_share_and_do_not_forget_by_coming_back() -> None:
    now = 0.0
    limit = RateLimit(1.0, 2, lambda: now)
    assert [limit.take("a") > 0 for _ in range(3)] == [False, False, True]
    assert limit.take("b") == 0
    now = 1.0
    assert [limit.take("a") > 0 for _ in range(2)] == [False, True]
