"""WebSockets whose instances and whose proxy are replaced while people talk: nobody is to notice."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect as websocket

from proxy.metrics import PAUSE_BOUNDS
from tests.integration.stage import PATIENCE, Child, Gateway, Stage, free_port
from tests.integration.support_upgrade import Dynasty, gone, until

CLIENTS = 500
THINK = 10.0
"""Seconds between an answer and the next question of one client, on the average."""
INSTANCES = 3
DETECTION = 2.0
"""Seconds until a killed instance is known to be dead: its connections break at once, but the lease of an
answer that it was about to give has to run out."""
CALM = 3.0
"""Seconds in which nothing happens: how long people wait then."""
LONGEST = {"calm": 0.5, "SIGTERM": 1.0, "SIGKILL": DETECTION + 1.0, "upgrade": 1.0}
"""Seconds that anybody may wait for an answer, on a machine that has time for us."""
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
        self.answered = 0

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    async def gather(cls, stage: Stage, gateway: Gateway, library: str, number: int, think: float) -> Crowd:
        url = gateway.url.replace("http", "ws")
        child = await stage.spawn(
            "clients", "-m", "tests.integration.support_clients", library, url, str(number), str(think)
        )
        await child.said("^ready$")
        crowd = cls(child)
        await crowd.seen()
        return crowd

    async def seen(self, number: signal.Signals = signal.SIGUSR1) -> dict[str, Any]:
        """What they have seen since the last time."""
        so_far = len(self._child.lines)
        self._child.signal(number)
        found: dict[str, Any] = json.loads((await self._child.said(r"^seen (.*)", after=so_far))[1])
        for wrong in ("closes", "lost", "doubled", "reordered", "errors"):
            assert found[wrong] == [], (wrong, found[wrong][:5])
        self.answered += found["answered"]
        return found

    async def part(self) -> None:
        """Let every conversation come to its end."""
        await self.seen(signal.SIGTERM)
        assert await self._child.ended() == 0


class Fleet:
    """The chat instances."""

    def __init__(self, stage: Stage, gateway: Gateway) -> None:
        self._stage = stage
        self._gateway = gateway
        self._generation = 0
        self._children: list[Child] = []

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

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


LIBRARIES = pytest.mark.parametrize("library", ["websockets", "aiohttp"])


@pytest.fixture
async def dynasty(stage: Stage) -> AsyncIterator[Dynasty]:
    dynasty = Dynasty(stage)
    yield dynasty
    await dynasty.end()


@pytest.mark.slow
@LIBRARIES
async def test_500_people_chat_while_everything_is_replaced(
    stage: Stage, dynasty: Dynasty, library: str
) -> None:
    gateway = await dynasty.gateway(**CONFIG)
    fleet = Fleet(stage, gateway)
    await fleet.start()
    crowd = await Crowd.gather(stage, gateway, library, CLIENTS, THINK)
    pauses = Pauses(crowd, lambda: [crowd.pid, *fleet.pids, dynasty.line(gateway)[-1]])
    await pauses.of("calm", partial(asyncio.sleep, CALM))
    for _ in range(3):
        for place in range(INSTANCES):
            await pauses.of("SIGTERM", partial(fleet.restart, place, signal.SIGTERM))
    for place in range(INSTANCES):
        await pauses.of("SIGKILL", partial(fleet.restart, place, signal.SIGKILL))
    # Whoever waits for what a killed instance had in hand does not wait because of an upgrade.
    await pauses.of("SIGKILL", partial(asyncio.sleep, DETECTION))
    for _ in range(3):
        await pauses.of("upgrade", partial(replace, dynasty, gateway))
    metrics = await adopted(gateway, CLIENTS)
    await crowd.part()
    moves = metrics["holdfast_tunnel_move_pause_seconds_count"]
    print(
        f"{library}: {CLIENTS} clients, {crowd.answered} answers, {moves:.0f} moves; longest waits: {pauses}"
    )
    # Everybody is on the connection that they began with, and the proxy knows it.
    assert metrics["holdfast_tunnels_total"] == CLIENTS
    assert moves >= CLIENTS * INSTANCES
    # What the proxy made people wait, and what they waited in all.
    most = max(pauses.stretch.values())
    bound = next((bound for bound in PAUSE_BOUNDS if bound >= most), "+Inf")
    assert metrics[f'holdfast_tunnel_move_pause_seconds_bucket{{le="{bound}"}}'] == moves
    for name, seconds in pauses.longest.items():
        assert seconds < LONGEST[name] * pauses.stretch[name], (name, str(pauses))


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGTERM, "upgrade_started"), (signal.SIGKILL, "upgraded pid=")]
)
async def test_an_upgrade_in_the_same_moment_as_a_restart_is_seen_by_nobody(
    stage: Stage, dynasty: Dynasty, number: signal.Signals, moment: str
) -> None:
    """Tunnels lose their instance while they change their process, and heartbeats come between the two."""
    gateway = await dynasty.gateway(**CONFIG)
    fleet = Fleet(stage, gateway)
    await fleet.start()
    crowd = await Crowd.gather(stage, gateway, "websockets", 60, 0.2)
    for place in range(2):
        so_far = len(gateway.child.lines)
        upgrade = asyncio.create_task(replace(dynasty, gateway))
        await gateway.child.said(moment, after=so_far)
        await fleet.restart(place, number)
        await upgrade
        await crowd.seen()
    metrics = await adopted(gateway, 60)
    await crowd.part()
    assert metrics["holdfast_tunnels_total"] == 60
    assert metrics["holdfast_tunnel_moves_failed_total"] == 0
    assert metrics["holdfast_tunnel_move_pause_seconds_count"] > 0
    assert len(dynasty.line(gateway)) == 3
    assert crowd.answered > 60


async def adopted(gateway: Gateway, tunnels: int) -> dict[str, float]:
    """The metrics, once the process of now has every tunnel: some may still be on their way to it."""
    async with asyncio.timeout(PATIENCE):
        while (metrics := await gateway.metrics())["holdfast_tunnels_open"] != tunnels:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return metrics


async def replace(dynasty: Dynasty, gateway: Gateway) -> None:
    """Upgrade, and wait until nothing is left in the old process."""
    old = dynasty.line(gateway)[-1]
    await dynasty.upgrade(gateway)
    await gone(old)


class Pauses:
    """The longest that any client waited for an answer, by what was done meanwhile."""

    def __init__(self, crowd: Crowd, pids: Callable[[], list[int]]) -> None:
        """`pids`: the processes that are at work."""
        self._crowd = crowd
        self._pids = pids
        self.longest: dict[str, float] = {}
        self._former = ""
        self.stretch: dict[str, float] = {}
        """How many times as long it may take as on a machine where nobody has to wait for a processor."""

    async def of(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        """What is being done. Who asked before it began still waits for what was done before."""
        before = {pid: scheduled(pid) for pid in self._pids()}
        await act()
        self._note_stretch(name, before)
        seen = await self._crowd.seen()
        self._note(name, seen["longest"])
        self._note(self._former or name, seen["carried"])
        self._former = name

    def _note(self, name: str, seconds: float) -> None:
        self.longest[name] = max(self.longest.get(name, 0.0), seconds)

    def _note_stretch(self, name: str, before: dict[int, tuple[int, int]]) -> None:
        ran = waited = 0
        for pid in self._pids():
            now, then = scheduled(pid), before.get(pid, (0, 0))
            ran += now[0] - then[0]
            waited += now[1] - then[1]
        # This is the mean of all the time; what is looked for is the worst moment in it.
        stretch = 1.0 + 2.0 * waited / ran
        self.stretch[name] = max(self.stretch.get(name, 1.0), stretch)

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {seconds:.2f} s ({self.stretch[name]:.1f} times)"
            for name, seconds in self.longest.items()
        )


def scheduled(pid: int) -> tuple[int, int]:
    """How long a process's threads have run, and have waited for a processor (ns; proc(5), schedstat)."""
    ran = waited = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            times = file.read_text().split()
            ran += int(times[0])
            waited += int(times[1])
    return ran, waited


