"""The etcd watcher against a gateway that does what a real one cannot be made to do; keys and values."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from config.registries import EtcdRegistry
from discovery.build import make_registrar, make_watcher
from discovery.etcd import EtcdWatcher
from discovery.etcd_client import EtcdClient, Members, decode, encode
from discovery.etcd_entry import instance_key, instance_of, range_end, service_key, value_of
from discovery.etcd_registrar import EtcdRegistrar
from discovery.model import Instance, RegistryError, Status, Update
from discovery.renamed import Renamed, RenamedRegistrar

CHAT = frozenset({"chat"})
KEY = "/holdfast/services/chat/"
VALUE = '{"address": "10.0.0.1:80"}'


async def following(stream: AsyncIterator[Update]) -> Update:
    return await asyncio.wait_for(anext(stream), 10)


def ids(update: Update) -> list[str] | None:
    return None if update.instances is None else [i.id for i in update.instances]


def put(id: str, value: str = VALUE) -> dict[str, Any]:
    kv = {
        "key": encode(f"{KEY}{id}".encode()),
        "mod_revision": "7",
        "value": encode(value.encode()),
    }
    return {"kv": kv}


def delete(id: str) -> dict[str, Any]:
    return {"type": "DELETE", "kv": {"key": encode(f"{KEY}{id}".encode()), "mod_revision": "8"}}


def message(*events: dict[str, Any], **facts: Any) -> bytes:
    result = {"header": {"revision": "8"}, "events": events, **facts}
    return json.dumps({"result": result}).encode() + b"\n"


class Gateway:
    """Answers reads with `keys` at `revision`, and the watch with what is put into `watch`."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.value = VALUE
        self.services = 1
        self.revision = 5
        self.cluster = "1"
        self.answer: Callable[[], web.Response] = self._read
        self.watch: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.reads = 0
        self.asked: list[dict[str, Any]] = []
        """The request of each watch."""
        self.url = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Gateway]:
        app = web.Application()
        app.router.add_post("/v3/kv/txn", self._txn)
        app.router.add_post("/v3/kv/range", self._pulse)
        app.router.add_post("/v3/watch", self._watch)
        async with TestServer(app) as server:
            self.url = str(server.make_url("")).rstrip("/")
            yield self

    def watcher(self, **facts: Any) -> EtcdWatcher:
        return EtcdWatcher(EtcdRegistry(kind="etcd", address=(self.url,), **facts), answer=2.0, pulse=0.1)

    def _header(self) -> dict[str, str]:
        return {"cluster_id": self.cluster, "revision": str(self.revision)}

    def _read(self) -> web.Response:
        kvs = [put(id, self.value)["kv"] for id in self.keys]
        responses = [{"response_range": {"kvs": kvs}}] * self.services
        body = {"header": self._header(), "responses": responses}
        return web.json_response(body)

    async def _txn(self, request: web.Request) -> web.Response:
        self.reads += 1
        return self.answer()

    async def _pulse(self, request: web.Request) -> web.Response:
        return web.json_response({"header": self._header()})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((await request.json())["create_request"])
        response = web.StreamResponse()
        await response.prepare(request)
        while (data := await self.watch.get()) is not None:
            await response.write(data)
        return response


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway()
    async with gateway.open():
        yield gateway
        gateway.watch.put_nowait(None)


async def test_the_watch_goes_on_from_the_revision_of_the_read(gateway: Gateway) -> None:
    gateway.revision = 41
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        await following(stream)
        gateway.watch.put_nowait(message(put("a")))
        assert ids(await following(stream)) == ["a"]
    assert [(a["start_revision"], a["fragment"]) for a in gateway.asked] == [(42, True)]


async def test_a_silent_watch_of_a_living_server_is_made_up_for_by_reading_anew(gateway: Gateway) -> None:
    async with aclosing(gateway.watcher(resync=0.4).watch(CHAT)) as stream:
        assert ids(await following(stream)) is None
        gateway.keys, gateway.revision = ["a"], 9
        assert ids(await following(stream)) == ["a"]
        gateway.keys = []
        assert ids(await following(stream)) == []  # it was there before, in this watch
    assert [a["start_revision"] for a in gateway.asked][:2] == [6, 10]


