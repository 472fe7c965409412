"""What only a double can be made to do: servers that go, lie, repeat themselves, or send us away."""

from __future__ import annotations

import asyncio
import sys
import time as real_time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from config.registries import Guard
from config.schema import Config
from discovery.belief import Backoff
from discovery.model import Instance, RegistryError, Status, Update
from discovery.nacos.http import HttpApi
from discovery.nacos.registrar import KEEPALIVE, BeatRegistrar, ConnectionRegistrar
from discovery.nacos.servers import Servers
from discovery.nacos.watcher import PollWatcher, PushWatcher, _Subscription
from discovery.watch import Supervisor
from proxy.endpoint import State
from proxy.table import Table
from tests.discovery.conftest import FakeTime, until
from tests.discovery.nacos_double import NacosDouble
from tests.discovery.test_nacos import Seen, seen

KEY = ("public", "DEFAULT_GROUP", "orders")
ONE = Instance("orders", "one", "127.0.0.1", 9001)
TWO = Instance("orders", "two", "127.0.0.2", 9001)
THREE = Instance("orders", "three", "127.0.0.3", 9001)
DEAD = "http://127.0.0.1:9/nacos"


@pytest.fixture
async def nacos() -> AsyncIterator[NacosDouble]:
    double = NacosDouble()
    await double.start()
    yield double
    await double.stop()


@pytest.fixture
async def registrar(nacos: NacosDouble, time: FakeTime) -> AsyncIterator[ConnectionRegistrar]:
    registrar = ConnectionRegistrar(nacos.section(), clock=time.clock)
    yield registrar
    await registrar.close()


def quick(nacos: NacosDouble) -> PushWatcher:
    """Notices within half a second what a usual one does within eight."""
    return PushWatcher(nacos.section(), keepalive=0.1, timeout=0.5)


def told(*instances: Instance, stamp: int, **facts: Any) -> dict[str, Any]:
    """What a server says of the service."""
    hosts = [{"ip": i.host, "port": i.port, "metadata": {"id": i.id}} for i in instances]
    return {"name": "orders", "groupName": "DEFAULT_GROUP", "hosts": hosts, "lastRefTime": stamp, **facts}


async def fails(orders: Seen, reason: str) -> None:
    with pytest.raises(RegistryError, match=reason):
        await orders.until(lambda update: False)


def always(update: Update) -> bool:
    return True


# -- ends of a connection ---------------------------------------------------------------------------------

ENDS = {
    "clean end": (lambda nacos: nacos.end_streams(), "has ended the stream"),
    "broken": (lambda nacos: nacos.end_streams(OSError("broken")), "unavailable: broken"),
    "sent away": (lambda nacos: nacos.reset(), "has sent us away"),
    "error 301": (lambda nacos: nacos.unregister(), "error 301"),
}
End = tuple[Callable[[NacosDouble], None], str]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_every_end_of_a_connection_is_an_error_and_then_everything_begins_anew(
    nacos: NacosDouble, registrar: ConnectionRegistrar, time: FakeTime, end: End
) -> None:
    await registrar.register(ONE)
    watcher = quick(nacos)
    async with seen(watcher, "orders") as orders:
        await orders.instances(ONE)
        end[0](nacos)
        await fails(orders, end[1])
    time.now += 2 * KEEPALIVE
    async with asyncio.timeout(5):
        while await registrar.beat(ONE):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await registrar.register(ONE)
    assert await registrar.beat(ONE)
    async with seen(watcher, "orders") as orders:
        assert (await orders.until(always)).partial
        await registrar.register(replace(ONE, weight=5))
        await orders.instances(replace(ONE, weight=5))


async def test_a_frozen_server_is_noticed_by_watchers_and_beats(nacos: NacosDouble, time: FakeTime) -> None:
    registrar = ConnectionRegistrar(nacos.section(), timeout=0.5, clock=time.clock)
    await registrar.register(ONE)
    async with seen(quick(nacos), "orders") as orders:
        await orders.instances(ONE)
        nacos.freeze()
        await fails(orders, "deadline exceeded")
    time.now += 2 * KEEPALIVE
    with pytest.raises(RegistryError, match="deadline exceeded"):
        await registrar.beat(ONE)
    with pytest.raises(RegistryError, match=r"no answer in 0\.5 s"):
        async with seen(PollWatcher(nacos.section(), timeout=0.5), "orders") as orders:
            await orders.until(always)
    await registrar.close()


