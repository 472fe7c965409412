"""The parts of a sidecar's duties: readiness, addresses, one entry in one registry, notices to webhooks."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from config.schema import Notify, NotifyForm, NotifyOn, Register
from discovery.model import Instance, RegistryError, Status, Update
from proxy.sidecar import Sidecar
from proxy.sidecar import seat as seat_module
from proxy.sidecar.address import app_instance, instance_of, machine_address
from proxy.sidecar.entry import Streak, re_enters
from proxy.sidecar.notice import Notice, body, refusal, signed
from proxy.sidecar.seat import Place, Seat
from proxy.sidecar.webhook import Webhook

ME = Instance("shop", "shop-1", "10.0.0.7", 8000, metadata={"version": "v2"})


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


# -- readiness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "changes"),
    [
        ("..++", "--u-"),
        ("+.+.+", "u----"),
        ("+..+...", "u-----d"),
        ("+...++", "u--du-"),
    ],
)
def test_readiness_changes_after_as_many_answers_in_a_row_as_it_takes(answers: str, changes: str) -> None:
    streak = Streak()
    seen = ""
    for answer in answers:
        changed = streak.observe(answer == "+", healthy=1, unhealthy=3)
        seen += ("u" if streak.ready else "d") if changed else "-"
    assert seen == changes


def test_readiness_is_sure_only_while_the_last_answer_agrees() -> None:
    streak = Streak()
    assert not streak.sure
    streak.observe(True, 1, 2)
    assert streak.sure
    streak.observe(False, 1, 2)
    assert (streak.ready, streak.sure) == (True, False)


# -- what others are told ----------------------------------------------------------------------------------


def section(**given: Any) -> Register:
    return Register.model_validate({"service": "shop", "app": "127.0.0.1:8000", **given})


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({"address": "10.0.0.7:9000"}, "10.0.0.7:9000"),
        ({"app": "10.0.0.8:8000"}, "10.0.0.8:8000"),
        ({"app": "shop.internal:8000"}, "shop.internal:8000"),
        ({"app": "unix:/run/shop.sock"}, "unix:/run/shop.sock"),
        ({}, f"{machine_address()}:8000"),
        ({"app": ":8000"}, f"{machine_address()}:8000"),
        ({"address": "0.0.0.0:9000"}, f"{machine_address()}:9000"),
    ],
)
def test_others_are_told_an_address_that_leads_here(given: dict[str, str], address: str) -> None:
    assert instance_of(section(**given)).address == address


def test_an_application_on_all_hosts_is_asked_on_loopback() -> None:
    assert app_instance(section(app=":8000")).address == "127.0.0.1:8000"


def test_weight_version_and_a_name_of_its_own_are_told() -> None:
    told = instance_of(section(weight=7, metadata={"version": "v2"}, address="10.0.0.7:1"))
    assert (told.weight, told.version) == (7, "v2")
    assert re.fullmatch(r"shop-.+-1", told.id)


def test_what_an_entry_can_change_in_its_life_is_no_new_entry() -> None:
    before = section()
    assert not re_enters(before, section(weight=1, metadata={"a": "b"}, settle="9s", ready={"path": "/r"}))
    assert re_enters(before, section(ttl="9s"))


# -- one entry in one registry -----------------------------------------------------------------------------


class Book:
    """A registry: a registrar and a watcher of what it holds."""

    kind = "book"
    interval = 0.01

    def __init__(self) -> None:
        self.held: Instance | None = None
        self.shows = True
        self.wrong: Exception | None = None
        self.unreadable = False

    async def register(self, instance: Instance) -> None:
        if self.wrong is not None:
            raise self.wrong
        self.held = instance

    async def beat(self, instance: Instance) -> bool:
        if self.wrong is not None:
            raise self.wrong
        return self.held == instance

    async def deregister(self, instance: Instance) -> None:
        if self.wrong is not None:
            raise self.wrong
        self.held = None

    async def close(self) -> None:
        pass

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        while True:
            if self.unreadable:
                raise RegistryError("unreadable")
            held = (self.held,) if self.held is not None and self.shows else ()
            yield Update("shop", held, 0.0, "book")
            await asyncio.sleep(0.005)


class Taken:
    """A seat in a book, and the events of it."""

    def __init__(self) -> None:
        self.book = Book()
        self.events: list[tuple[str, dict[str, object]]] = []
        place = Place("book", "0-book", lambda *, ttl, check: self.book, lambda: self.book)
        self.seat = Seat(place, lambda kind, **facts: self.events.append((kind, facts)), lambda: None)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


@pytest.fixture
async def taken() -> AsyncIterator[Taken]:
    made = Taken()
    yield made
    await made.seat.leave(0.1)


async def test_an_entry_counts_once_the_registry_shows_it(taken: Taken) -> None:
    taken.book.shows = False
    taken.seat.join(ME, 1.0, None)
    await until(lambda: taken.seat.registered)
    assert (taken.seat.confirmed, taken.seat.settled, taken.kinds) == (False, False, [])
    taken.book.shows = True
    await until(lambda: taken.seat.confirmed)
    assert taken.kinds == ["registered"]
    assert taken.seat.settled
    assert await taken.seat.leave()
    assert taken.book.held is None
    assert taken.events[-1] == (
        "deregistered",
        {"service": "shop", "instance": "shop-1", "registry": "0-book", "told": True},
    )


async def test_a_registry_that_cannot_be_read_is_asked_again(taken: Taken) -> None:
    taken.book.unreadable = True
    taken.seat.join(ME, 1.0, None)
    await until(lambda: taken.seat.registered)
    taken.book.unreadable = False
    await until(lambda: taken.seat.confirmed)


async def test_a_registry_that_takes_an_entry_and_never_shows_it_holds_nobody_up(
    taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seat_module, "CONFIRM_TIME", 0.5)
    taken.book.shows = False
    taken.seat.join(ME, 1.0, None)
    await until(lambda: taken.seat.settled)
    assert taken.kinds == ["entry_not_shown"]
    assert not taken.seat.confirmed


async def test_a_registry_that_is_away_is_told_of_once_and_holds_nobody_up(taken: Taken) -> None:
    taken.book.wrong = OSError("away")
    taken.seat.join(ME, 1.0, None)
    await until(lambda: taken.seat.settled)
    assert taken.events == [
        (
            "register_failed",
            {"service": "shop", "instance": "shop-1", "registry": "0-book", "reason": "away"},
        )
    ]
    assert not taken.seat.known
    taken.book.wrong = None
    await until(lambda: taken.seat.confirmed)
    assert taken.kinds == ["register_failed", "registered"]
    taken.book.wrong = OSError("away")
    await until(lambda: taken.kinds.count("register_failed") == 2)
    assert taken.seat.known
    assert taken.seat.beats_failed == 1
    taken.book.wrong = None
    await until(lambda: taken.kinds[-1] == "registered_again")
    taken.book.wrong = OSError("away")
    await until(lambda: taken.seat.beats_failed == 2)
    assert not await taken.seat.leave(0.1)
    assert taken.seat.beats_failed == 2


async def test_a_mark_is_told_and_taken_back(taken: Taken) -> None:
    taken.seat.join(ME, 1.0, None)
    await until(lambda: taken.seat.confirmed)
    await taken.seat.mark(Status.DRAINING)
    assert taken.book.held == replace(ME, status=Status.DRAINING)
    await taken.seat.renew()
    assert taken.book.held == replace(ME, status=Status.DRAINING)
    await taken.seat.mark(Status.UP)
    assert taken.book.held == ME


async def test_what_is_released_stays(taken: Taken) -> None:
    taken.seat.join(ME, 1.0, None)
    await until(lambda: taken.seat.confirmed)
    await taken.seat.release()
    assert taken.book.held == ME
    assert await taken.seat.leave()
    assert taken.book.held == ME


async def test_half_a_deregistration_is_none(taken: Taken) -> None:
    taken.seat.join(ME, 1.0, None)
    await until(lambda: taken.seat.confirmed)
    leaving = asyncio.create_task(taken.seat.leave())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert await taken.seat.leave()
    assert taken.book.held is None


# -- all entries of a process ------------------------------------------------------------------------------


class Pod:
    """A book, an application in this loop, and processes beside it one after the other."""

    def __init__(self, app: str) -> None:
        self.book = Book()
        self.app = app
        self.events: list[str] = []

    def section(self, **given: Any) -> Register:
        return section(
            app=self.app, address="10.0.0.7:1", ready={"path": "none", "interval": "50ms"}, **given
        )

    def process(self) -> Sidecar:
        place = Place("consul", "0-consul", lambda *, ttl, check: self.book, lambda: self.book)
        return Sidecar([place], lambda kind, **facts: self.events.append(kind))


def up(process: Sidecar) -> bool:
    """Whether everything that it enters is shown."""
    return all(entry.up for entry in process.entries)


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    async with TestServer(web.Application()) as server:
        yield Pod(f"127.0.0.1:{server.port}")


async def test_a_process_takes_over_what_another_has_entered_before_that_one_lets_go(pod: Pod) -> None:
    old, new = pod.process(), pod.process()
    await old.start([pod.section(id="a")])
    await until(lambda: up(old))
    pod.book.held = None
    await new.start([pod.section(id="a")], old.save())
    assert pod.book.held is not None, "it was said again before start returned"
    assert not new.unready(), "it was up, and is"
    await old.release(new.keys)
    assert pod.book.held is not None
    await old.close()
    assert "deregistered" not in pod.events
    assert pod.book.held is not None
    await new.leave(5.0)
    assert pod.book.held is None
    assert new.unready() == ["it is leaving its registries"]
    await new.close()


async def test_what_the_next_process_does_not_keep_is_taken_out(pod: Pod) -> None:
    old = pod.process()
    await old.start([pod.section(id="a")])
    await until(lambda: up(old))
    await old.release([])
    assert pod.book.held is None
    await old.close()


async def test_an_entry_is_said_again_when_the_next_process_failed(pod: Pod) -> None:
    old = pod.process()
    await old.start([pod.section(id="a")])
    await until(lambda: up(old))
    pod.book.held = None
    await old.renew()
    assert pod.book.held is not None
    await old.close()
    assert pod.book.held is None


async def test_what_a_failed_process_entered_after_the_end_is_taken_out(pod: Pod) -> None:
    old, new = pod.process(), pod.process()
    await old.start([pod.section(id="a", settle="0s")])
    await until(lambda: up(old))
    saved = old.save()
    await old.leave(5.0)
    await new.start([pod.section(id="a")], saved)
    assert pod.book.held is not None
    await new.release([("shop", "a")])  # as if it had been killed
    await new.close()
    await old.renew()
    assert pod.book.held is None
    pod.book.wrong = RegistryError("away")
    await old.renew()
    await old.close()


async def test_an_application_that_goes_is_marked_or_taken_out(pod: Pod) -> None:
    async with TestServer(web.Application()) as server:
        app = f"127.0.0.1:{server.port}"
        one = pod.process()
        ready = {"path": "none", "interval": "20ms", "unhealthy": 2}
        await one.start([section(app=app, address="10.0.0.7:1", ready=ready, unready="drain")])
        await until(lambda: not one.unready())
    await until(lambda: pod.book.held is not None and pod.book.held.status is Status.DRAINING)
    assert "deregistered" not in pod.events
    assert one.unready()[0].startswith("the application of shop is not ready: ConnectionRefusedError")
    again = TestServer(web.Application(), port=int(app.rpartition(":")[2]))
    async with again:
        await until(lambda: pod.book.held is not None and pod.book.held.status is Status.UP)
        assert not one.unready()
    await one.close()


async def test_everything_is_left_within_its_time_and_once(pod: Pod) -> None:
    one = pod.process()
    await one.start([pod.section(id="a", settle="30s")])
    await until(lambda: up(one))
    async with asyncio.timeout(3):
        await asyncio.gather(one.leave(0.3), one.leave(0.3))
    assert pod.events.count("leaving") == pod.events.count("deregistered") == 1
    await one.close()


async def test_nobody_settles_for_what_was_never_entered(pod: Pod) -> None:
    pod.book.wrong = OSError("away")
    one = pod.process()
    await one.start([pod.section(id="a", settle="30s")])
    await until(lambda: not one.unready())
    async with asyncio.timeout(3):
        await one.leave(30.0)
    await one.close()


async def test_without_a_registry_it_answers_for_the_application(pod: Pod) -> None:
    heard: list[str] = []
    one = Sidecar([], lambda kind, **facts: heard.append(kind))
    await one.start([pod.section(id="a", settle="200ms")])
    assert one.unready() == ["the application of shop is not ready: it was not asked yet"]
    await until(lambda: up(one))
    assert one.unready() == []
    began = asyncio.get_running_loop().time()
    await one.leave(5.0)
    assert asyncio.get_running_loop().time() - began > 0.19, "whoever saw it ready still comes"
    assert heard == ["app_ready", "leaving"]
    await one.close()


async def test_sections_are_changed_in_place_or_entered_anew(pod: Pod) -> None:
    one = pod.process()
    await one.start([pod.section(id="a")])
    await until(lambda: up(one))
    one.configure([pod.section(id="a", weight=7)])
    await until(lambda: pod.book.held is not None and pod.book.held.weight == 7)
    assert "deregistered" not in pod.events
    one.configure([pod.section(id="a", ttl="9s")])
    await until(lambda: pod.events.count("registered") == 2)
    one.configure([])
    await until(lambda: pod.book.held is None)
    await until(lambda: one.keys == [])
    await one.close()


# -- notices -----------------------------------------------------------------------------------------------

UP = Notice(NotifyOn.UP, ME, ("0-consul",), "", "2026-01-01T00:00:00.000+00:00")
DOWN = Notice(NotifyOn.DOWN, ME, ("0-consul",), "status 503 <&>", "2026-01-01T00:00:01.000+00:00")


def test_each_receiver_is_told_in_its_own_form() -> None:
    assert json.loads(body(UP, NotifyForm.JSON)) == {
        "event": "up",
        "service": "shop",
        "instance": "shop-1",
        "address": "10.0.0.7:8000",
        "version": "v2",
        "metadata": {"version": "v2"},
        "registries": ["0-consul"],
        "reason": "",
        "at": "2026-01-01T00:00:00.000+00:00",
    }
    assert json.loads(body(UP, NotifyForm.DINGTALK)) == {
        "msgtype": "text",
        "text": {"content": "holdfast: shop shop-1 (10.0.0.7:8000, version v2) is up in 0-consul"},
    }
    assert json.loads(body(DOWN, NotifyForm.SLACK)) == {
        "text": "holdfast: shop shop-1 (10.0.0.7:8000, version v2) is down: status 503 &lt;&amp;&gt;"
    }


def test_a_signature_is_dingtalks() -> None:
    # HMAC-SHA256 of "1600000000000\nSEC" under the key SEC, as the manual says; computed by openssl.
    url = signed("https://d/robot/send?access_token=T", "SEC", 1_600_000_000.0)
    head, _, sign = url.partition("&sign=")
    assert head == "https://d/robot/send?access_token=T&timestamp=1600000000000"
    assert sign == "C72kx4c0NUGpRzKRqG%2FYBFvxO6ddH42i13qMig%2BaiB8%3D"


@pytest.mark.parametrize(
    ("status", "answer", "form", "said"),
    [
        (204, b"", NotifyForm.JSON, ""),
        (200, b"ok", NotifyForm.SLACK, ""),
        (429, b"", NotifyForm.SLACK, "status 429"),
        (302, b"", NotifyForm.JSON, "status 302"),
        (200, b'{"errcode": 0, "errmsg": "ok"}', NotifyForm.DINGTALK, ""),
        (200, b'{"errcode": 310000}', NotifyForm.DINGTALK, "errcode 310000"),
        (200, b"<html>", NotifyForm.DINGTALK, "the answer is not DingTalk's"),
    ],
)
def test_who_has_not_taken_it_is_known_by_the_answer(
    status: int, answer: bytes, form: NotifyForm, said: str
) -> None:
    assert refusal(status, answer, form) == said


class Receiver:
    """A webhook's double: answers with the next of `statuses`, then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.heard: list[tuple[str, Any]] = []
        self.silent = False

    async def answer(self, request: web.Request) -> web.Response:
        self.heard.append((request.path_qs, await request.json()))
        if self.silent:
            await asyncio.Event().wait()
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"})


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", made.answer)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(app))
        yield made, f"{server.make_url('/hook')}?access_token=s3cr3t"


