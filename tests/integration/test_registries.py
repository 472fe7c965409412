"""Registries as they behave on bad days, and two gateways that share one."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.integration.stage import PATIENCE, Gateway, Stage, free_port

ROUTES = [{"match": {"path": "/"}, "service": "web"}]
SERVICES = {"web": {"balance": "round_robin"}}
VISITORS = 8
"""Clients that ask one request after the other."""


def named(name: str, heard: Heard | None = None) -> web.Application:
    """Answers with its name."""

    async def answer(request: web.Request) -> web.Response:
        if heard is not None:
            heard.add(float(request.headers["X-Sent"]), name)
        return web.Response(text=name)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


class Heard:
    """Of every request that reached an instance: when its client says it was sent, and the instance."""

    def __init__(self) -> None:
        self.all: list[tuple[float, str]] = []
        self._more = asyncio.Event()

    def add(self, sent: float, name: str) -> None:
        self.all.append((sent, name))
        self._more.set()

    def names(self, start: int) -> set[str]:
        """Who heard something since there were `start` requests."""
        return {name for _, name in self.all[start:]}

    async def from_each(self, names: set[str]) -> None:
        """Waits until each of these has heard something from now on."""
        seen = len(self.all)
        await self.until(lambda: self.names(seen) >= names)

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not enough():
                self._more.clear()
                await self._more.wait()

    def after(self, known: dict[str, float]) -> list[float]:
        """How long after the time given for its instance each later request was sent."""
        never = float("inf")
        return [sent - known.get(name, never) for sent, name in self.all if sent > known.get(name, never)]


def entry(name: str, address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"ID": name, "Name": "web", "Address": host, "Port": int(port)}


async def put(session: aiohttp.ClientSession, url: str, body: Any = None) -> None:
    async with session.put(url, json=body) as response:
        assert response.status == 200, await response.text()


async def text(session: aiohttp.ClientSession, url: str, **headers: str) -> str:
    async with session.get(url, headers=headers) as response:
        assert response.status == 200
        return await response.text()


# -- deregistration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["embedded", "consul"])
async def test_no_request_starts_on_an_instance_after_its_deregistration_reached_the_gateway(
    stage: Stage, kind: str
) -> None:
    """Each request carries when it was sent; each instance keeps that of all it got."""
    if kind == "embedded":
        gateway = await stage.gateway(
            registry={"kind": "embedded", "listen": "127.0.0.1:0"}, services=SERVICES, routes=ROUTES
        )
        registry = gateway.registry
    else:
        _, registry = await stage.registry()
        gateway = await stage.gateway(
            registry={"kind": "consul", "address": registry}, services=SERVICES, routes=ROUTES
        )
    session = await stage.client()
    heard = Heard()
    names = [f"i-{number}" for number in range(4)]
    for name in names:
        address = await stage.serve(named(name, heard))
        await put(session, f"{registry}/v1/agent/service/register", entry(name, address))
    await gateway.ready("web", *names)

    stop = asyncio.Event()

    async def visit() -> None:
        mine = await stage.client()
        while not stop.is_set():
            await text(mine, gateway.url, **{"X-Sent": repr(time.monotonic())})

    known: dict[str, float] = {}
    told: dict[str, float] = {}

    def note(event: dict[str, Any]) -> None:
        if event.get("after") == "gone":
            known[event["instance"]] = time.monotonic()

    async with gateway.events(note) as events, asyncio.TaskGroup() as group:
        for _ in range(VISITORS):
            group.create_task(visit())
        for name in names[1:]:
            await heard.from_each(set(names) - set(known))
            await put(session, f"{registry}/v1/agent/service/deregister/{name}")
            told[name] = time.monotonic()
            await events.until(is_gone(name))
        seen = len(heard.all)
        await heard.until(lambda: len(heard.all) >= seen + 10 * VISITORS)
        stop.set()
    # What was under way at that moment may still have been for another.
    assert heard.names(seen + VISITORS) == {"i-0"}
    assert heard.after(known) == []
    late = [f"{seconds * 1000:.1f} ms" for seconds in heard.after(told)]
    print(f"{kind}: {len(heard.all)} requests; sent after the registry's answer, before it arrived: {late}")


def is_gone(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event.get("instance") == name and event.get("after") == "gone"


# -- nonsense ---------------------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Moody:
    """Speaks the health query of Consul, and anything else when it is told to."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.entries = list(entries)
        self.mood: Handler = self.sane
        self.asked = 0
        self._index = 2
        """Of what there is to be told now: who knows an older one need not wait."""
        self._changed = asyncio.Event()
        self.app = web.Application()
        self.app.router.add_get("/v1/health/service/{name}", self._answer)

    def change(self, mood: Handler) -> None:
        """Answers so from now on, and to what waits for an answer at this moment."""
        self.mood = mood
        self._index += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.mood == self.sane and request.query.get("index") == str(self._index):
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._changed.wait()
        return await self.mood(request)

    async def sane(self, request: web.Request) -> web.StreamResponse:
        body = [
            {"Node": {"Address": "127.0.0.1"}, "Service": service, "Checks": []} for service in self.entries
        ]
        return web.json_response(body, headers={"X-Consul-Index": str(self._index)})


