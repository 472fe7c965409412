"""The supervisor with watchers that do as they are told, and time that passes when told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
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

    def push(self, update: Update) -> None:
        self._queue.put_nowait(update)

    async def say(self, update: Update) -> None:
        self.push(update)
        await settle()

    async def fail(self, error: Exception) -> None:
        self._queue.put_nowait(error)
        await settle()


def make(names: str, service: str = "chat") -> tuple[Instance, ...]:
    return tuple(Instance(service, name, "10.0.0.1", 9000 + ord(name)) for name in names)


def seen(updates: list[Update]) -> list[str | None]:
    """The ids of each set; in capitals those that are doubtful."""
    return [None if u.instances is None else "".join(map(name, u.instances)) for u in updates]


def name(instance: Instance) -> str:
    return instance.id.upper() if instance.status is Status.DOUBTFUL else instance.id


@asynccontextmanager
async def running(
    time: FakeTime,
    *watchers: Any,
    services: frozenset[str] = CHAT,
    confirm: Callable[[Instance], Awaitable[bool]] | None = None,
    directory: Path | None = None,
    sink: Callable[[Update], None] | None = None,
    emit: Callable[..., None] = lambda kind, **facts: None,
) -> AsyncIterator[tuple[Supervisor, list[Update]]]:
    updates: list[Update] = []
    supervisor = Supervisor(
        watchers,
        sink or updates.append,
        services,
        confirm=confirm,
        emit=emit,
        guard=Guard(hold=30, repeat=5, flaps=3, calm=20),
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
        assert seen(updates) == ["abc", "ABC"]
        assert supervisor.sources[0].held == 3
        answers["a"].set()
        await settle()
        assert seen(updates[2:]) == ["BC"]
        assert updates[-1].at == 1000.5
        answers["b"].set()
        answers["c"].set()
        await time.pass_(30.4)
        assert seen(updates[2:]) == ["BC"]
        await time.pass_(0.1)
        assert seen(updates[2:]) == ["BC", ""]
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
    assert seen(updates) == ["abc", "ABC", "AbC", "abC", "abc"]


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
    assert seen(updates) == ["abc", "ABC"]


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


async def test_hundreds_of_updates_at_once_let_others_run_in_between(time: FakeTime) -> None:
    watcher = Script()
    async with running(time, watcher) as (_, updates):
        for number in range(200):
            watcher.push(Update("chat", make("ab" if number % 2 else "abc"), 1000.0))
        turns = 0
        while len(updates) < 200:
            await asyncio.sleep(0)
            turns += 1
    assert turns >= 200


# -- what operators are told ------------------------------------------------------------------------------


class Told:
    """The events."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: str, **facts: Any) -> None:
        self.all.append((kind, facts))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.all]


async def test_a_failure_and_its_end_are_told_once(time: FakeTime) -> None:
    watcher, told = Script(), Told()
    async with running(time, watcher, emit=told) as (supervisor, _):
        await watcher.tell("a")
        for _ in range(3):
            await watcher.fail(RegistryError("away"))
            await time.pass_(1)
        await watcher.tell("a")
        assert supervisor.sources[0].failed_total == 3
    assert told.all == [
        ("registry_failed", {"registry": "0-script", "reason": "away"}),
        ("registry_recovered", {"registry": "0-script", "seconds": 3.0}),
    ]


async def test_a_mass_loss_is_told_and_counted(time: FakeTime) -> None:
    watcher, told = Script(), Told()
    async with running(time, watcher, emit=told) as (supervisor, _):
        await watcher.tell("abcd")
        await watcher.tell("a")
        assert supervisor.sources[0].mass_losses == 1
    facts = {"registry": "0-script", "service": "chat", "instances": ["b", "c", "d"], "left": 1}
    assert told.all == [("instances_held", facts)]


async def test_what_is_left_out_of_an_answer_is_told_once_and_counted(time: FakeTime) -> None:
    watcher, told = Script(), Told()
    async with running(time, watcher, emit=told) as (supervisor, updates):
        for refused in (("x is broken",), ("x is broken",), ("x is broken", "y too"), (), ("x is broken",)):
            await watcher.say(Update("chat", make("a"), 1000.0, refused=refused))
        assert supervisor.sources[0].refused_total == 3
    assert seen(updates) == ["a"]
    assert [facts["reasons"] for _, facts in told.all] == [["x is broken"], ["y too"], ["x is broken"]]


async def test_of_several_instances_with_one_id_the_first_by_address_is_kept(time: FakeTime) -> None:
    watcher, told = Script(), Told()
    twins = tuple(Instance("chat", "a", f"10.0.0.{number}", 80) for number in (3, 1, 2))
    async with running(time, watcher, emit=told) as (_, updates):
        await watcher.say(Update("chat", twins, 1000.0))
        await watcher.say(Update("chat", twins[::-1], 1000.0))
    assert [[i.host for i in update.instances or ()] for update in updates] == [["10.0.0.1"]]
    assert told.kinds == ["entries_refused"]
    assert "another instance has this id" in told.all[0][1]["reasons"][0]


