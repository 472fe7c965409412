"""The embedded registry over HTTP: driven by a published Consul client, and raw where that is too polite."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time as clock
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import consul
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from config.schema import Address
from discovery.embedded import serve
from discovery.embedded.server import RegistryServer
from discovery.model import Instance, Status, Update
from tests.discovery.conftest import LOOPBACK, until


@pytest.fixture
def client(registry: RegistryServer) -> consul.Consul:
    assert registry.address is not None
    return consul.Consul(host=registry.address.host, port=registry.address.port)


@pytest.fixture
async def http(registry: RegistryServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(registry.url) as session:
        yield session


def register(client: consul.Consul, service_id: str, **fields: Any) -> None:
    client.agent.service.register(
        "chat", service_id=service_id, address="127.0.0.1", port=9001, **{"tags": ["web"], **fields}
    )


async def test_a_consul_client_registers_finds_and_deregisters(client: consul.Consul) -> None:
    def use() -> None:
        register(client, "a", meta={"version": "v2"}, weights={"Passing": 9, "Warning": 3})
        index, (found,) = client.health.service("chat", passing=True)
        assert int(index) > 0
        assert (
            found["Service"]
            | {
                "ID": "a",
                "Service": "chat",
                "Address": "127.0.0.1",
                "Port": 9001,
                "Tags": ["web"],
                "Meta": {"version": "v2"},
                "Weights": {"Passing": 9, "Warning": 3},
            }
            == found["Service"]
        )
        assert list(client.agent.services()) == ["a"]
        assert client.agent.service_definition("a")["Port"] == 9001
        assert client.catalog.services()[1] == {"consul": [], "chat": ["web"]}
        (listed,) = client.catalog.service("chat")[1]
        assert (listed["ServiceID"], listed["ServicePort"]) == ("a", 9001)
        assert client.catalog.service("chat", tag="other")[1] == []
        assert client.catalog.datacenters() == ["dc1"]
        assert client.agent.self()["Config"]["NodeName"] == "holdfast"
        assert client.status.leader() in client.status.peers()
        client.agent.service.deregister("a")
        assert client.health.service("chat")[1] == []

    await asyncio.to_thread(use)


async def test_ttl_checks_are_passed_warned_and_failed(client: consul.Consul) -> None:
    def use() -> None:
        register(client, "a", check=consul.Check.ttl("30s"))
        assert client.health.service("chat", passing=True)[1] == []
        check = "service:a"
        for tell, status in [
            (client.agent.check.ttl_pass, "passing"),
            (client.agent.check.ttl_warn, "warning"),
            (client.agent.check.ttl_fail, "critical"),
        ]:
            tell(check, notes="because")
            assert (
                client.agent.checks()[check] | {"Status": status, "Output": "because"}
                == (client.agent.checks()[check])
            )
            assert [c["CheckID"] for c in client.health.state(status)[1]] == [check]
        assert len(client.health.checks("chat")[1]) == 1
        assert client.agent.check.ttl_pass("unknown") is False

    await asyncio.to_thread(use)


async def test_checks_can_be_registered_by_themselves(client: consul.Consul) -> None:
    def use() -> None:
        register(client, "a")
        client.agent.check.register("extra", consul.Check.ttl("9s"), check_id="e", service_id="a")
        assert client.agent.checks()["e"]["Type"] == "ttl"
        client.agent.check.deregister("e")
        assert client.agent.checks() == {}

    await asyncio.to_thread(use)


async def test_maintenance_is_draining(registry: RegistryServer, client: consul.Consul) -> None:
    watch = registry.watcher().watch(frozenset({"chat"}))
    await anext(watch)
    await asyncio.to_thread(register, client, "a")
    assert (await told(watch))[0].status is Status.UP
    await asyncio.to_thread(client.agent.service.maintenance, "a", "true", "new disk")
    assert (await told(watch))[0].status is Status.DRAINING
    await asyncio.to_thread(client.agent.service.maintenance, "a", "false")
    assert (await told(watch))[0].status is Status.UP
    await watch.aclose()


async def told(watch: AsyncIterator[Update]) -> tuple[Instance, ...]:
    update = await asyncio.wait_for(anext(watch), 5)
    assert update.instances is not None
    return update.instances


async def test_a_blocking_query_returns_with_the_change_and_not_before(client: consul.Consul) -> None:
    def use() -> None:
        register(client, "a", check=consul.Check.ttl("30s"))
        index, _ = client.health.service("chat")
        answers: list[tuple[str, Any]] = []
        thread = threading.Thread(
            target=lambda: answers.append(client.health.service("chat", index=index, wait="20s"))
        )
        thread.start()
        consul.Consul(port=client.http.port).agent.service.register("other", port=1)
        thread.join(0.1)
        assert answers == []
        client.agent.check.ttl_pass("service:a")
        thread.join(5)
        new, (entry,) = answers[0]
        assert int(new) > int(index)
        assert entry["Checks"][-1]["Status"] == "passing"

    await asyncio.to_thread(use)


async def test_a_blocking_query_without_news_ends_after_its_wait_with_the_same_index(
    http: aiohttp.ClientSession,
) -> None:
    index = await index_of(http, "/v1/health/service/chat")
    began = clock.monotonic()
    assert await index_of(http, f"/v1/health/service/chat?index={index}&wait=60ms") == index
    assert 0.05 <= clock.monotonic() - began < 2


async def index_of(http: aiohttp.ClientSession, path: str) -> int:
    async with http.get(path) as response:
        assert response.status in (200, 404), await response.text()
        return int(response.headers["X-Consul-Index"])


async def test_an_index_of_another_life_is_answered_at_once(http: aiohttp.ClientSession) -> None:
    index = await index_of(http, "/v1/health/service/chat")
    async with asyncio.timeout(5):
        assert await index_of(http, f"/v1/health/service/chat?index={index + 1000}&wait=1m") == index


async def test_values_are_kept_checked_listed_and_watched(client: consul.Consul) -> None:
    def use() -> None:
        kv = client.kv
        assert kv.get("a/1")[1] is None
        assert kv.put("a/1", b"\x00one", flags=7)
        assert kv.put("a/2", "")
        index, pair = kv.get("a/1")
        assert (pair["Value"], pair["Flags"], pair["Key"]) == (b"\x00one", 7, "a/1")
        assert kv.get("a/2")[1]["Value"] is None
        assert kv.put("a/1", "x", cas=0) is False
        assert kv.put("a/1", "two", cas=pair["ModifyIndex"]) is True
        assert [p["Key"] for p in kv.get("a/", recurse=True)[1]] == ["a/1", "a/2"]
        kv.put("a/deep/3", "x")
        assert kv.get("a/", keys=True, separator="/")[1] == ["a/1", "a/2", "a/deep/"]
        assert kv.get("a/1", index=index, wait="10s")[1]["Value"] == b"two"
        assert kv.delete("a/2") is True
        assert kv.delete("a/", recurse=True) is True
        assert kv.get("a/", recurse=True)[1] is None

    await asyncio.to_thread(use)


async def test_a_raw_value_cannot_become_a_page_of_the_registry(http: aiohttp.ClientSession) -> None:
    async with http.put("/v1/kv/page", data=b"<script>") as response:
        assert await response.json() is True
    async with http.get("/v1/kv/page?raw") as response:
        assert await response.read() == b"<script>"
        assert response.content_type == "application/octet-stream"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("PUT", "/v1/agent/service/register", b"{", 400, "Request decode failed"),
        ("PUT", "/v1/agent/service/register", b"{}", 400, "Missing service name"),
        ("PUT", "/v1/agent/service/register", b"\xff", 400, "Request decode failed"),
        ("PUT", "/v1/agent/service/register", b"x" * 600_000, 413, ""),
        ("PUT", "/v1/kv/big", b"x" * 600_000, 413, ""),
        ("PUT", "/v1/agent/service/deregister/x", b"", 404, "Unknown service ID"),
        ("PUT", "/v1/agent/service/maintenance/x", b"", 400, "Missing value for enable"),
        ("PUT", "/v1/agent/service/maintenance/x?enable=maybe", b"", 400, "Invalid value for"),
        ("PUT", "/v1/agent/check/pass/x", b"", 404, "Unknown check ID"),
        ("PUT", "/v1/agent/check/update/x", b'{"Status": "fine"}', 400, "Invalid check status"),
        ("PUT", "/v1/agent/check/update/x", b"[]", 400, "must be a JSON object"),
        ("GET", "/v1/agent/service/x", b"", 404, "Unknown service ID"),
        ("GET", "/v1/health/service/x?index=-1", b"", 400, "unsigned"),
        ("GET", "/v1/health/service/x?index=5&wait=soon", b"", 400, "Invalid wait"),
        ("GET", "/v1/health/service/x?passing=maybe", b"", 400, "Invalid value for"),
        ("GET", "/v1/health/service/x?filter=Node", b"", 400, "not supported"),
        ("GET", "/v1/health/state/great", b"", 400, "no state"),
        ("GET", "/v1/kv/", b"", 400, "Missing key"),
        ("PUT", "/v1/kv/", b"", 400, "Missing key"),
        ("DELETE", "/v1/kv/", b"", 400, "Missing key"),
        ("PUT", "/v1/kv/x?acquire=session", b"", 400, "no sessions"),
        ("PUT", "/v1/kv/x?flags=-3", b"", 400, "unsigned"),
        ("DELETE", "/v1/kv/x?recurse&cas=1", b"", 400, "cannot be used together"),
        ("GET", "/v1/unheard/of", b"", 404, ""),
        ("POST", "/v1/agent/service/register", b"{}", 405, ""),
    ],
)
async def test_what_cannot_be_done_is_refused_with_a_reason(
    http: aiohttp.ClientSession, method: str, path: str, body: bytes, status: int, message: str
) -> None:
    async with http.request(method, path, data=body) as response:
        assert response.status == status
        assert message in await response.text()


async def test_only_ttl_checks_can_be_told(registry: RegistryServer, http: aiohttp.ClientSession) -> None:
    check = {"HTTP": "http://127.0.0.1:1/", "Interval": "1h"}
    await http.put("/v1/agent/service/register", json={"Name": "chat", "Port": 1, "Check": check})
    async with http.put("/v1/agent/check/pass/service:chat") as response:
        assert response.status == 400
        assert "does not have associated TTL" in await response.text()


async def test_consistency_modes_and_datacenters_are_tolerated(http: aiohttp.ClientSession) -> None:
    for query in ("stale", "consistent", "dc=dc9", "near=_agent", "passing=1", "cached"):
        async with http.get(f"/v1/health/service/chat?{query}") as response:
            assert response.status == 200
            assert response.headers["X-Consul-KnownLeader"] == "true"


async def test_ids_with_slashes_and_spaces_are_found(http: aiohttp.ClientSession) -> None:
    await http.put("/v1/agent/service/register", json={"Name": "a b/c", "ID": "x/y z", "Port": 1})
    async with http.get("/v1/health/service/a%20b%2Fc") as response:
        assert [e["Service"]["ID"] for e in await response.json()] == ["x/y z"]
    async with http.put("/v1/agent/service/deregister/x%2Fy%20z") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://evil.example", None, 403),
        ("null", None, 403),
        ("http://[", None, 403),
        ("http://127.0.0.1:1", None, 403),
        ("http://evil.example:8500", "evil.example:8500", 403),
        ("same", None, 200),
        ("http://localhost:8500", "localhost:8500", 200),
    ],
)
async def test_pages_of_other_sites_cannot_change_anything(
    registry: RegistryServer, http: aiohttp.ClientSession, origin: str, host: str | None, status: int
) -> None:
    headers = {"Origin": registry.url if origin == "same" else origin} | ({"Host": host} if host else {})
    async with http.put("/v1/kv/x", data=b"1", headers=headers) as response:
        assert response.status == status
    assert (registry.store.kv.get("x")[1] is not None) is (status == 200)


async def test_a_client_that_goes_away_leaves_no_waiter_behind(
    registry: RegistryServer, http: aiohttp.ClientSession
) -> None:
    index = await index_of(http, "/v1/health/service/chat")
    query = asyncio.create_task(index_of(http, f"/v1/health/service/chat?index={index}&wait=10m"))
    await until(lambda: len(registry._api._waiting) == 1)
    query.cancel()
    await until(lambda: not registry._api._waiting and not registry.store.topics._subscribers)


async def test_closing_answers_those_who_wait(http: aiohttp.ClientSession) -> None:
    server = RegistryServer()
    await server.start(LOOPBACK)
    index = await index_of(http, f"{server.url}/v1/health/service/chat")
    query = asyncio.create_task(index_of(http, f"{server.url}/v1/health/service/chat?index={index}"))
    await until(lambda: len(server._api._waiting) == 1)
    async with asyncio.timeout(1):
        await server.close()
        assert await query == index


async def test_a_ttl_runs_out_by_itself(registry: RegistryServer, client: consul.Consul) -> None:
    watch = registry.watcher().watch(frozenset({"chat"}))
    await anext(watch)
    check = {"TTL": "40ms", "Status": "passing", "DeregisterCriticalServiceAfter": "40ms"}
    await asyncio.to_thread(register, client, "a", check=check)
    assert [i.status for i in await told(watch)] == [Status.UP]
    assert [i.status for i in await told(watch)] == [Status.DOWN]
    assert await told(watch) == ()
    await watch.aclose()


@pytest.mark.parametrize(
    ("status", "expected"), [(200, "passing"), (204, "passing"), (429, "warning"), (503, "critical")]
)
async def test_http_checks_are_run(
    registry: RegistryServer, client: consul.Consul, status: int, expected: str
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path} {request.headers.get('X-Probe')}")
        return web.Response(status=status, text="" if status == 204 else "how I am")

    app = web.Application()
    app.router.add_route("*", "/ready", answer)
    async with TestServer(app) as origin:
        url = str(origin.make_url("/ready"))
        check = consul.Check.http(url, "20ms", timeout="1s", header={"X-Probe": ["yes"]})
        await asyncio.to_thread(register, client, "a", check=check)
        await until(lambda: len(asked) >= 3)
        found = registry.store.check("service:a")
        assert found.status == expected
        assert (status == 204) or "how I am" in found.output
        assert set(asked) == {"GET /ready yes"}
        await asyncio.to_thread(client.agent.service.deregister, "a")
        count = len(asked)
        await asyncio.sleep(0.06)
        assert len(asked) <= count + 1


async def test_http_and_tcp_checks_notice_that_nobody_is_there(
    registry: RegistryServer, client: consul.Consul, unused_tcp_port: int
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    frozen = listener.getsockname()[1]
    checks = [
        consul.Check.http(f"http://127.0.0.1:{unused_tcp_port}/", "1h"),
        consul.Check.tcp("127.0.0.1", unused_tcp_port, "1h"),
        consul.Check.http(f"http://127.0.0.1:{frozen}/", "1h", timeout="50ms"),
        consul.Check.tcp("127.0.0.1", frozen, "1h"),
    ]
    await asyncio.to_thread(register, client, "a", check=checks[0], extra_checks=checks[1:])
    await until(lambda: all(c.output for c in registry.store.service("a").checks.values()))
    statuses = [c.status for c in registry.store.service("a").checks.values()]
    assert statuses == ["critical", "critical", "critical", "passing"]
    listener.close()


async def test_an_instance_without_an_address_is_on_the_registrys_machine(
    registry: RegistryServer, http: aiohttp.ClientSession
) -> None:
    await http.put("/v1/agent/service/register", json={"Name": "chat", "Port": 7})
    watch = registry.watcher().watch(frozenset({"chat"}))
    assert (await told(watch))[0].address == "127.0.0.1:7"
    await watch.aclose()


async def test_a_port_in_use_is_an_error_that_says_so(registry: RegistryServer) -> None:
    assert registry.address is not None
    second = RegistryServer()
    with pytest.raises(OSError, match=f"cannot listen on {registry.address}: the address is in use"):
        await second.start(registry.address)


async def test_it_listens_on_a_unix_socket_and_on_a_socket_that_was_given(tmp_path: Path) -> None:
    unix, given = RegistryServer(), RegistryServer()
    address = await unix.start(Address(path=str(tmp_path / "registry.sock")))
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(address.path)) as session:
        assert await index_of(session, "http://registry/v1/health/service/chat") > 0
    await unix.close()
    sock = socket.create_server(("127.0.0.1", 0))
    assert (await given.start(LOOPBACK, sock=sock)).port == sock.getsockname()[1]
    await given.close()


async def start(data: Path, **options: Any) -> RegistryServer:
    server = RegistryServer(data, **options)
    await server.start(LOOPBACK)
    return server


SERVICE = {
    "Name": "chat",
    "ID": "a",
    "Address": "127.0.0.1",
    "Port": 9001,
    "Meta": {"version": "v2"},
    "Tags": ["web"],
    "Checks": [
        {"CheckID": "t", "TTL": "30s", "Status": "passing"},
        {"CheckID": "u", "TCP": "127.0.0.1:1", "Interval": "1h", "Notes": "n"},
        {"CheckID": "h", "HTTP": "http://127.0.0.1:1/", "Interval": "1h", "Header": {"A": ["b"]}},
    ],
}


async def test_contents_survive_a_restart_and_ttls_begin_anew(tmp_path: Path) -> None:
    first = await start(tmp_path)
    async with aiohttp.ClientSession(first.url) as http:
        await http.put("/v1/agent/service/register", json=SERVICE)
        await http.put("/v1/agent/service/maintenance/a?enable=true")
        await http.put("/v1/kv/k?flags=3", data=b"\xff\x00")
    await until(lambda: all(first.store.check(i).output for i in "uh"))
    before, index = first.store.service("a"), first.store.topics.index
    await first.close()
    second = await start(tmp_path, index=1)
    after = second.store.service("a")
    assert after.definition == before.definition
    assert {i: (c.definition, c.status) for i, c in after.checks.items()} == {
        i: (c.definition, c.status) for i, c in before.checks.items()
    }
    assert second.store.kv.get("k")[1] == first.store.kv.get("k")[1]
    assert second.store.topics.index >= index
    assert after.checks["t"].deadline == pytest.approx(clock.monotonic() + 30, abs=5)
    await second.close()


async def test_a_directory_has_one_registry_at_a_time(tmp_path: Path) -> None:
    first = await start(tmp_path)
    with pytest.raises(OSError, match="in use by another registry"):
        await start(tmp_path)
    await first.close()
    await (await start(tmp_path)).close()


async def test_contents_that_cannot_be_read_are_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "registry.json").write_text('{"index": 5, "services": [')
    server = await start(tmp_path)
    assert list(server.store.services) == []
    await server.close()
    assert (tmp_path / "registry.corrupt").exists()
    assert "starting empty" in caplog.text


async def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from config.schema import Address; from discovery.embedded import serve\n"
        "asyncio.run(serve(Address('127.0.0.1', 0), sys.argv[1], ready=lambda a: print(a, flush=True)))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            address = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession(f"http://{address}") as http:
            puts = [http.put(f"/v1/kv/{number}", data=str(number)) for number in range(40)]
            assert [r.status for r in await asyncio.gather(*puts)] == [200] * 40
            await http.put("/v1/agent/service/register", json=SERVICE)
        process.send_signal(signal.SIGKILL)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    saved = json.loads((tmp_path / "registry.json").read_bytes())
    assert len(saved["pairs"]) == 40
    assert [s["definition"]["id"] for s in saved["services"]] == ["a"]
    server = await start(tmp_path)
    assert len(server.store.instances("chat")) == 1
    await server.close()


async def test_serve_runs_until_cancelled(tmp_path: Path) -> None:
    listening: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(LOOPBACK, str(tmp_path), ready=listening.set_result))
    address = await asyncio.wait_for(listening, 5)
    async with aiohttp.ClientSession() as http:
        assert await index_of(http, f"http://{address}/v1/kv/x") > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_pause_of_the_process_is_not_held_against_the_instances(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [1000.0]
    server = RegistryServer(clock=lambda: now[0])
    await server.start(LOOPBACK)
    async with aiohttp.ClientSession(server.url) as http:
        body = {"Name": "chat", "ID": "a", "Port": 1, "Check": {"TTL": "50ms", "Status": "passing"}}
        await http.put("/v1/agent/service/register", json=body)
        now[0] += 60
        await until(lambda: "was stopped for" in caplog.text)
        assert server.store.check("service:a").status == "passing"
    await server.close()


async def test_two_deregistrations_in_one_turn_are_two_updates(registry: RegistryServer) -> None:
    async with aiohttp.ClientSession(registry.url) as http:
        for name in "abc":
            await http.put("/v1/agent/service/register", json={"Name": "chat", "ID": name, "Port": 1})
    watch = registry.watcher().watch(frozenset({"chat"}))
    assert len(await told(watch)) == 3
    registry.store.deregister("a")
    registry.store.deregister("b")
    assert [len(await told(watch)), len(await told(watch))] == [2, 1]
    await watch.aclose()
    assert registry.store.topics._subscribers == {}


async def test_in_memory_absent_is_not_empty(registry: RegistryServer) -> None:
    watch = registry.watcher().watch(frozenset({"chat"}))
    assert (await anext(watch)).instances is None
    async with aiohttp.ClientSession(registry.url) as http:
        await http.put("/v1/agent/service/register", json={"Name": "chat", "Port": 1})
    assert len(await told(watch)) == 1
    registry.store.deregister("chat")
    assert await told(watch) == ()
    await watch.aclose()