async def test_what_cannot_be_read_any_more_keeps_what_it_said_when_it_is_read_anew(gateway: Gateway) -> None:
    gateway.keys = ["a", "b"]
    async with aclosing(gateway.watcher(resync=0.4).watch(CHAT)) as stream:
        assert ids(await following(stream)) == ["a", "b"]
        gateway.value, gateway.keys = "{", ["a", "c"]
        update = await following(stream)
        assert (ids(update), len(update.refused), update.partial) == (["a"], 2, True)
        gateway.keys = ["a"]
        update = await following(stream)
        assert (ids(update), len(update.refused), update.partial) == (["a"], 1, False)


async def test_a_message_in_fragments_is_one_change(gateway: Gateway) -> None:
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        await following(stream)
        gateway.watch.put_nowait(message(put("a"), fragment=True))
        gateway.watch.put_nowait(message(put("b"), fragment=True))
        gateway.watch.put_nowait(message(put("c")))
        assert ids(await following(stream)) == ["a", "b", "c"]


async def test_one_watch_tells_of_all_services_and_of_none_that_is_not_wanted(gateway: Gateway) -> None:
    def of(service: str, id: str) -> dict[str, Any]:
        key = encode(f"/holdfast/services/{service}/{id}".encode())
        return {"kv": {"key": key, "mod_revision": "7", "value": encode(VALUE.encode())}}

    gateway.services = 2
    async with aclosing(gateway.watcher().watch(frozenset({"chat", "talk"}))) as stream:
        assert {(await following(stream)).service for _ in range(2)} == {"chat", "talk"}
        others = [of("chat2", "x"), of("other", "x"), of("cha", "x"), of("talk/deeper", "y")]
        gateway.watch.put_nowait(message(of("talk", "a"), *others, fragment=True))
        gateway.watch.put_nowait(message(of("chat", "a")))
        seen = {u.service: ids(u) for u in [await following(stream), await following(stream)]}
        assert seen == {"talk": ["a", "deeper/y"], "chat": ["a"]}
        gateway.watch.put_nowait(message(of("chat", "b")))
        assert ids(await following(stream)) == ["a", "b"]
    (asked,) = gateway.asked
    assert (decode(asked["key"]), decode(asked["range_end"])) == (KEY.encode(), b"/holdfast/services/talk0")


async def test_lines_that_come_in_pieces_and_together_are_put_right(gateway: Gateway) -> None:
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        await following(stream)
        quiet = asyncio.ensure_future(following(stream))
        one, two, three = message(put("a")), message(put("b")), message(delete("a"))
        gateway.watch.put_nowait(one[:50])
        done, _ = await asyncio.wait({quiet}, timeout=0.3)  # the question after silence loses nothing of it
        assert not done
        gateway.watch.put_nowait(one[50:] + two + b"\n" + three)
        assert ids(await quiet) == ["a"]
        assert ids(await following(stream)) == ["a", "b"]
        assert ids(await following(stream)) == ["b"]