async def test_a_registry_that_is_up_and_says_that_its_answers_are_old_is_stale(time: FakeTime) -> None:
    watcher, told = Script(), Told()
    async with running(time, watcher, emit=told) as (supervisor, _):
        (source,) = supervisor.sources
        await watcher.tell("a")
        assert source.staleness(time.now) == 0
        await watcher.say(Update("chat", make("a"), time.now, behind=7.0))
        assert (source.state, source.staleness(time.now)) == (SourceState.LIVE, 7.0)
        await time.pass_(10)
        assert source.staleness(time.now) == 17.0
        await watcher.tell("a")
        assert source.staleness(time.now) == 0
    assert told.kinds == ["registry_stale", "registry_current"]


async def test_one_that_comes_and_goes_is_told_and_relied_on_again_when_it_has_stayed(time: FakeTime) -> None:
    watcher, told = Script(), Told()
    async with running(time, watcher, emit=told) as (supervisor, updates):
        for _ in range(3):
            await watcher.tell("ab", at=time.now)
            await watcher.tell("b", at=time.now)
        await watcher.tell("ab", at=time.now)
        assert supervisor.sources[0].flapping == 1
        assert seen(updates)[-1] == "Ab"
        await time.pass_(20)
        assert supervisor.sources[0].flapping == 0
        assert seen(updates)[-1] == "ab"
    assert told.all == [("instance_flapping", {"registry": "0-script", "service": "chat", "instance": "a"})]


async def test_the_use_of_what_is_on_disk_is_told(time: FakeTime, tmp_path: Path) -> None:
    (tmp_path / "0-script.json").write_bytes(encode({"chat": make("ab")}))
    watcher, told = Script(), Told()
    async with running(time, watcher, emit=told, directory=tmp_path) as (supervisor, updates):
        assert supervisor.sources[0].remembered == 0
        await time.pass_(1)
        assert (seen(updates), supervisor.sources[0].remembered) == (["ab"], 1)
        await watcher.tell("ab")
        assert supervisor.sources[0].remembered == 0
    assert told.all == [("last_good_used", {"registry": "0-script", "service": "chat", "instances": 2})]


async def test_suspects_are_remembered_as_they_were(time: FakeTime, tmp_path: Path) -> None:
    watcher = Script()
    async with running(time, watcher, directory=tmp_path) as (_, updates):
        await watcher.tell("ab")
        await watcher.tell("")
    assert seen(updates) == ["ab", "AB"]
    assert (tmp_path / "0-script.json").read_bytes() == encode({"chat": make("ab")})


async def test_a_pause_of_the_process_does_not_use_up_the_time_of_suspects(time: FakeTime) -> None:
    watcher, told = Script(), Told()
    async with running(time, watcher, emit=told) as (_, updates):
        await watcher.tell("ab", at=time.now)
        await watcher.tell("", at=time.now)
        time.now += 100
        await time.pass_(0)
        assert seen(updates) == ["ab", "AB"]
        await time.pass_(29)
        assert seen(updates) == ["ab", "AB"]
        await time.pass_(1)
    assert seen(updates)[-1] == ""
    assert told.kinds == ["instances_held", "clock_jumped"]


# -- whom a start waits for -------------------------------------------------------------------------------


async def test_every_registry_is_waited_for_and_none_for_ever(time: FakeTime) -> None:
    first, second = Script("one"), Script("two")
    async with running(time, first, second) as (supervisor, _):
        assert supervisor.awaited() == {"chat": ["0-one", "1-two"]}
        await first.tell("a")
        assert supervisor.awaited() == {"chat": ["1-two"]}
        await time.pass_(1)
        assert supervisor.awaited() == {}


async def test_a_registry_that_has_told_is_not_waited_for(time: FakeTime) -> None:
    first, second = Script("one"), Script("two")
    async with running(time, first, second) as (supervisor, _):
        await first.tell("a")
        await second.tell(None)
        assert supervisor.awaited() == {}


async def test_what_an_earlier_process_knew_is_not_lost_to_a_registry_that_is_empty_at_the_start(
    time: FakeTime,
) -> None:
    watcher, updates = Script(), []
    doubtful = tuple(replace(i, status=Status.DOUBTFUL) for i in make("c"))
    supervisor = Supervisor(
        [watcher],
        updates.append,
        CHAT,
        inherited={"chat": (*make("ab"), *doubtful)},
        clock=time.clock,
        sleep=time.sleep,
    )
    assert supervisor.awaited() == {}
    task = asyncio.create_task(supervisor.run())
    await settle()
    await watcher.tell("", at=time.now)
    await watcher.tell("c", at=time.now)
    assert (seen(updates), supervisor.sources[0].held) == (["ABC", "ABc"], 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
