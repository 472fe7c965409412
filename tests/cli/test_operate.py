"""Verbs against a running proxy."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.shell_completion import get_completion_class

from config.load import read
from proxy.app import App
from proxy.cli.commands import cli
from proxy.cli.operate import _entry_line, _registry_line
from proxy.endpoint import State


async def until(holds: Callable[[], object]) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - it is another task's state
            await asyncio.sleep(0.005)


async def test_status_is_for_people_and_with_json_for_programs(proxy):
    result = await proxy.run("status")
    assert result.exit_code == 0
    assert "ready" in result.stdout.splitlines()[0]
    assert "SERVICE" in result.stdout
    answer = await proxy.json("status")
    assert answer["ready"] is True
    assert answer["services"][0]["name"] == "web"


async def test_services_and_instances_are_tables_with_a_line_each(proxy):
    services = (await proxy.run("services")).stdout.splitlines()
    assert [line.split()[0] for line in services] == ["SERVICE", "web"]
    instances = (await proxy.run("instances")).stdout.splitlines()
    assert [line.split()[1] for line in instances] == ["INSTANCE", "one", "two/2:x"]
    assert (await proxy.json("instances", "web"))["instances"][1]["id"] == "two/2:x"


async def test_weight_changes_and_gives_back(proxy):
    result = await proxy.run("weight", "web", "two/2:x", "7")
    assert (result.exit_code, result.stdout) == (0, "web two/2:x: weight 7\n")
    assert proxy.app.table.find("web", "two/2:x").weight == 7
    assert (await proxy.json("weight", "web", "two/2:x", "reset"))["weight"] == 50


async def test_drain_and_undrain(proxy):
    result = await proxy.run("drain", "web", "one", "--deadline", "3s")
    assert (result.exit_code, result.stdout) == (0, "web one: draining, empty\n")
    assert proxy.app.table.find("web", "one").state is State.DRAINING
    assert (await proxy.run("undrain", "web", "one")).stdout == "web one: ready\n"


async def test_drain_can_wait_until_the_instance_is_empty(proxy):
    await proxy.run("drain", "web", "two/2:x")
    async with aiohttp.ClientSession() as session:
        request = asyncio.ensure_future(session.get(f"{proxy.url}/slow"))
        endpoint = proxy.app.table.find("web", "one")
        await until(lambda: endpoint.inflight)
        waiting = asyncio.ensure_future(proxy.run("drain", "web", "one", "--wait"))
        await until(lambda: endpoint.state is State.DRAINING)
        assert not waiting.done()
        proxy.held.set()
        assert (await request).status == 200
        result = await waiting
    assert (result.exit_code, result.stdout) == (0, "web one: draining, empty\n")


async def test_a_wait_ends_when_the_drain_is_taken_back(proxy):
    async with aiohttp.ClientSession() as session:
        await proxy.run("drain", "web", "two/2:x")
        request = asyncio.ensure_future(session.get(f"{proxy.url}/slow"))
        endpoint = proxy.app.table.find("web", "one")
        await until(lambda: endpoint.inflight)
        waiting = asyncio.ensure_future(proxy.run("drain", "web", "one", "--wait"))
        await until(lambda: endpoint.state is State.DRAINING)
        await proxy.run("undrain", "web", "one")
        result = await waiting
        proxy.held.set()
        await request
    assert result.exit_code == 1
    assert "taken back" in result.stderr


async def test_eject_takes_out_for_a_time_and_says_when_it_cannot(proxy):
    result = await proxy.run("eject", "web", "one", "--for", "20s")
    assert (result.exit_code, result.stdout) == (0, "web one: ejected for 20 s\n")
    result = await proxy.run("eject", "web", "one")
    assert (result.exit_code, result.stderr) == (1, "holdfast: one is ejected already\n")


async def test_split_is_shown_changed_and_taken_off(proxy):
    assert "split by version" in (await proxy.run("split", "web")).stdout
    answer = await proxy.json("split", "web", "stable=3", "canary=1")
    assert answer["split"] == {"stable": 3, "canary": 1}
    assert (await proxy.json("split", "web", "--off"))["split"] is None
    assert "no split" in (await proxy.run("split", "web")).stdout


async def test_leave_makes_a_proxy_unready_that_goes_on_serving(proxy):
    result = await proxy.run("leave", "--settle", "10ms")
    assert (result.exit_code, result.stdout) == (0, "not ready from now on\n")
    assert proxy.app.unready() == ["it is leaving"]
    async with aiohttp.ClientSession() as session, session.get(f"{proxy.url}/") as answer:
        assert answer.status == 200
    assert proxy.app.ending, "an upgrade would bring back what was told to leave"


async def test_explain_names_the_instance_and_the_reasons(proxy):
    await proxy.run("drain", "web", "one")
    result = await proxy.run("explain", "http://example.com/x", "-H", "X-A: b", "--method", "POST")
    assert result.exit_code == 0
    assert "route web to service web" in result.stdout
    assert "draining: asked for by an operator" in result.stdout
    answer = await proxy.json("explain", "/x", "--client", "192.0.2.1")
    assert [i["id"] for i in answer["instances"] if i["taken"]] == ["two/2:x"]


async def test_plan_shows_what_reload_then_does(proxy):
    text = proxy.file.read_text().replace("stable: 90", "stable: 80")
    other = proxy.file.with_name("new.yaml")
    other.write_text(text)
    planned = await proxy.run("plan", "-c", str(other))
    assert planned.exit_code == 0
    assert "routes" in planned.stdout
    proxy.file.write_text(text)
    reloaded = await proxy.run("reload")
    assert (reloaded.exit_code, reloaded.stdout) == (0, planned.stdout)
    assert (await proxy.run("plan", "-c", str(other))).stdout == "nothing changes\n"


async def test_plan_of_a_bad_file_is_2_and_reload_of_one_is_1(proxy):
    proxy.file.write_text("servces: {}\n")
    planned = await proxy.run("plan", "-c", str(proxy.file))
    assert planned.exit_code == 2
    assert f"{proxy.file}:1:1: servces" in planned.stderr
    reloaded = await proxy.run("reload")
    assert reloaded.exit_code == 1
    assert "servces" in reloaded.stderr
    assert proxy.app.config.services.keys() == {"web"}


async def test_events_are_listed_and_followed(proxy):
    lines = (await proxy.run("events")).stdout.splitlines()
    assert any("started" in line for line in lines)
    events = [json.loads(line) for line in (await proxy.run("events", "--json")).stdout.splitlines()]
    last = events[-1]["seq"]
    await proxy.run("weight", "web", "one", "5")
    newer = (await proxy.run("events", "--since", str(last), "--json")).stdout.splitlines()
    assert [json.loads(line)["kind"] for line in newer] == ["weight_changed", "admin_change"]


async def test_top_gives_rates_and_ends_after_its_count(proxy):
    async with aiohttp.ClientSession() as session:
        looking = asyncio.ensure_future(proxy.run("top", "--json", "--count", "3", "--interval", "0.1"))
        while not looking.done():
            async with session.get(proxy.url) as response:
                assert response.status == 200
            await asyncio.sleep(0)
    looks = [json.loads(line) for line in looking.result().stdout.splitlines()]
    assert len(looks) == 3
    assert sum(instance["rate"] for instance in looks[2]["instances"]) > 0


async def test_top_draws_a_table(proxy):
    result = await proxy.run("top", "--count", "1")
    assert result.exit_code == 0
    assert "two/2:x" in result.output


# -- how it fails ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("weight", "web", "one", "x"), "neither a whole number"),
        (("split", "web", "stable"), "is not VERSION=SHARE"),
        (("split", "web", "a=1", "a=2"), "given twice"),
        (("split", "web", "a=1", "--off"), "not both"),
        (("drain", "web", "one", "--deadline", "soon"), "not a duration"),
        (("explain", "/", "-H", "nocolon"), "Name: value"),
        (("plan", "-c", "/nonexistent/file"), "cannot read"),
        (("status", "--admin", "ftp://x"), "is not an admin address"),
        (("frobnicate",), "No such command"),
        (("weight", "web", "one", "70000"), "weight: "),
        (("eject", "web", "one", "--for", "0"), "duration: "),
        (("split", "web", "a=0"), "at least one share above 0"),
        (("explain", ""), "neither http://host/path nor /path"),
        (("explain", "nonsense"), "neither http://host/path nor /path"),
    ],
)
async def test_wrong_usage_is_2_and_says_what(proxy, arguments, said):
    result = await proxy.run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("instances", "wbe"), "there is no service 'wbe'; known: web"),
        (("weight", "web", "xx", "1"), "there is no instance of web 'xx'; known: one, two/2:x"),
        (("split", "nope"), "there is no route 'nope'; known: web"),
    ],
)
async def test_what_the_proxy_refuses_is_1_and_one_line(proxy, arguments, said):
    result = await proxy.run(*arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.startswith("holdfast: ")
    assert result.stderr.count("\n") == 1


async def test_where_no_proxy_is_the_error_says_so_and_what_to_do(proxy):
    result = await proxy.run("status", "--admin", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "no proxy answers at 127.0.0.1:1" in result.stderr
    assert "HOLDFAST_ADMIN" in result.stderr


async def test_what_is_no_admin_api_is_said_to_be_none(proxy):
    result = await proxy.run("status", "--admin", str(proxy.app.addresses[0]))
    assert result.exit_code == 1
    assert "is not a holdfast admin API: status 200 from Python" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "headers", "body", "found"),
    [
        (
            404,
            {"Server": "uvicorn"},
            {"detail": "Not Found"},
            "status 404 from uvicorn, with application/json",
        ),
        (200, {"Server": "nginx"}, None, "status 200 from nginx, with text/html"),
        (
            404,
            {"Server": "holdfast"},
            {"error": "no_route", "detail": "no route"},
            "status 404 from a holdfast listener for clients",
        ),
        (302, {"Server": "x", "Location": "/login"}, None, "status 302 from x, with text/html"),
    ],
)
async def test_of_another_server_it_is_said_what_was_found(proxy, status, headers, body, found):
    async def answer(request: web.Request) -> web.Response:
        text = "<p>hello</p>" if body is None else json.dumps(body)
        kind = "text/html" if body is None else "application/json"
        return web.Response(status=status, headers=headers, text=text, content_type=kind)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as other:
        result = await proxy.run("status", "--admin", f"127.0.0.1:{other.port}")
    assert result.exit_code == 1
    assert found in result.stderr
    assert "--admin or HOLDFAST_ADMIN" in result.stderr


async def test_a_share_for_a_version_that_nobody_has_is_warned_of(proxy):
    result = await proxy.run("split", "web", "stable=90", "canray=10")
    assert result.exit_code == 0
    assert (
        "no instance has the version 'canray' yet (did you mean 'canary'?); there is: canary, stable"
        in result.stderr
    )
    assert (await proxy.run("split", "web", "stable=90", "canary=10")).stderr == ""


async def test_the_address_may_be_given_before_or_after_the_verb_or_as_a_url(proxy):
    nowhere = {"HOLDFAST_ADMIN": "127.0.0.1:1"}
    for arguments in (
        ("--admin", proxy.admin, "status"),
        ("status", "--admin", proxy.admin),
        ("status", "--admin", f"http://{proxy.admin}/"),
    ):
        assert (await proxy.run(*arguments, env=nowhere)).exit_code == 0


async def test_a_token_comes_from_the_environment(start_proxy):
    proxy = await start_proxy(token="s3cret")
    missing = await proxy.run("status")
    assert missing.exit_code == 1
    assert "HOLDFAST_ADMIN_TOKEN" in missing.stderr
    assert (await proxy.run("status", env={"HOLDFAST_ADMIN_TOKEN": "wrong"})).exit_code == 1
    assert (await proxy.run("status", env={"HOLDFAST_ADMIN_TOKEN": "s3cret"})).exit_code == 0


async def test_a_unix_socket_works_as_well(start_proxy, tmp_path):
    proxy = await start_proxy(admin=f"unix:{tmp_path}/a.sock")
    assert (await proxy.run("weight", "web", "one", "3")).exit_code == 0
    gone = await proxy.run("status", "--admin", f"unix:{tmp_path}/other.sock")
    assert gone.exit_code == 1


async def test_the_admin_socket_is_for_its_user_alone_and_goes_with_the_proxy(tmp_path):
    path = tmp_path / "a.sock"
    text = f"admin: {{address: 'unix:{path}'}}\nlisten: [{{address: '127.0.0.1:0'}}]\naccess_log: none\n"
    app = App(read(text.encode(), source="f.yaml", environ={}))
    try:
        await app.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await app.drain()
    finally:
        await app.close()
    assert not path.exists()


async def test_names_are_completed_from_the_running_proxy(proxy, monkeypatch):
    monkeypatch.setenv("HOLDFAST_ADMIN", proxy.admin)
    kind = get_completion_class("bash")
    assert kind is not None
    shell = kind(cli, {}, "holdfast", "_HOLDFAST_COMPLETE")

    async def completed(words: list[str], incomplete: str) -> list[str]:
        found = await asyncio.to_thread(shell.get_completions, words, incomplete)
        return [item.value for item in found]

    assert await completed(["drain"], "w") == ["web"]
    assert await completed(["drain", "web"], "t") == ["two/2:x"]
    assert await completed(["split"], "") == ["web"]
    monkeypatch.setenv("HOLDFAST_ADMIN", "127.0.0.1:1")
    assert await completed(["drain"], "w") == []


@pytest.mark.parametrize(
    ("registry", "line"),
    [
        (
            {"kind": "consul", "state": "live", "staleness": 0.0, "held": 0, "error": None},
            "registry consul: live",
        ),
        (
            {"kind": "file", "state": "failed", "staleness": 125.0, "held": 2, "error": "refused"},
            "registry file: failed, last known to be right 2m 5s ago, "
            "2 missing instances kept until that is certain (refused)",
        ),
    ],
)
def test_status_tells_how_a_registry_does(registry, line):
    assert _registry_line(registry) == line


async def test_rate_limits_are_shown_replaced_and_given_back(proxy):
    assert (await proxy.run("limit", "web")).stdout == "web: no rate limit\n"
    result = await proxy.run("limit", "web", "30/m", "--burst", "5", "--per", "header:X-Key", "--wait", "1s")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split() == ["0.5/s", "5", "header:X-Key", "1", "s", "-"]
    [limiter] = proxy.app.table.find_route("web").limiters
    assert (limiter.limit.rate, limiter.limit.burst, limiter.limit.wait) == (0.5, 5, 1.0)
    await proxy.run("limit", "web", "--service", "9/s", "--per", "service")
    assert proxy.app.table.find_service("web").limiters[0].limit.rate == 9.0
    assert (await proxy.json("limit", "web", "--reset"))["limits"] == []
    assert (await proxy.json("limit", "web", "--service", "--off"))["limits"] == []


async def test_a_capacity_is_changed_key_by_key(proxy):
    assert (await proxy.run("capacity", "web")).stdout == "web: no limit; 0 under way, 0 waiting\n"
    await proxy.run("capacity", "web", "requests=100", "queue=50")
    result = await proxy.run("capacity", "web", "wait=2s")
    assert result.stdout == "web: requests 100, queue 50, wait 2 s; 0 of 100 under way, 0 waiting\n"
    await proxy.run("capacity", "web", "adaptive=true")
    assert proxy.app.table.find_service("web").capacity.gradient is not None
    assert (await proxy.json("capacity", "web", "--reset"))["places"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("limit", "web", "10/s", "--off"), "give one of"),
        (("limit", "web", "--burst", "3"), "--burst needs a RATE"),
        (("limit", "web", "ten"), "is not a rate"),
        (("capacity", "web", "requests"), "is not KEY=VALUE"),
        (("capacity", "web", "requests=1", "--off"), "not several"),
        (("capacity", "web", "reqests=1"), "reqests"),
    ],
)
async def test_limits_that_make_no_sense_are_refused(proxy, arguments, message):
    result = await proxy.run(*arguments)
    assert result.exit_code != 0
    assert message in result.stderr


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "shop a (10.0.0.7:1): shown by 0-consul, not registered (away) in 1-etcd"),
        ({"app_ready": False}, "shop a (10.0.0.7:1): not ready, status 503"),
    ],
)
def test_status_tells_how_an_application_beside_the_proxy_does(changed, line):
    registries = [
        {"name": "0-consul", "registered": True, "shown": True, "error": None},
        {"name": "1-etcd", "registered": False, "shown": False, "error": "away"},
    ]
    entry = {"service": "shop", "id": "a", "address": "10.0.0.7:1", "app_ready": True}
    entry |= {"app_error": "status 503", "registries": registries, **changed}
    assert _entry_line(entry) == line