# -- servers that know nothing of us ------------------------------------------------------------------------

TALKERS = 40
PLAIN: dict[str, Any] = {
    "drain": {"timeout": "20s", "jitter": "200ms"},
    "websocket": {
        "on_drain": "migrate",
        # They do not know a message when it comes again: what is confirmed must not be sent once more.
        "replay": {"hold": "0s", "pace": "20ms"},
    },
}


class Pair:
    """Two servers of one kind behind a gateway."""

    def __init__(self, stage: Stage, kind: str) -> None:
        self._stage = stage
        self._kind = kind
        self._ports = (free_port(), free_port())
        self._children: list[Child] = []
        self.sent: dict[str, int] = {}
        """Messages that servers which have ended sent, by connection."""

    async def start(self, **service: Any) -> Gateway:
        self._children = [await self._spawn(place) for place in range(2)]
        instances = [{"id": f"i{n}", "address": f"127.0.0.1:{port}"} for n, port in enumerate(self._ports)]
        return await self._stage.gateway(
            services={"plain": {**PLAIN, "instances": instances, **service}},
            routes=[{"match": {"path": "/"}, "service": "plain"}],
        )

    async def _spawn(self, place: int) -> Child:
        arguments = ("-m", "tests.integration.support_servers", self._kind, str(self._ports[place]))
        child = await self._stage.spawn(f"{self._kind}{place}", *arguments)
        await child.said("^listening$")
        return child

    async def end(self, place: int) -> None:
        child = self._children[place]
        child.signal(signal.SIGTERM)
        assert await child.ended() == 0, child.output
        self.sent |= json.loads((await child.said("^sent (.*)"))[1])

    async def restart(self, place: int) -> None:
        await self.end(place)
        self._children[place] = await self._spawn(place)


