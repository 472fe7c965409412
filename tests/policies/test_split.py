"""Who gets which version."""

from __future__ import annotations

import pytest

from proxy.split import Split, position_of

BOTH = {"stable", "canary"}


def test_a_version_without_a_share_is_never_chosen() -> None:
    split = Split({"stable": 1, "canary": 0})
    assert {split.choose(n / 1000, BOTH) for n in range(1000)} == {"stable"}
    assert split.choose(0.5, {"canary"}) is None


def test_a_version_that_is_not_ready_leaves_its_people_to_the_others() -> None:
    split = Split({"stable": 50, "canary": 50})
    assert {split.choose(n / 1000, {"canary"}) for n in range(1000)} == {"canary"}
    assert split.choose(0.5, set()) is None
    assert split.choose(0.5, {"unknown"}) is None


def test_the_ends_of_the_range_are_positions_too() -> None:
    split = Split({"stable": 50, "canary": 50})
    assert split.choose(0.0, BOTH) in BOTH
    assert split.choose(1.0 - 2**-53, BOTH) in BOTH


@pytest.mark.parametrize("shares", [{}, {"a": 0}, {"a": 0, "b": 0}])
def test_a_split_without_any_share_is_refused(shares: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one share"):
        Split(shares)


def test_a_negative_share_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Split({"a": 5, "b": -1})


def test_splits_are_equal_by_their_shares() -> None:
    one, other = Split({"a": 1, "b": 2}), Split({"b": 2, "a": 1})
    assert one == other and hash(one) == hash(other)
    assert one != Split({"a": 1, "b": 3}) and one != {"a": 1, "b": 2}
    assert repr(one) == "<Split a=1 b=2>"


def test_the_order_of_the_shares_does_not_matter() -> None:
    one, other = Split({"a": 30, "b": 70}), Split({"b": 70, "a": 30})
    ready = {"a", "b"}
    assert all(one.choose(n / 500, ready) == other.choose(n / 500, ready) for n in range(500))


def test_a_split_does_not_follow_later_changes_of_its_argument() -> None:
    shares = {"a": 1}
    split = Split(shares)
    shares["b"] = 9
    assert split.shares == {"a": 1}


def test_positions_are_the_same_in_every_process_and_release() -> None:
    assert position_of(b"192.0.2.1", b"chat") == 0.8907343652099371


def test_positions_on_two_routes_are_independent() -> None:
    # Of the tenth that is lowest on one route, a tenth is lowest on the other.
    keys = [b"10.0.%d.%d" % (n // 256, n % 256) for n in range(20_000)]
    low = [key for key in keys if position_of(key, b"one") < 0.1]
    assert len(low) == pytest.approx(2000, abs=150)
    assert sum(position_of(key, b"two") < 0.1 for key in low) == pytest.approx(200, abs=50)