async def at_once(seconds: float) -> None:
    """No time passes between attempts."""
    await asyncio.sleep(0)


def webhook(url: str, **given: Any) -> Webhook:
    return Webhook(Notify.model_validate({"url": url, **given}), sleep=at_once)


async def test_notices_arrive_in_order_and_only_those_that_are_wanted(receiver: tuple[Receiver, str]) -> None:
    made, url = receiver
    both, ups = webhook(url), webhook(url, on="up", form="slack")
    for hook in (both, ups):
        hook.post(UP)
        hook.post(DOWN)
    await both.close(5.0)
    await ups.close(5.0)
    events = [heard.get("event", "slack") for _, heard in made.heard]
    assert sorted(events) == ["down", "slack", "up"]
    assert events.index("up") < events.index("down")
    assert (both.sent, ups.sent, both.lost) == (2, 1, 0)
    assert made.heard[0][0] == "/hook?access_token=s3cr3t"


async def test_a_receiver_that_fails_is_asked_again_a_few_times(
    receiver: tuple[Receiver, str], caplog: pytest.LogCaptureFixture
) -> None:
    made, url = receiver
    made.statuses = [500, 302, 503]
    hook = webhook(url)
    hook.post(UP)
    await until(lambda: hook.sent == 1)
    made.statuses = [500] * 5
    hook.post(DOWN)
    await until(lambda: hook.lost == 1)
    assert len(made.heard) == 4 + 5
    assert {path for path, _ in made.heard} == {"/hook?access_token=s3cr3t"}, "a redirect was followed"
    assert "127.0.0.1 could not be told that shop-1 is down: status 500" in caplog.text
    assert "s3cr3t" not in caplog.text


