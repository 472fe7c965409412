"""A sidecar and the application beside it: in when it is ready, out before anybody is refused."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.integration.stage import JSON, PATIENCE, Gateway, Stage, free_port
from tests.integration.support_upgrade import Dynasty, until

SERVICE = "shop"
ROUTES = [{"match": {"path": "/"}, "service": SERVICE}]
READY = {"interval": "200ms", "timeout": "500ms", "unhealthy": 2}
SETTLE = 0.3


class Shop:
    """An application that answers with its name, and says whether it is ready as the test wants it to."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.ready = True
        self.asked = 0
        """How often its readiness was asked for."""
        self.address = ""
        self._stage = stage
        self._runner: web.AppRunner | None = None

    async def open(self) -> str:
        """Listens, on the port that it had before when it had one."""
        app = web.Application()
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        port = int(self.address.rpartition(":")[2] or 0)
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self.address

    async def close(self) -> None:
        """Refuses connections from now on."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _readyz(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(status=200 if self.ready else 503)

    async def _answer(self, request: web.Request) -> web.Response:
        await asyncio.sleep(float(request.query.get("takes", "0")))
        return web.Response(text=self.name)


@asynccontextmanager
async def shop(stage: Stage, name: str = "one") -> AsyncIterator[Shop]:
    application = Shop(stage, name)
    await application.open()
    try:
        yield application
    finally:
        await application.close()


def in_front(application: Shop, registry: str, port: int, **register: Any) -> JSON:
    """The configuration of a sidecar that carries what comes to the application."""
    return {
        "listen": [{"address": f"127.0.0.1:{port}"}],
        "registry": {"kind": "consul", "address": registry},
        "register": {
            "service": SERVICE,
            "app": application.address,
            "address": f"127.0.0.1:{port}",
            "id": application.name,
            "ready": READY,
            "settle": f"{SETTLE}s",
            **register,
        },
        "services": {"app": {"instances": [application.address]}},
        "routes": [{"service": "app"}],
    }


async def peer(stage: Stage, registry: str, **service: Any) -> Gateway:
    """Another holdfast, which finds the application through the registry."""
    return await stage.gateway(
        "peer",
        registry={"kind": "consul", "address": registry},
        services={SERVICE: service},
        routes=ROUTES,
        guard={"hold": "0s"},
    )


async def hub(stage: Stage) -> Gateway:
    """Another holdfast that is the registry as well."""
    return await stage.gateway(
        "hub",
        registry={"kind": "embedded", "listen": "127.0.0.1:0"},
        services={SERVICE: {}},
        routes=ROUTES,
        guard={"hold": "0s"},
    )


async def entries(registry: str) -> list[JSON]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{registry}/v1/health/service/{SERVICE}") as answer,
    ):
        found: list[JSON] = await answer.json()
        return found


async def readyz(gateway: Gateway) -> tuple[int, list[str]]:
    status, answer = await gateway.ask("GET", "/readyz")
    return status, answer["reasons"]


async def test_an_application_can_be_found_for_exactly_as_long_as_it_is_ready(stage: Stage) -> None:
    _, registry = await stage.registry()
    async with shop(stage) as application:
        application.ready = False
        sidecar, gateway = await asyncio.gather(
            stage.gateway("sidecar", **in_front(application, registry, free_port())), peer(stage, registry)
        )
        async with gateway.events() as seen, sidecar.events() as said:
            asked = application.asked
            async with asyncio.timeout(PATIENCE):
                while application.asked < asked + 3:  # noqa: ASYNC110 - it is the sidecar that asks
                    await asyncio.sleep(0.01)
            assert await entries(registry) == []
            assert await readyz(sidecar) == (
                503,
                ["the application of shop is not ready: status 503"],
            )

            application.ready = True
            began = time.monotonic()
            registered = await said.until(lambda event: event["kind"] == "registered")
            await gateway.ready(SERVICE, "one")
            assert time.monotonic() - began < 5
            assert registered["seconds"] < 5
            await until(lambda: _is(readyz(sidecar), (200, [])))
            (entry,) = await entries(registry)
            assert (entry["Service"]["Address"], entry["Service"]["ID"]) == ("127.0.0.1", "one")

            application.ready = False
            await seen.until(_state("one", "gone"))
            assert await entries(registry) == []
            application.ready = True
            await gateway.ready(SERVICE, "one")

            await application.close()
            unready = await said.until(
                lambda event: event["kind"] == "app_unready" and "Connect" in event["reason"]
            )
            await seen.until(lambda event: event["seq"] > 1 and _gone_since(seen.all) == 2)
            assert unready["service"] == SERVICE
            metrics = await sidecar.metrics()
            labels = 'instance="one",registry="0-consul",service="shop"'
            assert metrics[f"holdfast_registered{{{labels}}}"] == 0
            await application.open()
            await gateway.ready(SERVICE, "one")
            await until(lambda: _is(readyz(sidecar), (200, [])))
            assert (await sidecar.metrics())[f"holdfast_registered{{{labels}}}"] == 1


def _state(instance: str, state: str) -> Callable[[JSON], bool]:
    return lambda event: (
        event["kind"] == "state_changed" and event["instance"] == instance and event["after"] == state
    )


def _gone_since(events: list[JSON]) -> int:
    return sum(_state("one", "gone")(event) for event in events)


async def _is(question: Any, wanted: Any) -> bool:
    return bool(await question == wanted)


class Registry:
    """A registry's double: notes when it was called, and is as slow as a test wants."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str]] = []
        self.slow = 0.0
        self.entry: JSON | None = None
        self._index = 1

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_put("/v1/agent/service/register", self._register)
        app.router.add_put("/v1/agent/service/deregister/{id}", self._deregister)
        app.router.add_put("/v1/agent/check/pass/{id}", self._pass)
        app.router.add_get("/v1/health/service/{name}", self._health)
        return app

    def at(self, what: str) -> float:
        """When it was first called for that."""
        return next(at for at, called in self.calls if called == what)

    async def _register(self, request: web.Request) -> web.Response:
        self.calls.append((time.monotonic(), "register"))
        body = await request.json()
        self.entry = {"Service": {**body, "Service": body["Name"]}, "Checks": [], "Node": {}}
        self._index += 1
        return web.Response()

    async def _deregister(self, request: web.Request) -> web.Response:
        self.calls.append((time.monotonic(), "deregister"))
        await asyncio.sleep(self.slow)
        self.entry = None
        return web.Response()

    async def _pass(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.entry is not None else 404)

    async def _health(self, request: web.Request) -> web.Response:
        found = [self.entry] if self.entry is not None else []
        return web.json_response(found, headers={"X-Consul-Index": str(self._index)})


