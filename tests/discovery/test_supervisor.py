"""The supervisor with watchers that do as they are told, and time that passes when told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.registries import Guard
from discovery.belief import Backoff
from discovery.lastgood import encode
from discovery.model import Instance, RegistryError, Status, Update
from discovery.watch import SourceState, Supervisor
from tests.discovery.conftest import FakeTime, settle

CHAT = frozenset({"chat"})


class Script:
    """A watcher fed by the test: an update is yielded, an exception raised."""

    def __init__(self, kind: str = "script") -> None:
        self.kind = kind
        self.attempts: list[frozenset[str]] = []
        self.closed = 0
        self._queue: asyncio.Queue[Update | Exception] = asyncio.Queue()

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        self.attempts.append(services)
        try:
            while True:
                item = await self._queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed += 1

    async def tell(self, names: str | None, at: float = 1000.0, service: str = "chat") -> None:
        self._queue.put_nowait(Update(service, None if names is None else make(names, service), at))
        await settle()

    async def fail(self, error: Exception) -> None:
        self._queue.put_nowait(error)
        await settle()


def make(names: str, service: str = "chat") -> tuple[Instance, ...]:
    return tuple(Instance(service, name, "10.0.0.1", 9000 + ord(name)) for name in names)


def seen(updates: list[Update]) -> list[str | None]:
    return [None if u.instances is None else "".join(i.id for i in u.instances) for u in updates]


@asynccontextmanager
async def running(
    time: FakeTime,
    *watchers: Any,
    services: frozenset[str] = CHAT,
    confirm: Callable[[Instance], Awaitable[bool]] | None = None,
    directory: Path | None = None,
    sink: Callable[[Update], None] | None = None,
) -> AsyncIterator[tuple[Supervisor, list[Update]]]:
    updates: list[Update] = []
    supervisor = Supervisor(
        watchers,
        sink or updates.append,
        services,
        confirm=confirm,
        guard=Guard(hold=30, repeat=5),
        backoff=Backoff(first=0.1, most=5),
        directory=directory,
        clock=time.clock,
        sleep=time.sleep,
    )
    task = asyncio.create_task(supervisor.run())
    try:
        await settle()
        yield supervisor, updates
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_changes_reach_the_sink_with_their_time_and_source_and_equal_sets_do_not(
    time: FakeTime,
) -> None:
    watcher = Script()
    async with running(time, watcher) as (_, updates):
        await watcher.tell("ab", at=1.0)
        await watcher.tell("ab", at=2.0)
        await watcher.tell("abc", at=3.0)
    assert [(u.at, u.source) for u in updates] == [(1.0, "script"), (3.0, "script")]
    assert seen(updates) == ["ab", "abc"]


async def test_updates_of_services_that_nobody_asked_for_are_ignored(time: FakeTime) -> None:
    watcher = Script()
    async with running(time, watcher) as (_, updates):
        await watcher.tell("a", service="other")
    assert updates == []


@pytest.mark.parametrize("error", [RegistryError("away"), ConnectionResetError("reset"), KeyError("bug")])
async def test_a_watcher_that_fails_is_started_again_and_its_set_stays(
    time: FakeTime, error: Exception
) -> None:
    watcher = Script()
    async with running(time, watcher) as (supervisor, updates):
        await watcher.tell("ab")
        await watcher.fail(error)
        (source,) = supervisor.sources
        assert source.state is SourceState.FAILED
        assert source.failures == 1
        assert str(error.args[0]) in (source.last_error or "")
        await time.pass_(0.1)
        assert len(watcher.attempts) == 2
        assert source.state is SourceState.CONNECTING
        await watcher.tell("ab")
        assert (source.state, source.failures) == (SourceState.LIVE, 0)
    assert seen(updates) == ["ab"]
    assert watcher.closed == 2


async def test_waits_grow_while_the_registry_stays_away(time: FakeTime) -> None:
    watcher = Script()
    async with running(time, watcher) as (_, updates):
        moments = []
        for _ in range(9):
            count = len(watcher.attempts)
            await watcher.fail(RegistryError("away"))
            began = time.now
            while len(watcher.attempts) == count:
                await time.pass_(0.01)
            moments.append(time.now - began)
    assert all(a < b for a, b in zip(moments[:4], moments[2:6], strict=True))
    assert max(moments) <= 5.02
    assert moments[-1] >= 2.5
    assert updates == []


async def test_a_registry_that_answers_and_breaks_at_once_is_not_asked_in_a_loop(time: FakeTime) -> None:
    watcher = Script()
    async with running(time, watcher):
        for _ in range(6):
            await watcher.tell("a")
            await watcher.fail(RegistryError("broken"))
            count = len(watcher.attempts)
            while len(watcher.attempts) == count:
                await time.pass_(0.05)
        await watcher.fail(RegistryError("broken"))
        await time.pass_(2)
        assert len(watcher.attempts) == count + 1


async def test_staleness_is_nothing_while_the_watch_is_open_and_grows_from_the_last_answer(
    time: FakeTime,
) -> None:
    watcher = Script()
    async with running(time, watcher) as (supervisor, _):
        (source,) = supervisor.sources
        await time.pass_(3)
        assert source.staleness(time.now) == 3
        await watcher.tell("a")
        await time.pass_(60)
        assert source.staleness(time.now) == 0
        await watcher.fail(RegistryError("away"))
        assert source.staleness(time.now) == 60
        await time.pass_(5)
        assert source.staleness(time.now) == 65


async def test_in_a_mass_loss_everybody_is_asked_and_those_that_are_not_ready_leave(time: FakeTime) -> None:
    watcher, answers = Script(), {name: asyncio.Event() for name in "abc"}

    async def confirm(instance: Instance) -> bool:
        await answers[instance.id].wait()
        if instance.id == "c":
            raise OSError("no route")
        return instance.id == "b"

    async with running(time, watcher, confirm=confirm) as (supervisor, updates):
        await watcher.tell("abc", at=1000.0)
        await watcher.tell("", at=1000.5)
        assert seen(updates) == ["abc"]
        assert supervisor.sources[0].held == 3
        answers["a"].set()
        await settle()
        assert seen(updates) == ["abc", "bc"]
        assert updates[-1].at == 1000.5
        answers["b"].set()
        answers["c"].set()
        await time.pass_(30.4)
        assert seen(updates) == ["abc", "bc"]
        await time.pass_(0.1)
        assert seen(updates) == ["abc", "bc", ""]
        assert supervisor.sources[0].held == 0


async def test_a_registry_that_came_back_empty_changes_nothing_while_registrars_return(
    time: FakeTime,
) -> None:
    watcher = Script()
    async with running(time, watcher) as (_, updates):
        await watcher.tell("abc")
        await watcher.fail(RegistryError("restarted"))
        await time.pass_(1)
        for back in [None, "b", "ab", "abc"]:
            await watcher.tell(back, at=time.now)
            await time.pass_(1)
    assert seen(updates) == ["abc"]


async def test_the_set_of_services_can_change_while_it_runs(time: FakeTime) -> None:
    watcher = Script()
    async with running(time, watcher) as (supervisor, updates):
        await watcher.tell("a")
        supervisor.set_services({"chat", "web"})
        await settle()
        assert watcher.attempts == [{"chat"}, {"chat", "web"}]
        assert watcher.closed == 1
        await watcher.tell("a")
        await watcher.tell("w", service="web")
        supervisor.set_services({"web", "chat"})
        supervisor.set_services({"web"})
        await settle()
        await watcher.tell("ab")
        supervisor.set_services({"web", "chat"})
        await settle()
        await watcher.tell("a")
    assert len(watcher.attempts) == 4
    assert [(u.service, *seen([u])) for u in updates] == [("chat", "a"), ("web", "w"), ("chat", "a")]


async def test_suspects_of_a_service_that_is_no_longer_asked_for_are_not_told_of(time: FakeTime) -> None:
    watcher = Script()
    async with running(time, watcher) as (supervisor, updates):
        await watcher.tell("abc")
        await watcher.tell("")
        supervisor.set_services(set())
        await time.pass_(60)
    assert seen(updates) == ["abc"]


async def test_two_registries_are_one_set_and_the_failure_of_one_hurts_nobody(time: FakeTime) -> None:
    first, second = Script("first"), Script("second")
    async with running(time, first, second) as (_, updates):
        await first.tell("a")
        await second.tell("b")
        await first.fail(RegistryError("away"))
        await second.tell("bc")
    assert seen(updates) == ["a", "ab", "abc"]
    assert [u.source for u in updates] == ["first", "second", "second"]


async def test_last_good_sets_are_written_and_used_when_the_registry_cannot_be_reached(
    time: FakeTime, tmp_path: Path
) -> None:
    watcher = Script()
    async with running(time, watcher, directory=tmp_path) as (_, updates):
        await watcher.tell("ab")
    again = Script()
    async with running(time, again, directory=tmp_path) as (supervisor, updates):
        assert updates == []
        await again.fail(RegistryError("away"))
        assert seen(updates) == ["ab"]
        assert updates[0].instances == make("ab")
        assert supervisor.sources[0].state is SourceState.FAILED
        await time.pass_(0.1)
        await again.tell("ab")
        await again.tell("abc")
    assert seen(updates) == ["ab", "abc"]


async def test_a_registry_that_says_nothing_is_replaced_by_the_disk_after_some_patience(
    time: FakeTime, tmp_path: Path
) -> None:
    (tmp_path / "0-script.json").write_bytes(encode({"chat": make("ab"), "gone": make("z", "gone")}))
    async with running(time, Script(), directory=tmp_path) as (_, updates):
        await time.pass_(0.9)
        assert updates == []
        await time.pass_(0.2)
    assert seen(updates) == ["ab"]


async def test_a_registry_that_answers_in_time_makes_the_disk_irrelevant(
    time: FakeTime, tmp_path: Path
) -> None:
    (tmp_path / "0-script.json").write_bytes(encode({"chat": make("xyz")}))
    watcher = Script()
    async with running(time, watcher, directory=tmp_path) as (_, updates):
        await watcher.tell("ab")
        await time.pass_(10)
    assert seen(updates) == ["ab"]


async def test_a_broken_memory_is_no_memory(time: FakeTime, tmp_path: Path) -> None:
    (tmp_path / "0-script.json").write_text('{"chat": [{"id"')
    watcher = Script()
    async with running(time, watcher, directory=tmp_path) as (_, updates):
        await time.pass_(2)
        await watcher.tell("a")
    assert seen(updates) == ["a"]


async def test_a_memory_that_cannot_be_written_hurts_nobody(time: FakeTime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    watcher = Script()
    async with running(time, watcher, directory=tmp_path / "file") as (_, updates):
        await watcher.tell("a")
        await time.pass_(2)
        await watcher.tell("ab")
    assert seen(updates) == ["a", "ab"]


async def test_instances_survive_the_disk_unchanged(time: FakeTime, tmp_path: Path) -> None:
    instance = Instance(
        "chat", "a", path="/run/a.sock", weight=3, status=Status.DRAINING, metadata={"version": "v2"}
    )
    (tmp_path / "0-script.json").write_bytes(encode({"chat": (instance,)}))
    async with running(time, Script(), directory=tmp_path) as (_, updates):
        await time.pass_(2)
    assert updates[0].instances == (instance,)


async def test_what_the_sink_raises_ends_the_supervisor(time: FakeTime) -> None:
    def sink(update: Update) -> None:
        raise LookupError("a bug in the table")

    watcher = Script()
    supervisor = Supervisor([watcher], sink, CHAT, clock=time.clock, sleep=time.sleep)
    task = asyncio.create_task(supervisor.run())
    await settle()
    await watcher.tell("a")
    with pytest.raises(ExceptionGroup) as caught:
        await task
    assert caught.group_contains(LookupError)


async def test_a_source_describes_itself(time: FakeTime) -> None:
    watcher = Script()
    async with running(time, watcher) as (supervisor, _):
        await watcher.fail(RegistryError("no route"))
        assert repr(supervisor.sources[0]) == "<registry 0 script: failed, 0 held, no route>"
