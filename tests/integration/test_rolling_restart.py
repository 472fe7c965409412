"""Every instance is restarted under load, and nobody notices: the promise, with real processes."""

from __future__ import annotations

import asyncio
import copy
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.integration.people import Journal, Talker, Traffic, check_conversation
from tests.integration.stage import Child, Events, Gateway, Stage

INSTANCES = 3
CHAT = {
    "balance": "least_conn",
    "drain": {"timeout": "10s", "jitter": "1s"},
    "health": {"path": "/readyz", "interval": "500ms", "timeout": "2s"},
    "outlier": {"consecutive_failures": 3, "base_ejection": "5s"},
    "retry": {"attempts": 2, "on": ["connect", "reset", 502, 503]},
}


class Fleet:
    """The chat instances behind a gateway, and when the gateway learned of each one's end."""

    def __init__(self, stage: Stage, gateway: Gateway, events: Events) -> None:
        self.gone: dict[str, float] = {}
        self._stage = stage
        self._gateway = gateway
        self._events = events
        self._generation = 0
        self._children: list[Child] = []

    async def start(self) -> None:
        self._children = list(await asyncio.gather(*(self._spawn(n) for n in range(INSTANCES))))

    async def restart_each(self, number: signal.Signals) -> None:
        """One after the other: ended by that signal, and started again under a new name on a new port."""
        for place, child in enumerate(self._children):
            child.signal(number)
            code = await child.ended()
            assert code == (0 if number is signal.SIGTERM else -number), child.output
            self._children[place] = await self._spawn(place)

    async def _spawn(self, place: int) -> Child:
        self._generation += 1
        name = f"chat-{place}.{self._generation}"
        child = await self._stage.chat(name, self._gateway.registry)
        await self._events.until(
            lambda e: e["kind"] == "state_changed" and e["instance"] == name and e["after"] == "ready"
        )
        return child

    def started_after_its_end(self, served: list[tuple[float, str]]) -> list[tuple[float, str]]:
        """What was sent to an instance after the gateway had told us that it is gone."""
        return [(sent, name) for sent, name in served if sent > self.gone.get(name, float("inf"))]


@asynccontextmanager
async def run_fleet(stage: Stage, **chat: object) -> AsyncIterator[tuple[Gateway, Fleet]]:
    gateway = await stage.gateway(
        registry={"kind": "embedded", "listen": "127.0.0.1:0"},
        services={"chat": {**CHAT, **chat}},
        routes=[{"match": {"path": "/"}, "service": "chat"}],
    )
    gone: dict[str, float] = {}

    def note(event: dict[str, object]) -> None:
        if event["kind"] == "state_changed" and event["after"] == "gone":
            gone[str(event["instance"])] = time.monotonic()

    async with gateway.events(note) as events:
        fleet = Fleet(stage, gateway, events)
        fleet.gone = gone
        await fleet.start()
        yield gateway, fleet


@asynccontextmanager
async def under_load(
    stage: Stage, gateway: Gateway, journal: Journal, *, talkers: int, rate: float, think: float
) -> AsyncIterator[list[Talker]]:
    """Talkers and HTTP traffic for as long as the block runs; it ends when all have their answers."""
    stop = asyncio.Event()
    people = [Talker(number, gateway.url, journal, think=think) for number in range(talkers)]
    session = await stage.client(cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=0))
    async with asyncio.TaskGroup() as group:
        for talker in people:
            group.create_task(talker.run(stop))
        group.create_task(Traffic(session, gateway.url, journal, rate=rate).run(stop))
        try:
            yield people
        finally:
            stop.set()
    await gateway.emptied()


