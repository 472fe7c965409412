"""Watchers and registrars of Nacos, against its double and, where there is one, a real server alike."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from discovery.build import make_watcher
from discovery.model import Instance, RegistryError, Status, Update, Watcher
from discovery.nacos import make_nacos_registrar
from discovery.nacos.http import Denied, HttpApi
from discovery.nacos.registrar import BeatRegistrar, ConnectionRegistrar
from discovery.nacos.servers import Servers
from discovery.nacos.watcher import PollWatcher, PushWatcher
from tests.contract.backend import Missing
from tests.discovery.nacos_double import NacosDouble
from tests.discovery.nacos_real import TOKEN_LIFE, RealNacos, shared

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 15.0
"""Seconds in which a change must have been seen, on a busy machine: a real server sweeps every 5 s."""
Nacos = NacosDouble | RealNacos


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["double", "real"])
async def nacos(request: pytest.FixtureRequest) -> AsyncIterator[Nacos]:
    if request.param == "real":
        try:
            yield await shared()
        except Missing as missing:
            pytest.skip(str(missing))
        return
    double = NacosDouble(user=("nacos", "nacos"))
    double.token_life = TOKEN_LIFE
    await double.start()
    yield double
    await double.stop()


_number = itertools.count(1)


@pytest.fixture
def service() -> str:
    return f"orders{next(_number)}"


@pytest.fixture
def one(service: str) -> Instance:
    return Instance(service, "one", "127.0.0.1", 9001, weight=50, metadata={"version": "v1"})


class Seen:
    """What a watcher tells of one service."""

    def __init__(self, stream: AsyncIterator[Update]) -> None:
        self._stream = stream
        self.updates: list[Update] = []

    async def until(self, condition: Callable[[Update], bool]) -> Update:
        """The first update from now on that is so."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    update = await anext(self._stream)
                    self.updates.append(update)
                    if condition(update):
                        return update
        except TimeoutError:
            raise AssertionError(f"it did not come; seen: {self.updates}") from None

    async def instances(self, *wanted: Instance) -> Update:
        """Until exactly these are there."""
        return await self.until(lambda update: update.instances == wanted)


@asynccontextmanager
async def seen(watcher: Watcher, service: str) -> AsyncIterator[Seen]:
    stream = watcher.watch(frozenset({service}))
    async with aclosing(stream):  # type: ignore[type-var]
        yield Seen(stream)