async def test_compaction_over_and_over_is_not_a_loop(gateway: Gateway) -> None:
    compacted = message(canceled=True, compact_revision="9")
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        async with asyncio.timeout(10):
            for _ in range(3):
                gateway.watch.put_nowait(compacted)
                gateway.watch.put_nowait(None)
                await anext(stream)
        loop = asyncio.get_running_loop()
        began, before = loop.time(), gateway.reads
        gateway.watch.put_nowait(compacted)
        await following(stream)
        assert gateway.reads == before + 1
        assert loop.time() - began >= 0.2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"cluster": "2"}, "another cluster"),
        ({"revision": 4}, "an older state"),
    ],
)
async def test_an_etcd_that_is_not_the_one_it_was_is_an_error(
    gateway: Gateway, change: dict[str, Any], error: str
) -> None:
    gateway.keys = ["a"]
    async with aclosing(gateway.watcher(resync=0.1).watch(CHAT)) as stream:
        await following(stream)
        for name, value in change.items():
            setattr(gateway, name, value)
        with pytest.raises(RegistryError, match=error):
            await following(stream)
    # From the beginning, that it has nothing says nothing.
    gateway.keys = []
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        assert ids(await following(stream)) is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: web.Response(text="<html>"), "not JSON.*is this etcd"),
        (lambda: web.Response(text="[]"), "not an answer of etcd's"),
        (lambda: web.Response(text="{}"), "status 200"),
        (lambda: web.Response(text='{"header": {}}'), "not an answer of etcd's"),
        (
            lambda: web.Response(text='{"header": {"cluster_id": "1", "revision": "x"}}'),
            "not an answer of etcd's",
        ),
        (
            lambda: web.json_response({"header": {"cluster_id": "1", "revision": "1"}, "responses": []}),
            "not an answer of etcd's",
        ),
        (
            lambda: web.json_response(
                {
                    "header": {"cluster_id": "1", "revision": "1"},
                    "responses": [{"response_range": {"kvs": [{"key": "%"}]}}],
                }
            ),
            "not an answer of etcd's",
        ),
        (lambda: web.Response(status=503, text="try later"), "status 503: try later"),
        (
            lambda: web.json_response({"code": 14, "message": "etcdserver: no leader"}, status=503),
            "etcdserver: no leader",
        ),
    ],
)
async def test_garbage_is_an_error_and_never_an_empty_set(
    gateway: Gateway, answer: Callable[[], web.Response], error: str
) -> None:
    gateway.answer = answer
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match=error):
            await following(stream)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, "the stream ended"),
        (b"<html>\n", "not JSON"),
        (b'{"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}\n', "no leader"),
        (b'{"result": 1}\n', "status 200"),
        (message(canceled=True, cancel_reason="permission denied"), "refused: permission denied"),
        (message({"kv": {"key": "%"}}), "not an answer of etcd's"),
    ],
)
async def test_a_watch_that_breaks_is_an_error(gateway: Gateway, data: bytes | None, error: str) -> None:
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        await following(stream)
        gateway.watch.put_nowait(data)
        with pytest.raises(RegistryError, match=error):
            await following(stream)


