"""Fan-out: every member gets the session in order, at its own pace, whoever stored it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chat.bus import Kind, LocalBus, Notice
from chat.hub import BATCH, OUTBOX, TAIL, Due, Hub, Leaving, Member
from chat.message import Position
from chat.record import Change, Origin
from chat.session import Sessions
from chat.store import Store


@dataclass
class World:
    """A hub, and operations that publish to it or, as another process would, do not."""

    store: Store
    hub: Hub
    sessions: Sessions
    said: int = 0

    async def say(self, *, publish: bool = True, session: str = "s") -> Change:
        self.said += 1
        stored = await self.sessions.receive(session, f"c-{self.said}", f"t{self.said}")
        assert stored.change is not None
        if publish:
            self.hub.publish(stored.change)
        return stored.change

    async def enter(self, after: int = 0, session: str = "s") -> Member:
        member = Member(self.hub, Origin.USER)
        await self.hub.enter(member, session, after, "here")
        return member


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = Store(f"sqlite:///{tmp_path}/chat.db")
    await store.open()
    hub = Hub(store, LocalBus())
    yield World(store, hub, Sessions(store, "me", lambda: 1000.0))
    await hub.close()
    await store.close()


async def drain(member: Member) -> list[dict[str, object]]:
    """Everything that is due to a member, which then leaves."""
    member.leave(Leaving.FLUSH)
    frames: list[dict[str, object]] = []
    while batch := await member.next():
        frames += (json.loads(due.frame) for due in batch)
    return frames


def seqs(frames: list[dict[str, object]]) -> list[object]:
    return [frame["seq"] for frame in frames if frame["type"] == "message"]


async def test_who_enters_late_gets_history_then_live_without_gap_or_double(world: World) -> None:
    for _ in range(3):
        await world.say()
    member = await world.enter(after=1)
    await world.say()
    frames = await drain(member)
    assert frames[0]["type"] == "welcome"
    assert frames[0]["seq"] == 3
    assert seqs(frames) == [2, 3, 4]


async def test_a_history_longer_than_tail_and_batch_comes_whole(world: World) -> None:
    total = BATCH + TAIL + 10
    for _ in range(total):
        await world.say(publish=False)
    member = await world.enter()
    await world.say()
    assert seqs(await drain(member)) == list(range(1, total + 2))


async def test_what_another_process_stored_comes_with_its_notice(world: World) -> None:
    member = await world.enter()
    await world.say(publish=False)
    await world.say(publish=False)
    world.hub.notice(Notice("s", Kind.CHANGED))
    assert json.loads((await member.next())[0].frame)["type"] == "welcome"
    async with asyncio.timeout(5):
        assert [json.loads(due.frame)["seq"] for due in await member.next()] == [1, 2]


async def test_what_no_notice_told_is_found_by_looking(world: World) -> None:
    member = await world.enter()
    await member.next()
    await world.say(publish=False)
    await world.hub.catch_up()
    async with asyncio.timeout(5):
        assert [json.loads(due.frame)["seq"] for due in await member.next()] == [1]


async def test_changes_published_out_of_order_are_delivered_in_order(world: World) -> None:
    member = await world.enter()
    changes = [await world.say(publish=False) for _ in range(4)]
    for index in (2, 0, 3, 1):
        world.hub.publish(changes[index])
    assert seqs(await drain(member)) == [1, 2, 3, 4]


async def test_an_ack_comes_after_all_earlier_messages_and_before_its_own(world: World) -> None:
    member = await world.enter()
    await world.say(publish=False)
    change = await world.say(publish=False)
    member.push('{"type":"ack"}', after=change.messages[0].seq - 1)
    world.hub.publish(change)
    frames = await drain(member)
    assert [frame.get("seq", frame["type"]) for frame in frames[1:4]] == [1, "ack", 2]


async def test_a_state_is_told_once_and_an_older_one_never(world: World) -> None:
    member = await world.enter()
    first = await world.say(publish=False)
    claim = await world.sessions.claim("s")
    assert claim is not None
    last = await world.sessions.answer(claim, "reply", fitting=True)
    assert last is not None
    world.hub.publish(last)
    world.hub.publish(first)
    world.hub.publish(last)
    frames = await drain(member)
    assert [frame["state"] for frame in frames if frame["type"] == "state"] == ["REPLY_OK"]
    assert seqs(frames) == [1, 2]


async def test_a_client_that_does_not_read_is_given_up_and_hurts_nobody(world: World) -> None:
    slow, quick = await world.enter(), await world.enter()
    got: list[Due] = []
    for _ in range(OUTBOX + 1):
        world.hub.typing("s", Origin.AGENT)
        got += await quick.next()
    assert slow.leaving is Leaving.SLOW
    assert await slow.next() == []
    assert quick.leaving is Leaving.NO
    assert len(got) >= OUTBOX


async def test_a_client_with_much_in_its_outbox_is_not_read_from(world: World) -> None:
    member = await world.enter()
    for _ in range(OUTBOX // 2):
        member.push("{}")
    waiting = asyncio.ensure_future(member.space())
    await asyncio.sleep(0)
    assert not waiting.done()
    for _ in range(3):
        await member.next()
    async with asyncio.timeout(5):
        await waiting


async def test_typing_is_shown_to_the_other_side_only(world: World) -> None:
    user = await world.enter()
    agent = Member(world.hub, Origin.AGENT)
    await world.hub.enter(agent, "s", 0, "here")
    world.hub.typing("s", Origin.USER)
    world.hub.notice(Notice("s", Kind.TYPING, Origin.AGENT))
    assert [f for f in await drain(user) if f["type"] == "typing"] == [{"type": "typing", "from": "agent"}]
    assert [f for f in await drain(agent) if f["type"] == "typing"] == [{"type": "typing", "from": "user"}]


async def test_an_agent_who_changes_sessions_gets_the_new_one_from_its_beginning(world: World) -> None:
    await world.say(session="a")
    await world.say(session="b")
    await world.say(session="b")
    member = await world.enter(session="a")
    await world.hub.enter(member, "b", 0, "here")
    await world.say(session="a")
    frames = await drain(member)
    welcomes = [frame["session"] for frame in frames if frame["type"] == "welcome"]
    assert welcomes == ["a", "b"]
    start = max(index for index, frame in enumerate(frames) if frame["type"] == "welcome")
    assert [frame["text"] for frame in frames[start:] if frame["type"] == "message"] == ["t2", "t3"]


async def test_each_frame_says_how_far_its_client_is_once_it_has_it(world: World) -> None:
    member = await world.enter()
    change = await world.say(publish=False)
    member.push('{"type":"ack"}', after=change.messages[0].seq - 1, taken=1)
    world.hub.publish(change)
    member.note(1)
    member.note(2)
    member.note(3)
    assert await reached(member) == [
        ("welcome", "s", 0, 0),
        ("ack", "s", 0, 1),
        ("message", "s", 1, 1),
        ("state", "s", 1, 1),
        ("", "s", 1, 3),
    ]


@pytest.mark.parametrize("session", ["a", "b"])
async def test_a_session_and_the_frame_that_asked_for_it_change_in_the_same_moment(
    world: World, session: str
) -> None:
    for name in ("a", "b", "b"):
        await world.say(session=name)
    member = await world.enter(session="a")
    assert [due.position for due in (*await member.next(), *await member.next())][-1] == Position("a", 1)
    member.push('{"type":"ack"}', after=1, taken=1)
    await world.hub.enter(member, session, 0, "here", taken=2)
    count = 1 if session == "a" else 2
    assert await reached(member) == [
        ("ack", "a", 1, 1),
        ("welcome", session, 0, 2),
        *(("message", session, seq, 2) for seq in range(1, count + 1)),
    ]


async def test_who_has_left_every_session_has_no_position(world: World) -> None:
    member = await world.enter()
    world.hub.exit(member)
    member.push('{"type":"left"}', taken=1)
    member.leave(Leaving.FLUSH)
    assert [due.position for due in (*await member.next(), *await member.next())] == [None, None]


async def reached(member: Member) -> list[tuple[str, str, int, int]]:
    """Everything that is due to a member: types, and session, number and frames taken that hold with each."""
    member.leave(Leaving.FLUSH)
    found = []
    while batch := await member.next():
        for due in batch:
            kind = json.loads(due.frame)["type"] if due.frame else ""
            assert due.position is not None
            found.append((kind, due.position.session, due.position.seq, due.taken))
    return found


async def test_a_position_beyond_the_end_counts_as_the_end(world: World) -> None:
    await world.say()
    member = await world.enter(after=77)
    await world.say()
    assert seqs(await drain(member)) == [2]


async def test_a_room_is_forgotten_when_the_last_member_leaves(world: World) -> None:
    one, two = await world.enter(), await world.enter()
    assert world.hub.sessions == 1
    world.hub.exit(one)
    assert world.hub.sessions == 1
    world.hub.exit(two)
    world.hub.exit(two)
    assert world.hub.sessions == 0
