"""EndpointSlices as instances: conditions, ports, families, duplicates, labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from discovery.endpointslices import ServiceRef, Slices, Told, service_refs
from discovery.model import DEFAULT_WEIGHT, Instance, Status
from tests.discovery.support_kubernetes import endpoint, slice_of

Item = dict[str, Any]


def written(version: int, item: Item) -> Item:
    """As the server tells it."""
    item["metadata"]["resourceVersion"] = str(version)
    return item


def numbered(*items: Item) -> list[Item]:
    return [written(number, item) for number, item in enumerate(items, 1)]


def told(*items: Item, name: str = "chat", port: str = "", family: str = "IPv4") -> Told:
    slices = Slices({name: service_refs(name, "shop")}, port, family)
    slices.replace("shop", numbered(*items))
    return slices.told(name)


def instances(*items: Item, **options: str) -> tuple[Instance, ...]:
    found, refused, usable = told(*items, **options)
    assert found is not None
    assert (refused, usable) == ((), True)
    return found


def addresses(*items: Item, **options: str) -> dict[str, str]:
    return {instance.id: instance.address for instance in instances(*items, **options)}


def test_a_pod_is_an_instance_with_its_place_and_the_labels_of_its_service() -> None:
    labels = {"version": "v2", "weight": "40", "team": "shop", "app.kubernetes.io/version": "9"}
    hints = {"forZones": [{"name": "zone-a"}, {"name": "zone-b"}]}
    (found,) = instances(slice_of("chat", "s", endpoint("chat-1", "10.0.0.1", hints=hints), labels=labels))
    assert (found.service, found.id, found.address) == ("chat", "chat-1", "10.0.0.1:8080")
    assert (found.status, found.weight, found.version) == (Status.UP, 40, "v2")
    assert found.metadata == {
        "version": "v2",
        "team": "shop",
        "zone": "zone-a",
        "node": "node-1",
        "for_zones": "zone-a,zone-b",
    }


def test_the_recommended_label_stands_in_for_a_version() -> None:
    labels = {"app.kubernetes.io/version": "1.4.2"}
    (found,) = instances(slice_of("chat", "s", endpoint("chat-1", "10.0.0.1"), labels=labels))
    assert (found.version, found.weight) == ("1.4.2", DEFAULT_WEIGHT)


def test_a_label_of_the_service_drains_all_of_it() -> None:
    labels = {"draining": "true"}
    (found,) = instances(slice_of("chat", "s", endpoint("chat-1", "10.0.0.1"), labels=labels))
    assert found.status is Status.DRAINING


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({"ready": True, "serving": True, "terminating": False}, Status.UP),
        ({}, Status.UP),
        (None, Status.UP),
        ({"ready": None, "serving": None, "terminating": None}, Status.UP),
        ({"ready": False, "serving": False, "terminating": False}, Status.DOWN),
        ({"ready": False}, Status.DOWN),
        ({"ready": False, "serving": True, "terminating": True}, Status.DRAINING),
        ({"ready": False, "serving": False, "terminating": True}, Status.DRAINING),
        # `publishNotReadyAddresses`: ready whatever happens.
        ({"ready": True, "serving": False, "terminating": False}, Status.UP),
        ({"ready": True, "serving": True, "terminating": True}, Status.DRAINING),
    ],
)
def test_conditions_are_a_status(conditions: Mapping[str, Any] | None, status: Status) -> None:
    (found,) = instances(slice_of("chat", "s", endpoint("chat-1", "10.0.0.1", conditions=conditions)))
    assert found.status is status


def test_all_slices_of_a_service_are_one_set() -> None:
    items = [slice_of("chat", f"s{n}", endpoint(f"chat-{n}", f"10.0.0.{n}")) for n in range(3)]
    assert list(addresses(*items, slice_of("other", "x", endpoint("other-1", "10.0.9.9")))) == [
        "chat-0",
        "chat-1",
        "chat-2",
    ]


def test_no_slices_are_absence_and_slices_without_endpoints_are_emptiness() -> None:
    assert told(slice_of("other", "x", endpoint("other-1", "10.0.9.9"))) == (None, (), True)
    # That of a Service without pods; the controller writes no ports either.
    assert told(slice_of("chat", "s", endpoints=None, ports=None)) == ((), (), True)


def test_of_a_pod_in_two_slices_the_one_written_later_counts() -> None:
    leaving = {"ready": False, "serving": True, "terminating": True}
    old = slice_of("chat", "old", endpoint("chat-1", "10.0.0.1"), endpoint("chat-2", "10.0.0.2"))
    new = slice_of("chat", "new", endpoint("chat-1", "10.0.0.1", conditions=leaving))
    slices = Slices({"chat": service_refs("chat", "shop")}, "", "IPv4")
    for items in ([written(9, old), written(10, new)], [written(10, new), written(9, old)]):
        slices.replace("shop", items)
        found = slices.told("chat").instances or ()
        assert [(i.id, i.status) for i in found] == [("chat-1", Status.DRAINING), ("chat-2", Status.UP)]
    # The pod's name is used again while the slice of the old one still stands.
    slices.put("shop", written(11, slice_of("chat", "newer", endpoint("chat-1", "10.0.0.77"))))
    again = slices.told("chat").instances or ()
    assert again[0].address == "10.0.0.77:8080"


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("IPv4", {"a": "10.0.0.1:8080", "b": "[fd00::2]:8080"}),
        ("IPv6", {"a": "[fd00::1]:8080", "b": "[fd00::2]:8080"}),
    ],
)
def test_a_pod_with_two_families_is_one_instance(family: str, expected: dict[str, str]) -> None:
    six = slice_of("chat", "six", endpoint("a", "fd00::1"), endpoint("b", "fd00::2"), addressType="IPv6")
    four = slice_of("chat", "four", endpoint("a", "10.0.0.1"))
    assert addresses(four, six, family=family) == addresses(six, four, family=family) == expected


def test_what_is_no_pod_goes_by_its_address() -> None:
    four = slice_of("chat", "four", {"addresses": ["192.0.2.1"]})
    six = slice_of("chat", "six", {"addresses": ["2001:db8::1"]}, addressType="IPv6")
    name = slice_of("chat", "name", {"addresses": ["db.example.com"]}, addressType="FQDN")
    assert addresses(four, six, name) == {
        "192.0.2.1:8080": "192.0.2.1:8080",
        "[2001:db8::1]:8080": "[2001:db8::1]:8080",
        "db.example.com:8080": "db.example.com:8080",
    }


HTTP = {"name": "http", "port": 8080}
GRPC = {"name": "grpc", "port": 9090, "protocol": "TCP"}
DNS = {"name": "dns", "port": 53, "protocol": "UDP"}
UNNAMED = {"name": "", "port": 7000}
ANY = {"name": "any", "port": None}


@pytest.mark.parametrize(
    ("ports", "name", "port", "expected"),
    [
        ([UNNAMED], "chat", "", 7000),
        ([UNNAMED, DNS], "chat", "", 7000),
        ([GRPC], "chat", "http", 9090),
        ([HTTP, GRPC], "chat", "grpc", 9090),
        ([HTTP, GRPC], "chat", "9090", 9090),
        ([HTTP, GRPC], "chat:grpc", "http", 9090),
        ([HTTP, GRPC], "chat:9999", "http", 9999),
        ([], "chat:9999", "", 9999),
        (None, "chat", "9999", 9999),
        ([ANY], "chat", "9999", 9999),
        ([HTTP, GRPC], "chat", "", None),
        ([HTTP, GRPC], "chat", "web", None),
        ([HTTP], "chat:grpc", "", None),
        ([HTTP], "chat:70000", "", None),
        ([DNS], "chat", "", None),
        ([ANY], "chat", "", None),
        (None, "chat", "", None),
    ],
)
def test_ports_are_found_by_name_by_number_or_alone(
    ports: list[Item] | None, name: str, port: str, expected: int | None
) -> None:
    found = told(slice_of("chat", "s", endpoint("a", "10.0.0.1"), ports=ports), name=name, port=port)
    if expected is None:
        (reason,) = found.refused
        assert (found.instances, found.usable) == ((), False)
        assert reason.startswith("EndpointSlice shop/s: ")
        assert "; TCP ports: " in reason
    else:
        assert [instance.port for instance in found.instances or ()] == [expected]


def test_the_protocol_of_the_port_is_passed_on_unless_a_label_says_it() -> None:
    ports = [{"name": "web", "port": 80, "appProtocol": "kubernetes.io/h2c"}]
    plain = slice_of("chat", "a", endpoint("a", "10.0.0.1"), ports=ports)
    labelled = slice_of("chat", "b", endpoint("b", "10.0.0.2"), ports=ports, labels={"protocol": "http"})
    assert [i.metadata["protocol"] for i in instances(plain, labelled)] == ["h2c", "http"]


GARBAGE = [
    {"addressType": "Carrier pigeon"},
    {"addressType": None},
    {"endpoints": 7},
    {"endpoints": [7]},
    {"endpoints": [{}]},
    {"endpoints": [{"addresses": []}]},
    {"endpoints": [{"addresses": [5]}]},
    {"endpoints": [{"addresses": ["10.0.0.9"], "conditions": "x"}]},
    {"endpoints": [{"addresses": ["10.0.0.9"], "hints": {"forZones": [{}]}}]},
    {"endpoints": [{"addresses": ["10.0.0.9"], "targetRef": {"kind": "Pod"}}]},
    {"ports": [{"port": "http"}]},
    {"ports": [{"port": 0}]},
    {"ports": [{"port": True}]},
    {"ports": "http"},
]


@pytest.mark.parametrize("fields", GARBAGE, ids=repr)
def test_garbage_leaves_out_its_slice_only(fields: Item) -> None:
    sound = slice_of("chat", "sound", endpoint("a", "10.0.0.1"))
    broken = slice_of("chat", "broken", endpoint("b", "10.0.0.2")) | fields
    found = told(sound, broken)
    assert [instance.id for instance in found.instances or ()] == ["a"]
    (reason,) = found.refused
    assert reason.startswith("EndpointSlice shop/broken: ")
    assert found.usable
    assert not told(broken).usable


@pytest.mark.parametrize(
    "item", [None, 7, {}, {"metadata": None}, {"metadata": {}}, {"metadata": {"name": ""}}]
)
def test_a_slice_without_a_name_is_an_error(item: Any) -> None:
    slices = Slices({"chat": service_refs("chat", "shop")}, "", "IPv4")
    with pytest.raises(ValueError, match="without a name"):
        slices.put("shop", item)


def test_changes_name_the_services_they_may_change() -> None:
    wanted = {name: service_refs(name, "shop") for name in ("chat", "orders", "chat,orders", "orders.else")}
    slices = Slices(wanted, "", "IPv4")
    one = slice_of("chat", "one", endpoint("a", "10.0.0.1"))
    assert slices.namespaces() == {"shop": {"chat", "orders"}, "else": {"orders"}}
    assert slices.put("shop", one) == {"chat", "chat,orders"}
    assert slices.put("else", one) == set()
    # It is given to another service.
    moved = slice_of("orders", "one", endpoint("a", "10.0.0.1"))
    assert slices.put("shop", moved) == {"chat", "orders", "chat,orders"}
    assert (slices.told("chat").instances, len(slices.told("orders").instances or ())) == (None, 1)
    assert slices.remove("shop", moved) == {"orders", "chat,orders"}
    assert slices.remove("shop", moved) == set()
    assert slices.told("chat,orders").instances is None


def test_what_a_new_list_lacks_is_gone() -> None:
    slices = Slices(
        {"chat": service_refs("chat", "shop"), "far": service_refs("chat.else", "shop")}, "", "IPv4"
    )
    item = slice_of("chat", "one", endpoint("a", "10.0.0.1"))
    assert not slices.is_complete("chat")
    assert slices.replace("shop", numbered(item)) == {"chat"}
    assert slices.is_complete("chat")
    assert not slices.is_complete("far")
    assert slices.replace("shop", []) == {"chat"}
    assert slices.told("chat").instances is None


def test_several_services_are_one_and_the_first_has_the_say() -> None:
    name = "chat-canary,chat"
    labels = {"version": "canary"}
    canary = slice_of("chat-canary", "c", endpoint("b", "10.0.0.2"), labels=labels)
    whole = slice_of("chat", "s", endpoint("a", "10.0.0.1"), endpoint("b", "10.0.0.2"))
    for items in ((canary, whole), (whole, canary)):
        assert [(i.id, i.version) for i in instances(*items, name=name)] == [("a", ""), ("b", "canary")]


def test_pods_of_several_namespaces_may_have_the_same_name() -> None:
    slices = Slices({"chat,chat.else": service_refs("chat,chat.else", "shop")}, "", "IPv4")
    slices.put("shop", written(1, slice_of("chat", "s", endpoint("chat-0", "10.0.0.1"))))
    slices.put("else", written(2, slice_of("chat", "s", endpoint("chat-0", "10.0.0.2"))))
    found = slices.told("chat,chat.else").instances or ()
    assert [i.id for i in found] == ["chat-0.else", "chat-0.shop"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chat", [ServiceRef("shop", "chat")]),
        ("chat.prod", [ServiceRef("prod", "chat")]),
        ("chat:http", [ServiceRef("shop", "chat", "http")]),
        ("a.b:80,c", [ServiceRef("b", "a", "80"), ServiceRef("shop", "c")]),
        ("Not_A_Label", []),
        ("chat.", []),
        ("DEFAULT_GROUP@@chat,chat", [ServiceRef("shop", "chat")]),
        ("a.b.c", []),
        ("x" * 64, []),
    ],
)
def test_names_of_services(text: str, expected: list[ServiceRef]) -> None:
    assert list(service_refs(text, "shop")) == expected
