"""What the admin API shows."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from discovery.model import Status
from proxy.endpoint import State
from proxy.metrics import record

ODD = "b%2F1%3A2%20%25"
"""The id `b/1:2 %` as one segment of a path."""


async def test_services_are_listed_with_their_counts(control, api):
    control.plane.table.find("web", "a").inflight = 3
    answer = await (await api.get("/v1/services")).json()
    web = answer["services"][0]
    assert (web["name"], web["balance"], web["sticky"], web["inflight"]) == (
        "web",
        "round_robin",
        "cookie",
        3,
    )
    assert web["states"]["ready"] == 3
    assert web["versions"] == {"stable": 2, "canary": 1}


async def test_one_service_comes_with_its_instances(api):
    answer = await (await api.get("/v1/services/web")).json()
    assert [instance["id"] for instance in answer["instances"]] == ["a", "b/1:2 %", "c"]


async def test_an_id_with_slashes_colons_and_percent_signs_is_found(api):
    answer = await (await api.get(f"/v1/services/web/instances/{ODD}")).json()
    assert (answer["id"], answer["address"], answer["weight"]) == ("b/1:2 %", "127.0.0.1:9002", 50)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/services/wbe", "api, web"),
        ("/v1/services/wbe/instances", "api, web"),
        ("/v1/services/web/instances/zz", "a, b/1:2 %, c"),
        ("/v1/routes/x/split", "api, web"),
    ],
)
async def test_an_unknown_name_is_404_with_the_names_there_are(api, path, names):
    response = await api.get(path)
    answer = await response.json()
    assert response.status == 404
    assert answer["error"] == "not_found"
    assert f"known: {names}" in answer["detail"]


async def test_status_says_what_is_carried_and_how_registries_do(control, api):
    control.plane.counters.requests_total = 7
    control.plane.counters.bad_request("bad_request")
    control.now += 5
    answer = await (await api.get("/v1/status")).json()
    assert answer["ready"] is True
    assert answer["uptime"] == 5
    assert (answer["totals"]["requests"], answer["totals"]["refused"]) == (7, 1)
    assert [(r["kind"], r["state"], r["staleness"]) for r in answer["registries"]] == [
        ("consul", "live", 0.0),
        ("file", "failed", 12.5),
    ]
    assert answer["registries"][1]["error"] == "connection refused"


async def test_routes_show_conditions_split_and_traffic_by_version(control, api):
    table = control.plane.table
    route = table.find_route("web")
    for endpoint, status, reason in (
        (table.find("web", "a"), 200, ""),
        (table.find("web", "c"), 500, ""),
        (None, 503, "no_healthy_instance"),
    ):
        record(route, endpoint, status, reason, 0.01, 0.01, 10, 100)
    web, api_route = (await (await api.get("/v1/routes")).json())["routes"]
    assert web["match"] == {"path": "/"}
    assert web["split"] == web["configured"] == {"stable": 90, "canary": 10}
    assert web["versions"]["stable"] == {"instances": 2, "ready": 2}
    assert web["traffic"]["canary"]["statuses"] == {"5xx": 1}
    assert web["traffic"][""]["reasons"] == {"no_healthy_instance": 1}
    assert api_route["match"] == {"path": "/api", "method": ["POST"]}
    assert api_route["limits"][0]["rate"] == 5.0


async def test_the_configuration_is_shown_without_its_secrets(start):
    text = """
