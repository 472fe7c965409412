"""What can be seen of an instance that is being emptied."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import proxy.drain
from proxy.drain import Drainer
from tests.proxy.test_moving import Live, echo

TUNNELS = 12


@pytest.fixture
async def live(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    monkeypatch.setattr(proxy.drain, "_REPORT", 0.02)
    stage = Live(tmp_path)
    stage.drainer = Drainer(stage.plane, emit=lambda kind, **facts: stage.events.append((kind, facts)))
    stage.configure(
        {
            "websocket": {"on_drain": "migrate", "migrate": {"quiet": "20ms", "concurrency": 2}},
            "drain": {"timeout": "20s", "jitter": "100ms"},
        }
    )
    yield stage
    await stage.close()


def reports(live: Live) -> list[int]:
    """How many tunnels each report says are left."""
    found = [facts for kind, facts in live.events if kind == "drain_progress"]
    assert all((facts["service"], facts["instance"], facts["requests"]) == ("s", "a", 0) for facts in found)
    return [facts["tunnels"] for facts in found]


async def test_progress_is_told_until_the_instance_is_empty_and_counted_while_it_moves(live: Live) -> None:
    await live.backend("a", echo)
    clients = [await live.dial() for _ in range(TUNNELS)]
    await live.backend("b", echo)
    live.drain("a")
    moved = lambda: sum(live.plane.counters.move_pauses.buckets)  # noqa: E731
    await live.until(lambda: reports(live) and moved())
    assert len(live.plane.sessions.of(live.endpoint("a"))) > 0, "some are still to come"
    await live.until(lambda: reports(live)[-1] == 0)
    await live.until(lambda: moved() == TUNNELS)
    told = reports(live)
    assert told == sorted(set(told), reverse=True) and len(told) > 2
    assert live.plane.counters.moves_failed == 0
    for client in clients:
        await client.close()


async def test_nothing_is_told_of_an_instance_that_is_empty_or_may_stay(live: Live) -> None:
    await live.backend("a", echo)
    live.drain("a")
    live.drainer.depart(live.table.undrain("s", "a", live.clock()))
    client = await live.dial()
    live.drain("a")
    live.drainer.depart(live.table.undrain("s", "a", live.clock()))
    await live.until(
        lambda: not live.drainer._timers.get(live.endpoint("a")) or live.states() == {"relaying"}
    )
    await client.send("on")
    assert await client.recv() == "a:on"
    assert reports(live) == []
    await client.close()
