"""The life of one proxy process: reloads that nobody notices, and an end that everybody survives."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed

from tests.integration.stage import PATIENCE, Gateway, Stage, exists


class Origin:
    """An HTTP and WebSocket server that says its name, and whose answers can be held back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entered = asyncio.Event()
        """A request to `/slow` is here."""
        self.let_go = asyncio.Event()
        """Answers to `/slow` may leave."""
        self.app = web.Application()
        self.app.router.add_get("/ws", self._echo)
        self.app.router.add_route("*", "/slow", self._slow)
        self.app.router.add_route("*", "/{path:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        return web.json_response({"name": self.name, "headers": dict(request.headers)})

    async def _slow(self, request: web.Request) -> web.Response:
        self.entered.set()
        await self.let_go.wait()
        return web.Response(text=f"{self.name} at last")

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"{self.name}: {message.data}")
        return socket


async def start(stage: Stage, *origins: Origin, **config: Any) -> Gateway:
    """A gateway in front of these origins, all instances of one service."""
    addresses = [await stage.serve(origin.app) for origin in origins]
    return await stage.gateway(services=services(*addresses), routes=ROUTES, **config)


def services(*addresses: str, **more: Any) -> dict[str, Any]:
    return {"web": {"balance": "round_robin", "instances": list(addresses), **more}}


ROUTES = [{"match": {"path": "/"}, "service": "web"}]