def answering(body: str, status: int = 200, index: str | None = "7") -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"X-Consul-Index": index} if index is not None else {}
        return web.Response(text=body, status=status, headers=headers, content_type="application/json")

    return answer


async def hanging_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def cut_short(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Consul-Index": "7", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'[{"Service"')
    assert request.transport is not None
    request.transport.close()
    return response


NONSENSE = {
    "not JSON": (answering("<html>welcome</html>"), "not JSON"),
    "another shape": (answering('{"error": "no"}'), "not a list of health entries"),
    "an entry of another shape": (
        answering('[{"Service": {}}]'),
        "not a list of health entries: entry None: KeyError",
    ),
    "no index": (answering("[]", index=None), "no X-Consul-Index; is this Consul?"),
    "index is a word": (answering("[]", index="seven"), "no X-Consul-Index; is this Consul?"),
    "status 500": (
        answering("No cluster leader", status=500),
        "status 500 for /v1/health/service/web: No cluster leader",
    ),
    "status 403": (
        answering("Permission denied", status=403),
        "status 403 for /v1/health/service/web: Permission denied",
    ),
    "hangs up": (hanging_up, "[Ss]erver disconnected"),
    "cut short": (cut_short, "payload|[Rr]esponse|closed"),
}


async def behind(stage: Stage, registry: str) -> Gateway:
    return await stage.gateway(
        registry={"kind": "consul", "address": f"http://{registry}"}, services=SERVICES, routes=ROUTES
    )


async def source(gateway: Gateway) -> dict[str, Any]:
    _, status = await gateway.ask("GET", "/v1/status")
    found: dict[str, Any] = status["registries"][0]
    return found


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_from_the_registry_is_told_and_the_last_good_set_stays(
    stage: Stage, nonsense: str
) -> None:
    mood, complaint = NONSENSE[nonsense]
    one = {"Service": "web", **entry("one", await stage.serve(named("one")))}
    two = {"Service": "web", **entry("two", await stage.serve(named("two")))}
    registry = Moody(one)
    gateway = await behind(stage, await stage.serve(registry.app))
    await gateway.ready("web", "one")
    session = await stage.client()
    registry.change(mood)
    async with asyncio.timeout(PATIENCE):
        while (state := await source(gateway))["state"] != "failed":
            pass
    assert re.search(complaint, json.dumps(state)), state
    assert await text(session, gateway.url) == "one"
    assert (await gateway.ask("GET", "/readyz"))[0] == 200
    # And it is asked again until it has come to its senses.
    registry.entries.append(two)
    registry.change(registry.sane)
    await gateway.ready("web", "one", "two")
    assert {await text(session, gateway.url) for _ in range(2)} == {"one", "two"}
    gateway.child.signal(signal.SIGTERM)
    assert await gateway.child.ended() == 0
    assert "Traceback" not in gateway.child.output


async def test_an_entry_without_a_port_does_not_take_the_others_away(stage: Stage) -> None:
    good = {"Service": "web", **entry("good", await stage.serve(named("good")))}
    registry = Moody({"ID": "no port", "Service": "web", "Address": "127.0.0.1"}, good)
    gateway = await behind(stage, await stage.serve(registry.app))
    await gateway.ready("web", "good")
    assert await text(await stage.client(), gateway.url) == "good"


async def test_entries_that_make_no_sense_are_left_out_told_and_counted(stage: Stage) -> None:
    good = {"Service": "web", **entry("good", await stage.serve(named("good")))}
    registry = Moody({"ID": "bad", "Service": "web", "Address": "127.0.0.1", "Port": "eighty"}, good)
    gateway = await behind(stage, await stage.serve(registry.app))
    await gateway.ready("web", "good")
    async with gateway.events() as events:
        told = await events.until(lambda event: event["kind"] == "entries_refused")
    assert (told["registry"], told["service"]) == ("0-consul", "web")
    assert "entry 'bad'" in told["reasons"][0]
    counted = await gateway.metrics()
    assert counted['holdfast_registry_refused_entries_total{kind="consul",registry="0-consul"}'] == 1
    assert await text(await stage.client(), gateway.url) == "good"


async def test_who_is_alive_is_served_on_when_the_registry_has_lost_most_of_them(stage: Stage) -> None:
    """Two of four are held behind the one that is listed; the fourth does not answer and goes at once."""
    services = [{"Service": "web", **entry(n, await stage.serve(named(n)))} for n in ("one", "two", "three")]
    dead = {"Service": "web", **entry("dead", f"127.0.0.1:{free_port()}")}
    registry = Moody(*services, dead)
    gateway = await behind(stage, await stage.serve(registry.app))
    await gateway.ready("web", "one", "two", "three", "dead")
    registry.entries = services[:1]
    registry.change(registry.sane)
    async with gateway.events() as events:
        held = await events.until(lambda event: event["kind"] == "instances_held")
        await events.until(is_gone("dead"))
    assert (sorted(held["instances"]), held["left"]) == (["dead", "three", "two"], 1)
    assert (await gateway.metrics())[
        'holdfast_registry_held_instances{kind="consul",registry="0-consul"}'
    ] == 2
    session = await stage.client()
    assert {await text(session, gateway.url) for _ in range(6)} == {"one"}
    _, explained = await gateway.ask("GET", "/v1/services/web")
    assert {i["id"]: i["registry"] for i in explained["instances"]} == {
        "one": "up",
        "two": "doubtful",
        "three": "doubtful",
    }
    # The last that is listed goes: those in doubt are all there is, and serve.
    registry.entries = []
    registry.change(registry.sane)
    async with gateway.events() as events:
        await events.until(is_gone("one"))
    assert {await text(session, gateway.url) for _ in range(6)} == {"two", "three"}


async def test_a_registry_that_was_never_there_is_no_reason_not_to_start(stage: Stage) -> None:
    registry = Moody()
    registry.change(answering("nonsense"))
    gateway = await behind(stage, await stage.serve(registry.app))
    status, why = await gateway.ask("GET", "/readyz")
    assert (status, "no registry has answered yet for web" in json.dumps(why)) == (503, True)
    session = await stage.client()
    async with session.get(gateway.url) as response:
        assert response.status == 503
        assert (await response.json())["error"] == "no_healthy_instance"
    registry.entries.append({"Service": "web", **entry("one", await stage.serve(named("one")))})
    registry.change(registry.sane)
    await gateway.ready("web", "one")
    assert await text(session, gateway.url) == "one"
    assert (await gateway.ask("GET", "/readyz"))[0] == 200


# -- two gateways -----------------------------------------------------------------------------------------


async def test_two_gateways_share_one_registry(stage: Stage) -> None:
    child, registry = await stage.registry()
    shared = {
        "registry": {"kind": "consul", "address": registry},
        "services": {"web": {"sticky": {"by": "cookie", "name": "where", "key": "the same on both of them"}}},
        "routes": ROUTES,
    }
    left, right = await asyncio.gather(stage.gateway("left", **shared), stage.gateway("right", **shared))
    session = await stage.client()
    names = ("one", "two", "three")
    for name in names:
        address = await stage.serve(named(name))
        await put(session, f"{registry}/v1/agent/service/register", entry(name, address))
    await asyncio.gather(left.ready("web", *names), right.ready("web", *names))

    # A cookie of one means the same instance to the other.
    for _ in range(5):
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as fresh:
            async with fresh.get(left.url) as response:
                where, cookie = await response.text(), response.cookies["where"].value
            for gateway in (left, right, right, left):
                assert await text(fresh, gateway.url, Cookie=f"where={cookie}") == where

    await put(session, f"{registry}/v1/agent/service/deregister/two")
    await asyncio.gather(left.ready("web", "one", "three"), right.ready("web", "one", "three"))

    # Without the registry both go on with what they know.
    child.signal(signal.SIGKILL)
    await child.ended()
    for gateway in (left, right):
        async with asyncio.timeout(PATIENCE):
            while (await source(gateway))["state"] != "failed":
                pass
        for _ in range(4):
            async with aiohttp.ClientSession() as fresh:
                assert await text(fresh, gateway.url) in ("one", "three")