async def ask_on(url: str, number: int, stop: asyncio.Event, parts: Callable[[str], list[str]]) -> int:
    """Say numbered things until `stop`, each answered once by exactly these parts; how many there were."""
    wander = random.Random(number)
    async with websocket(url) as socket:
        for said in itertools.count():
            text = f"{number}.{said}"
            await socket.send(text)
            answer = [str(await asyncio.wait_for(socket.recv(), PATIENCE)) for _ in parts(text)]
            assert answer == parts(text), (text, answer)
            if stop.is_set():
                await socket.close()
                return said + 1
            await asyncio.sleep(wander.uniform(0.1, 0.3))
    raise AssertionError


async def listen_on(url: str, stop: asyncio.Event) -> dict[str, int]:
    """Hear numbered messages until `stop`; how many of each of the servers' connections, none missing."""
    heard: dict[str, int] = {}
    async with websocket(url) as socket:
        stopping = asyncio.ensure_future(stop.wait())
        while not stopping.done():
            name, _, number = str(await asyncio.wait_for(socket.recv(), PATIENCE)).partition(" ")
            assert int(number) == heard.get(name, 0), (name, number, heard)
            assert name == list({**heard, name: 0})[-1], "a former connection speaks again"
            heard[name] = int(number) + 1
        await socket.close()
    return heard


async def connected(gateway: Gateway) -> None:
    """Everybody has begun."""

    async def all_there() -> bool:
        total: int = (await gateway.ask("GET", "/v1/sessions"))[1]["total"]
        return total == TALKERS

    await until(all_there)


async def released(gateway: Gateway, instance: str) -> None:
    """Drain an instance, and wait until nobody is connected through it any more."""
    status, _ = await gateway.ask("POST", f"/v1/services/plain/instances/{instance}/drain")
    assert status == 200

    async def empty() -> bool:
        _, answer = await gateway.ask("GET", "/v1/services/plain/instances")
        left: int = next(i["tunnels"] for i in answer["instances"] if i["id"] == instance)
        return left == 0

    await until(empty)
    assert (await gateway.ask("POST", f"/v1/services/plain/instances/{instance}/undrain"))[0] == 200


async def leave_each(pair: Pair, gateway: Gateway, way: str) -> None:
    """Both servers are left, one after the other."""
    for place in range(2):
        if way == "SIGTERM":
            await pair.restart(place)
        else:
            await released(gateway, f"i{place}")


