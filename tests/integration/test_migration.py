"""WebSockets whose instances and whose proxy are replaced while people talk: nobody is to notice."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from tests.integration.stage import Child, Gateway, Stage
from tests.integration.support_upgrade import Dynasty, gone

CLIENTS = 500
INSTANCES = 3
DETECTION = 2.0
"""Seconds until a killed instance is known to be dead: its connections break at once, but the lease of an
answer that it was about to give has to run out."""
CALM = 3.0
"""Seconds in which nothing happens: how long people wait then."""
ROOM = 0.5
"""A machine that makes people wait so long when nothing happens (seconds) can show nothing of pauses."""
CONFIG: dict[str, Any] = {
    "registry": [{"kind": "embedded", "listen": "127.0.0.1:0"}],
    "services": {
        "chat": {
            "balance": "least_conn",
            "drain": {"timeout": "10s", "jitter": "500ms"},
            "health": {"path": "/readyz", "interval": "500ms", "timeout": "2s"},
            "websocket": {"on_drain": "migrate", "replay": True},
        }
    },
    "routes": [{"match": {"path": "/"}, "service": "chat"}],
}


class Crowd:
    """The clients' process."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._reports = 0
        self.answered = 0

    async def seen(self, number: signal.Signals = signal.SIGUSR1) -> dict[str, Any]:
        """What they have seen since the last time."""
        so_far = len(self._child.lines)
        self._child.signal(number)
        found: dict[str, Any] = json.loads((await self._child.said(r"^seen (.*)", after=so_far))[1])
        for wrong in ("closes", "lost", "doubled", "reordered", "errors"):
            assert found[wrong] == [], (wrong, found[wrong][:5])
        self.answered += found["answered"]
        return found


class Fleet:
    """The chat instances."""

    def __init__(self, stage: Stage, gateway: Gateway) -> None:
        self._stage = stage
        self._gateway = gateway
        self._generation = 0
        self._children: list[Child] = []

    async def start(self) -> None:
        self._children = [await self._spawn(place) for place in range(INSTANCES)]
        await self._ready()

    async def restart(self, place: int, number: signal.Signals) -> None:
        child = self._children[place]
        child.signal(number)
        assert await child.ended() == (0 if number is signal.SIGTERM else -number), child.output
        self._children[place] = await self._spawn(place)
        await self._ready()

    async def _spawn(self, place: int) -> Child:
        self._generation += 1
        return await self._stage.chat(f"chat-{place}.{self._generation}", self._gateway.registry)

    async def _ready(self) -> None:
        await self._gateway.ready("chat", *(child.name for child in self._children))


@pytest.fixture
async def dynasty(stage: Stage) -> AsyncIterator[Dynasty]:
    dynasty = Dynasty(stage)
    yield dynasty
    await dynasty.end()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["websockets", "aiohttp"])
async def test_500_people_chat_while_everything_is_replaced(
    stage: Stage, dynasty: Dynasty, library: str
) -> None:
    gateway = await dynasty.gateway(**CONFIG)
    fleet = Fleet(stage, gateway)
    await fleet.start()
    url = gateway.url.replace("http", "ws")
    child = await stage.spawn(
        "clients", "-m", "tests.integration.support_clients", library, url, str(CLIENTS)
    )
    await child.said("^ready$")
    crowd = Crowd(child)
    await crowd.seen()
    pauses = Pauses(crowd)
    await pauses.of("calm", partial(asyncio.sleep, CALM))
    for _ in range(3):
        for place in range(INSTANCES):
            await pauses.of("SIGTERM", partial(fleet.restart, place, signal.SIGTERM))
    for place in range(INSTANCES):
        await pauses.of("SIGKILL", partial(fleet.restart, place, signal.SIGKILL))
    for _ in range(3):
        await pauses.of("upgrade", partial(replace, dynasty, gateway))
    metrics = await gateway.metrics()
    await crowd.seen(signal.SIGTERM)
    assert await child.ended() == 0
    moves = metrics["holdfast_tunnel_move_pause_seconds_count"]
    print(
        f"{library}: {CLIENTS} clients, {crowd.answered} answers, {moves:.0f} moves; longest waits: {pauses}"
    )
    # Everybody is on the connection that they began with, and the proxy knows it.
    assert metrics["holdfast_tunnels_total"] == metrics["holdfast_tunnels_open"] == CLIENTS
    assert moves >= CLIENTS * INSTANCES
    if pauses.longest["calm"] < ROOM and pauses.late < ROOM:
        assert pauses.longest["SIGTERM"] < 1.0
        assert pauses.longest["upgrade"] < 1.0
        assert pauses.longest["SIGKILL"] < DETECTION + 1.0
    else:
        print(f"this machine has no room to judge pauses: a timer was {pauses.late:.2f} s late")


async def replace(dynasty: Dynasty, gateway: Gateway) -> None:
    """Upgrade, and wait until nothing is left in the old process."""
    old = dynasty.line(gateway)[-1]
    await dynasty.upgrade(gateway)
    await gone(old)


class Pauses:
    """The longest that any client waited for an answer, by what was done meanwhile."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self.longest: dict[str, float] = {}
        self._former = ""
        self.late = 0.0
        """By how much a timer of the clients' process was late, at most: what the machine itself adds."""

    async def of(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        """What is being done. Who asked before it began still waits for what was done before."""
        await act()
        seen = await self._crowd.seen()
        self._note(name, seen["longest"])
        self._note(self._former or name, seen["carried"])
        self._former = name
        self.late = max(self.late, seen["late"])

    def _note(self, name: str, seconds: float) -> None:
        self.longest[name] = max(self.longest.get(name, 0.0), seconds)

    def __str__(self) -> str:
        waits = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.longest.items())
        return f"{waits} (timers late by up to {self.late:.2f} s)"
