"""Nacos' instances as ours, and ours as Nacos'."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.model import Instance, RegistryError, Status
from discovery.nacos.entry import entry_of, instances_of


def host(**facts: Any) -> dict[str, Any]:
    return {"ip": "10.0.0.1", "port": 80, **facts}


def only(**facts: Any) -> Instance:
    [instance] = instances_of("chat", [host(**facts)])
    return instance


def test_what_states_little_is_up_and_called_by_its_address() -> None:
    assert only() == Instance("chat", "10.0.0.1:80", "10.0.0.1", 80)
    assert only(ip="::1").id == "[::1]:80"


@pytest.mark.parametrize(
    ("facts", "weight"),
    [
        ({"weight": 1.0}, 100),
        ({"weight": 0.5}, 50),
        ({"weight": 0.0}, 0),
        ({"weight": -1.0}, 0),
        ({"weight": 0.001}, 1),
        ({"weight": 10000.0}, 65535),
        ({"weight": 1.0, "metadata": {"weight": "7"}}, 7),
        ({"weight": 2.0, "metadata": {"weight": "7"}}, 200),
    ],
)
def test_a_weight_is_nacos_own_unless_only_the_metadata_state_one(facts: dict[str, Any], weight: int) -> None:
    instance = only(**facts)
    assert (instance.weight, dict(instance.metadata)) == (weight, {})


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"healthy": True, "enabled": True}, Status.UP),
        ({"healthy": True, "enabled": False}, Status.DRAINING),
        ({"healthy": False, "enabled": True}, Status.DOWN),
        ({"healthy": False, "enabled": False}, Status.DOWN),
        ({"metadata": {"draining": "true"}}, Status.DRAINING),
        ({"healthy": False, "metadata": {"draining": "true"}}, Status.DOWN),
    ],
)
def test_taken_offline_is_leaving_and_unhealthy_is_dead(facts: dict[str, Any], status: Status) -> None:
    assert only(**facts).status is status


def test_orders_to_the_server_are_no_metadata() -> None:
    assert dict(only(metadata={"preserved.heart.beat.timeout": "1", "zone": "eu"}).metadata) == {"zone": "eu"}


def test_clusters_without_a_port_or_of_others_are_left_out() -> None:
    hosts = [host(clusterName="A"), host(ip="10.0.0.2", clusterName="B"), host(ip="10.0.0.3", port=0), host()]
    assert [i.host for i in instances_of("chat", hosts, {"A"})] == ["10.0.0.1"]
    assert [i.host for i in instances_of("chat", hosts)] == ["10.0.0.1", "10.0.0.2"]


def test_one_instance_that_is_registered_twice_is_one_and_two_of_one_name_are_two() -> None:
    dying = host(metadata={"id": "a"}, healthy=False)
    again = host(metadata={"id": "a"})
    assert [(i.id, i.status) for i in instances_of("chat", [dying, again])] == [("a", Status.UP)]
    other = host(ip="10.0.0.2", metadata={"id": "a"})
    assert [i.id for i in instances_of("chat", [again, other])] == ["a@10.0.0.1:80", "a@10.0.0.2:80"]


def test_only_when_nothing_makes_sense_it_is_an_error() -> None:
    refused: list[str] = []
    assert len(instances_of("chat", [{}, host()], refused=refused)) == 1
    assert refused == ["entry {}: KeyError: 'ip'"]
    with pytest.raises(RegistryError, match="service chat: not a list of instances"):
        instances_of("chat", [{}, host(weight="heavy")])


names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@given(
    st.builds(
        Instance,
        service=st.just("chat"),
        id=names,
        host=st.ip_addresses().map(str),
        port=st.integers(1, 65535),
        weight=st.integers(0, 65535),
        status=st.sampled_from([Status.UP, Status.DRAINING]),
        metadata=st.dictionaries(names.filter(lambda name: name not in ("id", "weight", "draining")), names),
    )
)
def test_what_is_registered_is_read_back(instance: Instance) -> None:
    assert instances_of("chat", [entry_of(instance)]) == (instance,)


def test_a_unix_socket_cannot_be_registered() -> None:
    with pytest.raises(RegistryError, match="unix socket"):
        entry_of(Instance("chat", "a", path="/run/a.sock"))