async def name_of(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as response:
        assert response.status == 200
        return str((await response.json())["name"])


async def tell(gateway: Gateway) -> None:
    gateway.child.signal(signal.SIGHUP)


async def ask(gateway: Gateway) -> None:
    status, _ = await gateway.ask("POST", "/v1/reload")
    assert status in (200, 409)


async def nothing(gateway: Gateway) -> None:
    """The file has changed: that is enough."""


WAYS = pytest.mark.parametrize("reload", [tell, ask, nothing], ids=["SIGHUP", "admin API", "changed file"])


# -- the end ----------------------------------------------------------------------------------------------


async def test_sigterm_lets_requests_finish_and_takes_no_new_ones(stage: Stage) -> None:
    origin = Origin("a")
    gateway = await start(stage, origin)
    session = await stage.client()
    request = asyncio.create_task(session.get(f"{gateway.url}/slow"))
    await origin.entered.wait()
    assert await gateway.ask("GET", "/readyz") == (200, await body_of(gateway, "/readyz"))
    async with gateway.events() as events:
        gateway.child.signal(signal.SIGTERM)
        await events.until(lambda event: event["kind"] == "draining")
        status, why = await gateway.ask("GET", "/readyz")
        assert (status, "shutting down" in json.dumps(why)) == (503, True)
        assert (await gateway.ask("GET", "/healthz"))[0] == 200
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        origin.let_go.set()
        async with await request as response:
            assert (response.status, await response.text()) == (200, "a at last")
    assert await gateway.child.ended() == 0


async def body_of(gateway: Gateway, path: str) -> Any:
    return (await gateway.ask("GET", path))[1]


async def test_an_idle_connection_is_closed_on_sigterm_and_does_not_hold_up_the_end(stage: Stage) -> None:
    gateway = await start(stage, Origin("a"), shutdown="60s")
    session = await stage.client()
    assert await name_of(session, gateway.url) == "a"
    gateway.child.signal(signal.SIGTERM)
    assert await gateway.child.ended() == 0


async def test_websockets_get_close_1012_on_sigterm(stage: Stage) -> None:
    gateway = await start(stage, Origin("a"), shutdown="1s")
    async with websocket(f"{gateway.url.replace('http', 'ws')}/ws") as socket:
        await socket.send("hello")
        assert await socket.recv() == "a: hello"
        gateway.child.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert await gateway.child.ended() == 0


async def test_what_is_not_finished_at_the_deadline_is_cut(stage: Stage) -> None:
    origin = Origin("a")
    gateway = await start(stage, origin, shutdown="200ms")
    session = await stage.client()
    request = asyncio.create_task(session.post(f"{gateway.url}/slow"))
    await origin.entered.wait()
    gateway.child.signal(signal.SIGTERM)
    async with await request as response:
        assert (response.status, (await response.json())["error"]) == (503, "draining")
    origin.let_go.set()
    assert await gateway.child.ended() == 0
    assert "drain_deadline" in gateway.child.output
    (line,) = map(json.loads, (stage.folder / "gateway.log").read_text().splitlines())
    assert (line["status"], line["reason"], line["method"]) == (503, "draining", "POST")


async def test_a_second_sigterm_ends_at_once(stage: Stage) -> None:
    origin = Origin("a")
    gateway = await start(stage, origin, shutdown="60s")
    session = await stage.client()
    request = asyncio.create_task(session.get(f"{gateway.url}/slow"))
    await origin.entered.wait()
    gateway.child.signal(signal.SIGTERM)
    await gateway.child.said("draining")
    gateway.child.signal(signal.SIGTERM)
    assert await gateway.child.ended() == 1
    assert not exists(gateway.child.pid)
    with pytest.raises(aiohttp.ClientError):
        await request
    origin.let_go.set()


async def test_a_closed_websocket_leaves_nothing_behind(stage: Stage) -> None:
    gateway = await start(stage, Origin("a"))

    async def talk(times: int) -> int:
        """Sockets that are open once as many WebSockets were opened, used and closed."""
        for _ in range(times):
            async with websocket(f"{gateway.url.replace('http', 'ws')}/ws") as socket:
                await socket.send("hello")
                await socket.recv()
        await gateway.emptied()
        return sockets(gateway.child.pid)

    before = await talk(1)
    # The admin API's own connections come and go meanwhile.
    assert await talk(20) <= before + 3


def sockets(pid: int) -> int:
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(link.readlink()).startswith("socket:")
    return found


# -- reloads ----------------------------------------------------------------------------------------------


@WAYS
async def test_a_reload_closes_no_connection_whose_instance_still_exists(stage: Stage, reload: Any) -> None:
    one, two = Origin("one"), Origin("two")
    gateway = await start(stage, one)
    second = await stage.serve(two.app)
    first = gateway.config["services"]["web"]["instances"][0]
    session = await stage.client(connector=aiohttp.TCPConnector(limit=1))
    opened = opened_by(session)
    assert await name_of(session, gateway.url) == "one"
    async with (
        websocket(f"{gateway.url.replace('http', 'ws')}/ws") as socket,
        gateway.events() as events,
    ):
        request = asyncio.create_task((await stage.client()).get(f"{gateway.url}/slow"))
        await one.entered.wait()
        gateway.write(services=services(first, second), routes=[{"name": "all", **ROUTES[0]}])
        await reload(gateway)
        await events.until(lambda event: event["kind"] == "reloaded")
        # A round of both: the new instance is used, over the connection that was open before.
        assert {await name_of(session, gateway.url) for _ in range(2)} == {"one", "two"}
        await socket.send("still there")
        assert await socket.recv() == "one: still there"
        one.let_go.set()
        async with await request as response:
            assert await response.text() == "one at last"
    assert opened() == 1


def opened_by(session: aiohttp.ClientSession) -> Any:
    """Counts the connections to the gateway that the session has open, by their local ports."""
    ports: set[int] = set()
    connector = session.connector
    assert connector is not None

    def count() -> int:
        ports.update(
            protocol.transport.get_extra_info("sockname")[1]
            for pool in connector._conns.values()
            for protocol, _ in pool
            if protocol.transport is not None
        )
        return len(ports)

    return count


@WAYS
async def test_a_bad_file_changes_nothing_and_says_what_is_wrong(stage: Stage, reload: Any) -> None:
    gateway = await start(stage, Origin("a"))
    session = await stage.client()
    async with gateway.events() as events:
        config = gateway.config
        gateway.write(services={"web": {"instances": [], "balanse": "random"}}, routes=[])
        await reload(gateway)
        refused = await events.until(lambda event: event["kind"] == "reload_refused")
        assert "services.web.balanse: is not a known key (did you mean 'balance'?)" in refused["problems"][-1]
        assert await name_of(session, gateway.url) == "a"
        # A good one heals it, and has nothing to do: it is what holds.
        gateway.write(**config)
        assert (await gateway.ask("POST", "/v1/reload"))[0] == 200
        assert not [event for event in events.all if event["kind"] == "reloaded"]
    assert await name_of(session, gateway.url) == "a"


async def test_a_file_that_has_lost_its_routes_is_taken_over_only_on_request(stage: Stage) -> None:
    gateway = await start(stage, Origin("a"))
    session = await stage.client()
    async with gateway.events() as events:
        gateway.write(services={}, routes=[])
        refused = await events.until(lambda event: event["kind"] == "reload_refused")
        assert "routes: the file has none any more" in refused["problems"][-1]
        assert await name_of(session, gateway.url) == "a"
        assert (await gateway.ask("POST", "/v1/reload"))[0] == 200
    async with session.get(gateway.url) as answer:
        assert answer.status == 404


async def test_an_instance_that_a_reload_takes_away_gets_nothing_new(stage: Stage) -> None:
    one, two = Origin("one"), Origin("two")
    gateway = await start(stage, one, two)
    kept = gateway.config["services"]["web"]["instances"][1]
    session = await stage.client()
    assert {await name_of(session, gateway.url) for _ in range(2)} == {"one", "two"}
    request = asyncio.create_task(session.get(f"{gateway.url}/slow"))
    await asyncio.wait(
        [asyncio.create_task(one.entered.wait()), asyncio.create_task(two.entered.wait())],
        return_when=asyncio.FIRST_COMPLETED,
    )
    gateway.write(services=services(kept))
    assert (await gateway.ask("POST", "/v1/reload"))[0] == 200
    assert {await name_of(session, gateway.url) for _ in range(6)} == {"two"}
    for origin in (one, two):
        origin.let_go.set()
    async with await request as response:
        # What had begun before is finished there.
        assert response.status == 200


async def test_a_reload_tells_what_needs_a_restart_and_keeps_it_as_it_was(stage: Stage) -> None:
    gateway = await start(stage, Origin("a"))
    session = await stage.client()
    gateway.write(listen=[{"address": "127.0.0.1:1"}])
    status, answer = await gateway.ask("POST", "/v1/reload")
    assert status == 200
    assert "restart" in json.dumps(answer)
    await gateway.child.said("needs a restart to take effect: .*listen")
    assert await name_of(session, gateway.url) == "a"


# -- the access log ---------------------------------------------------------------------------------------


async def test_sigusr1_goes_on_in_a_new_access_log(stage: Stage, tmp_path: Path) -> None:
    gateway = await start(stage, Origin("a"))
    log, moved = tmp_path / "gateway.log", tmp_path / "gateway.log.1"
    session = await stage.client()
    await name_of(session, f"{gateway.url}/before")
    log.rename(moved)
    gateway.child.signal(signal.SIGUSR1)
    async with asyncio.timeout(PATIENCE):
        while not log.exists():
            await name_of(session, f"{gateway.url}/between")
    await name_of(session, f"{gateway.url}/after")
    gateway.child.signal(signal.SIGTERM)
    assert await gateway.child.ended() == 0
    lines = [[json.loads(line)["target"] for line in file.read_text().splitlines()] for file in (moved, log)]
    assert lines[0][0] == "/before"
    assert "/after" not in lines[0]
    assert lines[1][-1] == "/after"
    # None is lost, and none is there twice.
    between = sum(file.count("/between") for file in lines)
    assert sum(map(len, lines)) == between + 2


# -- a wrong start ----------------------------------------------------------------------------------------


async def test_an_address_in_use_is_one_clear_line(stage: Stage) -> None:
    gateway = await start(stage, Origin("a"))
    gateway.write(listen=[{"address": gateway.addresses[0]}])
    second = await stage.holdfast("run", "-c", str(gateway.path))
    assert await second.ended() == 1
    assert len(second.lines) == 1
    assert second.lines[0].endswith(f"cannot listen on {gateway.addresses[0]}: address already in use")


async def test_a_wrong_configuration_is_told_whole_and_nothing_starts(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("services:\n  web: {balance: fair}\nroutes:\n  - {service: webb}\nshutdown: soon\n")
    child = await stage.holdfast("run", "-c", str(file))
    assert await child.ended() == 2
    places = ("2:3", "2:18", "4:15", "5:11")
    assert [line.split(": ")[0] for line in child.lines] == [f"{file}:{place}" for place in places]
    missing = await stage.holdfast("run", "-c", str(tmp_path / "none.yaml"))
    assert await missing.ended() == 2
    assert len(missing.lines) == 1
