"""What these tests are played in: a gateway and an instance, as processes, and what can be read of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.stage import Gateway, Stage

FULL = os.environ.get("HOLDFAST_OVERLOAD") == "full"
"""The figures of the manual; else a few seconds' worth of the same (`make overload`)."""
PATIENCE = 60.0
SERVICES: dict[str, Any] = {
    "web": {},
    "moving": {"websocket": {"on_drain": "migrate"}},
    "kept": {"websocket": {"on_drain": "migrate", "replay": True}},
}


@dataclass
class World:
    """A running gateway, the instance behind it, and the port that clients come to."""

    stage: Stage
    gateway: Gateway
    instance: str
    port: int

    @classmethod
    async def build(cls, stage: Stage, more: dict[str, Any] | None = None, **config: Any) -> World:
        """`more` are settings of services, by their names; the host of a request names its service."""
        child = await stage.spawn("instance", "-m", "tests.overload.origin")
        instance = f"127.0.0.1:{(await child.said(r'listening on ([0-9]+)'))[1]}"
        settings = SERVICES | (more or {})
        services = {name: {"instances": [instance], **more} for name, more in settings.items()}
        routes = [{"match": {"host": name, "path": "/"}, "service": name} for name in services]
        full = {"access_log": "none", "services": services, "routes": routes, **config}
        gateway = await stage.gateway(**full)
        return cls(stage, gateway, instance, int(gateway.addresses[0].rpartition(":")[2]))

    def memory(self) -> int:
        """Resident bytes of the gateway."""
        statm = Path(f"/proc/{self.gateway.child.pid}/statm").read_text()
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """Open files of the gateway."""
        return len(list(Path(f"/proc/{self.gateway.child.pid}/fd").iterdir()))

    async def until(self, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """The metrics, once they are as wanted."""
        metrics: dict[str, float] = {}
        try:
            async with asyncio.timeout(PATIENCE):
                metrics = await self.gateway.metrics()
                while not holds(metrics):
                    await asyncio.sleep(0.1)
                    metrics = await self.gateway.metrics()
        except TimeoutError:
            raise AssertionError(f"it did not come to that: {metrics}") from None
        return metrics

    async def closed(self, before: int) -> None:
        """Once it has about as many open files as `before` again: pooled connections may stay."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if self.descriptors() <= before + 70:
                    return
                await asyncio.sleep(0.1)

    async def shrunk(self, most: int) -> None:
        """Once it is not larger than that any more."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    if self.memory() <= most:
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{self.memory()} bytes are not at most {most}") from None

    async def settled(self) -> int:
        """Resident bytes, once they do not change any more."""
        before, same = self.memory(), 0
        async with asyncio.timeout(PATIENCE):
            while same < 3:
                await asyncio.sleep(0.2)
                now = self.memory()
                same = same + 1 if abs(now - before) < 1 << 20 else 0
                before = now
        return before


class Crowd:
    """Many sockets, made in a thread and closed together."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    async def add(self, count: int, make: Callable[[int], socket.socket]) -> None:
        """So many more; `make` gets the number of each."""

        def add() -> None:
            for number in range(count):
                self.sockets.append(make(number))

        await asyncio.to_thread(add)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
