"""The Consul watcher against the embedded registry, and against agents that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from config.schema import Address
from discovery.consul import ConsulWatcher
from discovery.embedded.server import RegistryServer
from discovery.model import RegistryError, Status, Update
from discovery.watch import Supervisor
from tests.discovery.conftest import LOOPBACK, until

CHAT = frozenset({"chat"})


async def put(registry: RegistryServer, path: str, body: Any = None) -> None:
    async with aiohttp.ClientSession(registry.url) as http, http.put(path, json=body) as response:
        assert response.status == 200, await response.text()


async def register(registry: RegistryServer, service_id: str, name: str = "chat", **fields: Any) -> None:
    body = {"Name": name, "ID": service_id, "Address": "127.0.0.1", "Port": 9001, **fields}
    await put(registry, "/v1/agent/service/register", body)


async def following(stream: AsyncIterator[Update]) -> Update:
    return await asyncio.wait_for(anext(stream), 5)


def ids(update: Update) -> str | None:
    return None if update.instances is None else "".join(i.id for i in update.instances)


async def test_each_change_is_yielded_and_absent_is_not_empty(registry: RegistryServer) -> None:
    async with aclosing(ConsulWatcher(registry.url).watch(CHAT)) as stream:
        assert ids(await following(stream)) is None
        await register(registry, "a", Check={"TTL": "30s", "Status": "passing"})
        assert ids(await following(stream)) == "a"
        await put(registry, "/v1/agent/check/fail/service:a")
        update = await following(stream)
        assert [i.status for i in update.instances or ()] == [Status.DOWN]
        await put(registry, "/v1/agent/service/deregister/a")
        assert ids(await following(stream)) == ""


async def test_it_sees_what_the_watcher_in_memory_sees(registry: RegistryServer) -> None:
    await register(registry, "a", Meta={"version": "v2"}, Weights={"Passing": 7}, Tags=["zone=eu"])
    await register(registry, "b", SocketPath="/run/b.sock", Meta={"draining": "true"})
    await register(registry, "c", Address="")
    async with (
        aclosing(ConsulWatcher(registry.url).watch(CHAT)) as remote,
        aclosing(registry.watcher().watch(CHAT)) as local,
    ):
        far, near = await following(remote), await following(local)
    assert far.instances == near.instances
    assert len(far.instances or ()) == 3


async def test_a_change_in_another_service_yields_nothing(registry: RegistryServer) -> None:
    async with aclosing(ConsulWatcher(registry.url).watch(CHAT)) as stream:
        await following(stream)
        await register(registry, "x", "other")
        await register(registry, "a")
        assert ids(await following(stream)) == "a"


async def test_many_services_come_in_one_stream(
    registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.consul.WATCHES", 2)
    names = [f"s{number}" for number in range(5)]
    async with aclosing(ConsulWatcher(registry.url).watch(frozenset(names))) as stream:
        first = {(await following(stream)).service for _ in range(5)}
        assert first == set(names)
        for name in names:
            await register(registry, f"{name}-1", name)
        found: dict[str, str | None] = {}
        async with asyncio.timeout(5):
            while set(found.values()) != {f"{name}-1" for name in names}:
                update = await anext(stream)
                found[update.service] = ids(update)


async def test_the_end_of_the_registry_is_an_error(registry: RegistryServer) -> None:
    server = RegistryServer()
    await server.start(LOOPBACK)
    async with aclosing(ConsulWatcher(server.url).watch(CHAT)) as stream:
        await following(stream)
        await server.close()
        with pytest.raises(RegistryError, match="Cannot connect"):
            for _ in range(3):
                await following(stream)


async def test_through_a_restart_of_the_registry_nothing_is_lost_and_the_next_change_comes_at_once() -> None:
    server = RegistryServer(index=50_000)
    address = await server.start(LOOPBACK)
    await register(server, "a")
    await register(server, "b")
    updates: list[Update] = []
    supervisor = Supervisor([ConsulWatcher(server.url)], updates.append, CHAT)
    task = asyncio.create_task(supervisor.run())
    await until(lambda: [ids(u) for u in updates] == ["ab"])
    await server.close()
    await until(lambda: supervisor.sources[0].failures > 0)
    again = RegistryServer(index=1)
    await again.start(Address(address.host, address.port))
    await until(lambda: supervisor.sources[0].held == 2)
    await register(again, "a")
    await register(again, "b")
    await until(lambda: supervisor.sources[0].held == 0)
    # They were in doubt for a while, and nobody was lost.
    assert {ids(u) for u in updates} == {"ab"}
    await register(again, "c")
    await until(lambda: ids(updates[-1]) == "abc")
    assert {ids(u) for u in updates} == {"ab", "abc"}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await again.close()


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def agent(answer: Answer) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def entries(*names: str) -> bytes:
    return json.dumps(
        [
            {"Node": {}, "Service": {"ID": name, "Address": "10.0.0.1", "Port": 80}, "Checks": []}
            for name in names
        ]
    ).encode()


def answered(body: bytes, index: object = 5, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers={"X-Consul-Index": str(index)})


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (lambda: answered(b"No known Consul servers", status=500), "status 500 .*No known Consul servers"),
        (lambda: answered(b"denied", status=403), "status 403"),
        (lambda: answered(b"<html>"), "not JSON"),
        (lambda: answered(b"{}"), "not a list"),
        (lambda: answered(b"[{}]"), "not a list of health entries"),
        (lambda: answered(b"[]", "soon"), "no X-Consul-Index"),
        (lambda: answered(b"[]", "9" * 5000), "no X-Consul-Index"),
        (lambda: web.Response(body=b"[]"), "no X-Consul-Index"),
    ],
)
async def test_garbage_is_an_error_and_never_an_empty_set(
    response: Callable[[], web.Response], message: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return response()

    async with agent(answer) as url, aclosing(ConsulWatcher(url).watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match=message):
            await following(stream)


async def test_token_datacenter_and_wait_are_sent() -> None:
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        return answered(entries("a"), len(asked))

    watcher_options: dict[str, Any] = {"token": "secret", "datacenter": "dc7", "wait": 10.0}
    async with (
        agent(answer) as url,
        aclosing(ConsulWatcher(url, **watcher_options).watch(frozenset({"a b/c"}))) as stream,
    ):
        await following(stream)
        await following(stream)
    assert asked[0].raw_path == "/v1/health/service/a%20b%2Fc?dc=dc7"
    assert {request.headers["X-Consul-Token"] for request in asked} == {"secret"}
    assert asked[1].query["index"] == "1"
    assert 9000 <= int(asked[1].query["wait"].removesuffix("ms")) <= 10000
    assert {request.headers.get("Connection") for request in asked} == {"close"}


async def test_an_index_that_goes_back_starts_over_and_makes_emptiness_absence() -> None:
    script = [(100, entries("a")), (101, b"[]"), (7, b"[]"), (8, b"[]")]
    asked: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query.get("index"))
        index, body = script[min(len(asked), len(script)) - 1]
        return answered(body, index)

    async with agent(answer) as url, aclosing(ConsulWatcher(url).watch(CHAT)) as stream:
        assert [ids(await following(stream)) for _ in range(4)] == ["a", "", None, None]
    assert asked[:4] == [None, "100", "101", None]


async def test_a_frozen_agent_is_noticed() -> None:
    frozen = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if "index" in request.query:
            await frozen.wait()
        return answered(b"[]")

    async with agent(answer) as url, aclosing(ConsulWatcher(url, wait=0.05, grace=0.2).watch(CHAT)) as stream:
        await following(stream)
        with pytest.raises(RegistryError, match="no answer in"):
            await following(stream)
        frozen.set()


async def test_something_that_does_not_know_blocking_queries_is_not_asked_in_a_loop() -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return answered(entries("a"), 5)

    async with agent(answer) as url, aclosing(ConsulWatcher(url).watch(CHAT)) as stream:
        await following(stream)
        await following(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.1)
    assert asked == 2


async def test_a_closed_watch_leaves_no_tasks(registry: RegistryServer) -> None:
    before = len(asyncio.all_tasks())
    stream = ConsulWatcher(registry.url).watch(frozenset({"a", "b", "c"}))
    await following(stream)
    await stream.aclose()
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_nobody_listening_is_an_error(unused_tcp_port: int) -> None:
    async with aclosing(ConsulWatcher(f"http://127.0.0.1:{unused_tcp_port}").watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match="Cannot connect"):
            await following(stream)
