"""What the table decides in the cases that matter; all sequences are in tests/properties/test_table.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from config.schema import Outlier, SuccessRate
from discovery.model import Instance, Status, Update
from proxy.endpoint import State
from proxy.outlier import ejection_time, may_eject, remembered, unlike_the_others
from proxy.table import Cause, UnknownName

CHECKED = {"health": {"healthy": 2, "unhealthy": 3}}


def instance(id: str, port: int = 1, **facts) -> Instance:
    return Instance("s", id, "127.0.0.1", port, **facts)


def ready(stage) -> set[str]:
    return {endpoint.instance.id for endpoint in stage.table.services["s"].pool.ready}


async def test_a_new_instance_needs_one_pass_and_a_fallen_one_as_many_as_configured(stage):
    stage.configure(CHECKED)
    stage.apply(instance("a"))
    table, endpoint = stage.table, stage.endpoint()
    assert ready(stage) == set()
    table.health(endpoint, True, 0.0)
    assert ready(stage) == {"a"}
    for passed, state in (
        (False, State.READY),
        (False, State.READY),
        (True, State.READY),
        (False, State.READY),
        (False, State.READY),
        (False, State.UNHEALTHY),
        (True, State.UNHEALTHY),
        (False, State.UNHEALTHY),
        (True, State.UNHEALTHY),
        (True, State.READY),
    ):
        table.health(endpoint, passed, 0.0)
        assert endpoint.state is state


async def test_an_instance_whose_first_check_fails_is_unhealthy_at_once(stage):
    stage.configure(CHECKED)
    stage.apply(instance("a"))
    stage.table.health(stage.endpoint(), False, 0.0)
    assert stage.endpoint().state is State.UNHEALTHY


async def test_a_passing_check_does_not_outvote_a_registry_that_says_down(stage):
    stage.configure(CHECKED)
    stage.apply(instance("a", status=Status.DOWN))
    for _ in range(5):
        stage.table.health(stage.endpoint(), True, 0.0)
    assert ready(stage) == set()


async def test_counts_and_averages_survive_what_a_registry_republishes(stage):
    stage.apply(instance("a"), instance("b"))
    endpoint = stage.endpoint()
    endpoint.enter(0.0).exit(0.1, failed=False, latency=0.1)
    stage.apply(instance("b"), instance("a", weight=7, metadata={"version": "v2"}))
    assert stage.endpoint() is endpoint
    assert (endpoint.finished, endpoint.latency, endpoint.weight) == (1, 0.1, 7)
    stage.apply(instance("a", port=2), instance("b"))
    assert stage.endpoint() is not endpoint
    assert endpoint.state is State.GONE


async def test_an_instance_that_turns_critical_is_to_be_acted_on_at_once_and_once(stage):
    stage.apply(instance("a"))
    down = instance("a", status=Status.DOWN)
    departures = stage.table.apply(Update("s", (down,), 0.0), 0.0)
    assert [d.cause for d in departures] == [Cause.DEAD]
    again = stage.table.apply(Update("s", (replace(down, weight=3),), 0.0), 0.0)
    assert again == []


async def test_backups_are_used_only_while_nobody_else_is_ready(stage):
    stage.apply(instance("a"), instance("z", metadata={"backup": "true"}))
    assert ready(stage) == {"a"}
    stage.table.drain("s", "a", 0.0)
    assert ready(stage) == {"z"}
    stage.table.undrain("s", "a", 0.0)
    assert ready(stage) == {"a"}


async def test_failures_in_a_row_eject_and_time_brings_back_longer_each_time(stage):
    stage.configure({"outlier": {"consecutive_failures": 2, "base_ejection": "5s"}})
    stage.apply(instance("a"), instance("b"))
    table, endpoint = stage.table, stage.endpoint()
    now = 0.0
    for length in (5.0, 10.0):
        for failed in (True, False, True, True):
            assert endpoint.state is State.READY
            endpoint.enter(now).exit(now, failed=failed, latency=0.1)
            table.failed(endpoint, now) if failed else None
        assert endpoint.state is State.EJECTED
        assert table.expire(now + length - 0.1) == now + length
        now += length
        assert table.expire(now) is None
    assert ready(stage) == {"a", "b"}


async def test_the_last_instance_is_never_ejected_by_traffic_and_no_more_than_the_share(stage):
    stage.configure({"outlier": {"consecutive_failures": 1, "max_ejected": "50%"}})
    stage.apply(*(instance(id) for id in "abcd"))
    for id in "abcd":
        endpoint = stage.endpoint(id)
        endpoint.enter(0.0).exit(0.0, failed=True)
        stage.table.failed(endpoint, 0.0)
    assert len(ready(stage)) == 2
    outlier = stage.table.services["s"].config.outlier
    assert not may_eject(outlier, 0, 1)
    assert may_eject(outlier, 0, 3)
    assert not may_eject(outlier, 1, 3)
    assert [ejection_time(outlier, n) for n in (0, 1, 9, 100)] == [5.0, 10.0, 50.0, 50.0]


async def test_an_ejected_instance_that_fails_its_check_does_not_come_back_by_time_alone(stage):
    stage.configure(CHECKED)
    stage.apply(instance("a"), instance("b"))
    endpoint = stage.endpoint()
    stage.table.health(endpoint, True, 0.0)
    stage.table.eject("s", "a", 5.0, 0.0)
    stage.table.health(endpoint, False, 1.0)
    stage.table.expire(6.0)
    assert endpoint.state is State.STARTING
    stage.table.health(endpoint, True, 7.0)
    assert endpoint.state is State.READY


async def test_overrides_hold_while_an_instance_is_registered_and_no_longer(stage):
    stage.apply(instance("a"), instance("b"))
    stage.table.set_weight("s", "a", 5, 0.0)
    stage.table.drain("s", "b", 0.0)
    stage.apply(instance("a", weight=50), instance("b", weight=50))
    assert stage.endpoint("a").weight == 5
    assert stage.endpoint("b").state is State.DRAINING
    stage.table.set_weight("s", "a", None, 0.0)
    assert stage.endpoint("a").weight == 50
    stage.apply(instance("a"))
    stage.apply(instance("a"), instance("b"))
    assert stage.endpoint("b").state is State.READY


async def test_a_runtime_split_survives_reloads_that_leave_it_alone(stage):
    route = {"match": {"path": "/"}, "service": "s", "split": {"v1": 9, "v2": 1}}
    stage.configure(routes=[route])
    stage.table.set_split("s", {"v1": 1, "v2": 1})
    stage.configure({"slow_start": "1s"}, routes=[route])
    assert dict(stage.table.find_route("s").split.shares) == {"v1": 1, "v2": 1}
    stage.configure(routes=[route | {"split": {"v1": 0, "v2": 1}}])
    assert dict(stage.table.find_route("s").split.shares) == {"v1": 0, "v2": 1}


async def test_a_service_that_is_no_longer_configured_is_emptied(stage):
    stage.apply(instance("a"))
    endpoint = stage.endpoint()
    stage.configure(services={}, routes=[])
    assert endpoint.state is State.GONE
    with pytest.raises(UnknownName, match="no service 's'; known: none"):
        stage.table.find("s", "a")


async def test_weight_zero_gets_nothing_and_leases_end_once(stage):
    stage.apply(instance("a", weight=0), instance("b"))
    assert ready(stage) == {"b"}
    endpoint = stage.endpoint("b")
    lease = endpoint.enter(0.0)
    assert (endpoint.inflight, "1 in flight" in repr(endpoint)) == (1, True)
    lease.exit(1.0, failed=True)
    lease.exit(1.0, failed=True)
    assert (endpoint.inflight, endpoint.failed, endpoint.failures) == (0, 1, 1)
    endpoint.enter(1.0).exit(2.0, failed=False)
    assert endpoint.failures == 1  # a client that went away says nothing of the instance
    endpoint.enter(1.0).exit(2.0, failed=False, latency=0.5)
    assert (endpoint.failures, endpoint.latency) == (0, 0.5)
    endpoint.enter(2.0).exit(12.0, failed=False, latency=0.1)
    assert endpoint.latency == pytest.approx(0.1 + 0.4 * 0.36788, rel=1e-3)


PANIC = CHECKED | {"panic": "50%"}


async def test_below_the_panic_share_everybody_who_may_be_alive_is_used(stage):
    stage.configure(PANIC)
    stage.apply(*(instance(id) for id in "abcd"), instance("e", status=Status.DOWN))
    table, endpoints = stage.table, stage.table.services["s"].endpoints
    for id in "abcd":
        table.health(endpoints[id], True, 0.0)
    for id in "ab":
        for _ in range(3):
            table.health(endpoints[id], False, 0.0)
    assert ready(stage) == {"c", "d"}
    table.eject("s", "c", 10.0, 0.0)
    assert ready(stage) == {"a", "b", "c", "d"}
    assert [e.available for e in endpoints.values()] == [True] * 4 + [False]
    table.drain("s", "a", 0.0)
    assert ready(stage) == {"b", "c", "d"}
    table.expire(11.0)
    assert ready(stage) == {"c", "d"}
    kinds = [(kind, facts["ready"], facts["used"]) for kind, facts in stage.events if "panic" in kind]
    assert kinds == [("panic_began", 1, 4), ("panic_ended", 2, 2)]


async def test_without_a_panic_share_nobody_is_better_than_somebody_unhealthy(stage):
    stage.configure(CHECKED)
    stage.apply(instance("a"))
    stage.table.health(stage.endpoint(), False, 0.0)
    assert ready(stage) == set()


async def test_an_ejection_is_made_up_for_by_good_behaviour(stage):
    config = stage.table.services["s"].config.outlier or Outlier()
    assert [remembered(config, 3, seconds) for seconds in (0.0, 29.9, 30.0, 60.0, 1e6)] == [3, 3, 2, 1, 0]


def rates(**failures: int) -> dict[str, tuple[int, int]]:
    return {name: (100, failed) for name, failed in failures.items()}


async def test_who_fails_far_more_than_the_others_is_unlike_them():
    config = SuccessRate(requests=100, instances=5)
    assert unlike_the_others(config, rates(a=1, b=0, c=2, d=1, e=40, f=0)) == ["e"]
    assert unlike_the_others(config, rates(a=40, b=41, c=39, d=40, e=42)) == []
    assert unlike_the_others(config, rates(a=0, b=0, c=0, d=100)) == []
    few = rates(a=1, b=0, c=2, d=1, f=0) | {"e": (99, 99)}
    assert unlike_the_others(config, few) == []
    assert unlike_the_others(SuccessRate(requests=1, instances=2, deviation=0.5), rates(a=9, b=0, c=5)) == [
        "a"
    ]


async def test_an_instance_that_fails_far_more_than_its_peers_is_ejected_at_the_end_of_the_interval(stage):
    stage.configure(
        {"outlier": {"consecutive_failures": 1000, "success_rate": {"requests": 10, "interval": "10s"}}}
    )
    stage.apply(*(instance(id) for id in "abcdef"))
    table, endpoints = stage.table, stage.table.services["s"].endpoints
    table.compare(100.0)
    for id, endpoint in endpoints.items():
        for number in range(20):
            endpoint.enter(100.0).exit(100.0, failed=id == "c" and number % 2 == 0, latency=0.001)
    table.compare(105.0)
    assert ready(stage) == set("abcdef")
    table.compare(110.0)
    assert ready(stage) == set("abdef")
    assert endpoints["c"].ejected_until == 115.0
    table.compare(120.0)
    assert ready(stage) == set("abdef")


async def test_one_that_is_doubtful_is_the_last_choice_behind_backups_too(stage):
    backup = instance("backup", 3, metadata={"backup": "true"})
    doubtful = instance("doubtful", 2, status=Status.DOUBTFUL)
    stage.apply(instance("a"), doubtful, backup)
    assert ready(stage) == {"a"}
    stage.apply(doubtful, backup)
    assert ready(stage) == {"backup"}
    endpoint = stage.table.services["s"].endpoints["doubtful"]
    stage.apply(doubtful)
    assert ready(stage) == {"doubtful"}
    stage.apply(instance("doubtful", 2))
    assert (ready(stage), stage.table.services["s"].endpoints["doubtful"]) == ({"doubtful"}, endpoint)
