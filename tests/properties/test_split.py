"""Shares come out as asked, and a change of shares moves as few people as it can."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.split import Split, position_of

PEOPLE = [b"10.%d.%d.%d" % (n >> 16, n >> 8 & 255, n & 255) for n in range(20_000)]
POSITIONS = [position_of(person, b"chat") for person in PEOPLE]
NAMES = ("stable", "canary", "blue", "v2")
SHARES = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 100), min_size=1)


def sides(**shares: int) -> list[str | None]:
    split = Split(shares)
    return [split.choose(position, shares) for position in POSITIONS]


@pytest.mark.parametrize(
    "shares",
    [
        {"stable": 95, "canary": 5},
        {"stable": 1, "canary": 1},
        {"stable": 999, "canary": 1},
        {"a": 2, "b": 3, "c": 5},
    ],
)
def test_shares_come_out_as_asked(shares: dict[str, int]) -> None:
    counts = Counter(sides(**shares))
    for version, share in shares.items():
        expected = share / sum(shares.values())
        # Four standard deviations of a fair draw.
        tolerance = 4 * (expected * (1 - expected) / len(POSITIONS)) ** 0.5
        assert counts[version] / len(POSITIONS) == pytest.approx(expected, abs=tolerance)


def test_a_growing_canary_moves_nobody_back() -> None:
    before = sides(stable=100, canary=0)
    for canary in (1, 5, 10, 25, 50, 90, 100):
        after = sides(stable=100 - canary, canary=canary)
        assert not any(old == "canary" != new for old, new in zip(before, after, strict=True))
        before = after
    assert set(before) == {"canary"}


def test_from_5_to_10_percent_5_percent_move() -> None:
    before, after = sides(stable=95, canary=5), sides(stable=90, canary=10)
    moved = sum(old != new for old, new in zip(before, after, strict=True))
    assert moved / len(POSITIONS) == pytest.approx(0.05, abs=0.007)


@given(shares=SHARES, version=st.sampled_from(NAMES), more=st.integers(1, 100))
def test_a_share_that_grows_only_takes(shares: dict[str, int], version: str, more: int) -> None:
    assume(any(shares.values()))
    split, grown = Split(shares), Split({**shares, version: shares.get(version, 0) + more})
    for position in POSITIONS[:300]:
        before, after = split.choose(position, NAMES), grown.choose(position, NAMES)
        assert after in (before, version)


@given(shares=SHARES, ready=st.sets(st.sampled_from(NAMES)))
def test_only_those_whose_version_is_not_ready_are_moved(shares: dict[str, int], ready: set[str]) -> None:
    assume(any(shares.values()))
    split = Split(shares)
    usable = {version for version in ready if shares.get(version)}
    for position in POSITIONS[:300]:
        wanted, got = split.choose(position, NAMES), split.choose(position, ready)
        assert got in usable if usable else got is None
        assert got == wanted or wanted not in ready


@given(key=st.binary(), route=st.binary())
def test_a_position_is_in_range_and_stable(key: bytes, route: bytes) -> None:
    position = position_of(key, route)
    assert 0.0 <= position < 1.0
    assert position == position_of(key, route)
