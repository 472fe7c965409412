"""A registry followed as the proxy does it: by a real supervisor into a real table, without any clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from config.registries import Guard
from config.schema import Config
from discovery.belief import Backoff
from discovery.model import Instance, Update, Watcher
from discovery.watch import Source, Supervisor
from proxy.endpoint import Endpoint, State
from proxy.table import Departure, Table

SPEED = 60.0
"""All times of the supervisor are this much shorter than by default, so that a minute without a registry
takes a second."""
GUARD = Guard(hold=30.0 / SPEED, repeat=5.0 / SPEED)
MINUTE = 60.0 / SPEED


class World:
    """What is known of one service, and what was done because of it."""

    def __init__(self, service: str, patience: float) -> None:
        self.service = service
        self.patience = patience
        self.updates: list[Update] = []
        self.departures: list[Departure] = []
        self.alive: set[str] = set()
        """Addresses of instances that say they are ready when they are asked."""
        self.asked: list[str] = []
        self.table = Table(lambda kind, **facts: None)
        self.table.configure(Config.model_validate({"services": {service: {}}}), time.monotonic())
        self.supervisor: Supervisor | None = None

    @property
    def source(self) -> Source:
        """How the registry is doing."""
        assert self.supervisor is not None
        return self.supervisor.sources[0]

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """By address."""
        return {e.instance.address: e for e in self.table.services[self.service].endpoints.values()}

    @property
    def ready(self) -> set[str]:
        """Addresses that may be given work."""
        return {e.instance.address for e in self.table.services[self.service].pool.ready}

    def state(self, instance: Instance) -> State | None:
        """Of the endpoint at the instance's address; None when there is none."""
        endpoint = self.endpoints.get(instance.address)
        return endpoint.state if endpoint is not None else None

    async def until(self, condition: Callable[[], bool], patience: float | None = None) -> None:
        """Waits for something that must come, and says what was there instead when it does not."""
        try:
            async with asyncio.timeout(patience or self.patience):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(f"it did not come; there is {self.source}, {self.endpoints}") from None

    async def until_ready(self, *instances: Instance) -> None:
        """Waits until exactly these may be given work."""
        wanted = {instance.address for instance in instances}
        await self.until(lambda: self.ready == wanted)

    async def confirm(self, instance: Instance) -> bool:
        """The question to a suspect."""
        self.asked.append(instance.address)
        return instance.address in self.alive

    def apply(self, update: Update) -> None:
        """The sink of the supervisor, as in the proxy."""
        self.updates.append(update)
        self.departures += self.table.apply(update, time.monotonic())


@asynccontextmanager
async def following(
    watchers: Sequence[Watcher],
    service: str,
    *,
    patience: float,
    guard: Guard = GUARD,
    directory: Path | None = None,
) -> AsyncIterator[World]:
    """A world that follows these registries until the end of the block."""
    world = World(service, patience)
    world.supervisor = Supervisor(
        watchers,
        world.apply,
        {service},
        confirm=world.confirm,
        guard=guard,
        backoff=Backoff(first=0.1 / SPEED, most=5.0 / SPEED),
        directory=directory,
        patience=1.0 / SPEED,
    )
    task = asyncio.create_task(world.supervisor.run())
    try:
        yield world
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
