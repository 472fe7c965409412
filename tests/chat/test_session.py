"""The rules of a session, on a real store and with a clock in the hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chat.record import Desk, Message, Origin
from chat.session import CALLED, HANDED_BACK, JOINED, SessionEnded, Sessions
from chat.state import State
from chat.store import Store


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Two processes on one store."""

    store: Store
    clock: Clock
    one: Sessions
    two: Sessions

    async def texts(self) -> list[tuple[str, str]]:
        return [(str(m.origin), m.text) for m in await self.store.messages("s", 0, 100)]

    async def state(self) -> State:
        return (await self.store.session("s")).state


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store, clock = Store(f"sqlite:///{tmp_path}/chat.db"), Clock()
    await store.open()
    yield World(store, clock, Sessions(store, "one", clock), Sessions(store, "two", clock))
    await store.close()


async def test_a_message_is_stored_and_answered_once(world: World) -> None:
    stored = await world.one.receive("s", "c-1", "question")
    assert stored.change is not None
    assert stored.change.session.state is State.AWAIT_NLP
    claim = await world.one.claim("s")
    assert claim is not None
    assert claim.message.text == "question"
    change = await world.one.answer(claim, "reply", fitting=True)
    assert change is not None
    assert change.session.state is State.REPLY_OK
    assert change.messages[0].reply_to == 1
    assert await world.one.claim("s") is None
    assert await world.one.answer(claim, "reply", fitting=True) is None
    assert await world.texts() == [("user", "question"), ("bot", "reply")]


async def test_a_duplicate_on_another_instance_changes_nothing_and_has_the_same_seq(world: World) -> None:
    first = await world.one.receive("s", "c-1", "question")
    again = await world.two.receive("s", "c-1", "question, edited")
    assert again.change is None
    assert again.message == first.message
    assert len(await world.texts()) == 1


async def test_a_default_reply_asks_for_new_input(world: World) -> None:
    await world.one.receive("s", "c-1", "gibberish")
    claim = await world.one.claim("s")
    assert claim is not None
    change = await world.one.answer(claim, "sorry", fitting=False)
    assert change is not None
    assert change.session.state is State.AWAIT_INPUT


async def test_only_one_instance_may_answer_and_the_lease_of_a_dead_one_runs_out(world: World) -> None:
    await world.one.receive("s", "c-1", "question")
    dead = await world.one.claim("s")
    assert dead is not None
    assert await world.two.claim("s") is None
    world.clock.now += world.one.lease
    claim = await world.two.claim("s")
    assert claim is not None
    # The first was not dead but slow: its answer comes too late.
    assert await world.one.answer(dead, "from one", fitting=True) is None
    assert await world.two.answer(claim, "from two", fitting=True) is not None
    assert await world.texts() == [("user", "question"), ("bot", "from two")]


async def test_a_renewed_lease_holds(world: World) -> None:
    await world.one.receive("s", "c-1", "question")
    assert await world.one.claim("s") is not None
    await world.store.renew("one", ["s"], world.clock.now + 100)
    world.clock.now += 50
    assert await world.two.claim("s") is None


async def test_two_messages_in_a_row_get_two_answers_in_order(world: World) -> None:
    await world.one.receive("s", "c-1", "first")
    await world.two.receive("s", "c-2", "second")
    claim = await world.one.claim("s")
    assert claim is not None
    change = await world.one.answer(claim, "to first", fitting=True)
    assert change is not None
    assert change.session.state is State.AWAIT_NLP
    claim = await world.two.claim("s")
    assert claim is not None
    assert [m.text for m in claim.history] == ["first"]
    change = await world.two.answer(claim, "to second", fitting=True)
    assert change is not None
    assert change.session.state is State.REPLY_OK
    replies = [m.reply_to for m in await world.store.messages("s", 0, 9) if m.origin is Origin.BOT]
    assert replies == [1, 2]


async def test_an_agent_who_joins_takes_the_debt_over(world: World) -> None:
    await world.one.receive("s", "c-1", "question")
    claim = await world.one.claim("s")
    assert claim is not None
    change = await world.two.join("s")
    assert change is not None
    assert change.session.desk is Desk.AGENT
    assert change.session.state is State.AWAIT_NLP
    assert await world.one.answer(claim, "too late", fitting=True) is None
    stored = await world.two.speak("s", "a-1", "human words")
    assert stored.change is not None
    assert stored.change.session.state is State.REPLY_OK
    assert await world.texts() == [("user", "question"), ("bot", JOINED), ("agent", "human words")]
    assert await world.one.join("s") is None