async def knock(url: str, outcomes: list[tuple[float, str]]) -> None:
    """One request after the other, each on a connection of its own, until one is refused."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        while True:
            began = time.monotonic()
            try:
                async with session.get(url) as answer:
                    outcomes.append((began, f"{answer.status} {await answer.text()}"))
            except aiohttp.ClientConnectorError:
                outcomes.append((began, "refused"))
                return


@pytest.mark.parametrize("slow", [0.0, 60.0], ids=["a quick registry", "one that does not answer"])
async def test_sigterm_takes_it_out_then_waits_then_refuses(stage: Stage, slow: float) -> None:
    registry = Registry()
    address = await stage.serve(registry.application())
    async with shop(stage) as application:
        port = free_port()
        config = in_front(application, f"http://{address}", port)
        sidecar = await stage.gateway("sidecar", **config, shutdown="4s")
        async with sidecar.events() as said:
            await said.until(lambda event: event["kind"] == "registered")
        registry.slow = slow
        outcomes: list[tuple[float, str]] = []
        knocking = asyncio.create_task(knock(f"http://127.0.0.1:{port}/", outcomes))
        client = await stage.client()
        async with client.get(f"http://127.0.0.1:{port}/?takes=0.1") as answer:
            assert answer.status == 200
        sidecar.child.signal(signal.SIGTERM)
        signalled = time.monotonic()
        await until(lambda: _has(registry, "deregister"))
        under_way = asyncio.create_task(_text(client, f"http://127.0.0.1:{port}/?takes=0.5"))
        async with asyncio.timeout(PATIENCE):
            await knocking
        assert await under_way == "one"
        assert await sidecar.child.ended() == 0
        refused = outcomes[-1][0]
        assert {outcome for _, outcome in outcomes[:-1]} == {"200 one"}
        assert registry.at("deregister") - signalled < 1
        # Timers may be early by the resolution of their clock.
        assert refused - registry.at("deregister") >= SETTLE - 0.01
        assert time.monotonic() - signalled < 6


async def _has(registry: Registry, what: str) -> bool:
    return any(called == what for _, called in registry.calls)


async def _text(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(url) as answer:
        return await answer.text()


async def test_the_last_calls_of_an_application_get_through(stage: Stage) -> None:
    registry = Registry()
    address = await stage.serve(registry.application())
    async with shop(stage) as application:
        port = free_port()
        config = in_front(application, f"http://{address}", port, settle="100ms", outlive="15s")
        sidecar = await stage.gateway("sidecar", **config, shutdown="20s")
        async with sidecar.events() as said:
            await said.until(lambda event: event["kind"] == "registered")
        outcomes: list[tuple[float, str]] = []
        knocking = asyncio.create_task(knock(f"http://127.0.0.1:{port}/", outcomes))
        sidecar.child.signal(signal.SIGTERM)
        await until(lambda: _has(registry, "deregister"))
        await until(lambda: _after(outcomes, registry.at("deregister") + 0.6))
        assert {outcome for _, outcome in outcomes} == {"200 one"}
        ended = time.monotonic()
        await application.close()
        assert await sidecar.child.ended() == 0
        await knocking
        assert time.monotonic() - ended < 5


async def _after(outcomes: list[tuple[float, str]], moment: float) -> bool:
    await asyncio.sleep(0.01)
    return outcomes[-1][0] > moment


async def test_a_second_sigterm_cuts(stage: Stage) -> None:
    registry = Registry()
    address = await stage.serve(registry.application())
    async with shop(stage) as application:
        config = in_front(application, f"http://{address}", free_port(), settle="20s")
        sidecar = await stage.gateway("sidecar", **config, shutdown="30s")
        async with sidecar.events() as said:
            await said.until(lambda event: event["kind"] == "registered")
        sidecar.child.signal(signal.SIGTERM)
        await until(lambda: _has(registry, "deregister"))
        sidecar.child.signal(signal.SIGTERM)
        assert await sidecar.child.ended() == 1


async def test_who_leaves_before_the_end_is_served_until_it(stage: Stage) -> None:
    _, registry = await stage.registry()
    told: list[JSON] = []

    async def hear(request: web.Request) -> web.Response:
        told.append(await request.json())
        # The first is asked for once more.
        return web.Response(status=503 if len(told) == 1 else 200)

    receiver = web.Application()
    receiver.router.add_post("/hook", hear)
    hook = {"url": f"http://{await stage.serve(receiver)}/hook?token=s3cr3t"}
    async with shop(stage) as application:
        port = free_port()
        config = in_front(application, registry, port, notify=[hook], metadata={"version": "v1"})
        sidecar = await stage.gateway("sidecar", **config)
        async with sidecar.events() as said:
            await said.until(lambda event: event["kind"] == "registered")
        await until(lambda: _as_many(told, 2))
        began = time.monotonic()
        client = await stage.client()
        async with client.get(f"{sidecar.admin}/v1/prestop", headers={"Cookie": "a=b"}) as answer:
            assert answer.status == 403
        async with client.get(f"{sidecar.admin}/v1/prestop") as answer:
            assert (answer.status, await answer.json()) == (200, {"left": ["one"]})
        assert time.monotonic() - began >= SETTLE - 0.01
        assert await entries(registry) == []
        assert await readyz(sidecar) == (503, ["it is leaving its registries"])
        assert await _text(client, f"http://127.0.0.1:{port}/") == "one"
        left = await stage.holdfast("leave", environment={"HOLDFAST_ADMIN": sidecar.admin})
        await left.said("left the registries: one")
        assert await left.ended() == 0
        sidecar.child.signal(signal.SIGTERM)
        assert await sidecar.child.ended() == 0
    assert [(notice["event"], notice["version"]) for notice in told] == [
        ("up", "v1"),
        ("up", "v1"),
        ("down", "v1"),
    ]
    assert "s3cr3t" not in sidecar.child.output


async def _as_many(told: list[JSON], wanted: int) -> bool:
    return len(told) >= wanted


async def test_a_registry_that_is_away_stops_nobody(stage: Stage) -> None:
    port = free_port()
    async with shop(stage) as application:
        url = f"http://127.0.0.1:{port}"
        sidecar = await stage.gateway("sidecar", **in_front(application, url, free_port(), ttl="1s"))
        async with sidecar.events() as said:
            await said.until(lambda event: event["kind"] == "register_failed")
            await until(lambda: _is(readyz(sidecar), (200, [])))
            registry = await stage.holdfast("registry", "--listen", f"127.0.0.1:{port}")
            await said.until(lambda event: event["kind"] == "registered")
            assert [entry["Service"]["ID"] for entry in await entries(url)] == ["one"]
            registry.signal(signal.SIGTERM)
            await registry.ended()
            await said.until(lambda event: event["kind"] == "register_failed" and event["seq"] > 3)
            assert await readyz(sidecar) == (200, [])
        began = time.monotonic()
        sidecar.child.signal(signal.SIGTERM)
        assert await sidecar.child.ended() == 0
        assert time.monotonic() - began < 5
        assert "told=false" in sidecar.child.output


class Visitors:
    """Clients that ask one request after the other; anything but an answer of a shop is a failure."""

    def __init__(self, url: str) -> None:
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self._url = url

    @asynccontextmanager
    async def visiting(self, number: int) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as session:
            tasks = [asyncio.create_task(self._visit(session)) for _ in range(number)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _visit(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with session.get(self._url) as answer:
                    text = await answer.text()
            except aiohttp.ClientError as error:
                self.failures.append(repr(error))
                await asyncio.sleep(0.01)
                continue
            if answer.status == 200:
                self.answers[text] = self.answers.get(text, 0) + 1
            else:
                self.failures.append(f"{answer.status} {text}")


async def test_five_rolling_restarts_of_pairs_fail_no_request(stage: Stage) -> None:
    _, registry = await stage.registry()
    async with AsyncExitStack() as stack:

        async def pair(number: int) -> tuple[Shop, Gateway]:
            application = await stack.enter_async_context(shop(stage, f"shop-{number}"))
            config = in_front(application, registry, free_port())
            return application, await stage.gateway(f"sidecar-{number}", **config)

        # No retries: whoever is refused counts.
        first, gateway = await asyncio.gather(
            pair(1), peer(stage, registry, retry={"attempts": 0}, balance="round_robin")
        )
        pairs = [first]
        await gateway.ready(SERVICE, "shop-1")
        visitors = Visitors(gateway.url)
        async with visitors.visiting(4), gateway.events() as seen:
            coming = asyncio.create_task(pair(2))
            for number in range(2, 7):
                former, sidecar = pairs.pop(0)
                pairs.append(await coming)
                await until(lambda: _is(readyz(pairs[-1][1]), (200, [])))
                await seen.until(_state(f"shop-{number}", "ready"))
                if number < 6:
                    coming = asyncio.create_task(pair(number + 1))
                sidecar.child.signal(signal.SIGTERM)
                assert await sidecar.child.ended() == 0
                await former.close()
        assert visitors.failures == []
        assert len(visitors.answers) == 6


async def test_an_upgrade_takes_the_entry_along(stage: Stage) -> None:
    gateway = await hub(stage)
    registry = gateway.registry
    dynasty = Dynasty(stage)
    try:
        async with shop(stage) as application:
            config = in_front(application, registry, free_port(), ttl="1s")
            sidecar = await dynasty.gateway(**config)
            await gateway.ready(SERVICE, "one")
            async with gateway.events() as seen:
                await dynasty.upgrade(sidecar)
                await sidecar.child.said("handed over")
                assert [entry["Service"]["ID"] for entry in await entries(registry)] == ["one"]
                # A successor that cannot start: the old one keeps what it has.
                broken = {**sidecar.config, "registry": {"kind": "consull"}}
                sidecar.path.write_text(json.dumps(broken))
                status, _ = await sidecar.ask("POST", "/v1/upgrade")
                assert status == 409
                sidecar.path.write_text(json.dumps(sidecar.config))
                # Longer than the time to live: somebody must be keeping it.
                await asyncio.sleep(1.5)
                assert [entry["Service"]["ID"] for entry in await entries(registry)] == ["one"]
                assert _gone_since(seen.all) == 0
                assert "deregistered" not in sidecar.child.output
                # One that has no such section any more.
                bare = {key: value for key, value in sidecar.config.items() if key != "register"}
                sidecar.path.write_text(json.dumps(bare))
                await dynasty.upgrade(sidecar)
                await seen.until(_state("one", "gone"))
    finally:
        await dynasty.end()


async def test_a_reload_changes_what_is_told_of_it(stage: Stage) -> None:
    gateway = await hub(stage)
    async with shop(stage) as application:
        sidecar = await stage.gateway("sidecar", **in_front(application, gateway.registry, free_port()))
        await gateway.ready(SERVICE, "one")
        async with gateway.events() as seen, sidecar.events() as said:
            section = sidecar.config["register"]
            sidecar.write(register={**section, "weight": 7, "metadata": {"version": "v9"}})
            await until(lambda: _weighs(gateway, 7, "v9"))
            assert _gone_since(seen.all) == 0
            sidecar.write(register={**section, "id": "other"})
            await gateway.ready(SERVICE, "other")
            sidecar.write(register=[])
            await seen.until(_state("other", "gone"))
            await said.until(lambda event: event["kind"] == "deregistered" and event["instance"] == "other")
            assert await readyz(sidecar) == (200, [])


async def _weighs(gateway: Gateway, weight: int, version: str) -> bool:
    _, answer = await gateway.ask("GET", f"/v1/services/{SERVICE}/instances")
    return [(i["weight"], i["version"]) for i in answer["instances"]] == [(weight, version)]
