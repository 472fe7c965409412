"""The store: one transaction at a time on a session, in whatever process."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from chat.record import Message, Origin, Session
from chat.state import State
from chat.store import Store, StoreError, Unit


@pytest.fixture(params=["file", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store("sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/chat.db")
    await store.open()
    yield store
    await store.close()


def say(text: str, id: str | None = None, *, owed: bool = False):  # type: ignore[no-untyped-def]
    def rule(unit: Unit) -> Message:
        return unit.append(Origin.USER, text, 1.0, client_id=id, owed=owed)

    return rule


async def test_a_session_that_nobody_spoke_in_is_fresh_and_not_stored(store: Store) -> None:
    assert await store.session("s") == Session("s")
    await store.change("s", lambda unit: None)
    assert (await store.session("s")).rev == 0
    assert await store.sessions(10) == []


async def test_messages_are_numbered_from_one_and_read_back(store: Store) -> None:
    rev = 0
    for number in range(5):
        session, message = await store.change("s", say(f"t{number}"))
        assert (session.seq, message.seq) == (number + 1, number + 1)
        assert session.rev > rev
        rev = session.rev
    assert [m.text for m in await store.messages("s", 2, 2)] == ["t2", "t3"]
    assert await store.messages("other", 0, 10) == []
    assert (await store.session("s")).seq == 5


async def test_a_rule_that_raises_leaves_no_trace(store: Store) -> None:
    def rule(unit: Unit) -> None:
        unit.append(Origin.USER, "x", 1.0)
        unit.session = replace(unit.session, state=State.END)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await store.change("s", rule)
    assert (await store.session("s")).rev == 0
    session, _ = await store.change("s", say("after"))
    assert session.seq == 1


async def test_an_id_is_unique_among_the_messages_of_one_origin(store: Store) -> None:
    await store.change("s", say("a", "c-1"))
    _, found = await store.change("s", lambda unit: unit.find(Origin.USER, "c-1"))
    assert found is not None
    assert found.text == "a"
    assert (await store.change("s", lambda unit: unit.find(Origin.AGENT, "c-1")))[1] is None
    assert (await store.change("t", lambda unit: unit.find(Origin.USER, "c-1")))[1] is None
    with pytest.raises(StoreError):
        await store.change("s", say("b", "c-1"))


async def test_only_one_message_can_answer_another(store: Store) -> None:
    await store.change("s", say("question"))
    await store.change("s", lambda unit: unit.append(Origin.BOT, "answer", 1.0, reply_to=1))
    with pytest.raises(StoreError):
        await store.change("s", lambda unit: unit.append(Origin.BOT, "answer", 1.0, reply_to=1))


async def test_debts_are_found_until_they_are_settled_and_not_while_leased(store: Store) -> None:
    await store.change("s", say("q", owed=True))
    assert await store.owed(10.0, 10) == ["s"]

    def lease(unit: Unit) -> None:
        unit.session = replace(unit.session, lease_owner="me", lease_until=12.0)

    await store.change("s", lease)
    assert await store.owed(10.0, 10) == []
    assert await store.owed(12.0, 10) == ["s"]
    await store.renew("somebody else", ["s"], 99.0)
    assert await store.owed(12.0, 10) == ["s"]
    await store.renew("me", ["s"], 99.0)
    assert await store.owed(12.0, 10) == []
    assert (await store.change("s", lambda unit: unit.settle(1)))[1] is True
    assert (await store.change("s", lambda unit: unit.settle(1)))[1] is False
    assert await store.owed(1000.0, 10) == []


async def test_who_waits_longest_is_listed_first(store: Store) -> None:
    for name, active, waiting in [("a", 5.0, None), ("b", 1.0, 4.0), ("c", 2.0, 3.0), ("d", 9.0, None)]:

        def rule(unit: Unit, active: float = active, waiting: float | None = waiting) -> None:
            unit.session = replace(unit.session, active=active, waiting_since=waiting)
            unit.append(Origin.USER, unit.session.id, 1.0)

        await store.change(name, rule)
    found = await store.sessions(10)
    assert [summary.session.id for summary in found] == ["c", "b", "d", "a"]
    assert [summary.last.text for summary in found if summary.last] == ["c", "b", "d", "a"]
    assert len(await store.sessions(2)) == 2


async def test_revisions_of_many_sessions_are_read_at_once(store: Store) -> None:
    await store.change("s", say("x"))
    names = [f"n{number}" for number in range(1200)]
    assert await store.revisions(["s", *names]) == {"s": 2}
    assert await store.revisions([]) == {}


async def test_two_stores_on_one_file_number_without_gaps_or_doubles(tmp_path: Path) -> None:
    stores = [Store(f"sqlite:///{tmp_path}/chat.db") for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    try:
        async with asyncio.TaskGroup() as tasks:
            for number, store in enumerate(stores):
                for turn in range(20):
                    tasks.create_task(store.change("s", say(f"{number}.{turn}", f"c-{number}-{turn}")))
        messages = await stores[0].messages("s", 0, 1000)
        assert [message.seq for message in messages] == list(range(1, 81))
        assert len({message.client_id for message in messages}) == 80
    finally:
        for store in stores:
            await store.close()


async def test_two_processes_number_without_gaps_or_doubles(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from chat.record import Origin
from chat.store import Store
async def main():
    store = Store(sys.argv[1])
    await store.open()
    for turn in range(40):
        rule = lambda unit: unit.find(Origin.USER, f"c-{turn}") or unit.append(
            Origin.USER, sys.argv[2], 1.0, client_id=f"c-{turn}")
        await store.change("s", rule)
        await store.change("s", lambda unit: unit.append(Origin.BOT, sys.argv[2], 1.0))
    await store.close()
asyncio.run(main())
"""
    url = f"sqlite:///{tmp_path}/chat.db"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, url, name, cwd=Path(__file__).parents[2]
        )
        for name in ("a", "b")
    ]
    async with asyncio.timeout(30):
        assert [await process.wait() for process in processes] == [0, 0]
    with sqlite3.connect(tmp_path / "chat.db") as connection:
        rows = connection.execute(
            "select seq, origin, client_id, text from chat_messages order by seq"
        ).fetchall()
    connection.close()
    assert [row[0] for row in rows] == list(range(1, 121))
    assert sorted(row[2] for row in rows if row[1] == "user") == sorted(f"c-{turn}" for turn in range(40))
    assert {row[3] for row in rows} == {"a", "b"}


@pytest.mark.parametrize(
    ("url", "detail"), [("chat.db", "not a store"), ("", "not a store"), ("oracle://x/y", "not known")]
)
def test_a_url_that_is_no_store_is_refused(url: str, detail: str) -> None:
    with pytest.raises(ValueError, match=detail):
        Store(url)


async def test_a_directory_that_does_not_exist_is_an_error_at_once(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/missing/chat.db")
    with pytest.raises(StoreError, match="unable to open"):
        await store.open()
    await store.close()