async def test_while_an_agent_serves_the_engine_owes_nothing(world: World) -> None:
    await world.one.join("s")
    await world.one.receive("s", "c-1", "question")
    assert await world.one.claim("s") is None
    assert (await world.store.session("s")).waiting_since == world.clock.now


async def test_an_agent_may_use_the_ids_a_user_uses(world: World) -> None:
    await world.one.receive("s", "1", "question")
    stored = await world.one.speak("s", "1", "answer")
    assert stored.change is not None
    assert [m.origin for m in stored.change.messages] == [Origin.BOT, Origin.AGENT]
    assert (await world.one.speak("s", "1", "answer")).change is None


async def test_what_an_agent_left_unanswered_is_answered_by_the_engine(world: World) -> None:
    await world.one.join("s")
    await world.one.receive("s", "c-1", "question")
    change = await world.one.hand_back("s")
    assert change is not None
    assert change.messages[0].text == HANDED_BACK
    claim = await world.one.claim("s")
    assert claim is not None
    assert claim.message.text == "question"
    assert await world.one.hand_back("s") is None


async def test_a_message_the_engine_has_answered_is_not_owed_again_after_a_hand_back(world: World) -> None:
    await world.one.receive("s", "c-1", "question")
    claim = await world.one.claim("s")
    assert claim is not None
    await world.one.answer(claim, "reply", fitting=True)
    await world.one.join("s")
    await world.one.hand_back("s")
    assert await world.one.claim("s") is None


async def test_calling_an_agent_is_told_once_and_the_engine_goes_on(world: World) -> None:
    change = await world.one.call_agent("s")
    assert change is not None
    assert (change.session.desk, change.session.waiting_since) == (Desk.WAITING, world.clock.now)
    assert change.messages[0].text == CALLED
    assert await world.two.call_agent("s") is None
    await world.one.receive("s", "c-1", "question")
    assert await world.one.claim("s") is not None


async def test_after_the_end_nothing_new_is_taken_but_what_was_asked_is_answered(world: World) -> None:
    await world.one.receive("s", "c-1", "question")
    claim = await world.one.claim("s")
    assert claim is not None
    change = await world.one.end("s")
    assert change is not None
    assert change.session.state is State.END
    assert await world.one.end("s") is None
    with pytest.raises(SessionEnded):
        await world.one.receive("s", "c-2", "more")
    with pytest.raises(SessionEnded):
        await world.one.speak("s", "a-1", "more")
    with pytest.raises(SessionEnded):
        await world.one.join("s")
    with pytest.raises(SessionEnded):
        await world.one.call_agent("s")
    assert (await world.one.receive("s", "c-1", "question")).change is None
    assert await world.one.answer(claim, "reply", fitting=True) is not None
    assert await world.texts() == [("user", "question"), ("bot", "reply")]
    assert await world.state() is State.END


async def test_an_idle_session_times_out_once_and_takes_up_again(world: World) -> None:
    await world.one.receive("s", "c-1", "question")
    claim = await world.one.claim("s")
    assert claim is not None
    await world.one.answer(claim, "reply", fitting=True)
    world.clock.now += world.one.ttl - 1
    assert await world.one.time_out("s") is None
    assert await world.store.idle(world.clock.now - world.one.ttl, 10) == []
    world.clock.now += 2
    assert await world.store.idle(world.clock.now - world.one.ttl, 10) == ["s"]
    change = await world.one.time_out("s")
    assert change is not None
    assert change.session.state is State.TIMEOUT
    assert await world.two.time_out("s") is None
    assert await world.store.idle(world.clock.now - world.one.ttl, 10) == []
    await world.one.receive("s", "c-2", "again")
    claim = await world.one.claim("s")
    assert claim is not None
    assert claim.history == ()
    assert await world.one.time_out("unknown") is None


async def test_a_session_in_which_an_answer_is_owed_is_not_idle(world: World) -> None:
    await world.one.receive("s", "c-1", "question")
    world.clock.now += 10 * world.one.ttl
    assert await world.store.idle(world.clock.now - world.one.ttl, 10) == []
    assert await world.store.owed(world.clock.now, 10) == ["s"]


async def test_the_history_is_what_was_said_within_the_time_to_live(world: World) -> None:
    await world.one.receive("s", "c-1", "long ago")
    world.clock.now += world.one.ttl + 1
    await world.one.receive("s", "c-2", "just now")
    claim = await world.one.claim("s")
    assert claim is not None
    assert claim.message.text == "long ago"
    await world.one.answer(claim, "x", fitting=True)
    claim = await world.one.claim("s")
    assert claim is not None
    assert all(isinstance(message, Message) and message.text != "long ago" for message in claim.history)