async def test_a_server_that_is_starting_is_an_error_until_it_has_started(nacos: NacosDouble) -> None:
    watcher = quick(nacos)
    nacos.starting = True
    async with seen(watcher, "orders") as orders:
        await fails(orders, "error 300: Server is starting")
    nacos.starting = False
    async with seen(watcher, "orders") as orders:
        await orders.until(always)


async def test_the_server_may_ask_whether_we_are_there(nacos: NacosDouble) -> None:
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        await orders.until(always)
        [client] = nacos.clients.values()
        nacos.detect()
        await until(lambda: [a.type for a in client.answers] == ["ClientDetectionResponse"])
        assert client.answers[0].body["requestId"]


async def test_a_push_is_answered_and_so_it_comes_once(
    nacos: NacosDouble, registrar: ConnectionRegistrar
) -> None:
    nacos.push_retry = 0.02
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        await orders.until(always)
        await registrar.register(ONE)
        await orders.instances(ONE)
        client = next(c for c in nacos.clients.values() if c.subscriptions)
        await until(lambda: not client.waiting)
        await asyncio.sleep(5 * nacos.push_retry)
        assert [a.type for a in client.answers] == ["NotifySubscriberResponse"]


# -- order ------------------------------------------------------------------------------------------------


async def test_an_older_push_is_not_believed(nacos: NacosDouble, registrar: ConnectionRegistrar) -> None:
    await registrar.register(ONE)
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        await orders.instances(ONE)
        nacos.send(KEY, told(TWO, stamp=1))
        await orders.until(always)
        await registrar.register(replace(ONE, weight=5))
        await orders.instances(replace(ONE, weight=5))
        assert all(update.instances != (TWO,) for update in orders.updates)


async def test_a_server_whose_clock_is_set_back_is_still_heard(
    nacos: NacosDouble, registrar: ConnectionRegistrar
) -> None:
    await registrar.register(ONE)
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        await orders.instances(ONE)
        nacos.clock_offset = -3_600_000
        for weight in (5, 6, 7):
            await registrar.register(replace(ONE, weight=weight))
            await orders.instances(replace(ONE, weight=weight))


def test_an_answer_that_a_push_has_overtaken_is_not_believed() -> None:
    orders = _Subscription(NacosDouble().section(), "orders")
    first = orders.answered(told(ONE, stamp=5), 0, at=1)
    assert first is not None and first.instances == (ONE,)
    assert orders.pushed(told(TWO, stamp=10), at=2) is not None
    assert orders.answered(told(ONE, stamp=6), 0, at=3) is None
    # Nothing came since this question: it is what is true now, whatever the clock says.
    last = orders.answered(told(THREE, stamp=6), 1, at=4)
    assert last is not None and last.instances == (THREE,)


async def test_what_is_pushed_of_others_changes_nothing(
    nacos: NacosDouble, registrar: ConnectionRegistrar
) -> None:
    later = 10**15
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        await orders.until(always)
        nacos.send(KEY, told(TWO, stamp=later) | {"name": "others"})
        nacos.send(KEY, told(TWO, stamp=later) | {"groupName": "OTHER"})
        nacos.send(KEY, told(ONE, stamp=later) | {"name": "DEFAULT_GROUP@@orders"})
        await orders.instances(ONE)
        assert len(orders.updates) == 2


# -- several servers --------------------------------------------------------------------------------------


async def test_the_next_server_is_asked_when_one_fails(nacos: NacosDouble) -> None:
    section = nacos.section(address=[DEAD, nacos.url])
    registrars = (ConnectionRegistrar(section), BeatRegistrar(section))
    for registrar in registrars:
        with pytest.raises(RegistryError):
            await registrar.register(ONE)
        await registrar.register(ONE)
        await registrar.deregister(ONE)
        await registrar.close()
    for watcher in (PushWatcher(section), PollWatcher(section)):
        with pytest.raises(RegistryError):
            async with seen(watcher, "orders") as orders:
                await orders.until(always)
        async with seen(watcher, "orders") as orders:
            await orders.until(always)


