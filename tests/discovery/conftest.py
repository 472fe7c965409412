"""A running embedded registry, and time that passes when a test says so."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable

import pytest

from config.schema import Address
from discovery.embedded.server import RegistryServer

LOOPBACK = Address("127.0.0.1", 0)


class FakeTime:
    """A clock and a sleep that move only by `pass_`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number += 1
        heapq.heappush(self._sleepers, (self.now + seconds, self._number, future))
        await future

    async def pass_(self, seconds: float) -> None:
        """Lets the loop run, moves the clock from sleeper to sleeper, and lets the loop run again."""
        end = self.now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            self.now = max(self.now, at)
            if not future.done():
                future.set_result(None)
                await settle()
        self.now = end
        await settle()


async def settle() -> None:
    """Runs everything that is ready, and what that makes ready."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another task or thread does; fails after 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
async def registry() -> AsyncIterator[RegistryServer]:
    server = RegistryServer()
    await server.start(LOOPBACK)
    yield server
    await server.close()
