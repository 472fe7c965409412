"""Two minutes in which something is always broken; `make soak` makes it an hour.

Instances are killed, stopped, restarted, cut off, slowed and made to vanish, and so is the registry, while
people of all kinds go on. Afterwards everything that was opened must be closed, everything that was begun
must have been counted once, and the memory must be what it was.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos.load import Book, Load
from tests.chaos.schedule import Fault, Kind, schedule
from tests.chaos.wire import Mode, Wire
from tests.integration.stage import Child, Gateway, Stage, free_port

SECONDS = float(os.environ.get("HOLDFAST_CHAOS_SECONDS", "110"))
SEED = int(os.environ.get("HOLDFAST_CHAOS_SEED", "1"))
INSTANCES = ("a", "b", "c", "d")
REGISTRY = "registry"
MODES = {Kind.SLOW: Mode.SLOW, Kind.HOLE: Mode.HOLE, Kind.REFUSE: Mode.REFUSE}
SETTLED = 60.0
"""Seconds that a loaded machine may take until all is well again."""
SLACK = 4
"""Tasks and descriptors that come and go with health checks and the registry's watch."""
GROWTH = 24 << 20
"""Bytes that the process may have grown between the middle and the end: what is kept of connections and
allocators, not what is lost."""


class World:
    """Everything that runs, and what is done to it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._children: dict[str, Child] = {}
        self._ports = {name: free_port() for name in (*INSTANCES, REGISTRY)}
        self.wires: dict[str, Wire] = {}
        self.gateway: Gateway

    async def start(self) -> None:
        for name, port in self._ports.items():
            self.wires[name] = Wire(port)
            await self.wires[name].start()
            await self._spawn(name)
        async with aiohttp.ClientSession() as session:
            for name in INSTANCES:
                port = self.wires[name].port
                check = {
                    "HTTP": f"http://127.0.0.1:{port}/readyz",
                    "Interval": "500ms",
                    "Timeout": "500ms",
                    "Status": "passing",
                }
                entry = {"ID": name, "Name": "web", "Address": "127.0.0.1", "Port": port, "Check": check}
                url = f"http://127.0.0.1:{self._ports[REGISTRY]}/v1/agent/service/register"
                async with session.put(url, json=entry) as response:
                    assert response.status == 200, await response.text()
        self.gateway = await self._stage.gateway(
            registry={"kind": "consul", "address": f"http://127.0.0.1:{self.wires[REGISTRY].port}"},
            services={
                "web": {
                    "balance": "least_conn",
                    "health": {
                        "path": "/readyz",
                        "interval": "500ms",
                        "timeout": "500ms",
                        "unhealthy": 2,
                        "dead": 3,
                    },
                    "outlier": {"consecutive_failures": 3, "base_ejection": "1s"},
                    "retry": {
                        "attempts": 3,
                        "on": ["connect", "reset", "timeout", 502, 503],
                        "timeout": "2s",
                    },
                    "timeout": {"connect": "500ms", "response": "8s", "idle": "3s"},
                    "websocket": {"on_drain": "migrate", "replay": True, "ping": "1s"},
                    "drain": {"timeout": "3s", "jitter": "500ms"},
                    "capacity": {"requests": 200, "queue": 200, "wait": "2s"},
                }
            },
            routes=[{"match": {"path": "/"}, "service": "web"}],
        )
        await self.gateway.ready("web", *INSTANCES)

    async def close(self) -> None:
        for wire in self.wires.values():
            await wire.close()

    async def run(self, faults: tuple[Fault, ...]) -> None:
        """Each fault at its time; what it has done is taken back at its end."""
        begun = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._inflict(fault, begun))

    async def _inflict(self, fault: Fault, begun: float) -> None:
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, begun + fault.start - clock()))
        print(fault, flush=True)
        child, wire = self._children[fault.target], self.wires[fault.target]
        match fault.kind:
            case Kind.KILL:
                child.signal(signal.SIGKILL)
                await child.ended()
            case Kind.STOP:
                child.signal(signal.SIGSTOP)
            case Kind.RESTART:
                child.signal(signal.SIGTERM)
                await child.ended()
                await self._spawn(fault.target)
            case Kind.RESET:
                wire.reset()
            case _:
                wire.become(MODES[fault.kind])
        await asyncio.sleep(max(0.0, begun + fault.end - clock()))
        match fault.kind:
            case Kind.KILL:
                await self._spawn(fault.target)
            case Kind.STOP:
                child.signal(signal.SIGCONT)
            case Kind.SLOW | Kind.HOLE | Kind.REFUSE:
                wire.become(Mode.OPEN)
            case _:
                pass

    async def _spawn(self, name: str) -> None:
        port = self._ports[name]
        if name == REGISTRY:
            data = str(self._stage.folder / "registry")
            child = await self._stage.holdfast("registry", "--listen", f"127.0.0.1:{port}", "--data", data)
        else:
            child = await self._stage.spawn(name, "-m", "tests.chaos.instance", name, str(port))
        await child.said("listening")
        self._children[name] = child


class Figures:
    """What the gateway's process has open, and what it has counted."""

    def __init__(self, samples: dict[str, float], descriptors: int, memory: int) -> None:
        self.samples = samples
        self.descriptors = descriptors
        self.memory = memory

    @classmethod
    async def of(cls, gateway: Gateway) -> Figures:
        process = Path(f"/proc/{gateway.child.pid}")
        resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        descriptors = len(list((process / "fd").iterdir()))
        return cls(await gateway.metrics(), descriptors, resident)

    def total(self, name: str) -> int:
        return int(sum(value for key, value in self.samples.items() if key.split("{")[0] == name))

    def left(self, before: Figures) -> dict[str, int]:
        """What should not be there any more once everybody has gone, and is."""
        names = (
            "holdfast_connections_open",
            "holdfast_tunnels_open",
            "holdfast_instance_inflight",
            "holdfast_instance_tunnels_open",
            "holdfast_instance_connections",
            "holdfast_service_admitted",
            "holdfast_service_waiting",
        )
        found = {name: self.total(name) for name in names}
        found["tasks"] = max(0, self.total("holdfast_tasks") - before.total("holdfast_tasks") - SLACK)
        found["descriptors"] = max(0, self.descriptors - before.descriptors - SLACK)
        return {name: count for name, count in found.items() if count}