async def test_what_comes_while_the_connection_is_being_closed_is_sent_too(
    receiver: tuple[Receiver, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = receiver
    closing, close = asyncio.Event(), asyncio.Event()
    really = aiohttp.ClientSession.close

    async def closed(session: aiohttp.ClientSession) -> None:
        closing.set()
        await close.wait()
        await really(session)

    monkeypatch.setattr(aiohttp.ClientSession, "close", closed)
    hook = webhook(url)
    hook.post(UP)
    await closing.wait()
    hook.post(DOWN)
    close.set()
    await until(lambda: hook.sent == 2)
    await hook.close(5.0)


async def test_a_receiver_that_is_away_or_silent_holds_nobody_up(
    receiver: tuple[Receiver, str], unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made, url = receiver
    made.silent = True
    away, silent = webhook(f"http://127.0.0.1:{unused_tcp_port}/s3cr3t"), webhook(url)
    away.post(UP)
    silent.post(UP)
    await until(lambda: away.lost == 1 and made.heard)
    async with asyncio.timeout(4):
        await silent.close(0.05)
    assert silent.lost == 1
    assert "s3cr3t" not in caplog.text


async def test_notices_do_not_pile_up_for_a_silent_receiver(receiver: tuple[Receiver, str]) -> None:
    made, url = receiver
    made.silent = True
    hook = webhook(url)
    for _ in range(100):
        hook.post(UP)
    await until(lambda: made.heard)
    await hook.close(0.0)
    assert hook.lost == 100


async def test_a_robot_that_wants_signatures_gets_them(receiver: tuple[Receiver, str]) -> None:
    made, url = receiver
    hook = webhook(url, form="dingtalk", secret="SEC")
    hook.post(UP)
    await until(lambda: hook.lost == 1 or made.heard)
    await hook.close(1.0)
    assert re.search(r"access_token=s3cr3t&timestamp=\d{13}&sign=[A-Za-z0-9%]+$", made.heard[0][0])