WAYS = pytest.mark.parametrize("way", ["SIGTERM", "drain"])


@WAYS
@pytest.mark.parametrize("kind", ["echo", "triple"])
async def test_a_plain_server_answers_each_message_once_and_in_order(
    stage: Stage, kind: str, way: str
) -> None:
    pair = Pair(stage, kind)
    gateway = await pair.start()
    url = gateway.url.replace("http", "ws")
    parts: Callable[[str], list[str]] = (
        (lambda text: [text]) if kind == "echo" else (lambda text: [f"{text} {part}" for part in "abc"])
    )
    stop = asyncio.Event()
    talking = [asyncio.create_task(ask_on(url, n, stop, parts)) for n in range(TALKERS)]
    try:
        await connected(gateway)
        for _ in range(2):
            await leave_each(pair, gateway, way)
        stop.set()
        said = await asyncio.gather(*talking)
    finally:
        for task in talking:
            task.cancel()
    metrics = await gateway.metrics()
    assert metrics["holdfast_tunnels_total"] == TALKERS
    assert metrics["holdfast_tunnel_move_pause_seconds_count"] >= TALKERS
    for place in range(2):
        await pair.end(place)
    assert sum(pair.sent.values()) == sum(said) * len(parts(""))


async def test_who_drains_and_waits_sees_how_far_it_has_got(stage: Stage) -> None:
    pair = Pair(stage, "push")
    # They speak every 50 ms: there is quiet in between.
    talks = {**PLAIN["websocket"], "migrate": {"quiet": "10ms"}}
    gateway = await pair.start(drain={"timeout": "20s", "jitter": "3s"}, websocket=talks)
    stop = asyncio.Event()
    url = gateway.url.replace("http", "ws")
    listening = [asyncio.create_task(listen_on(url, stop)) for _ in range(TALKERS)]
    try:
        await connected(gateway)
        async with gateway.events() as events:
            child = await stage.holdfast("drain", "--admin", gateway.admin, "plain", "i0", "--wait")
            first = await events.until(lambda event: event["kind"] == "drain_progress")
            meanwhile = await gateway.metrics()
            assert await child.ended() == 0, child.output
            last = await events.until(
                lambda event: event["kind"] == "drain_progress" and event["tunnels"] == 0
            )
        stop.set()
        await asyncio.gather(*listening)
    finally:
        for task in listening:
            task.cancel()
    assert (last["service"], last["instance"], last["requests"]) == ("plain", "i0", 0)
    assert TALKERS / 2 > first["tunnels"] > 0
    moved = "holdfast_tunnel_move_pause_seconds_count"
    assert 0 < meanwhile[moved] < (await gateway.metrics())[moved] == TALKERS / 2
    assert meanwhile["holdfast_tunnel_moves_failed_total"] == 0
    left = [int(n) for n in re.findall(r"draining, 0 requests and (\d+) tunnels left", child.output)]
    assert left == sorted(left, reverse=True) and len(left) > 2
    assert child.lines[-1] == "plain i0: draining, empty"


@WAYS
async def test_whatever_a_plain_server_pushes_arrives_once_and_in_order(stage: Stage, way: str) -> None:
    pair = Pair(stage, "push")
    gateway = await pair.start()
    stop = asyncio.Event()
    url = gateway.url.replace("http", "ws")
    listening = [asyncio.create_task(listen_on(url, stop)) for _ in range(TALKERS)]
    try:
        await connected(gateway)
        await leave_each(pair, gateway, way)
        stop.set()
        heard = await asyncio.gather(*listening)
    finally:
        for task in listening:
            task.cancel()
    for place in range(2):
        await pair.end(place)
    metrics = await gateway.metrics()
    assert metrics["holdfast_tunnels_total"] == TALKERS
    assert metrics["holdfast_tunnel_move_pause_seconds_count"] == sum(map(len, heard)) - TALKERS >= TALKERS
    for of_one in heard:
        # On the last connection the client left while the server was still speaking.
        *left, _ = of_one
        assert {name: of_one[name] for name in left} == {name: pair.sent[name] for name in left}
