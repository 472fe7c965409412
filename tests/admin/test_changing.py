"""What the admin API changes, what it refuses, and what it notes down."""

from __future__ import annotations

import asyncio
import json
import os
import socket

import aiohttp
import pytest
from aiohttp import web

from discovery.model import Instance, Status, Update
from proxy.admin import make_app
from proxy.endpoint import State

ODD = "/v1/services/web/instances/b%2F1%3A2%20%25"
A = "/v1/services/web/instances/a"
SPLIT = "/v1/routes/web/split"


def changes(control) -> list[dict[str, object]]:
    return [event for event in control.events.since(0) if event["kind"] == "admin_change"]


async def test_a_weight_is_set_and_given_back(control, api):
    answer = await (await api.patch(ODD, json={"weight": 7})).json()
    assert (answer["weight"], answer["registered_weight"]) == (7, 50)
    assert answer["override"] == {"weight": 7, "draining": False}
    assert control.plane.table.find("web", "b/1:2 %").weight == 7
    answer = await (await api.patch(ODD, json={"weight": None})).json()
    assert (answer["weight"], answer["override"]) == (50, None)


async def test_every_change_is_noted_with_who_what_before_and_after(control, api):
    await api.patch(ODD, json={"weight": 7})
    await api.post(f"{A}/drain")
    await api.put(SPLIT, json={"split": {"stable": 1}})
    weight, drain, split = changes(control)
    assert weight["by"] == "loopback 127.0.0.1"
    assert (weight["action"], weight["service"], weight["instance"]) == ("weight", "web", "b/1:2 %")
    assert (weight["before"], weight["after"]) == (50, 7)
    assert (drain["before"], drain["after"]) == ("ready", "draining")
    assert (split["route"], split["before"], split["after"]) == (
        "web",
        {"stable": 90, "canary": 10},
        {"stable": 1},
    )


async def test_who_asks_with_a_token_is_noted_as_such(start):
    control, api = await start("admin: {token: t}\nservices: {web: {instances: ['127.0.0.1:1']}}")
    path = "/v1/services/web/instances/127.0.0.1:1"
    response = await api.patch(path, json={"weight": 1}, headers={"Authorization": "Bearer t"})
    assert response.status == 200
    assert changes(control)[0]["by"] == "token 127.0.0.1"


async def test_drain_hands_over_what_must_be_emptied(control, api):
    answer = await (await api.post(f"{A}/drain")).json()
    assert (answer["state"], answer["drain_deadline"]) == ("draining", 22.0)
    [(departures, deadline)] = control.departures
    assert [departure.endpoint.instance.id for departure in departures] == ["a"]
    assert deadline is None


async def test_drain_takes_a_deadline_and_a_second_one_later(control, api):
    await api.post(f"{A}/drain", json={"deadline": "1m"})
    answer = await (await api.post(f"{A}/drain", json={"deadline": "5s"})).json()
    assert answer["drain_deadline"] == 7.0
    assert [deadline for _, deadline in control.departures] == [60.0, 5.0]


async def test_drain_again_without_a_deadline_changes_nothing(control, api):
    await api.post(f"{A}/drain")
    assert (await api.post(f"{A}/drain")).status == 200
    assert len(control.departures) == 1


async def test_undrain_brings_an_instance_back(control, api):
    await api.post(f"{A}/drain")
    answer = await (await api.post(f"{A}/undrain")).json()
    assert answer["state"] == "ready"
    assert control.plane.table.find("web", "a").state is State.READY


async def test_undrain_cannot_overrule_the_registry(control, api):
    leaving = Instance("api", "x", "127.0.0.1", 1, status=Status.DRAINING)
    control.plane.table.apply(Update("api", (leaving,), control.now), control.now)
    response = await api.post("/v1/services/api/instances/x/undrain")
    assert response.status == 409
    assert "in its registry" in (await response.json())["detail"]


async def test_eject_takes_an_instance_out_for_a_time(control, api):
    answer = await (await api.post(f"{A}/eject", json={"duration": "10s"})).json()
    assert (answer["state"], answer["ejected_for"]) == ("ejected", 10.0)
    again = await api.post(f"{A}/eject")
    assert again.status == 409
    assert (await again.json())["error"] == "wrong_state"
    assert len(changes(control)) == 1


async def test_eject_has_a_default_and_wants_some_time(api):
    assert (await (await api.post(f"{A}/eject")).json())["ejected_for"] == 30.0
    assert (await api.post(f"{A}/eject", json={"duration": 0})).status == 400


async def test_a_split_is_replaced_in_either_form_or_taken_away(control, api):
    answer = await (await api.put(SPLIT, json={"split": {"stable": 50, "canary": 50}})).json()
    assert answer["split"] == {"stable": 50, "canary": 50}
    assert answer["configured"] == {"stable": 90, "canary": 10}
    answer = await (await api.put(SPLIT, json={"stable": 1, "next": 2})).json()
    assert answer["split"] == {"stable": 1, "next": 2}
    assert answer["versions"]["next"] == {"instances": 0, "ready": 0}
    assert (await (await api.put(SPLIT, json={"split": None})).json())["split"] is None
    assert control.plane.table.find_route("web").split is None


async def test_a_reload_answers_with_what_it_changed(control, api):
    control.file = control.file.replace("timeout: 20s", "timeout: 40s")
    answer = await (await api.post("/v1/reload")).json()
    [change] = answer["changes"]
    assert change["path"] == "services.web.drain.timeout"
    assert (change["before"], change["after"]) == ("20s", "40s")
    assert change["line"].startswith("~ services.web.drain.timeout: 20s -> 40s")
    assert changes(control)[0]["changes"] == ["services.web.drain.timeout"]
    assert (await (await api.post("/v1/reload")).json())["changes"] == []


