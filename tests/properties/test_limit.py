"""No client gets more than its bucket holds and its rate brings, whenever it comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.policies.test_limit import Bucket

GAPS = st.lists(st.floats(0.0, 3.0), min_size=1, max_size=80)


@given(rate=st.floats(0.1, 100.0), burst=st.integers(1, 20), gaps=GAPS)
def test_every_window_holds_the_limit(rate: float, burst: int, gaps: list[float]) -> None:
    bucket = Bucket(rate=rate, burst=burst)
    now, passed = 1000.0, []
    for gap in gaps:
        now += gap
        if bucket.take(b"c", now) == 0.0:
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - passed[first]) + 1e-3


@given(rate=st.floats(0.1, 100.0), burst=st.integers(1, 20), gaps=GAPS)
def test_it_is_a_token_bucket(rate: float, burst: int, gaps: list[float]) -> None:
    bucket = Bucket(rate=rate, burst=burst)
    now, tokens = 1000.0, float(burst)
    for gap in gaps:
        now += gap
        tokens = min(float(burst), tokens + gap * rate)
        wait = bucket.take(b"c", now)
        if abs(tokens - 1.0) > 1e-3:
            assert (wait == 0.0) is (tokens > 1.0)
        tokens -= wait == 0.0
