"""The DNS watcher against a name server that says what a test wants."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from config.registries import DnsRegistry
from config.units import Address
from discovery.build import make_watcher
from discovery.dns import DnsWatcher
from discovery.dns_resolver import Resolver
from discovery.model import Instance, RegistryError, Update
from tests.discovery.conftest import until
from tests.discovery.support_dns import REFUSED, SERVFAIL, NameServer, Record

CHAT = frozenset({"chat"})
NAME = "chat.svc.test"


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    async with NameServer().open() as server:
        yield server


def watcher(at: NameServer, **facts: Any) -> DnsWatcher:
    section = {"server": at.address, "domain": "svc.test", "ttl_min": 0.05, "ttl_max": 0.05, **facts}
    return DnsWatcher(DnsRegistry.model_validate({"kind": "dns", **section}))


async def following(stream: AsyncIterator[Update]) -> Update:
    return await asyncio.wait_for(anext(stream), 10)


async def first(at: NameServer, **facts: Any) -> tuple[Instance, ...] | None:
    async with aclosing(watcher(at, **facts).watch(CHAT)) as stream:
        return (await following(stream)).instances


async def until_ids(stream: AsyncIterator[Update], wanted: list[str] | None) -> None:
    async with asyncio.timeout(10):
        async for update in stream:
            found = None if update.instances is None else [i.id for i in update.instances]
            if found == wanted:
                return


def resolver_of(server: NameServer, **facts: float) -> Resolver:
    return Resolver((Address.parse(server.address),), **facts)


def srv(data: str, ttl: int = 60) -> Record:
    return Record(NAME, "SRV", data, ttl)


# -- what records mean ------------------------------------------------------------------------------------


async def test_a_target_is_an_instance_at_the_address_that_came_along(server: NameServer) -> None:
    server.records = [srv("1 50 8080 A.test."), srv("1 7 8081 b.test.")]
    server.additional = [
        Record("a.test", "A", "10.0.0.2"),
        Record("a.TEST", "A", "10.0.0.1"),
        Record("b.test", "A", "10.0.0.3"),
        Record("b.test", "AAAA", "fd00::3"),
    ]
    assert await first(server) == (
        Instance("chat", "a.test:8080", "10.0.0.1", 8080, weight=50),
        Instance("chat", "b.test:8081", "10.0.0.3", 8081, weight=7),
    )
    assert [kind for _, _, kind in server.asked] == ["SRV"]


async def test_targets_without_an_address_along_are_asked_for(server: NameServer) -> None:
    server.records = [
        *(srv(f"1 1 80 {target}") for target in ("v4.test", "v6.test", "both.test", "none.test", "10.0.0.9")),
        Record("v4.test", "A", "10.0.0.1"),
        Record("v6.test", "AAAA", "fd00::1"),
        Record("both.test", "AAAA", "fd00::2"),
        Record("both.test", "A", "10.0.0.2"),
        Record("none.test", "TXT", "x"),
    ]
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        update = await following(stream)
    assert update.refused == ("none.test:80: no address",)
    assert {i.id: i.address for i in update.instances or ()} == {
        "v4.test:80": "10.0.0.1:80",
        "v6.test:80": "[fd00::1]:80",
        "both.test:80": "10.0.0.2:80",
        "10.0.0.9:80": "10.0.0.9:80",
    }


async def test_higher_priority_numbers_are_backups(server: NameServer) -> None:
    server.records = [srv(f"{priority} 1 {80 + priority} 10.0.0.1") for priority in (10, 20, 30)]
    found = await first(server)
    assert {i.port: i.backup for i in found or ()} == {90: False, 100: True, 110: True}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([5, 10], [5, 10]),
        ([0, 0], [100, 100]),  # nobody chooses
        ([1, 1], [100, 100]),  # Consul's way to say the same
        ([0, 1], [1, 100]),  # a small chance is not none, and not as large as another
        ([0, 65535], [1, 65535]),
        ([7], [7]),
    ],
)
async def test_weights_are_shares_and_none_is_never_no_chance(
    server: NameServer, given: list[int], wanted: list[int]
) -> None:
    server.records = [srv(f"1 {weight} {80 + number} 10.0.0.1") for number, weight in enumerate(given)]
    assert [i.weight for i in await first(server) or ()] == wanted


async def test_the_same_target_twice_is_one_instance_and_the_better_record_counts(server: NameServer) -> None:
    server.records = [srv("2 9 80 10.0.0.1"), srv("1 3 80 10.0.0.1"), srv("1 5 80 10.0.0.1.")]
    assert await first(server) == (Instance("chat", "10.0.0.1:80", "10.0.0.1", 80, weight=5),)


async def test_a_service_that_is_decidedly_not_there_is_empty(server: NameServer) -> None:
    server.records = [srv("0 0 0 .")]
    assert await first(server) == ()
    assert [kind for _, _, kind in server.asked] == ["SRV"]
    server.records = [srv("0 0 0 10.0.0.1")]  # and no port is no place
    assert await first(server) == ()


async def test_addresses_of_both_families_with_the_port_are_instances(server: NameServer) -> None:
    server.records = [
        Record(NAME, "A", "10.0.0.2"),
        Record(NAME, "A", "10.0.0.1"),
        Record(NAME, "AAAA", "fd00::1"),
    ]
    assert await first(server, record="address", port=80) == (
        Instance("chat", "10.0.0.1:80", "10.0.0.1", 80),
        Instance("chat", "10.0.0.2:80", "10.0.0.2", 80),
        Instance("chat", "[fd00::1]:80", "fd00::1", 80),
    )


async def test_aliases_are_followed_and_their_time_counts(server: NameServer) -> None:
    server.records = [
        Record(NAME, "CNAME", "other.test", ttl=2),
        Record("other.test", "SRV", "1 1 80 10.0.0.1", ttl=50),
    ]
    assert [i.address for i in await first(server) or ()] == ["10.0.0.1:80"]
    resolver = resolver_of(server, timeout=2, fresh=1)
    assert (await resolver.ask(NAME, "SRV")).ttl == 2
    await resolver.close()


async def test_a_service_may_have_a_name_of_its_own(server: NameServer) -> None:
    server.records = [Record("_chat._tcp.other.test", "SRV", "1 1 80 10.0.0.1")]
    assert await first(server, names={"chat": "_chat._tcp.other.test."})
    assert await first(server) is None


async def test_hundreds_come_whole_where_udp_would_leave_them_out(server: NameServer) -> None:
    server.records = [srv(f"1 1 {1000 + number} 10.0.0.1") for number in range(300)]
    assert len(await first(server) or ()) == 300
    server.records = [Record(NAME, "A", f"10.0.1.{number}") for number in range(200)]
    assert len(await first(server, record="address", port=80) or ()) == 200
    assert {transport for transport, _, _ in server.asked} == {"tcp"}


# -- what may empty a set ---------------------------------------------------------------------------------


async def test_no_such_name_is_absent_and_news_only_when_it_was_there(server: NameServer) -> None:
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        assert (await following(stream)).instances is None
        server.records = [srv("1 1 80 10.0.0.1")]
        await until_ids(stream, ["10.0.0.1:80"])
        server.records = []
        await until_ids(stream, [])
    assert await first(server) is None


@pytest.mark.parametrize("facts", [{}, {"record": "address", "port": 80}])
async def test_a_name_with_other_records_only_is_empty(server: NameServer, facts: dict[str, Any]) -> None:
    server.records = [Record(NAME, "TXT", "x")]
    assert await first(server, **facts) == ()


@pytest.mark.parametrize("facts", [{}, {"record": "address", "port": 80}])
@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ({"codes": {NAME: SERVFAIL}}, r"chat\.svc\.test (SRV|A|AAAA): .*general failure"),
        ({"codes": {NAME: REFUSED}}, r"chat\.svc\.test (SRV|A|AAAA): .*refused"),
        ({"delays": {NAME: 30.0}}, r"chat.svc.test (SRV|A|AAAA): no answer in 0\.5 s"),
        ({"garbage": {NAME}}, r"chat\.svc\.test (SRV|A|AAAA): "),
    ],
)
async def test_everything_else_is_an_error(
    server: NameServer, trouble: dict[str, Any], error: str, facts: dict[str, Any]
) -> None:
    server.records = [srv("1 1 80 10.0.0.1"), Record(NAME, "A", "10.0.0.1")]
    async with aclosing(watcher(server, timeout=0.5, **facts).watch(CHAT)) as stream:
        assert len((await following(stream)).instances or ()) == 1
        vars(server).update(trouble)
        with pytest.raises(RegistryError, match=error):
            async for update in stream:
                assert len(update.instances or ()) == 1


async def test_a_target_that_cannot_be_asked_for_is_an_error(server: NameServer) -> None:
    server.records = [srv("1 1 80 10.0.0.1"), srv("1 1 80 lost.test")]
    server.codes = {"lost.test": SERVFAIL}
    with pytest.raises(RegistryError, match=r"lost\.test A"):
        await first(server)


async def test_an_error_ends_the_questions_beside_it(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.dns.TARGETS", 1)
    names = ["lost.test", "slow1.test", "slow2.test", "slow3.test"]
    server.records = [srv(f"1 1 80 {name}") for name in names]
    server.codes, server.delays = {names[0]: SERVFAIL}, dict.fromkeys(names[1:], 60.0)
    tasks = len(asyncio.all_tasks())
    with pytest.raises(RegistryError, match=r"lost\.test A"):
        await first(server, timeout=60)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_a_server_that_goes_is_an_error() -> None:
    async with NameServer().open() as server:
        stream = watcher(server, timeout=0.5).watch(CHAT)
        assert (await following(stream)).instances is None
    with pytest.raises(RegistryError, match=r"chat\.svc\.test SRV"):
        async with asyncio.timeout(10):
            async for _ in stream:
                pass


async def test_a_name_that_nobody_can_have_is_absent_and_hurts_no_other(server: NameServer) -> None:
    server.records = [srv("1 1 80 10.0.0.1")]
    odd = frozenset({"chat", "x" * 64, "a..b", "日本"})
    async with aclosing(watcher(server).watch(odd)) as stream:
        found = {u.service: u.instances for u in [await following(stream) for _ in odd]}
    assert {name for name, instances in found.items() if instances is None} == odd - CHAT


async def test_one_name_that_fails_is_told_once_and_the_others_go_on(
    server: NameServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.records = [srv("1 1 80 10.0.0.1"), Record("bad.svc.test", "SRV", "1 1 80 10.0.0.2")]
    both = frozenset({"chat", "bad"})
    async with aclosing(watcher(server).watch(both)) as stream:
        assert {(await following(stream)).service for _ in both} == both
        server.codes["bad.svc.test"] = SERVFAIL
        await until(lambda: server.of("bad.svc.test") >= 3)
        seen = [await following(stream) for _ in range(5)]
        assert all(update.instances for update in seen)
        assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
            "registry dns: bad.svc.test SRV: DNS server returned general failure; what it said before holds"
        ]
        # It is asked on, and what it says counts again.
        server.codes.clear()
        server.records = [Record("bad.svc.test", "SRV", "1 1 80 10.0.0.3"), srv("1 1 80 10.0.0.1")]
        async with asyncio.timeout(10):
            while (update := await anext(stream)).service != "bad" or not update.instances:
                pass
        server.codes = dict.fromkeys(["bad.svc.test", NAME], SERVFAIL)
        with pytest.raises(RegistryError, match="general failure"):
            async with asyncio.timeout(10):
                async for _ in stream:
                    pass


# -- time -------------------------------------------------------------------------------------------------


async def test_a_slow_name_holds_up_no_other(server: NameServer) -> None:
    server.records = [srv("1 1 80 10.0.0.1"), Record("slow.svc.test", "SRV", "1 1 80 10.0.0.2")]
    server.delays["slow.svc.test"] = 1.0
    async with aclosing(watcher(server).watch(frozenset({"chat", "slow"}))) as stream:
        before = []
        async with asyncio.timeout(10):
            async for update in stream:
                if update.service == "slow":
                    break
                before.append(update)
    assert len(update.instances or ()) == 1
    assert len(before) >= 5


async def test_quick_answers_make_nobody_impatient_with_a_slow_one(server: NameServer) -> None:
    resolver = resolver_of(server, timeout=3, fresh=60)
    server.records = [Record(f"{number}.test", "A", "10.0.0.1") for number in range(9)]
    for number in range(8):
        assert (await resolver.ask(f"{number}.test", "A")).addresses == ("10.0.0.1",)
    server.delays["8.test"] = 1.2
    assert (await resolver.ask("8.test", "A")).addresses == ("10.0.0.1",)
    await resolver.close()


async def test_a_change_is_not_hidden_by_what_was_kept_of_the_last_answer(server: NameServer) -> None:
    server.records = [srv("1 1 80 10.0.0.1", ttl=3600)]
    async with aclosing(watcher(server, ttl_min=0.05, ttl_max=0.2).watch(CHAT)) as stream:
        await until_ids(stream, ["10.0.0.1:80"])
        server.records = [srv("1 1 80 10.0.0.2", ttl=3600)]
        began = time.monotonic()
        await until_ids(stream, ["10.0.0.2:80"])
        assert time.monotonic() - began < 2


async def test_a_name_that_does_not_exist_yet_is_not_kept_as_such(server: NameServer) -> None:
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        assert (await following(stream)).instances is None
        server.records = [srv("1 1 80 10.0.0.1")]
        await until_ids(stream, ["10.0.0.1:80"])


@pytest.mark.parametrize(
    ("ttl", "least", "most"),
    [(0.0, 1.0, 1.0), (None, 1.0, 1.0), (10.0, 9.0, 10.0), (3600.0, 27.0, 30.0), (1.0, 1.0, 1.0)],
)
def test_a_name_is_asked_for_when_its_time_is_over_within_bounds(
    ttl: float | None, least: float, most: float
) -> None:
    pauses = [DnsWatcher(DnsRegistry(kind="dns"))._pause(ttl) for _ in range(50)]
    assert least <= min(pauses) <= max(pauses) <= most


async def test_the_time_to_live_is_kept(server: NameServer) -> None:
    server.records = [srv("1 1 80 10.0.0.1", ttl=1), Record("b.svc.test", "SRV", "1 1 80 10.0.0.1", ttl=0)]
    async with aclosing(watcher(server, ttl_max=30).watch(frozenset({"chat", "b"}))) as stream:
        async with asyncio.timeout(10):
            while server.of("b.svc.test") < 8:
                await anext(stream)
    assert server.of(NAME) == 1


# -- name servers -----------------------------------------------------------------------------------------


async def test_the_next_name_server_answers_when_one_does_not(
    server: NameServer, unused_tcp_port: int
) -> None:
    server.records = [srv("1 1 80 10.0.0.1")]
    dead = f"127.0.0.1:{unused_tcp_port}"
    assert await first(server, server=[dead, server.address])
    async with NameServer(delays={NAME: 30.0}).open() as frozen:
        began = time.monotonic()
        assert await first(server, server=[frozen.address, server.address], timeout=2)
        assert time.monotonic() - began >= 0.9
    with pytest.raises(RegistryError, match=r"chat\.svc\.test SRV"):
        await first(server, server=dead)


async def test_name_servers_may_have_names(server: NameServer) -> None:
    server.records = [srv("1 1 80 10.0.0.1")]
    port = server.address.rpartition(":")[2]
    assert await first(server, server=f"localhost:{port}")
    assert await first(server, server=f":{port}")
    with pytest.raises(RegistryError, match=r"name server nowhere\.invalid:53: "):
        await first(server, server="nowhere.invalid:53")


async def test_without_aiodns_the_error_says_what_to_install(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiodns", None)
    with pytest.raises(RegistryError, match=r"install holdfast\[dns\]"):
        await first(server)


def held() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


async def test_a_closed_watch_leaves_no_tasks_threads_or_descriptors(server: NameServer) -> None:
    server.records = [srv("1 1 80 10.0.0.1")]
    server.delays["slow.svc.test"] = 30.0
    await first(server)  # c-ares keeps one thread for all
    tasks = len(asyncio.all_tasks())

    before = held()
    for _ in range(3):
        async with aclosing(watcher(server).watch(frozenset({"chat", "slow"}))) as stream:
            for _ in range(5):
                await following(stream)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: held() <= before)


async def test_old_resolvers_are_ended_while_it_runs(server: NameServer) -> None:
    server.records = [srv("1 1 80 10.0.0.1")]
    async with aclosing(watcher(server, ttl_min=0.01, ttl_max=0.01).watch(CHAT)) as stream:
        for _ in range(40):
            await following(stream)
        assert held()[0] < 25


def test_the_section_makes_a_watcher() -> None:
    assert isinstance(make_watcher(DnsRegistry(kind="dns")), DnsWatcher)
