"""What holds of every balancer, whatever the members."""

from __future__ import annotations

from collections import Counter
from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.schema import Balance
from discovery.model import Instance
from proxy.balance import make_balancer
from proxy.endpoint import Endpoint

NOW = 1000.0
KEYS = [b"10.%d.%d.%d" % (n >> 16, n >> 8 & 255, n & 255) for n in range(3000)]
KINDS = st.sampled_from(list(Balance))
HASHING = st.sampled_from([Balance.RING_HASH, Balance.MAGLEV, Balance.IP_HASH])
WEIGHTS = st.lists(st.integers(0, 200), min_size=0, max_size=8)
POSITIVE = st.lists(st.integers(1, 50), min_size=1, max_size=8)


def endpoints(weights: list[int]) -> list[Endpoint]:
    return [Endpoint(Instance("s", f"i{index}"), weight, 10.0, b"") for index, weight in enumerate(weights)]


def owners(kind: Balance, members: list[Endpoint], keys: list[bytes] = KEYS) -> dict[bytes, str]:
    balancer = make_balancer(kind, members)
    found = {}
    for key in keys:
        member = balancer.pick(key, NOW, Random(1))
        assert member is not None
        found[key] = member.instance.id
    return found


@given(kind=KINDS, weights=WEIGHTS, data=st.data())
def test_a_pick_is_usable_untried_and_there_whenever_somebody_is_left(
    kind: Balance, weights: list[int], data: st.DataObject
) -> None:
    members = endpoints(weights)
    random = data.draw(st.randoms(use_true_random=False))
    for member in members:
        member.inflight = data.draw(st.integers(0, 5))
        member.latency = data.draw(st.sampled_from([0.0, 0.001, 0.5]))
        member.latency_at = NOW - data.draw(st.sampled_from([0.0, 5.0, 1000.0]))
        member.warm_at = NOW + data.draw(st.sampled_from([-1.0, 0.0, 1.0, 10.0]))
    tried = [member for member in members if data.draw(st.booleans())]
    left = [member for member in members if member.weight > 0 and member not in tried]
    balancer = make_balancer(kind, members)
    for number in range(10):
        picked = balancer.pick(b"key-%d" % number, NOW, Random(random.random()), tried)
        assert picked in left if left else picked is None


@given(weights=POSITIVE, rounds=st.integers(1, 3))
def test_weighted_turns_stay_close_to_the_weights_all_the_time(weights: list[int], rounds: int) -> None:
    balancer = make_balancer(Balance.WEIGHTED, endpoints(weights))
    counts: Counter[str] = Counter()
    total = sum(weights)
    for picked in range(1, rounds * total + 1):
        member = balancer.pick(b"", NOW, Random(1))
        assert member is not None
        counts[member.instance.id] += 1
        for index, weight in enumerate(weights):
            fair = picked * weight / total
            # One turn too early or late, and as much again as the others' turns shift the clock.
            assert abs(counts[f"i{index}"] - fair) <= 1 + len(weights) * weight / total


@given(weights=POSITIVE, swaps=st.sets(st.integers(0, 400), max_size=20))
def test_swaps_of_the_snapshot_do_not_disturb_the_weights(weights: list[int], swaps: set[int]) -> None:
    members = endpoints(weights)
    balancer = make_balancer(Balance.WEIGHTED, members)
    counts: Counter[str] = Counter()
    for step in range(2 * sum(weights)):
        if step in swaps:
            balancer = make_balancer(Balance.WEIGHTED, members, balancer)
        member = balancer.pick(b"", NOW, Random(1))
        assert member is not None
        counts[member.instance.id] += 1
    for index, weight in enumerate(weights):
        assert abs(counts[f"i{index}"] - 2 * weight) <= 1