async def test_a_reload_of_a_bad_file_is_409_with_every_mistake(control, api):
    control.file += "\nservces: {}\nshutdown: soon\n"
    response = await api.post("/v1/reload")
    answer = await response.json()
    assert (response.status, answer["error"]) == (409, "invalid_config")
    assert len(answer["problems"]) == 2
    assert answer["problems"][0].startswith("test.yaml:")
    assert changes(control)[0]["refused"] == 2


async def test_a_plan_compares_without_changing(control, api):
    text = control.file.replace("timeout: 20s", "timeout: 40s")
    answer = await (await api.post("/v1/plan", json={"config": text})).json()
    assert [change["path"] for change in answer["changes"]] == ["services.web.drain.timeout"]
    assert control.config.services["web"].drain.timeout == 20.0
    assert (await (await api.post("/v1/plan")).json())["changes"] == []
    assert changes(control) == []


async def test_a_plan_of_a_bad_text_is_400_and_calls_it_by_its_name(api):
    response = await api.post("/v1/plan", json={"config": "x: 1", "path": "new.yaml"})
    assert response.status == 400
    assert (await response.json())["problems"][0].startswith("new.yaml:1:1: x: ")


async def test_a_plan_may_be_larger_than_other_bodies(control, api):
    text = control.file + "#" * 200_000
    assert (await api.post("/v1/plan", json={"config": text})).status == 200


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PATCH", A, {"weight": -1}, "weight"),
        ("PATCH", A, {"weight": 70000}, "weight"),
        ("PATCH", A, {"weight": "50"}, "weight"),
        ("PATCH", A, {"weight": 1.5}, "weight"),
        ("PATCH", A, {"weight": True}, "weight"),
        ("PATCH", A, {}, "weight"),
        ("PATCH", A, {"weight": 1, "wieght": 2}, "wieght"),
        ("POST", f"{A}/drain", {"deadline": "soon"}, "deadline"),
        ("POST", f"{A}/eject", {"duration": -1}, "duration"),
        ("PUT", SPLIT, {"split": {"a": -1}}, "split.a"),
        ("PUT", SPLIT, {"split": {"a": 0}}, "split"),
        ("PUT", SPLIT, {}, "split"),
        ("PUT", SPLIT, {"a": "9"}, "split"),
    ],
)
async def test_a_wrong_body_is_400_with_the_field(control, api, method, path, body, field):
    response = await api.request(method, path, json=body)
    answer = await response.json()
    assert (response.status, answer["error"]) == (400, "invalid_request")
    assert field in [entry["field"] for entry in answer["fields"]]
    assert changes(control) == []
    assert control.plane.table.find("web", "a").state is State.READY


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff", b"1", b""])
async def test_what_is_no_json_object_is_400(api, body):
    response = await api.patch(A, data=body, headers={"Content-Type": "application/json"})
    assert response.status == 400
    assert (await response.json())["error"] == "invalid_request"


async def test_a_body_where_none_belongs_is_400(api):
    assert (await api.post(f"{A}/undrain", json={"x": 1})).status == 400


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_that_is_not_declared_as_json_is_415(control, api, content_type):
    response = await api.patch(A, data=b'{"weight": 1}', headers={"Content-Type": content_type})
    assert response.status == 415
    assert changes(control) == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413(api, chunked):
    content = json.dumps({"weight": 1, "padding": "x" * (64 << 10)}).encode()

    async def pieces():
        for start in range(0, len(content), 8192):
            yield content[start : start + 8192]

    headers = {"Content-Type": "application/json"}
    response = await api.patch(A, data=pieces() if chunked else content, headers=headers)
    assert response.status == 413
    assert (await response.json())["error"] == "too_large"


async def test_a_method_that_is_not_there_is_405_and_says_which_are(api):
    response = await api.delete(A)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD, PATCH"
    assert (await response.json())["error"] == "method_not_allowed"


async def test_a_path_that_is_not_there_is_404(api):
    response = await api.get("/v2/services")
    assert response.status == 404
    assert "/openapi.json" in (await response.json())["detail"]


async def test_a_mistake_in_the_proxy_is_500_and_told_in_the_log(control, api, caplog, monkeypatch):
    monkeypatch.setattr(control, "unready", lambda: 1 / 0)
    response = await api.get("/readyz")
    assert response.status == 500
    assert (await response.json())["error"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text


async def test_over_a_unix_socket_no_token_is_needed_and_the_user_is_noted(start, tmp_path):
    control, _ = await start()
    path = str(tmp_path / "admin.sock")
    runner = web.AppRunner(make_app(control))
    await runner.setup()
    try:
        await web.UnixSite(runner, path).start()
        connector = aiohttp.UnixConnector(path)
        async with aiohttp.ClientSession(connector=connector) as session:
            response = await session.patch(f"http://any.example{A}", json={"weight": 1})
            assert response.status == 200
    finally:
        await runner.cleanup()
    assert changes(control)[0]["by"] == f"unix uid {os.getuid()} pid {os.getpid()}"


async def test_a_body_that_never_comes_is_given_up(start, monkeypatch):
    monkeypatch.setattr("proxy.admin.server._BODY_TIMEOUT", 0.05)
    _, api = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port, family=socket.AF_INET)
    fields = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 9"
    writer.write(f"PATCH {A} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()
    await writer.wait_closed()