async def test_being_sent_to_a_server_that_we_know_goes_there(nacos: NacosDouble) -> None:
    other = NacosDouble()
    await other.start()
    # The offset is the same for all servers, so the other one's gRPC is where the offset of this one leads.
    offset = nacos.grpc_port - nacos.http_port
    there = f"http://127.0.0.1:{other.grpc_port - offset}/nacos"
    watcher = PushWatcher(nacos.section(address=[nacos.url, DEAD, there]))
    async with seen(watcher, "orders") as orders:
        await orders.until(always)
        nacos.reset("127.0.0.1", str(other.grpc_port - offset))
        await fails(orders, "sent us away")
    async with seen(watcher, "orders") as orders:
        await orders.until(always)
        assert (len(nacos.clients), len(other.clients)) == (0, 1)
    await other.stop()


def test_where_a_server_sends_us_counts_only_when_we_know_it() -> None:
    servers = Servers(("http://a:1", "http://b:2", "https://b:3/x"))
    for instead, then in ((("c", "9"), "b"), (("a", ""), "a"), (None, "b"), (("b", "3"), "b")):
        servers.failed(servers.current, instead)
        assert servers.current.host == then
    assert (servers.current.base, servers.current.target(1000)) == ("https://b:3/x", "b:1003")
    stale = servers.current
    servers.failed(stale)
    servers.failed(stale)
    assert servers.current.base == "http://a:1"


# -- other versions, missing things, nonsense -------------------------------------------------------------


async def test_where_the_old_http_api_is_gone_the_new_one_is_used(time: FakeTime) -> None:
    nacos = NacosDouble(user=("nacos", "nacos"), apis=("v3",))
    await nacos.start()
    section = nacos.section(transport="http", poll="20ms")
    registrar = BeatRegistrar(section)
    assert not await registrar.beat(ONE)
    await registrar.register(ONE)
    assert await registrar.beat(ONE)
    async with seen(PollWatcher(section), "orders") as orders:
        await orders.instances(ONE)
        await registrar.deregister(ONE)
        await orders.instances()
    assert nacos.paths.count("v1/ns/instance/list") == 2  # one for each that had to find it out
    await registrar.close()
    nacos.apis = ()
    async with seen(PollWatcher(section), "orders") as orders:
        await fails(orders, "login of 'nacos': status 404")
    nacos.user = None
    async with seen(PollWatcher(nacos.section(transport="http")), "orders") as orders:
        await fails(orders, "status 404 for service orders")
    await nacos.stop()


async def test_without_grpcio_the_message_names_the_extra(
    nacos: NacosDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.setitem(sys.modules, "grpc.aio", None)
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        await fails(orders, r"needs the extra 'nacos': pip install 'holdfast\[nacos\]'")


async def test_nonsense_takes_no_other_instance_away(nacos: NacosDouble) -> None:
    later = 10**15
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        await orders.until(always)
        info = told(ONE, stamp=later)
        nacos.send(KEY, info | {"hosts": [{"ip": "127.0.0.9"}, *info["hosts"], None]})
        update = await orders.instances(ONE)
        assert (len(update.refused), update.partial) == (2, True)
        assert "KeyError: 'port'" in update.refused[0]


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"hosts": [{"ip": "127.0.0.1", "port": "x"}]}, "not a list of instances: entry"),
        ({"hosts": "many"}, "not a list of instances: 'many'"),
        ({"hosts": 7}, "not a list of instances: 7"),
        ({"hosts": [7]}, "not a list of instances: entry 7"),
        ({"lastRefTime": "soon"}, "lastRefTime: .*'soon'"),
    ],
)
async def test_a_push_of_nothing_but_nonsense_is_an_error(
    nacos: NacosDouble, info: dict[str, Any], reason: str
) -> None:
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        await orders.until(always)
        nacos.send(KEY, told(ONE, stamp=10**15) | info)
        await fails(orders, reason)


# -- through the supervisor -------------------------------------------------------------------------------