@given(
    loads=st.lists(st.integers(0, 9), min_size=1, max_size=10),
    tried=st.sets(st.integers(0, 9)),
    data=st.data(),
)
def test_least_conn_picks_one_of_the_least_loaded(
    loads: list[int], tried: set[int], data: st.DataObject
) -> None:
    members = endpoints([100] * len(loads))
    for member, load in zip(members, loads, strict=True):
        member.inflight = load
    failed = [members[index] for index in tried if index < len(members)]
    balancer = make_balancer(Balance.LEAST_CONN, members)
    for _ in range(data.draw(st.integers(1, 5))):
        picked = balancer.pick(b"", NOW, Random(1), failed)
        rest = [member.inflight for member in members if member not in failed]
        assert picked.inflight == min(rest) if picked is not None else not rest


@given(weights=POSITIVE, steps=st.integers(1, 300), seed=st.integers(0, 1000))
def test_the_ring_gives_nobody_more_than_its_bound(weights: list[int], steps: int, seed: int) -> None:
    members = endpoints(weights)
    balancer = make_balancer(Balance.RING_HASH, members)
    random = Random(seed)
    for _ in range(steps):
        if random.random() < 0.3 and (busy := [member for member in members if member.inflight]):
            random.choice(busy).inflight -= 1
        total = sum(member.inflight for member in members)
        # Few keys, so that many requests want the same member.
        picked = balancer.pick(b"key-%d" % random.randrange(3), NOW, random)
        assert picked is not None
        picked.inflight += 1
        assert picked.inflight <= ceil(1.25 * (total + 1) * picked.weight / sum(weights))


@pytest.mark.parametrize("kind", [Balance.RING_HASH, Balance.IP_HASH])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_member_that_leaves_moves_only_its_own_keys(kind: Balance, count: int) -> None:
    members = endpoints([100] * count)
    before = owners(kind, members)
    for gone in members:
        after = owners(kind, [member for member in members if member is not gone])
        assert all(after[key] == owner for key, owner in before.items() if owner != gone.instance.id)


@pytest.mark.parametrize("kind", [Balance.RING_HASH, Balance.IP_HASH])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_a_member_that_comes_takes_its_share_and_moves_nothing_else(kind: Balance, count: int) -> None:
    members = endpoints([100] * (count + 1))
    before, after = owners(kind, members[:-1]), owners(kind, members)
    moved = {key for key in KEYS if before[key] != after[key]}
    assert all(after[key] == members[-1].instance.id for key in moved)
    assert len(moved) / len(KEYS) == pytest.approx(1 / (count + 1), abs=0.05)


@pytest.mark.parametrize("count", [3, 10, 30])
def test_maglev_moves_little_more_than_it_must(count: int) -> None:
    members = endpoints([100] * count)
    before = owners(Balance.MAGLEV, members)
    gone = members[0].instance.id
    after = owners(Balance.MAGLEV, members[1:])
    needless = sum(after[key] != owner for key, owner in before.items() if owner != gone)
    assert needless / len(KEYS) < 0.08
    moved = sum(after[key] != owner for key, owner in before.items())
    assert 0 < moved / len(KEYS) < 1 / count + 0.08


@given(weights=st.lists(st.integers(1, 100), min_size=2, max_size=6), factor=st.integers(2, 5))
def test_more_weight_only_draws_keys_towards_it(weights: list[int], factor: int) -> None:
    members = endpoints(weights)
    before = owners(Balance.IP_HASH, members, KEYS[:300])
    members[0].weight *= factor
    after = owners(Balance.IP_HASH, members, KEYS[:300])
    assert all(after[key] == owner or after[key] == "i0" for key, owner in before.items())


@given(kind=HASHING, weights=st.lists(st.integers(1, 100), min_size=1, max_size=6), data=st.data())
def test_all_replicas_agree_whatever_order_and_history(
    kind: Balance, weights: list[int], data: st.DataObject
) -> None:
    members = endpoints(weights)
    shuffled = data.draw(st.permutations(members))
    subset = [member for member in members if data.draw(st.booleans())]
    grown = make_balancer(kind, shuffled, make_balancer(kind, subset))
    fresh = make_balancer(kind, members)
    for key in KEYS[:20]:
        assert grown.pick(key, NOW, Random(1)) is fresh.pick(key, NOW, Random(1))
