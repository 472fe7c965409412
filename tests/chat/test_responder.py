"""The bounded queue in front of the engine, and what housekeeping finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chat.answer import FAILED, Answer, Context, Language
from chat.bus import LocalBus
from chat.hub import Hub, Member
from chat.metrics import Metrics
from chat.record import Origin
from chat.responder import WORKERS, Housekeeper, Responder
from chat.session import Sessions
from chat.state import State
from chat.store import Store


@dataclass
class Engine:
    """Answers when it is let; tells how many are asking."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)
    fail: bool = False
    came: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def answer(self, text: str, context: Context) -> Answer:
        self.asked.append(text)
        self.came.release()
        await self.gate.wait()
        if self.fail:
            raise RuntimeError("the model is away")
        return Answer(f"re: {text}")


@dataclass
class World:
    store: Store
    hub: Hub
    engine: Engine
    sessions: Sessions
    responder: Responder
    now: float = 1000.0

    async def say(self, session: str, id: str = "c-1") -> None:
        await self.sessions.receive(session, id, f"{session} {id}")

    async def texts(self, session: str) -> list[str]:
        return [message.text for message in await self.store.messages(session, 0, 100)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = Store(f"sqlite:///{tmp_path}/chat.db")
    await store.open()
    hub, engine = Hub(store, LocalBus()), Engine()
    made: list[World] = []
    sessions = Sessions(store, "me", lambda: made[0].now)
    responder = Responder(sessions, engine, hub, Metrics("i", "v"), capacity=3)
    made.append(World(store, hub, engine, sessions, responder))
    responder.start()
    yield made[0]
    await responder.close()
    await hub.close()
    await store.close()


async def soon(awaitable: Awaitable[object]) -> None:
    async with asyncio.timeout(10):
        await awaitable


async def test_a_full_queue_makes_the_caller_wait_until_there_is_room(world: World) -> None:
    names = [f"s{number}" for number in range(WORKERS + 4)]
    for name in names:
        await world.say(name)
    for name in names[:WORKERS]:
        await soon(world.responder.put(name))
        await soon(world.engine.came.acquire())
    for name in names[WORKERS:-1]:
        await soon(world.responder.put(name))
    assert world.responder.waiting == 3
    late = asyncio.ensure_future(world.responder.put(names[-1]))
    await asyncio.sleep(0.02)
    assert not late.done()
    world.engine.gate.set()
    await soon(late)
    for name in names:
        await soon(world.responder.settled(name))
        assert await world.texts(name) == [f"{name} c-1", f"re: {name} c-1"]


async def test_messages_of_one_session_are_answered_in_order_by_one_worker(world: World) -> None:
    world.engine.gate.set()
    for number in range(6):
        await world.say("s", f"c-{number}")
        await soon(world.responder.put("s"))
    await soon(world.responder.settled("s"))
    assert world.engine.asked == [f"s c-{number}" for number in range(6)]
    assert (await world.store.session("s")).state is State.REPLY_OK


async def test_a_session_put_again_while_it_is_worked_on_is_looked_at_again(world: World) -> None:
    await world.say("s", "c-1")
    await soon(world.responder.put("s"))
    await soon(world.engine.came.acquire())
    await world.say("s", "c-2")
    await soon(world.responder.put("s"))
    world.engine.gate.set()
    await soon(world.responder.settled("s"))
    assert world.engine.asked == ["s c-1", "s c-2"]


async def test_an_engine_that_fails_is_apologised_for(world: World) -> None:
    world.engine.fail = True
    world.engine.gate.set()
    await world.say("s")
    await soon(world.responder.put("s"))
    await soon(world.responder.settled("s"))
    assert await world.texts("s") == ["s c-1", FAILED[Language.EN]]
    assert (await world.store.session("s")).state is State.AWAIT_INPUT


async def test_an_answer_nobody_wants_any_more_is_dropped(world: World) -> None:
    await world.say("s")
    await soon(world.responder.put("s"))
    await soon(world.engine.came.acquire())
    await world.sessions.join("s")
    world.engine.gate.set()
    await soon(world.responder.settled("s"))
    assert [m.origin for m in await world.store.messages("s", 0, 9)] == [Origin.USER, Origin.BOT]
    assert not any(text.startswith("re:") for text in await world.texts("s"))


async def test_the_housekeeper_renews_what_is_worked_on_and_takes_up_what_nobody_does(world: World) -> None:
    keeper = Housekeeper(world.sessions, world.responder, world.hub, poll=1.0)
    await world.say("s")
    await soon(world.responder.put("s"))
    await soon(world.engine.came.acquire())
    world.now += world.sessions.lease - 0.1
    await keeper.renew()
    assert (await world.store.session("s")).lease_until == world.now + world.sessions.lease

    other = Sessions(world.store, "dead", lambda: world.now)
    await world.say("t")
    assert await other.claim("t") is not None
    await keeper.recover()
    assert world.engine.asked == ["s c-1"]
    world.now += other.lease
    await keeper.recover()
    world.engine.gate.set()
    await soon(world.responder.settled("t"))
    assert await world.texts("t") == ["t c-1", "re: t c-1"]


async def test_the_housekeeper_times_out_idle_sessions_and_tells_who_is_there(world: World) -> None:
    keeper = Housekeeper(world.sessions, world.responder, world.hub, poll=1.0)
    world.engine.gate.set()
    await world.say("s")
    await soon(world.responder.put("s"))
    await soon(world.responder.settled("s"))
    member = Member(world.hub, Origin.USER)
    await world.hub.enter(member, "s", 2, "here")
    await member.next()
    world.now += world.sessions.ttl + 1
    await keeper.expire()
    assert json.loads((await member.next())[0].frame) == {"type": "state", "state": "TIMEOUT", "desk": "bot"}


async def test_the_housekeepers_jobs_run_by_themselves(world: World) -> None:
    world.sessions.lease = 0.02
    keeper = Housekeeper(world.sessions, world.responder, world.hub, poll=0.01)
    world.engine.gate.set()
    keeper.start()
    try:
        await world.say("s")
        await soon(world.engine.came.acquire())
        await soon(world.responder.settled("s"))
    finally:
        await keeper.close()
    assert await world.texts("s") == ["s c-1", "re: s c-1"]
