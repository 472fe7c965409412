"""The event log: order, bounds, followers."""

from __future__ import annotations

import asyncio
import json
import logging

from hypothesis import given
from hypothesis import strategies as st

from proxy.events import EventLog, encode


def test_events_are_numbered_stamped_and_keep_their_facts():
    log = EventLog(wall=lambda: 1700000000.1234)
    log.emit("state_changed", service="web", before="ready")
    [event] = log.since(0)
    assert event == {
        "seq": 1,
        "at": "2023-11-14T22:13:20.123+00:00",
        "kind": "state_changed",
        "service": "web",
        "before": "ready",
    }


@given(size=st.integers(1, 8), emitted=st.integers(0, 20), seq=st.integers(0, 25))
def test_since_gives_every_event_that_is_left_and_counts_the_others(size, emitted, seq):
    log = EventLog(size=size)
    for number in range(1, emitted + 1):
        log.emit("n", number=number)
    found = log.since(seq)
    lost = [event for event in found if event["kind"] == "lost"]
    numbers = [event["number"] for event in found if event["kind"] == "n"]
    expected = range(1, emitted + 1) if seq > emitted else range(seq + 1, emitted + 1)
    kept = [number for number in expected if number > emitted - size]
    assert numbers == kept
    if seq > emitted or len(kept) == len(expected):
        assert not lost
    else:
        assert found[0] is lost[0]
        assert len(lost) == 1
        assert lost[0]["count"] == len(expected) - len(kept)
        assert lost[0]["seq"] == kept[0] - 1


async def test_those_who_wait_are_woken_by_the_next_event():
    log = EventLog()
    log.emit("old")
    waiters = [asyncio.ensure_future(log.wait(1, 60.0)) for _ in range(3)]
    await asyncio.sleep(0)
    log.emit("new")
    assert await asyncio.gather(*waiters) == [True, True, True]


async def test_waiting_ends_at_once_for_what_has_happened_already():
    log = EventLog()
    log.emit("old")
    assert await log.wait(0, 0.0)


async def test_waiting_in_vain_is_told():
    log = EventLog()
    assert not await log.wait(0, 0.01)


async def test_a_waiter_that_is_cancelled_is_forgotten():
    log = EventLog()
    waiter = asyncio.ensure_future(log.wait(0, 60.0))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    log.emit("later")
    assert not log._waiting


def test_a_fact_that_json_cannot_say_is_said_as_text():
    log = EventLog()
    log.emit("odd", error=ValueError("no"), where={"a": 1})
    event = json.loads(encode(log.since(0)[0]))
    assert (event["error"], event["where"]) == ("no", {"a": 1})


def test_events_are_lines_of_the_process_log(caplog):
    caplog.set_level(logging.INFO, "holdfast.events")
    EventLog().emit("state_changed", service="web", detail="two words\nand a line", count=3)
    assert caplog.messages == ['state_changed service=web detail="two words\\nand a line" count=3']
