"""Hashes and tables: values that must never change, and shapes."""

from __future__ import annotations

from collections import Counter
from math import log

import pytest

from proxy.hashing import Ring, fraction, hash32, maglev_table, mix32, race


def test_hashes_are_the_same_in_every_process_and_release() -> None:
    # Replicas of different releases share clients: whoever changes these numbers moves everybody.
    assert hash32(b"") == 0
    assert hash32(b"192.0.2.1") == 3363047722
    assert hash32(b"192.0.2.1", 7) == 758646222
    assert mix32(0xFFFFFFFF) == 0x81F16F39  # the published value of MurmurHash3's finalizer


def test_a_position_is_never_1() -> None:
    assert fraction(0xFFFFFFFF) < 1.0
    assert fraction(0) == 0.0


def test_the_race_agrees_with_the_mixing_function() -> None:
    for seed in range(100):
        number = mix32(seed)
        drawn = (mix32(number ^ seed) + 1) / 2**32
        assert race(number, seed, 2.0) == pytest.approx(-log(drawn) / 2.0)


def test_a_race_is_won_in_proportion_to_the_weights() -> None:
    wins = sum(race(hash32(b"%d" % n), 1, 3.0) < race(hash32(b"%d" % n), 2, 1.0) for n in range(20_000))
    assert wins / 20_000 == pytest.approx(0.75, abs=0.01)


def test_a_ring_extended_is_the_ring_built_anew() -> None:
    weights = {b"a": 100, b"b": 30, b"c": 1}
    former = Ring({b"a": 100, b"x": 7})
    assert Ring(weights, former).owners == Ring(weights).owners


def test_a_ring_gives_points_by_weight_and_at_least_one() -> None:
    counts = Counter(Ring({b"a": 256, b"b": 128, b"c": 1}).owners)
    assert counts == {b"a": 256, b"b": 128, b"c": 1}
    assert Counter(Ring({b"a": 1, b"b": 1}).owners) == {b"a": 256, b"b": 256}


def test_the_ring_ends_where_it_begins() -> None:
    ring = Ring({b"a": 1, b"b": 1})
    assert ring.index(0xFFFFFFFF) in (0, len(ring.owners) - 1)
    assert 0 <= ring.index(0) < len(ring.owners)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100])
def test_the_maglev_table_is_full_and_even(count: int) -> None:
    table = maglev_table({b"m%d" % index: 100 for index in range(count)})
    counts = Counter(table)
    assert len(counts) == count
    # With equal weights everybody takes one slot in each round, so the counts differ by one at most.
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_maglev_table_follows_weights_to_half_a_percent() -> None:
    table = maglev_table({b"a": 70, b"b": 20, b"c": 10})
    counts = Counter(table)
    for name, share in ((b"a", 0.7), (b"b", 0.2), (b"c", 0.1)):
        assert counts[name] / len(table) == pytest.approx(share, abs=0.005)


def test_maglev_of_nobody_is_empty() -> None:
    assert maglev_table({}) == []