def sockets(port: int) -> int:
    """TCP connections of this machine to a local port that are open at the client's end."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in _proc(name)]
    return sum(line[2].endswith(f":{port:04X}") and line[3] == "01" for line in lines)


async def connected(nacos: Nacos, count: int) -> None:
    """Waits until so many are connected by gRPC."""
    async with asyncio.timeout(PATIENCE):
        while sockets(nacos.grpc_port) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _proc(name: str) -> list[str]:
    return Path(f"/proc/net/{name}").read_text().splitlines()[1:]


async def test_each_change_is_pushed_and_what_nobody_registered_is_absent(
    nacos: Nacos, service: str, one: Instance
) -> None:
    registrar = ConnectionRegistrar(nacos.section())
    async with seen(PushWatcher(nacos.section()), service) as orders:
        first = await orders.until(lambda update: True)
        assert (first.instances, first.partial) == (None, True)
        await registrar.register(one)
        assert not (await orders.instances(one)).partial
        await registrar.register(replace(one, weight=7, metadata={"version": "v2", "zone": "eu"}))
        await orders.instances(replace(one, weight=7, metadata={"version": "v2", "zone": "eu"}))
        await registrar.register(replace(one, status=Status.DRAINING))
        await orders.instances(replace(one, status=Status.DRAINING))
        await registrar.deregister(one)
        await orders.instances()
    await registrar.close()


async def test_by_polling_the_same_is_seen(nacos: Nacos, service: str, one: Instance) -> None:
    section = nacos.section(transport="http", poll="50ms")
    registrar = BeatRegistrar(section)
    async with seen(PollWatcher(section), service) as orders:
        first = await orders.until(lambda update: True)
        assert (first.instances, first.partial) == (None, True)
        await registrar.register(one)
        assert not (await orders.instances(one)).partial
        await registrar.register(replace(one, weight=0))
        await orders.instances(replace(one, weight=0))
        await registrar.deregister(one)
        await orders.instances()
    await registrar.close()


async def test_both_ways_see_what_was_registered_by_the_other(nacos: Nacos, service: str) -> None:
    http = nacos.section(transport="http", poll="50ms")
    by_connection, by_beats = ConnectionRegistrar(nacos.section()), BeatRegistrar(http)
    a = Instance(service, "a", "127.0.0.1", 9001, weight=1, metadata={"version": "v1"})
    b = Instance(service, "b", "127.0.0.2", 9001, weight=65535)
    await by_connection.register(a)
    await by_beats.register(b)
    for watcher in (make_watcher(nacos.section()), make_watcher(http)):
        async with seen(watcher, service) as orders:
            await orders.instances(a, b)
    await by_beats.deregister(b)
    await by_beats.close()
    await by_connection.close()


async def test_an_entry_ends_with_its_connection_and_with_no_other(nacos: Nacos, service: str) -> None:
    a, b = (Instance(service, name, "127.0.0.1", port) for name, port in (("a", 9001), ("b", 9002)))
    await connected(nacos, 0)
    first, second = ConnectionRegistrar(nacos.section()), ConnectionRegistrar(nacos.section())
    await first.register(a)
    await second.register(b)
    await connected(nacos, 2)
    async with seen(PushWatcher(nacos.section()), service) as orders:
        await orders.instances(a, b)
        await first.close()
        await orders.instances(b)
        assert await second.beat(b)
        await second.close()
        await orders.instances()
    # grpc keeps a connection that somebody still refers to: what it owns would stay in the registry.
    await connected(nacos, 0)


async def test_who_does_not_beat_is_gone_and_has_to_register_again(
    nacos: Nacos, service: str, one: Instance
) -> None:
    section = nacos.section(transport="http", poll="50ms")
    registrar = BeatRegistrar(section, ttl=0.5)
    assert not await registrar.beat(one)
    await registrar.register(one)
    assert await registrar.beat(one)
    async with seen(PushWatcher(nacos.section()), service) as orders:
        await orders.instances(one)
        await orders.until(lambda update: all(i.status is Status.DOWN for i in update.instances or ()))
        await orders.instances()
    assert not await registrar.beat(one)
    await registrar.deregister(one)
    await registrar.close()


async def test_an_instance_that_is_taken_offline_gets_no_work(
    nacos: Nacos, service: str, one: Instance
) -> None:
    registrar = BeatRegistrar(nacos.section(transport="http"))
    await registrar.register(one)
    async with HttpApi(nacos.section()) as api, seen(PushWatcher(nacos.section()), service) as orders:
        await orders.instances(one)
        server = Servers(nacos.section().address).current
        entry = {"ip": one.host, "port": one.port, "enabled": False, "metadata": {"id": "one"}}
        await api.register(server, service, entry)
        await orders.until(lambda update: all(i.status is Status.DRAINING for i in update.instances or ()))
    await registrar.deregister(one)
    await registrar.close()


async def test_groups_namespaces_and_clusters_are_kept_apart(
    nacos: Nacos, service: str, one: Instance
) -> None:
    facts: list[dict[str, object]] = [{}, {"group": "G"}, {"namespace": "n"}, {"clusters": ["C", "D"]}]
    entries = [replace(one, host=f"127.0.0.{number}") for number in range(1, 5)]
    registrars = [ConnectionRegistrar(nacos.section(**fact)) for fact in facts]
    for registrar, entry in zip(registrars, entries, strict=True):
        await registrar.register(entry)
    for number in (1, 2, 3):
        async with seen(PushWatcher(nacos.section(**facts[number])), service) as orders:
            await orders.instances(entries[number])
    async with seen(PollWatcher(nacos.section(poll="50ms")), service) as orders:
        # All clusters of the group; both say that they are "one".
        found = (await orders.until(lambda update: len(update.instances or ()) == 2)).instances
        assert {i.id for i in found or ()} == {"one@127.0.0.1:9001", "one@127.0.0.4:9001"}
    for registrar in registrars:
        await registrar.close()


async def test_a_name_is_translated_by_the_configuration(nacos: Nacos, service: str, one: Instance) -> None:
    registrar = ConnectionRegistrar(nacos.section())
    await registrar.register(one)
    async with seen(make_watcher(nacos.section(names={"here": service})), "here") as orders:
        await orders.instances(replace(one, service="here"))
    await registrar.close()


async def test_a_token_that_ran_out_is_replaced_and_nothing_is_noticed(
    nacos: Nacos, service: str, one: Instance
) -> None:
    registrar = ConnectionRegistrar(nacos.section())
    await registrar.register(one)
    watcher = PushWatcher(nacos.section(), keepalive=0.2, resync=0.2)
    async with seen(watcher, service) as orders:
        await orders.instances(one)
        if isinstance(nacos, NacosDouble):
            nacos.expire_tokens()
        end = asyncio.get_running_loop().time() + TOKEN_LIFE + 0.5
        # Answers go on, each with a token that is valid.
        await orders.until(lambda update: asyncio.get_running_loop().time() > end)
        await registrar.register(replace(one, weight=9))
        await orders.instances(replace(one, weight=9))
    await registrar.close()


@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_a_wrong_password_is_said(nacos: Nacos, service: str, one: Instance, transport: str) -> None:
    section = nacos.section(transport=transport, password="wrong")
    with pytest.raises(Denied, match="login of 'nacos'"):
        async with seen(make_watcher(section), service) as orders:
            await orders.until(lambda update: True)
    registrar = make_nacos_registrar(section, ttl=10)
    with pytest.raises(Denied, match="login of 'nacos'"):
        await registrar.register(one)
    await registrar.close()


async def test_one_connection_holds_one_instance_of_a_service(
    nacos: Nacos, service: str, one: Instance
) -> None:
    registrar = ConnectionRegistrar(nacos.section())
    await registrar.register(one)
    with pytest.raises(RegistryError, match="holds one"):
        await registrar.register(replace(one, id="two", port=9002))
    async with seen(PushWatcher(nacos.section()), service) as orders:
        await orders.instances(one)
    await registrar.close()


async def test_being_sent_away_is_an_error_that_says_so(nacos: Nacos, service: str) -> None:
    async with seen(PushWatcher(nacos.section()), service) as orders:
        await orders.until(lambda update: True)
        await send_away(nacos)
        with pytest.raises(RegistryError, match="sent us away"):
            await orders.until(lambda update: False)


async def send_away(nacos: Nacos) -> None:
    if isinstance(nacos, NacosDouble):
        nacos.reset("127.0.0.1", str(nacos.http_port))
        return
    for id in json.loads(await nacos.call("GET", "/v2/core/loader/current")):
        await nacos.call("GET", "/v2/core/loader/reloadClient", connectionId=id, redirectAddress="10.0.0.1:1")