class Proxy:
    """A supervisor and a table, as in the proxy."""

    def __init__(self, watcher: PushWatcher, service: dict[str, Any]) -> None:
        self.table = Table(lambda kind, **facts: None)
        self.table.configure(Config.model_validate({"services": {"orders": service}}), real_time.monotonic())
        self.alive: set[str] = set()
        self.supervisor = Supervisor(
            [watcher],
            lambda update: self.table.apply(update, real_time.monotonic()) and None,
            {"orders"},
            confirm=self.confirm,
            guard=Guard(hold=3600, repeat=3600),
            backoff=Backoff(0.01, 0.05),
        )

    async def confirm(self, instance: Instance) -> bool:
        return instance.id in self.alive

    async def __aenter__(self) -> Proxy:
        self._task = asyncio.create_task(self.supervisor.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def states(self) -> dict[str, State]:
        return {e.instance.id: e.state for e in self.table.services["orders"].endpoints.values()}


async def test_an_instance_that_has_not_registered_again_with_a_new_server_yet_is_asked_and_stays(
    nacos: NacosDouble,
) -> None:
    instances = {instance.id: instance for instance in (ONE, TWO, THREE)}
    registrars = {id: ConnectionRegistrar(nacos.section()) for id in instances}
    for id, registrar in registrars.items():
        await registrar.register(instances[id])
    async with Proxy(quick(nacos), {}) as proxy:
        await until(lambda: set(proxy.states) == {"one", "two", "three"})
        before = dict(proxy.table.services["orders"].endpoints)
        proxy.alive = {"one", "two", "three"}
        await nacos.stop()
        await until(lambda: proxy.supervisor.sources[0].failures > 0)
        nacos.readable = False
        await nacos.start()
        for id in ("one", "two"):
            assert not await registrars[id].beat(instances[id])
            await registrars[id].register(instances[id])
        nacos.readable = True
        # Of the three one is missing in the new server's first answer, and one alone is always believed.
        await until(lambda: proxy.supervisor.sources[0].held == 1)
        assert proxy.table.services["orders"].endpoints == before
        await registrars["three"].register(THREE)
        await until(lambda: proxy.supervisor.sources[0].held == 0)
        assert proxy.table.services["orders"].endpoints == before
        await registrars["three"].deregister(THREE)
        await until(lambda: set(proxy.states) == {"one", "two"})
    for registrar in registrars.values():
        await registrar.close()


async def test_what_our_own_check_finds_dead_gets_nothing_though_a_protecting_server_calls_it_healthy(
    nacos: NacosDouble,
) -> None:
    registrars = [ConnectionRegistrar(nacos.section()) for _ in range(3)]
    for registrar, instance in zip(registrars, (ONE, TWO, THREE), strict=True):
        await registrar.register(instance)
    async with Proxy(quick(nacos), {"health": {"path": "/"}}) as proxy:
        await until(lambda: len(proxy.states) == 3)
        endpoints = proxy.table.services["orders"].endpoints
        for id, passed in (("one", True), ("two", True), ("three", False)):
            proxy.table.health(endpoints[id], passed, real_time.monotonic())
        assert proxy.states == {"one": State.READY, "two": State.READY, "three": State.UNHEALTHY}
        nacos.set_healthy("127.0.0.2", False)
        nacos.set_healthy("127.0.0.3", False)
        await until(lambda: endpoints["two"].instance.status is Status.DOWN)
        nacos.thresholds[KEY] = 0.5
        nacos.set_healthy("127.0.0.3", False)
        await until(lambda: endpoints["three"].instance.status is Status.UP)
        # The one that was down has to pass our check; the one that does not stays out.
        assert proxy.states == {"one": State.READY, "two": State.UNHEALTHY, "three": State.UNHEALTHY}
        for _ in range(3):
            proxy.table.health(endpoints["two"], True, real_time.monotonic())
        assert proxy.states["two"] is State.READY
    for registrar in registrars:
        await registrar.close()


async def test_persistent_instances_are_what_the_servers_own_check_says(nacos: NacosDouble) -> None:
    async with HttpApi(nacos.section()) as api:
        server = Servers((nacos.url,)).current
        await api.register(server, "orders", {"ip": "127.0.0.1", "port": 9001, "ephemeral": False})
    async with seen(PushWatcher(nacos.section()), "orders") as orders:
        update = await orders.until(always)
        assert [i.id for i in update.instances or ()] == ["127.0.0.1:9001"]
        nacos.set_healthy("127.0.0.1", False)
        await orders.until(lambda update: [i.status for i in update.instances or ()] == [Status.DOWN])


@pytest.mark.parametrize("answer", [b"<html>", b"7", b'{"hosts": 7}', b'{"hosts": "x"}', b'{"hosts": [7]}'])
async def test_an_http_answer_of_nothing_but_nonsense_is_an_error(
    nacos: NacosDouble, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    async def nonsense(*request: object, **facts: object) -> tuple[int, bytes]:
        return 200, answer

    monkeypatch.setattr(HttpApi, "_send", nonsense)
    async with seen(PollWatcher(nacos.section(transport="http")), "orders") as orders:
        await fails(orders, "not JSON|not a list of instances")