async def test_a_line_without_end_is_an_error(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery.etcd_client.LONGEST_LINE", 1000)
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        await following(stream)
        gateway.watch.put_nowait(b"x" * 1001)
        with pytest.raises(RegistryError, match="more than 1000 bytes"):
            await following(stream)


async def test_a_closed_watch_leaves_no_tasks(gateway: Gateway) -> None:
    before = len(asyncio.all_tasks())
    async with aclosing(gateway.watcher().watch(CHAT)) as stream:
        await following(stream)
        gateway.watch.put_nowait(message(put("a")))
        await following(stream)
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > before:
            gateway.watch.put_nowait(None)
            await asyncio.sleep(0.01)


async def test_nobody_listening_is_an_error(unused_tcp_port: int) -> None:
    registry = EtcdRegistry(kind="etcd", address=(f"http://127.0.0.1:{unused_tcp_port}",))
    async with aclosing(EtcdWatcher(registry).watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match="Cannot connect"):
            await following(stream)


async def test_each_failure_makes_it_the_next_members_turn(gateway: Gateway, unused_tcp_port: int) -> None:
    registry = EtcdRegistry(
        kind="etcd", address=(f"http://127.0.0.1:{unused_tcp_port}", gateway.url, "http://127.0.0.1:1")
    )
    watcher = EtcdWatcher(registry)
    async with aclosing(watcher.watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match="Cannot connect"):
            await following(stream)
    for _ in range(2):  # one that works is kept
        async with aclosing(watcher.watch(CHAT)) as stream:
            assert ids(await following(stream)) is None
    gateway.answer = lambda: web.Response(text='{"header": {}}')
    async with aclosing(watcher.watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match="not an answer"):
            await following(stream)
    async with aclosing(watcher.watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1"):
            await following(stream)


async def test_who_gives_up_on_a_call_asks_the_next_member_then(gateway: Gateway) -> None:
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: accepted.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    registry = EtcdRegistry(kind="etcd", address=(f"http://127.0.0.1:{port}", gateway.url))
    members = Members(registry.address)
    client = EtcdClient(registry, members, 60.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.call("/v3/kv/range", {})
    assert members.current == gateway.url
    assert "header" in await client.call("/v3/kv/range", {})
    await client.close()
    silent.close()
    for writer in accepted:
        writer.close()


def test_a_failure_that_is_known_already_moves_nobody_on() -> None:
    members = Members(("http://a/", "http://b"))
    members.failed("http://a")
    members.failed("http://a")
    assert members.current == "http://b"


# -- entries ----------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
instances = st.builds(
    Instance,
    service=st.sampled_from(["chat", "chat2", "a/b"]),
    id=texts.filter(bool),
    host=st.sampled_from(["10.0.0.1", "::1", "name.example"]),
    port=st.integers(1, 65535),
    weight=st.integers(0, 65535),
    status=st.sampled_from([Status.UP, Status.DRAINING]),
    metadata=st.dictionaries(texts.filter(lambda key: key not in ("weight", "draining")), texts, max_size=3),
)


@given(instances)
def test_an_instance_reads_as_it_was_written(instance: Instance) -> None:
    key = instance_key("/p/", instance)
    service = service_key("/p", instance.service)
    assert key.startswith(service)
    assert service <= key < range_end(service)
    assert instance_of(instance.service, key[len(service) :], value_of(instance)) == instance


@given(instances, instances)
def test_two_instances_never_share_a_key(one: Instance, two: Instance) -> None:
    same = (one.service, one.id) == (two.service, two.id)
    assert (instance_key("/p", one) == instance_key("/p", two)) is same


def test_what_people_write_is_read() -> None:
    value = b'{"address": "unix:/run/a.sock", "metadata": {"canary": true, "version": 2}, "new": 1}'
    assert instance_of("s", b"a", value) == Instance(
        "s", "a", path="/run/a.sock", metadata={"canary": "true", "version": "2"}
    )
    value = b'{"address": "a:1", "metadata": {"draining": "true", "weight": "7"}}'
    assert instance_of("s", b"10.0.0.1:80", value) == Instance(
        "s", "10.0.0.1:80", "a", 1, weight=7, status=Status.DRAINING
    )


@pytest.mark.parametrize(
    ("rest", "value", "error"),
    [
        (b"a", "", "not JSON"),
        (b"a", "[]", "not a JSON object"),
        (b"a", "{}", "None is not an address"),
        (b"a", '{"address": 7}', "7 is not an address"),
        (b"a", '{"address": ":80"}', "address: ':80' has no host"),
        (b"a", '{"address": "a:0"}', "address: 'a:0' has no host or no port"),
        (b"a", '{"address": "a:1", "weight": "7"}', "weight: not a whole number"),
        (b"a", '{"address": "a:1", "weight": true}', "weight: not a whole number"),
        (b"a", '{"address": "a:1", "weight": 65536}', "weight: not a whole number"),
        (b"a", '{"address": "a:1", "metadata": []}', "metadata: not an object"),
        (b"a", '{"address": "a:1", "metadata": {"x": {}}}', "metadata.x: not a text"),
        (b"a", '{"address": "a:1", "draining": "no"}', "draining: neither true nor false"),
        (b"", VALUE, "the id is empty"),
        (b"\xff", VALUE, "can't decode"),
        (b"%FF", VALUE, "can't decode"),
    ],
)
def test_what_cannot_be_meant_is_refused(rest: bytes, value: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        instance_of("s", rest, value.encode())


def test_the_section_makes_a_watcher_and_a_registrar_under_the_names_there() -> None:
    assert isinstance(make_watcher(EtcdRegistry(kind="etcd")), EtcdWatcher)
    assert isinstance(make_registrar(EtcdRegistry(kind="etcd"), ttl=9), EtcdRegistrar)
    renamed = EtcdRegistry(kind="etcd", names={"chat": "talk"})
    assert isinstance(make_watcher(renamed), Renamed)
    registrar = make_registrar(renamed, ttl=9)
    assert isinstance(registrar, RenamedRegistrar)
    assert registrar.interval == 3