def report(name: str, journal: Journal, metrics: dict[str, float]) -> None:
    delay = 'holdfast_eviction_delay_seconds_{}{{kind="gone",registry="embedded"}}'
    evictions = metrics.get(delay.format("count"), 0)
    mean = metrics.get(delay.format("sum"), 0) / max(1, evictions)
    print(
        f"{name}: {journal.requests} requests, {len(journal.failures)} failed, "
        f"slowest {journal.slowest:.3f} s; "
        f"{len(journal.waits)} questions, longest wait {max(journal.waits, default=0):.3f} s; "
        f"{len(journal.closes)} closes, {len(journal.refused)} handshakes refused, "
        f"longest gap {max(journal.gaps, default=0):.3f} s; "
        f"{evictions:.0f} evictions, on average {mean * 1000:.2f} ms after the event"
    )


@pytest.mark.slow
async def test_every_instance_is_restarted_under_load_and_nobody_notices(stage: Stage) -> None:
    journal = Journal()
    async with run_fleet(stage, websocket={"on_drain": "close"}) as (gateway, fleet):
        async with under_load(stage, gateway, journal, talkers=200, rate=300.0, think=2.5) as talkers:
            await fleet.restart_each(signal.SIGTERM)
            await fleet.restart_each(signal.SIGTERM)
            gently = copy.deepcopy(journal)
            metrics = await gateway.metrics()
            await fleet.restart_each(signal.SIGKILL)
        report("SIGTERM", gently, metrics)
        report("all", journal, await gateway.metrics())

        assert gently.failures == []
        assert gently.refused == []
        assert {code for _, code in gently.closes} == {1012}
        assert max(gently.gaps) < 2.0
        assert len(fleet.gone) >= 2 * INSTANCES
        # Nothing was even tried on an instance that had gone.
        assert metrics["holdfast_upstream_connect_failures_total"] == 0
        assert metrics["holdfast_retries_total"] == 0
        assert fleet.started_after_its_end(journal.served) == []

        # What a kill may cost: a POST that was sent and not answered must not be sent again.
        assert set(journal.failures) <= {"POST 502 upstream_reset"}
        for talker in talkers:
            check_conversation(talker)
            await check_history(gateway, talker)


MIGRATE = {"on_drain": "migrate", "replay": True}


@pytest.mark.slow
async def test_with_migration_no_client_sees_a_close_when_instances_are_restarted(stage: Stage) -> None:
    journal = Journal()
    async with run_fleet(stage, websocket=MIGRATE) as (gateway, fleet):
        async with under_load(stage, gateway, journal, talkers=40, rate=50.0, think=1.0) as talkers:
            await fleet.restart_each(signal.SIGTERM)
            await fleet.restart_each(signal.SIGTERM)
        report("SIGTERM, migrate", journal, await gateway.metrics())
        print(f"{sum(len(talker.moves) for talker in talkers)} moves")
        assert (journal.closes, journal.refused, journal.failures) == ([], [], [])
        # No instance of the beginning is left, so everybody has moved.
        assert all(talker.moves for talker in talkers)
        assert fleet.started_after_its_end(journal.served) == []
        for talker in talkers:
            check_conversation(talker)
            await check_history(gateway, talker)


@pytest.mark.slow
async def test_with_replay_no_client_sees_a_close_when_instances_are_killed(stage: Stage) -> None:
    journal = Journal()
    async with run_fleet(stage, websocket=MIGRATE) as (gateway, fleet):
        async with under_load(stage, gateway, journal, talkers=40, rate=50.0, think=0.3) as talkers:
            await fleet.restart_each(signal.SIGKILL)
        report("SIGKILL, migrate with replay", journal, await gateway.metrics())
        assert (journal.closes, journal.refused) == ([], [])
        assert all(talker.moves for talker in talkers)
        assert set(journal.failures) <= {"POST 502 upstream_reset"}
        for talker in talkers:
            check_conversation(talker)
            await check_history(gateway, talker)


async def check_history(gateway: Gateway, talker: Talker) -> None:
    """What was seen is what is stored."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{gateway.url}/api/sessions/{talker.session}/messages") as response,
    ):
        stored = (await response.json())["messages"]
    shown = [
        {k: v for k, v in talker.messages[seq].items() if k != "type"} for seq in sorted(talker.messages)
    ]
    assert stored == shown
