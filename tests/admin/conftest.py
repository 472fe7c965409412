"""A process to administer: a real table and a real plane, with what an application does left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from enum import Enum
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from config.load import ConfigError, read
from config.plan import Change, diff
from config.schema import Config
from discovery.static import static_updates
from proxy.accesslog import AccessLog
from proxy.admin import make_app
from proxy.events import EventLog
from proxy.plane import Plane
from proxy.sidecar import Sidecar
from proxy.table import Departure, Table

CONFIG = """
services:
  web:
    balance: round_robin
    sticky: {by: cookie, name: hf, key: a-very-secret-key}
    drain: {timeout: 20s, jitter: 2s}
    instances:
      - {address: "127.0.0.1:9001", id: a, metadata: {version: stable}}
      - {address: "127.0.0.1:9002", id: "b/1:2 %", weight: 50, metadata: {version: stable}}
      - {address: "127.0.0.1:9003", id: c, metadata: {version: canary}}
  api:
    instances: ["127.0.0.1:9004"]
routes:
  - {match: {path: /}, service: web, split: {stable: 90, canary: 10}}
  - {match: {path: /api, method: POST}, service: api, limit: {rate: 5/s}}
"""


class SourceState(Enum):
    """As in `discovery.watch`."""

    LIVE = "live"
    FAILED = "failed"


class FakeSource:
    """A registry as it is doing."""

    def __init__(self, kind: str, state: SourceState, staleness: float) -> None:
        self.kind = kind
        self.name = f"0-{kind}"
        self.failures = 0 if state is SourceState.LIVE else 3
        self.last_error = None if state is SourceState.LIVE else "connection refused"
        self.state = state
        self.held = self.flapping = self.remembered = 0
        self.failed_total = self.mass_losses = self.refused_total = self.failures
        self._staleness = staleness

    def staleness(self, now: float) -> float:
        return self._staleness


class FakeControl:
    """What `proxy.app` is to the admin API, with the drains and reloads only noted down."""

    def __init__(self, text: str) -> None:
        self.config: Config = read(text.encode(), source="test.yaml", environ={})
        self.events = EventLog()
        table = Table(self.events.emit)
        self.now = 1000.0
        self.plane = Plane(asyncio.get_running_loop(), table, AccessLog(None), clock=lambda: self.now)
        self.plane.configure(self.config)
        table.configure(self.config, self.now)
        for update in static_updates(self.config.services, self.now):
            table.apply(update, self.now)
        self.sources: Sequence[Any] = [
            FakeSource("consul", SourceState.LIVE, 0.0),
            FakeSource("file", SourceState.FAILED, 12.5),
        ]
        self.sidecar = Sidecar((), self.events.emit)
        self.reasons: list[str] = []
        self.departures: list[tuple[list[Departure], float | None]] = []
        self.file = text

    def unready(self) -> list[str]:
        return self.reasons

    def depart(self, departures: Sequence[Departure], deadline: float | None) -> None:
        if departures:
            self.departures.append((list(departures), deadline))

    async def leave(self, settle: float | None) -> None:
        await self.sidecar.leave(30.0, settle)

    async def plan(self, data: bytes | None, source: str) -> Sequence[Change]:
        new = read(data if data is not None else self.file.encode(), source=source, environ={})
        return diff(self.config, new)

    async def reload(self) -> Sequence[Change]:
        changes = await self.plan(None, "test.yaml")
        self.config = read(self.file.encode(), source="test.yaml", environ={})
        return changes


__all__ = ["CONFIG", "ConfigError", "FakeControl"]

Api = TestClient[Any, Any]
Start = Callable[..., Awaitable[tuple[FakeControl, Api]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """`control, api = await start(config_text)`: the admin API on a free port."""
    async with AsyncExitStack() as stack:

        async def begin(text: str = CONFIG) -> tuple[FakeControl, Api]:
            control = FakeControl(text)
            client = TestClient(TestServer(make_app(control)))
            await stack.enter_async_context(client)
            return control, client

        yield begin


@pytest.fixture
async def admin(start: Start) -> tuple[FakeControl, Api]:
    """The process of `CONFIG`, and a client of its API."""
    return await start()


@pytest.fixture
def control(admin: tuple[FakeControl, Api]) -> FakeControl:
    return admin[0]


@pytest.fixture
def api(admin: tuple[FakeControl, Api]) -> Api:
    return admin[1]
