"""The nine balancers, one by one: turns, loads, chances and swaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

import pytest

from config.schema import Balance
from discovery.model import Instance
from proxy.balance import Balancer, make_balancer
from proxy.endpoint import Endpoint

KEY = b"192.0.2.1"
NOW = 1000.0


def endpoint(name: str, weight: int = 100, slow_start: float = 0.0) -> Endpoint:
    return Endpoint(Instance("s", name), weight, slow_start, b"")


def endpoints(*weights: int) -> list[Endpoint]:
    return [endpoint(f"i{index}", weight) for index, weight in enumerate(weights)]


def picks(
    balancer: Balancer[Endpoint],
    count: int,
    *,
    keys: Iterable[bytes] | None = None,
    now: float = NOW,
    seed: int = 1,
    tried: Sequence[Endpoint] = (),
) -> list[str]:
    random = Random(seed)
    stream = iter(keys) if keys is not None else iter([b"k%d" % n for n in range(count)])
    chosen = []
    for _ in range(count):
        member = balancer.pick(next(stream), now, random, tried)
        assert member is not None
        chosen.append(member.instance.id)
    return chosen


def shares(balancer: Balancer[Endpoint], count: int = 20_000, **options: float) -> dict[str, float]:
    counts = Counter(picks(balancer, count, now=options.get("now", NOW)))
    return {name: number / count for name, number in counts.items()}


EVERY = list(Balance)
BY_WEIGHT = [kind for kind in Balance if kind is not Balance.ROUND_ROBIN]
HASHING = [Balance.RING_HASH, Balance.MAGLEV, Balance.IP_HASH]
# Spread of 256 points per member is 6 %; the others are exact or limited by 20,000 draws.
TOLERANCE = {Balance.RING_HASH: 0.08}


@pytest.mark.parametrize("kind", EVERY)
def test_equal_members_get_equal_shares(kind: Balance) -> None:
    found = shares(make_balancer(kind, endpoints(100, 100, 100, 100)))
    for name in ("i0", "i1", "i2", "i3"):
        assert found[name] == pytest.approx(0.25, abs=TOLERANCE.get(kind, 0.015))


@pytest.mark.parametrize("kind", BY_WEIGHT)
def test_shares_follow_the_weights_while_nobody_is_busy(kind: Balance) -> None:
    members = endpoints(100, 50, 50)
    for member in members:
        member.latency, member.latency_at = 0.010, NOW
    found = shares(make_balancer(kind, members))
    assert found["i0"] == pytest.approx(0.5, abs=TOLERANCE.get(kind, 0.02))
    assert found["i1"] == pytest.approx(0.25, abs=TOLERANCE.get(kind, 0.02))


@pytest.mark.parametrize("kind", EVERY)
def test_weight_zero_gets_nothing(kind: Balance) -> None:
    balancer = make_balancer(kind, endpoints(0, 1, 0, 100))
    assert set(picks(balancer, 500)) <= {"i1", "i3"}
    assert [member.instance.id for member in balancer.members] == ["i1", "i3"]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("weights", [(), (0,), (0, 0)])
def test_nobody_is_picked_when_nobody_has_weight(kind: Balance, weights: tuple[int, ...]) -> None:
    balancer = make_balancer(kind, endpoints(*weights))
    assert balancer.pick(KEY, NOW, Random(1)) is None
    assert balancer.pick(KEY, NOW, Random(1), [endpoint("other")]) is None


@pytest.mark.parametrize("kind", EVERY)
def test_a_tried_member_is_not_picked_again(kind: Balance) -> None:
    members = endpoints(100, 100, 50)
    balancer = make_balancer(kind, members)
    assert set(picks(balancer, 300, tried=members[:1])) == {"i1", "i2"}
    assert set(picks(balancer, 50, tried=members[:2])) == {"i2"}
    assert balancer.pick(KEY, NOW, Random(1), members) is None


@pytest.mark.parametrize("kind", EVERY)
def test_a_warming_member_grows_to_its_share(kind: Balance) -> None:
    members = [endpoint(f"i{index}") for index in range(4)]
    members[0].slow_start, members[0].warm_at = 10.0, NOW + 10.0
    for member in members:
        member.latency, member.latency_at = 0.010, NOW
    balancer = make_balancer(kind, members)
    tolerance = TOLERANCE.get(kind, 0.02)
    # A tenth of 100 beside three of 100; half; all of it.
    assert shares(balancer, now=NOW)["i0"] < 0.25 / 2
    half = shares(balancer, now=NOW + 5.0)["i0"]
    assert 0.08 < half < 0.20
    assert shares(balancer, now=NOW + 10.0)["i0"] == pytest.approx(0.25, abs=tolerance)


@pytest.mark.parametrize("kind", EVERY)
def test_members_that_are_all_cold_are_used_all_the_same(kind: Balance) -> None:
    members = [endpoint(f"i{index}", slow_start=10.0) for index in range(3)]
    for member in members:
        member.warm_at = NOW + 10.0
    found = shares(make_balancer(kind, members), 6000)
    assert all(share == pytest.approx(1 / 3, abs=TOLERANCE.get(kind, 0.03)) for share in found.values())


def test_round_robin_goes_round_in_order_and_ignores_weights() -> None:
    assert picks(make_balancer(Balance.ROUND_ROBIN, endpoints(100, 1, 7)), 6) == ["i0", "i1", "i2"] * 2


@pytest.mark.parametrize("kind", [Balance.ROUND_ROBIN, Balance.LEAST_CONN])
def test_the_turn_survives_a_swap(kind: Balance) -> None:
    members = endpoints(100, 100, 100, 100)
    balancer = make_balancer(kind, members)
    assert picks(balancer, 2) == ["i0", "i1"]
    balancer = make_balancer(kind, members, balancer)
    assert picks(balancer, 1) == ["i2"]
    # i3's turn it is, also when i0 leaves; and when the next in turn has left, it is the one after.
    balancer = make_balancer(kind, members[1:], balancer)
    assert picks(balancer, 1) == ["i3"]
    balancer = make_balancer(kind, members[2:], balancer)
    assert picks(balancer, 2) == ["i2", "i3"]


def test_a_swap_before_every_pick_starves_nobody() -> None:
    for kind in (Balance.ROUND_ROBIN, Balance.WEIGHTED, Balance.LEAST_CONN):
        members = endpoints(100, 100, 100)
        balancer = make_balancer(kind, members)
        found = []
        for _ in range(30):
            found += picks(balancer, 1)
            balancer = make_balancer(kind, members, balancer)
        assert set(Counter(found).values()) == {10}, kind


def test_another_kind_of_balancer_hands_nothing_on() -> None:
    members = endpoints(100, 100)
    former = make_balancer(Balance.RANDOM, members)
    for kind in Balance:
        assert make_balancer(kind, members, former).pick(KEY, NOW, Random(1)) in members


@pytest.mark.parametrize("weights", [(5, 1, 1), (7, 3), (1, 1, 1, 97), (65535, 1), (3, 2, 2)])
def test_weighted_turns_are_exact_over_each_round(weights: tuple[int, ...]) -> None:
    balancer = make_balancer(Balance.WEIGHTED, endpoints(*weights))
    total = sum(weights)
    for _ in range(2):
        counts = Counter(picks(balancer, total))
        assert [counts[f"i{index}"] for index in range(len(weights))] == list(weights)


def test_weighted_turns_are_spread() -> None:
    found = picks(make_balancer(Balance.WEIGHTED, endpoints(5, 1, 1)), 70)
    text = "".join(name[1] for name in found)
    assert "000000" not in text
    assert "12" not in text and "21" not in text


def test_a_weighted_turn_passed_over_for_a_retry_is_not_lost() -> None:
    members = endpoints(100, 100, 100)
    balancer = make_balancer(Balance.WEIGHTED, members)
    assert picks(balancer, 1, tried=members[:1]) == ["i1"]
    assert picks(balancer, 1) == ["i0"]


def test_a_weight_that_changes_takes_effect_with_the_next_snapshot() -> None:
    members = endpoints(100, 100)
    balancer = make_balancer(Balance.WEIGHTED, members)
    picks(balancer, 3)
    members[1].weight = 300
    balancer = make_balancer(Balance.WEIGHTED, members, balancer)
    assert Counter(picks(balancer, 400)) == {"i0": 100, "i1": 300}


def test_least_conn_takes_the_idlest() -> None:
    members = endpoints(100, 100, 100)
    members[0].inflight, members[1].inflight, members[2].inflight = 2, 1, 2
    balancer = make_balancer(Balance.LEAST_CONN, members)
    assert picks(balancer, 3) == ["i1", "i1", "i1"]


def test_least_conn_fills_in_proportion_to_the_weights() -> None:
    members = endpoints(300, 100)
    balancer = make_balancer(Balance.LEAST_CONN, members)
    for _ in range(400):
        member = balancer.pick(KEY, NOW, Random(1))
        assert member is not None
        member.inflight += 1
    assert [member.inflight for member in members] == [300, 100]


def test_least_conn_brings_uneven_loads_together() -> None:
    members = endpoints(100, 100, 100)
    members[0].inflight = 40
    balancer = make_balancer(Balance.LEAST_CONN, members)
    for _ in range(80):
        member = balancer.pick(KEY, NOW, Random(1))
        assert member is not None
        member.inflight += 1
    assert [member.inflight for member in members] == [40, 40, 40]


def test_least_conn_does_not_hand_an_old_debt_to_a_member_that_was_busy() -> None:
    members = endpoints(100, 50)
    members[1].inflight = 1000
    balancer = make_balancer(Balance.LEAST_CONN, members)
    assert set(picks(balancer, 500)) == {"i0"}
    members[1].inflight = 0
    assert Counter(picks(balancer, 90))["i1"] == pytest.approx(30, abs=1)


def test_least_conn_forgets_how_far_apart_the_turns_of_a_cold_member_were() -> None:
    members = endpoints(100, 200)
    members[0].slow_start, members[0].warm_at = 10.0, NOW + 10.0
    balancer = make_balancer(Balance.LEAST_CONN, members)
    while picks(balancer, 1, now=NOW) != ["i0"]:
        pass
    assert "i0" in picks(balancer, 4, now=NOW + 10.0)


def test_p2c_prefers_the_less_loaded_of_its_two() -> None:
    members = endpoints(100, 100, 100)
    members[0].inflight = 5
    found = Counter(picks(make_balancer(Balance.P2C, members), 600))
    assert found["i0"] == 0
    assert found["i1"] == pytest.approx(300, abs=60)


def test_p2c_keeps_loads_close_together() -> None:
    members = endpoints(*[100] * 50)
    balancer = make_balancer(Balance.P2C, members)
    random = Random(7)
    for _ in range(5000):
        member = balancer.pick(KEY, NOW, random)
        assert member is not None
        member.inflight += 1
    # Two choices: at most log log n / log 2 + O(1) above the average of 100; one choice would be 30 above it.
    assert max(member.inflight for member in members) <= 104


def test_p2c_leaves_a_heavier_member_only_for_one_that_stays_less_loaded_with_the_request() -> None:
    members = endpoints(300, 100)
    members[0].inflight = 1
    assert shares(make_balancer(Balance.P2C, members))["i0"] == pytest.approx(0.75, abs=0.02)
    members[0].inflight = 3
    assert set(picks(make_balancer(Balance.P2C, members), 50)) == {"i1"}


def test_p2c_fills_in_proportion_to_the_weights() -> None:
    members = endpoints(300, 100)
    balancer = make_balancer(Balance.P2C, members)
    random = Random(7)
    for _ in range(4000):
        member = balancer.pick(KEY, NOW, random)
        assert member is not None
        member.inflight += 1
    assert members[0].inflight == pytest.approx(3000, abs=60)


def test_ewma_avoids_the_slow() -> None:
    members = endpoints(100, 100, 100)
    for member in members:
        member.latency, member.latency_at = 0.010, NOW
    members[2].latency = 0.500
    assert Counter(picks(make_balancer(Balance.EWMA, members), 900))["i2"] == 0


def test_ewma_weighs_a_queue_against_the_latency() -> None:
    members = endpoints(100, 100)
    members[0].latency, members[1].latency = 0.010, 0.030
    members[0].latency_at = members[1].latency_at = NOW
    balancer = make_balancer(Balance.EWMA, members)
    members[0].inflight = 1
    assert set(picks(balancer, 50)) == {"i0"}
    members[0].inflight = 3
    assert set(picks(balancer, 50)) == {"i1"}


def test_ewma_tries_a_member_again_that_was_slow_long_ago_but_does_not_prefer_it() -> None:
    members = endpoints(100, 100)
    members[0].latency, members[0].latency_at = 0.010, NOW
    members[1].latency, members[1].latency_at = 0.500, NOW - 300.0
    assert Counter(picks(make_balancer(Balance.EWMA, members), 1000))["i1"] == pytest.approx(500, abs=80)


def test_ewma_counts_the_queue_of_a_member_whose_latency_is_old() -> None:
    members = endpoints(100, 100)
    members[0].latency, members[0].latency_at = 0.010, NOW
    members[1].latency, members[1].latency_at = 0.500, NOW - 300.0
    members[1].inflight = 1
    assert set(picks(make_balancer(Balance.EWMA, members), 50)) == {"i0"}


def test_ewma_goes_by_load_where_nothing_was_measured() -> None:
    members = endpoints(100, 100)
    members[0].latency, members[0].latency_at = 0.010, NOW
    balancer = make_balancer(Balance.EWMA, members)
    assert Counter(picks(balancer, 1000))["i1"] == pytest.approx(500, abs=80)
    members[1].inflight = 1
    assert set(picks(balancer, 50)) == {"i0"}


def test_ewma_with_weights_leaves_the_slower_in_proportion() -> None:
    members = endpoints(100, 300)
    members[0].latency, members[1].latency = 0.010, 0.040
    members[0].latency_at = members[1].latency_at = NOW
    # 3/4 draw the slow one first and stay with it one time in four.
    assert shares(make_balancer(Balance.EWMA, members))["i1"] == pytest.approx(0.1875, abs=0.02)


@pytest.mark.parametrize("kind", HASHING)
def test_a_key_stays_with_its_member(kind: Balance) -> None:
    balancer = make_balancer(kind, endpoints(100, 100, 30))
    for number in range(50):
        assert len(set(picks(balancer, 4, keys=[b"client-%d" % number] * 4))) == 1


@pytest.mark.parametrize("kind", HASHING)
def test_the_order_of_the_members_does_not_matter(kind: Balance) -> None:
    members = endpoints(100, 100, 30, 250)
    one, other = make_balancer(kind, members), make_balancer(kind, members[::-1])
    assert picks(one, 500) == picks(other, 500)


@pytest.mark.parametrize("kind", HASHING)
def test_without_a_key_the_hashing_balancers_pick_by_chance(kind: Balance) -> None:
    counts = Counter(picks(make_balancer(kind, endpoints(100, 100)), 1000, keys=[b""] * 1000))
    assert min(counts.values()) > 350


@pytest.mark.parametrize("kind", HASHING)
def test_the_keys_of_a_tried_member_go_to_all_others(kind: Balance) -> None:
    members = endpoints(100, 100, 100)
    balancer = make_balancer(kind, members)
    owned = [key for key in (b"k%d" % n for n in range(2000)) if picks(balancer, 1, keys=[key]) == ["i0"]]
    counts = Counter(picks(balancer, len(owned), keys=owned, tried=members[:1]))
    assert counts["i1"] == pytest.approx(counts["i2"], rel=0.5)


@pytest.mark.parametrize("kind", HASHING)
def test_a_key_moves_to_a_warming_member_once(kind: Balance) -> None:
    members = endpoints(100, 100, 100)
    members[0].slow_start, members[0].warm_at = 10.0, NOW + 10.0
    balancer = make_balancer(kind, members)
    keys = [b"k%d" % n for n in range(500)]
    owned: set[bytes] = set()
    for step in range(11):
        found = picks(balancer, len(keys), keys=keys, now=NOW + step)
        mine = {key for key, name in zip(keys, found, strict=True) if name == "i0"}
        assert owned <= mine
        owned = mine
    assert len(owned) == pytest.approx(167, abs=50)


def test_a_full_ring_member_passes_its_keys_on() -> None:
    members = endpoints(100, 100, 100, 100)
    balancer = make_balancer(Balance.RING_HASH, members)
    home = balancer.pick(KEY, NOW, Random(1))
    assert home is not None
    home.inflight = 100
    for member in members:
        if member is not home:
            member.inflight = 50
    assert balancer.pick(KEY, NOW, Random(1)) is not home
    home.inflight = 50
    assert balancer.pick(KEY, NOW, Random(1)) is home


def test_the_least_loaded_is_taken_when_all_that_are_left_on_the_ring_are_full() -> None:
    members = endpoints(100, 100, 100)
    members[1].inflight, members[2].inflight = 60, 50
    balancer = make_balancer(Balance.RING_HASH, members)
    assert picks(balancer, 50, tried=members[:1]) == ["i2"] * 50


def test_an_equal_set_rebuilds_no_maglev_table() -> None:
    members = endpoints(100, 100)
    former = make_balancer(Balance.MAGLEV, members)
    again = make_balancer(Balance.MAGLEV, members[::-1], former)
    assert again._table is former._table  # type: ignore[attr-defined]


def test_ip_hash_agrees_with_itself_before_and_after_it_remembers() -> None:
    balancer = make_balancer(Balance.IP_HASH, endpoints(100, 20))
    keys = [b"k%d" % number for number in range(20_000)]
    assert picks(balancer, len(keys), keys=keys) == picks(balancer, len(keys), keys=keys)