@pytest.fixture
async def world(stage: Stage) -> AsyncIterator[World]:
    world = World(stage)
    try:
        yield world
    finally:
        await world.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield Stage(stack, tmp_path)


@pytest.mark.slow
async def test_whatever_breaks_nothing_is_lost_leaked_or_miscounted(world: World) -> None:
    await world.start()
    gateway, book = world.gateway, Book()
    before = await Figures.of(gateway)
    faults = schedule(random.Random(SEED), SECONDS, INSTANCES, REGISTRY)
    load = Load(gateway.url, book, SEED)
    # Its own connections are new ones each time: what the proxy keeps alive is ended by the clients too.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0)
    timeout = aiohttp.ClientTimeout(total=60.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        load.start(session, askers=12, senders=4, talkers=16)
        middle = asyncio.create_task(_figures_after(gateway, SECONDS / 2))
        await world.run(faults)
        await gateway.ready("web", *INSTANCES)
        await load.stop()
        print(book)
        assert book.wrong == []
        assert book.requests > SECONDS * 10
        for _ in range(100):
            async with session.get(gateway.url) as response:
                assert response.status == 200, await response.text()
    assert gateway.child.running, gateway.child.output
    after = await _emptied(gateway, before)
    assert after.total("holdfast_requests_received_total") == after.total("holdfast_requests_total")
    assert after.memory - (await middle).memory < GROWTH
    assert "Traceback" not in gateway.child.output, gateway.child.output


async def _figures_after(gateway: Gateway, seconds: float) -> Figures:
    await asyncio.sleep(seconds)
    return await Figures.of(gateway)


async def _emptied(gateway: Gateway, before: Figures) -> Figures:
    """Once nothing is left; pooled connections end by `timeout.idle`, doubts by `guard.hold`."""
    found: Any = None
    try:
        async with asyncio.timeout(SETTLED):
            while True:
                found = await Figures.of(gateway)
                if not found.left(before):
                    return found
                await asyncio.sleep(0.25)
    except TimeoutError:
        raise AssertionError(f"still there: {found.left(before)}") from None
