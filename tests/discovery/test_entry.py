"""Consul's health entries as instances."""

from __future__ import annotations

from typing import Any

import pytest

from discovery.entry import instances_of
from discovery.model import DEFAULT_WEIGHT, Instance, RegistryError, Status


def entry(
    service_id: str = "a", *, statuses: tuple[str, ...] = ("passing",), **service: Any
) -> dict[str, Any]:
    checks = [{"CheckID": f"c{number}", "Status": status} for number, status in enumerate(statuses)]
    fields = {"ID": service_id, "Service": "chat", "Address": "10.0.0.1", "Port": 80, **service}
    return {"Node": {"Node": "n1", "Address": "10.9.9.9"}, "Service": fields, "Checks": checks}


def one(**fields: Any) -> Instance:
    (instance,) = instances_of("chat", [entry(**fields)])
    return instance


def test_an_entry_becomes_an_instance() -> None:
    assert one(Meta={"version": "v2", "zone": "eu"}) == Instance(
        "chat", "a", "10.0.0.1", 80, metadata={"version": "v2", "zone": "eu"}
    )


def test_without_an_address_of_its_own_it_is_the_nodes() -> None:
    assert one(Address="").host == "10.9.9.9"


def test_a_socket_path_wins_over_host_and_port() -> None:
    instance = one(SocketPath="/run/a.sock")
    assert (instance.path, instance.host, instance.port) == ("/run/a.sock", "", 0)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ((), Status.UP),
        (("passing", "passing"), Status.UP),
        (("passing", "warning"), Status.UP),
        (("passing", "critical"), Status.DOWN),
    ],
)
def test_any_critical_check_is_down_and_a_warning_is_up(statuses: tuple[str, ...], status: Status) -> None:
    assert one(statuses=statuses).status is status


def test_draining_metadata_and_maintenance_mean_draining_and_death_beats_both() -> None:
    assert one(Meta={"draining": "true"}).status is Status.DRAINING
    assert one(Meta={"draining": "false"}).status is Status.UP
    assert one(Meta={"draining": "true"}, statuses=("critical",)).status is Status.DOWN
    maintained = entry()
    for check_id in ("_service_maintenance:a", "_node_maintenance"):
        maintained["Checks"] = [{"CheckID": check_id, "Status": "critical"}]
        assert instances_of("chat", [maintained])[0].status is Status.DRAINING
    maintained["Checks"].append({"CheckID": "service:a", "Status": "critical"})
    assert instances_of("chat", [maintained])[0].status is Status.DOWN


def test_tags_with_an_equals_sign_are_metadata_and_meta_wins() -> None:
    instance = one(Tags=["version=v1", "zone=eu", "plain", "=x"], Meta={"version": "v2"})
    assert instance.metadata == {"version": "v2", "zone": "eu"}


def weights(*stated: dict[str, Any]) -> list[int]:
    entries = [entry(f"i{number}", **fields) for number, fields in enumerate(stated)]
    return [instance.weight for instance in instances_of("chat", entries)]


def test_a_weight_that_nobody_stated_is_the_default() -> None:
    assert weights({}, {"Weights": {"Passing": 1, "Warning": 1}}) == [DEFAULT_WEIGHT] * 2


def test_stated_weights_are_taken_and_the_one_in_meta_wins() -> None:
    assert weights({"Weights": {"Passing": 9}}, {"Weights": {"Passing": 1}}) == [9, 1]
    assert weights({"Weights": {"Passing": 9}, "Meta": {"weight": "50"}}) == [50]
    assert weights({"Meta": {"weight": "0"}}, {}) == [0, DEFAULT_WEIGHT]


@pytest.mark.parametrize("stated", ["-1", "1.5", "many", "65536", "", "²"])
def test_a_weight_in_meta_that_is_none_is_ignored(stated: str) -> None:
    assert weights({"Meta": {"weight": stated}}) == [DEFAULT_WEIGHT]


def test_entries_that_cannot_be_reached_are_left_out() -> None:
    assert instances_of("chat", [entry(Port=0), entry("b", Port=70000), entry("c")])[0].id == "c"


def test_the_order_of_the_answer_does_not_matter() -> None:
    entries = [entry("b"), entry("a"), entry("c")]
    assert instances_of("chat", entries) == instances_of("chat", entries[::-1])


def test_an_id_that_two_nodes_use_is_made_unique() -> None:
    other = entry("a", Address="10.0.0.2")
    other["Node"] = {"Node": "n2", "Address": "10.9.9.8"}
    assert [i.id for i in instances_of("chat", [entry("a"), other])] == ["a@n1", "a@n2"]


@pytest.mark.parametrize(
    "garbage",
    [[1], ["x"], [None], [{}], [{"Service": {}}], [{"Service": None}], [entry(Port="x")], [entry(Weights=3)]],
)
def test_garbage_is_a_registry_error(garbage: list[Any]) -> None:
    with pytest.raises(RegistryError, match="not a list of health entries"):
        instances_of("chat", garbage)


def test_an_id_that_is_only_the_services_name_has_the_nodes_name_from_the_start() -> None:
    """Consul gives it where none was stated: a second node must not rename the first one's instance."""
    first, second = entry("chat"), entry("chat", Address="10.0.0.2")
    second["Node"] = {"Node": "n2", "Address": "10.9.9.8"}
    assert [i.id for i in instances_of("chat", [first])] == ["chat@n1"]
    assert [i.id for i in instances_of("chat", [first, second])] == ["chat@n1", "chat@n2"]


def test_one_entry_that_makes_no_sense_is_left_out_and_told() -> None:
    for nonsense in (
        7,
        {},
        {"Service": {"ID": 7}},
        entry("b", Port="x"),
        entry("b", Weights=3),
        entry("b", Tags=5),
        {**entry("b"), "Checks": [{}]},
    ):
        refused: list[str] = []
        assert [i.id for i in instances_of("chat", [nonsense, entry("a")], refused)] == ["a"]
        assert len(refused) == 1


def test_a_warning_has_the_weight_that_was_stated_for_it() -> None:
    stated = {"Weights": {"Passing": 10, "Warning": 3}}
    assert weights(stated) == [10]
    warned = entry(statuses=("passing", "warning"), **stated)
    assert [i.weight for i in instances_of("chat", [warned])] == [3]
    assert [i.weight for i in instances_of("chat", [entry(statuses=("warning",))])] == [DEFAULT_WEIGHT]
