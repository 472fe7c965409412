"""A proxy that runs out of file descriptors: what it has goes on, what it refuses is told why."""

from __future__ import annotations

import asyncio
import re
import resource
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.integration.stage import Gateway, Stage, write_config

FEW = 200
"""Descriptors; 64 are kept back, and each client needs two."""
CLIENTS = (FEW - 64) // 2
LIMITED = (
    f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {FEW})); "
    "sys.argv[0] = 'holdfast'; runpy.run_module('proxy.cli', run_name='__main__')"
)


def echo() -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path != "/ws":
            return web.Response(text="fine")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


async def limited(stage: Stage, origin: str) -> Gateway:
    path = stage.folder / "limited.yaml"
    config = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "access_log": "none",
        "limits": {"connections": 5000},
        "services": {"web": {"instances": [origin]}},
        "routes": [{"match": {"path": "/"}, "service": "web"}],
    }
    write_config(path, config)
    child = await stage.spawn("limited", "-c", LIMITED, "run", "-c", str(path))
    found = await child.said(r"forwarding on (.*), admin on (\S+?)$")
    return Gateway(child, path, config, found[1].split(", "), found[2], "")


def descriptors(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{gateway.child.pid}/fd").iterdir()))


async def test_clients_beyond_the_descriptors_are_refused_with_a_reason_and_the_others_served(
    stage: Stage,
) -> None:
    gateway = await limited(stage, await stage.serve(echo()))
    assert re.search(rf"limits\.connections is 5000, but .* {CLIENTS} clients", gateway.child.output), (
        gateway.child.output
    )
    session = await stage.client(connector=aiohttp.TCPConnector(limit=0))
    async with AsyncExitStack() as stack:
        people = [
            await stack.enter_async_context(session.ws_connect(f"{gateway.url}/ws")) for _ in range(CLIENTS)
        ]
        for _ in range(20):
            async with session.get(gateway.url) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "1")
                assert (await response.json())["error"] == "too_many_connections"
        for number, person in enumerate(people):
            await person.send_str(str(number))
            assert await person.receive_str(timeout=10) == str(number)
        assert (await gateway.metrics())["holdfast_connections_refused_total"] == 20
        await people.pop().close()
        await until_served(session, gateway.url)


async def test_what_is_open_goes_on_when_descriptors_run_out_without_warning(stage: Stage) -> None:
    gateway = await limited(stage, await stage.serve(echo()))
    session = await stage.client(connector=aiohttp.TCPConnector(limit=0))
    async with session.ws_connect(f"{gateway.url}/ws") as person:
        await until_served(session, gateway.url)  # leaves idle connections on both sides
        used = descriptors(gateway)
        resource.prlimit(gateway.child.pid, resource.RLIMIT_NOFILE, (used, FEW))
        for _ in range(50):
            with pytest.raises(aiohttp.ClientError):
                async with aiohttp.ClientSession() as stranger, stranger.get(gateway.url):
                    pass
            async with session.get(gateway.url) as response:
                assert await response.text() == "fine"
            await person.send_str("still here?")
            assert await person.receive_str(timeout=10) == "still here?"
        resource.prlimit(gateway.child.pid, resource.RLIMIT_NOFILE, (FEW, FEW))
        async with aiohttp.ClientSession() as stranger:
            await until_served(stranger, gateway.url)


async def test_a_connection_to_an_instance_takes_the_place_of_an_idle_one(stage: Stage) -> None:
    gateway = await limited(stage, await stage.serve(echo()))
    session = await stage.client(connector=aiohttp.TCPConnector(limit=0))
    # Three idle connections to the instance, and as many of clients.
    await asyncio.gather(*(until_served(session, gateway.url) for _ in range(3)))
    async with session.get(gateway.url), session.get(gateway.url):
        pass
    used = descriptors(gateway)
    resource.prlimit(gateway.child.pid, resource.RLIMIT_NOFILE, (used, FEW))
    async with AsyncExitStack() as stack:
        # Tunnels never go back to the pool: each needs an instance's connection for itself.
        for _ in range(2):
            person = await stack.enter_async_context(session.ws_connect(f"{gateway.url}/ws"))
            await person.send_str("hello")
            assert await person.receive_str(timeout=10) == "hello"
    resource.prlimit(gateway.child.pid, resource.RLIMIT_NOFILE, (FEW, FEW))


async def until_served(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(10):
        while True:
            async with session.get(url) as response:
                if response.status == 200:
                    await response.read()
                    return
