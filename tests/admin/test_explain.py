"""Explanations agree with the decisions of the data plane, and move nothing."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.load import read
from discovery.model import Instance, Status, Update
from discovery.static import static_updates
from proxy.choose import choose
from proxy.errors import ProxyError, Reason
from proxy.explain import explain, make_request, refused
from proxy.head import RequestHead
from proxy.table import Table

NOW = 50.0
CLIENT = b"192.0.2.7"


def table_of(service: str, split: str = "", balance: str = "round_robin") -> Table:
    text = f"""
services:
  web:
    balance: {balance}
    {service}
    instances:
      - {{address: "127.0.0.1:1", id: a, metadata: {{version: v1}}}}
      - {{address: "127.0.0.1:2", id: b, weight: 30, metadata: {{version: v1}}}}
      - {{address: "127.0.0.1:3", id: c, metadata: {{version: v2}}}}
      - {{address: "127.0.0.1:4", id: spare, metadata: {{version: v1, backup: "true"}}}}
routes: [{{match: {{path: /}}, service: web{split}}}]
"""
    config = read(text.encode(), source="t", environ={})
    table = Table(lambda *_, **__: None)
    table.configure(config, NOW)
    for update in static_updates(config.services, NOW):
        table.apply(update, NOW)
    return table


def taken(explanation: Any) -> str | None:
    found = [instance.id for instance in explanation.instances if instance.taken]
    assert len(found) <= 1
    return found[0] if found else None


def carrying(token: str) -> RequestHead:
    return make_request("/", headers=[("Cookie", f"hf={token}")])


def reasons(explanation: Any) -> dict[str, str]:
    return {instance.id: instance.why for instance in explanation.instances}


@settings(max_examples=60, deadline=None)
@given(
    balance=st.sampled_from(
        ["round_robin", "weighted", "least_conn", "p2c", "ewma", "ring_hash", "maglev", "ip_hash", "random"]
    ),
    sticky=st.sampled_from(["", "sticky: {by: cookie, name: hf}", "sticky: {by: ip}"]),
    split=st.sampled_from(["", ", split: {v1: 50, v2: 50}", ", split: {v2: 1}"]),
    earlier=st.integers(0, 5),
    seed=st.integers(0, 100),
)
def test_what_is_explained_is_what_happens_next(balance, sticky, split, earlier, seed):
    table = table_of(sticky, split, balance)
    route = table.routes[0]
    head = make_request("/")
    for number in range(earlier):
        choose(route, head, b"198.51.100.%d" % number, False, NOW, Random(seed))
    first = explain(table, head, CLIENT, False, NOW, Random(seed))
    second = explain(table, head, CLIENT, False, NOW, Random(seed))
    chosen, _ = choose(route, head, CLIENT, False, NOW, Random(seed))
    assert chosen is not None
    assert taken(first) == taken(second) == chosen.instance.id


def test_a_client_with_a_cookie_is_bound_and_the_others_say_so():
    table = table_of("sticky: {by: cookie, name: hf}")
    token = table.find("web", "b").token.decode()
    explanation = explain(
        table, make_request("/", headers=[("Cookie", f"hf={token}")]), b"", False, NOW, Random(1)
    )
    assert taken(explanation) == "b"
    assert explanation.sticky is not None
    assert (explanation.sticky.instance, explanation.sticky.why) == ("b", "bound")
    assert reasons(explanation)["a"] == "the client is bound to b"


def test_a_client_bound_to_one_that_leaves_is_told_why_it_moves():
    table = table_of("sticky: {by: cookie, name: hf}")
    token = table.find("web", "b").token.decode()
    table.drain("web", "b", NOW)
    explanation = explain(
        table, make_request("/", headers=[("Cookie", f"hf={token}")]), b"", False, NOW, Random(1)
    )
    assert taken(explanation) in ("a", "c")
    assert explanation.sticky is not None
    assert explanation.sticky.why == "bound, but that instance is draining"


def test_a_bound_client_leaves_a_version_without_a_share():
    table = table_of("sticky: {by: cookie, name: hf}", ", split: {v2: 1}")
    token = table.find("web", "a").token.decode()
    explanation = explain(
        table, make_request("/", headers=[("Cookie", f"hf={token}")]), b"", False, NOW, Random(1)
    )
    assert taken(explanation) == "c"
    assert explanation.sticky is not None
    assert explanation.sticky.why == "bound, but its version has no share in the split"
    assert reasons(explanation)["a"] == "version v1 has no share in the split"


def test_looking_binds_nobody():
    table = table_of("sticky: {by: ip}")
    stickiness = table.services["web"].stickiness
    assert stickiness is not None
    explain(table, make_request("/"), CLIENT, False, NOW, Random(1))
    assert stickiness.find(make_request("/"), CLIENT, table.services["web"].pool.by_token, NOW) is None


def test_every_reason_for_not_being_taken_is_given():
    table = table_of("health: {path: /}")
    endpoints = table.services["web"].endpoints
    table.health(endpoints["a"], True, NOW)
    table.health(endpoints["b"], False, NOW, "refused")
    explanation = explain(table, make_request("/"), CLIENT, False, NOW, Random(1))
    assert reasons(explanation) == {
        "a": "chosen by round_robin",
        "b": "its health check fails or its registry calls it critical",
        "c": "its first health check has not passed yet",
        "spare": "its first health check has not passed yet",
    }


def test_ejection_weight_backup_and_drain_are_told_apart():
    table = table_of("")
    table.eject("web", "a", 8.0, NOW)
    table.set_weight("web", "b", 0, NOW)
    leaving = Instance("web", "d", "127.0.0.1", 9, status=Status.DRAINING)
    present = tuple(endpoint.instance for endpoint in table.services["web"].endpoints.values())
    table.apply(Update("web", (*present, leaving), NOW), NOW)
    explanation = explain(table, make_request("/"), CLIENT, False, NOW + 2, Random(1))
    assert reasons(explanation) == {
        "a": "ejected for 6.0 s more",
        "b": "its weight is 0",
        "c": "chosen by round_robin",
        "d": "draining: asked for by its registry",
        "spare": "a backup: used only while no other instance is ready",
    }


def test_a_split_without_ready_instances_is_explained():
    table = table_of("", ", split: {v2: 1}")
    table.drain("web", "c", NOW)
    explanation = explain(table, make_request("/"), CLIENT, False, NOW, Random(1))
    assert explanation.outcome == Reason.NO_HEALTHY_INSTANCE.code
    assert explanation.split is not None
    assert explanation.split.version is None
    assert taken(explanation) is None


def test_a_split_says_what_put_the_client_on_its_side():
    by_address = explain(
        table_of("", ", split: {v1: 1, v2: 1}"), make_request("/"), CLIENT, False, NOW, Random(1)
    )
    assert by_address.split is not None
    assert "address" in by_address.split.why
    cookies = table_of("sticky: {by: cookie, name: hf}", ", split: {v1: 1, v2: 1}")
    by_chance = explain(cookies, make_request("/"), CLIENT, False, NOW, Random(1))
    assert by_chance.split is not None
    assert by_chance.split.why.startswith("by chance")


def test_without_a_matching_route_each_says_what_failed():
    text = "services: {web: {instances: ['127.0.0.1:1']}}\nroutes: [{match: {host: a.example}, service: web}]"
    table = Table(lambda *_, **__: None)
    table.configure(read(text.encode(), source="t", environ={}), NOW)
    explanation = explain(table, make_request("http://b.example/"), CLIENT, False, NOW, Random(1))
    assert explanation.outcome == "no_route"
    assert [(verdict.name, verdict.why) for verdict in explanation.other_routes] == [
        ("web", "the host is not a.example")
    ]


@given(st.text(max_size=40), st.text(max_size=10), st.text(max_size=20))
def test_whatever_is_asked_is_answered_or_refused_in_order(path, name, value):
    try:
        head = make_request("/" + path, headers=[(name, value)])
    except (ValueError, ProxyError):
        return
    assert head.path.startswith(b"/")


def test_what_the_proxy_refuses_keeps_its_reason():
    with pytest.raises(ProxyError) as caught:
        make_request("/a/%zz")
    assert refused(caught.value).outcome == "bad_request"