admin: {token: top-secret}
registry: {kind: consul, address: "http://127.0.0.1:8500", token: consul-secret}
services: {web: {sticky: {by: cookie, name: hf, key: cookie-secret-that-is-long}}}
"""
    _, api = await start(text)
    response = await api.get("/v1/config", headers={"Authorization": "Bearer top-secret"})
    shown = await response.text()
    assert response.status == 200
    for secret in ("top-secret", "consul-secret", "cookie-secret"):
        assert secret not in shown
    assert "http://127.0.0.1:8500" in shown


async def test_health_is_always_ok_and_readiness_says_why_not(control, api):
    assert (await api.get("/healthz")).status == 200
    assert (await api.get("/readyz")).status == 200
    control.reasons = ["it is shutting down"]
    assert (await api.get("/healthz")).status == 200
    response = await api.get("/readyz")
    assert response.status == 503
    assert await response.json() == {"ready": False, "reasons": ["it is shutting down"]}


async def test_probes_may_ask_for_the_head_only(api):
    for path in ("/healthz", "/readyz", "/metrics", "/"):
        response = await api.head(path)
        assert (response.status, await response.read()) == (200, b"")


# -- explain -----------------------------------------------------------------------------------------------


async def test_explain_names_route_instance_and_every_other_ones_reason(control, api):
    table = control.plane.table
    table.drain("web", "a", control.now)
    table.set_weight("web", "b/1:2 %", 0, control.now)
    answer = await (await api.get("/v1/explain", params={"url": "http://x/page"})).json()
    assert answer["outcome"] == "forwarded"
    assert answer["route"] == {"name": "web", "service": "web"}
    assert answer["other_routes"] == [{"name": "api", "why": "the path is not below /api"}]
    assert answer["split"]["version"] == "canary"
    assert {i["id"]: (i["taken"], i["why"]) for i in answer["instances"]} == {
        "a": (False, "draining: asked for by an operator"),
        "b/1:2 %": (False, "its weight is 0"),
        "c": (True, "chosen by round_robin"),
    }


async def test_explain_takes_method_and_headers_into_account(api):
    params = [("url", "/api/x"), ("method", "POST"), ("header", "X-A: b"), ("header", "Host: example.com")]
    answer = await (await api.get("/v1/explain", params=params)).json()
    assert answer["route"]["name"] == "api"


async def test_explain_says_what_the_proxy_would_refuse(api):
    answer = await (await api.get("/v1/explain", params={"url": "/../../etc/passwd"})).json()
    assert answer["outcome"] == "bad_request"
    assert answer["route"] is None


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ([], "url"),
        ([("url", "nonsense")], "url"),
        ([("url", "ftp://x/")], "url"),
        ([("url", "http://[::1")], "url"),
        ([("url", "/"), ("header", "no colon")], "header"),
        ([("url", "/"), ("header", "A: b\r\nEvil: c")], "header"),
        ([("url", "/"), ("method", "GE T")], "method"),
    ],
)
async def test_explain_refuses_what_is_no_request_and_names_the_field(api, params, field):
    response = await api.get("/v1/explain", params=params)
    answer = await response.json()
    assert response.status == 400
    assert answer["fields"][0]["field"] == field


# -- events ------------------------------------------------------------------------------------------------


async def test_events_can_be_had_as_a_list_from_a_number_on(control, api):
    before = control.events.last
    control.events.emit("something", service="web")
    answer = await (await api.get("/v1/events", params={"follow": "false", "since": str(before)})).json()
    assert [event["kind"] for event in answer["events"]] == ["something"]
    assert answer["last"] == before + 1


async def read_event(response: Any) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            line = await response.content.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data:"):
                return dict(json.loads(line[5:]))


async def test_events_stream_from_last_event_id_and_on(control, api):
    before = control.events.last
    control.events.emit("first")
    control.events.emit("second")
    async with api.get("/v1/events", headers={"Last-Event-ID": str(before + 1)}) as response:
        assert response.content_type == "text/event-stream"
        assert (await read_event(response))["kind"] == "second"
        control.events.emit("third", fact={"a": 1})
        third = await read_event(response)
    assert (third["kind"], third["fact"], third["seq"]) == ("third", {"a": 1}, before + 3)


async def test_a_stream_without_a_number_begins_now(control, api):
    async with api.get("/v1/events") as response:
        control.events.emit("new")
        assert (await read_event(response))["kind"] == "new"


async def test_open_streams_do_not_hold_up_the_end(start):
    _, api = await start()
    response = await api.get("/v1/events")
    async with asyncio.timeout(5):
        await api.server.close()
    response.close()


@pytest.mark.parametrize("params", [{"since": "x"}, {"follow": "maybe"}])
async def test_wrong_questions_about_events_are_400(api, params):
    assert (await api.get("/v1/events", params=params)).status == 400


# -- sessions ----------------------------------------------------------------------------------------------


def tunnel(endpoint: Any, client: str) -> Any:
    facts = {
        "client": client,
        "target": "/ws",
        "route": "web",
        "service": endpoint.instance.service,
        "instance": endpoint.instance.id,
        "protocol": "websocket",
        "seconds": 1.5,
        "messages_in": 1,
        "messages_out": 2,
        "bytes_in": 3,
        "bytes_out": 4,
        "state": "open",
    }
    return SimpleNamespace(endpoint=endpoint, describe=lambda: facts)


async def test_sessions_are_listed_by_service_and_instance_up_to_a_limit(control, api):
    plane = control.plane
    tunnels = [tunnel(plane.table.find("web", "ac"[n % 2]), f"10.0.0.{n}") for n in range(6)]

    class Hashable(SimpleNamespace):
        __hash__ = object.__hash__

    for item in tunnels:
        plane.sessions.add(Hashable(**vars(item)))
    everything = await (await api.get("/v1/sessions")).json()
    assert everything["total"] == len(everything["sessions"]) == 6
    some = await (await api.get("/v1/sessions", params={"instance": "a", "limit": "2"})).json()
    assert (some["total"], len(some["sessions"])) == (3, 2)
    assert {session["instance"] for session in some["sessions"]} == {"a"}
    assert (await (await api.get("/v1/sessions", params={"service": "api"})).json())["total"] == 0
    assert (await api.get("/v1/sessions", params={"limit": "-1"})).status == 400


# -- metrics -----------------------------------------------------------------------------------------------


async def test_metrics_hold_traffic_instances_and_eviction_delays(control, api):
    plane = control.plane
    endpoint = plane.table.find("web", "c")
    record(plane.table.find_route("web"), endpoint, 200, "", 0.004, 0.003, 5, 50)
    plane.counters.observe_eviction("consul", "gone", 0.002)
    plane.counters.bad_request("bad_request")
    plane.counters.tunnels_open = 1
    plane.counters.tunnel_closed(1012, "proxy")
    plane.counters.move_pauses.observe(0.02)
    plane.counters.moves_failed = 4
    plane.table.drain("web", "a", control.now)
    response = await api.get("/metrics")
    families = {family.name: family for family in parse_text(await response.text())}

    def value(name: str, **labels: str) -> float:
        family = families[name.removesuffix("_total").removesuffix("_bucket").removesuffix("_count")]
        found = [s.value for s in family.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) == 1, (name, labels, found)
        return float(found[0])

    assert value("holdfast_requests_total", route="web", version="canary", status="2xx", reason="") == 1
    assert value("holdfast_request_duration_seconds_bucket", version="canary", le="0.005") == 1
    assert value("holdfast_request_duration_seconds_bucket", version="canary", le="0.0025") == 0
    assert value("holdfast_eviction_delay_seconds_bucket", registry="consul", kind="gone", le="0.0025") == 1
    assert value("holdfast_eviction_delay_seconds_count", registry="consul", kind="gone") == 1
    assert value("holdfast_requests_refused_total", reason="bad_request") == 1
    assert value("holdfast_tunnel_closes_total", code="1012", side="proxy") == 1
    assert value("holdfast_tunnel_move_pause_seconds_count") == 1
    assert value("holdfast_tunnel_moves_failed_total") == 4
    assert value("holdfast_instance_state", instance="a", state="draining") == 1
    assert value("holdfast_instance_state", instance="a", state="ready") == 0
    assert value("holdfast_instance_weight", instance="b/1:2 %") == 50
    assert value("holdfast_registry_staleness_seconds", kind="file") == 12.5
    assert value("process_resident_memory_bytes") > 1 << 20


async def test_a_scraper_that_prefers_openmetrics_gets_it(api):
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = await api.get("/metrics", headers=accept)
    assert response.content_type == "application/openmetrics-text"
    assert {family.name for family in parse_openmetrics(await response.text())} >= {"holdfast_build"}


async def test_every_state_but_gone_is_a_sample_of_each_instance(api):
    text = await (await api.get("/metrics")).text()
    found = set(re.findall(r'holdfast_instance_state\{instance="a",.*?state="(\w+)"', text))
    assert found == {state.value for state in State} - {"gone"}


# -- the dashboard and the description ---------------------------------------------------------------------


async def test_the_dashboard_is_whole_and_loads_nothing_from_elsewhere(api):
    response = await api.get("/")
    page = await response.text()
    assert response.content_type == "text/html"
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    wanted = set(re.findall(r'(?:src|href)="(/dashboard/[^"]+)"', page))
    for file in files("proxy.admin").joinpath("web").iterdir():
        text = file.read_text()
        assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z0-9.-]+\.[a-z]{2,}", text), (
            file.name
        )
        wanted |= {f"/dashboard/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
    assert len(wanted) >= 8
    for path in wanted:
        assert (await api.get(path)).status == 200, path


async def test_openapi_describes_exactly_what_the_router_knows(api):
    document = await (await api.get("/openapi.json")).json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    known = {
        (route.method, route.resource.canonical)
        for route in api.server.app.router.routes()
        if route.method != "HEAD" and not re.match(r"/$|/dashboard/", route.resource.canonical)
    }
    assert described == known
    assert document["openapi"].startswith("3.1")


async def test_openapi_refers_only_to_what_it_holds_and_names_every_parameter(api):
    document = await (await api.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references
    assert references <= schemas.keys()
    names = []
    for path, methods in document["paths"].items():
        for operation in methods.values():
            names.append(operation["operationId"])
            inside = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert inside == set(re.findall(r"\{(\w+)\}", path)), path
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v1/status", "StatusView"),
        ("/v1/services", "ServicesView"),
        ("/v1/services/web", "ServiceDetailView"),
        ("/v1/services/web/instances/a", "InstanceView"),
        ("/v1/routes", "RoutesView"),
        ("/v1/routes/web/split", "SplitView"),
        ("/v1/explain?url=/", "Explanation"),
        ("/v1/events?follow=false", "EventsView"),
        ("/v1/sessions", "SessionsView"),
        ("/healthz", "HealthView"),
    ],
)
async def test_answers_have_the_members_that_openapi_promises(api, path, schema):
    document = await (await api.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    answer = await (await api.get(path)).json()

    def check(value: Any, shape: dict[str, Any]) -> None:
        if "$ref" in shape:
            shape = schemas[shape["$ref"].rpartition("/")[2]]
        if "anyOf" in shape:
            choices = [option for option in shape["anyOf"] if option.get("type") != "null"]
            if value is not None and len(choices) == 1:
                check(value, choices[0])
        elif shape.get("type") == "array":
            for item in value:
                check(item, shape["items"])
        elif "properties" in shape:
            assert value.keys() == shape["properties"].keys()
            for name, member in shape["properties"].items():
                check(value[name], member)

    check(answer, {"$ref": f"#/components/schemas/{schema}"})


async def test_every_state_and_status_can_be_shown(control, api):
    table = control.plane.table
    for state in State:
        for status in Status:
            endpoint = table.find("web", "a")
            endpoint.state, endpoint.instance = state, replace(endpoint.instance, status=status)
            answer = await (await api.get("/v1/services/web/instances/a")).json()
            assert (answer["state"], answer["registry"]) == (state.value, status.value)
