"""The Kubernetes watcher against an API server that can be hurt at will."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from config.registries import KubernetesRegistry
from discovery.belief import Backoff
from discovery.build import make_watcher
from discovery.kubernetes import KubernetesWatcher
from discovery.kubernetes_api import Lines
from discovery.model import RegistryError, Status, Update
from discovery.watch import SourceState, Supervisor
from tests.discovery.conftest import until
from tests.discovery.support_kubernetes import ApiServer, endpoint, slice_of

CHAT = frozenset({"chat"})
SOON = Backoff(first=0.001, most=0.002)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    await server.start()
    yield server
    await server.stop()


def watcher(server: ApiServer, **options: Any) -> KubernetesWatcher:
    grace = options.pop("grace", 5.0)
    section = KubernetesRegistry.model_validate(
        {"kind": "kubernetes", "address": server.url, "namespace": "shop"} | options
    )
    return KubernetesWatcher(section, environ={}, grace=grace, backoff=SOON)


async def following(stream: AsyncIterator[Update]) -> Update:
    return await asyncio.wait_for(anext(stream), 5)


def ids(update: Update) -> list[str] | None:
    return None if update.instances is None else [instance.id for instance in update.instances]


def pods(service: str, *names: str, title: str = "") -> dict[str, Any]:
    found = [endpoint(name, f"10.0.0.{number}") for number, name in enumerate(names, 1)]
    return slice_of(service, title or f"{service}-abcde", *found)


def asked(server: ApiServer, *, watches: bool) -> list[web.Request]:
    return [request for request in server.asked if ("watch" in request.query) is watches]


async def watched(server: ApiServer, count: int = 1) -> None:
    """Waits until so many watches are open."""
    await until(lambda: len(server.watches) == count)


@asynccontextmanager
async def supervised(
    *watchers: Any, services: frozenset[str] = CHAT
) -> AsyncIterator[tuple[Supervisor, list[Update]]]:
    updates: list[Update] = []
    supervisor = Supervisor(list(watchers), updates.append, services, backoff=Backoff(0.01, 0.02))
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, updates
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# -- what it tells -------------------------------------------------------------------------------------------


async def test_each_change_is_yielded_and_absent_is_not_empty(server: ApiServer) -> None:
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        assert ids(await following(stream)) is None
        await watched(server)
        server.apply(pods("chat", "a"))
        assert ids(await following(stream)) == ["a"]
        server.apply(pods("chat", "a", "b"))
        assert ids(await following(stream)) == ["a", "b"]
        leaving = {"ready": False, "serving": True, "terminating": True}
        server.apply(slice_of("chat", "chat-abcde", endpoint("a", "10.0.0.1", conditions=leaving)))
        update = await following(stream)
        assert [i.status for i in update.instances or ()] == [Status.DRAINING]
        server.apply(slice_of("chat", "chat-abcde", endpoints=None))
        assert ids(await following(stream)) == []
        server.delete("chat-abcde")
        assert ids(await following(stream)) is None


async def test_one_list_and_one_watch_serve_all_services_of_a_namespace(server: ApiServer) -> None:
    names = frozenset(f"s{number}" for number in range(50))
    for name in names:
        server.apply(pods(name, f"{name}-0"))
    server.apply(pods("unwanted", "u-0"))
    async with aclosing(watcher(server).watch(names)) as stream:
        assert {(await following(stream)).service for _ in names} == names
        await watched(server)
        server.apply(pods("unwanted", "u-0", "u-1"))
        server.apply(pods("s7", "s7-0", "s7-1"))
        assert (await following(stream)).service == "s7"
    assert len(server.asked) == 2
    assert server.asked[0].path == "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
    assert server.asked[0].query["labelSelector"].startswith("kubernetes.io/service-name in (s0,s1,")


async def test_with_very_many_names_the_slices_of_all_services_are_asked_for(server: ApiServer) -> None:
    names = frozenset(f"service-number-{number}" for number in range(500))
    server.apply(pods("unwanted", "u-0"))
    server.apply(pods("service-number-7", "a"))
    async with aclosing(watcher(server).watch(names)) as stream:
        found = {update.service: ids(update) for update in [await following(stream) for _ in names]}
    assert {name: value for name, value in found.items() if value is not None} == {"service-number-7": ["a"]}
    assert server.asked[0].query["labelSelector"] == "kubernetes.io/service-name"


async def test_services_of_other_namespaces_and_several_as_one(server: ApiServer) -> None:
    server.apply(pods("chat-stable", "a"))
    server.apply(pods("chat-canary", "b"), "canaries")
    server.apply(pods("orders", "o"), "canaries")
    section = KubernetesRegistry.model_validate(
        {
            "kind": "kubernetes",
            "address": server.url,
            "namespace": "shop",
            "names": {"chat": "chat-stable,chat-canary.canaries", "orders": "orders.canaries:http"},
        }
    )
    async with aclosing(make_watcher(section).watch(frozenset({"chat", "orders"}))) as stream:
        found = {update.service: update for update in [await following(stream) for _ in range(2)]}
        assert {name: ids(update) for name, update in found.items()} == {
            "chat": ["a.shop", "b.canaries"],
            "orders": ["o"],
        }
        assert {i.service for i in found["chat"].instances or ()} == {"chat"}
        await watched(server, 2)
        server.delete("chat-canary-abcde", "canaries")
        assert ids(await following(stream)) == ["a.shop"]


async def test_a_name_that_no_service_can_have_is_absent_and_hurts_no_other(server: ApiServer) -> None:
    server.apply(pods("chat", "a"))
    async with aclosing(watcher(server).watch(frozenset({"chat", "Group@@chat"}))) as stream:
        found = {update.service: ids(update) for update in [await following(stream) for _ in range(2)]}
    assert found == {"Group@@chat": None, "chat": ["a"]}


async def test_a_slice_that_makes_no_sense_is_told_of_and_what_it_held_is_doubted(server: ApiServer) -> None:
    server.apply(pods("chat", "a"))
    server.apply(slice_of("chat", "broken", {"addresses": []}))
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        update = await following(stream)
    assert (ids(update), update.partial) == (["a"], True)
    assert update.refused == ("EndpointSlice shop/broken: an endpoint with the address None",)


async def test_a_service_of_which_nothing_can_be_read_is_not_told_of(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.apply(pods("chat", "a"))
    server.apply(slice_of("orders", "broken", {"addresses": []}))
    async with aclosing(watcher(server).watch(frozenset({"chat", "orders"}))) as stream:
        assert (await following(stream)).service == "chat"
        await watched(server)
        server.apply(pods("orders", "o", title="sound"))
        assert ids(await following(stream)) == ["o"]
    assert "service orders: nothing can be read: EndpointSlice shop/broken: an endpoint" in caplog.text


async def test_long_lists_come_in_pages_of_one_moment(server: ApiServer) -> None:
    for number in range(250):
        server.apply(pods("chat", f"p{number:03}", title=f"s{number:03}"))

    async def answer(request: web.Request) -> None:
        if request.query.get("continue"):
            # Written while the list is read: it belongs to the watch.
            server.apply(pods("chat", f"late-{len(server.asked)}", title=f"late-{len(server.asked)}"))

    server.answer = answer
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        assert ids(await following(stream)) == [f"p{number:03}" for number in range(250)]
        assert len(ids(await following(stream)) or ()) > 250
    pages = asked(server, watches=False)
    assert [page.query["limit"] for page in pages] == ["100"] * 3


async def test_an_event_of_a_thousand_endpoints_is_one_line(server: ApiServer) -> None:
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
        many = [endpoint(f"p{n:04}", f"10.1.{n // 250}.{n % 250}") for n in range(1000)]
        server.apply(slice_of("chat", "large", *many))
        assert len(ids(await following(stream)) or ()) == 1000


def test_lines_are_cut_however_the_bytes_come() -> None:
    text = b'{"a":1}\n\n{"b":2}\r\n{"c":' + b"3" * 100 + b"}\n{half"
    whole = [line.strip() for line in Lines().feed(text)]
    assert whole == [b'{"a":1}', b'{"b":2}', b'{"c":' + b"3" * 100 + b"}"]
    for size in (1, 2, 7, 64):
        lines = Lines()
        found = [line for at in range(0, len(text), size) for line in lines.feed(text[at : at + size])]
        assert [line.strip() for line in found] == whole


def test_a_line_without_an_end_is_an_error() -> None:
    lines = Lines(longest=5)
    lines.feed(b"12345\n67890")
    with pytest.raises(ValueError, match="more than 5 bytes"):
        lines.feed(b"1")


# -- what the server does ------------------------------------------------------------------------------------


async def test_a_watch_that_ends_in_order_goes_on_where_it_was(server: ApiServer) -> None:
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
        server.apply(pods("chat", "a"))
        await following(stream)
        server.end_watches()
        server.apply(pods("chat", "a", "b"))
        assert ids(await following(stream)) == ["a", "b"]
    assert len(asked(server, watches=False)) == 1
    versions = [int(request.query["resourceVersion"]) for request in asked(server, watches=True)]
    assert versions == [1000, 1001]


async def test_the_server_is_asked_to_end_watches_and_to_send_bookmarks(server: ApiServer) -> None:
    async with aclosing(watcher(server, wait="100s").watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
    query = asked(server, watches=True)[0].query
    assert 70 <= int(query["timeoutSeconds"]) <= 100
    assert query["allowWatchBookmarks"] == "true"


async def test_bookmarks_keep_an_idle_watch_from_expiring(server: ApiServer) -> None:
    server.bookmarks = 0.01
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
        for number in range(10):
            server.apply(pods("unwanted", f"u{number}"))
        version = server.version
        await until(lambda: version in server.bookmarked)
        server.compact()
        server.end_watches()
        await until(lambda: len(asked(server, watches=True)) == 2)
        await watched(server)
        server.apply(pods("chat", "a"))
        assert ids(await following(stream)) == ["a"]
    assert len(asked(server, watches=False)) == 1
    assert asked(server, watches=True)[1].query["resourceVersion"] == str(version)


@pytest.mark.parametrize("as_status", [False, True])
async def test_a_version_that_the_server_has_forgotten_means_to_list_anew(
    server: ApiServer, as_status: bool
) -> None:
    server.apply(pods("chat", "a"))
    server.apply(pods("orders", "o"))

    async def answer(request: web.Request) -> web.Response | None:
        if as_status and request.query.get("resourceVersion") == "1002":
            return web.json_response({"kind": "Status", "code": 410, "reason": "Expired"}, status=410)
        return None

    async with aclosing(watcher(server).watch(frozenset({"chat", "orders"}))) as stream:
        await following(stream)
        await following(stream)
        await watched(server)
        server.answer = answer
        server.end_watches()
        server.apply(pods("chat", "b"))
        server.delete("orders-abcde")
        server.compact()
        found = {update.service: ids(update) for update in [await following(stream) for _ in range(2)]}
        assert found == {"chat": ["b"], "orders": None}
    assert len(asked(server, watches=False)) == 2


async def test_a_list_that_expires_between_two_pages_is_begun_anew(server: ApiServer) -> None:
    for number in range(150):
        server.apply(pods("chat", f"p{number:03}", title=f"s{number:03}"))

    async def answer(request: web.Request) -> None:
        if request.query.get("continue") and len(server.asked) == 2:
            server.apply(pods("chat", "late"))
            server.compact()

    server.answer = answer
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        assert len(ids(await following(stream)) or ()) == 151
    assert len(asked(server, watches=False)) == 4


async def test_a_server_that_was_set_back_is_noticed_though_it_says_nothing(server: ApiServer) -> None:
    server.apply(pods("chat", "a"))
    async with aclosing(watcher(server, wait="1s").watch(CHAT)) as stream:
        assert ids(await following(stream)) == ["a"]
        server.version -= 500
        server.oldest = server.version
        server.history.clear()
        server.apply(pods("chat", "b"))
        for _ in range(5):
            await watched(server)
            server.end_watches()
        assert ids(await following(stream)) == ["b"]


async def test_watches_that_end_at_once_again_and_again_are_an_error(server: ApiServer) -> None:
    async def answer(request: web.Request) -> web.Response | None:
        return web.Response() if "watch" in request.query else None

    server.answer = answer
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        await following(stream)
        with pytest.raises(RegistryError, match="9 watches in a row ended as soon as they had begun"):
            while True:
                await following(stream)
    assert len(asked(server, watches=True)) == 9


async def test_half_a_line_and_then_an_orderly_end_loses_nothing(server: ApiServer) -> None:
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
        server.send(b'{"type":"MODIFIED","obj')
        server.end_watches()
        server.apply(pods("chat", "a"))
        assert ids(await following(stream)) == ["a"]


async def test_a_connection_that_breaks_is_an_error(server: ApiServer) -> None:
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
        server.break_watches()
        with pytest.raises(RegistryError, match=server.url):
            await following(stream)


async def test_a_frozen_server_is_noticed_while_it_is_watched(server: ApiServer) -> None:
    async with aclosing(watcher(server, wait="1s", grace=1.0).watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
        server.freeze()
        with pytest.raises(RegistryError, match="a watch of 1 s did not end in time"):
            await following(stream)


async def test_a_frozen_server_is_noticed_while_it_is_asked(server: ApiServer) -> None:
    server.freeze()
    async with aclosing(watcher(server, grace=0.1).watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match=r"no answer in 0.1 s"):
            await following(stream)


LINES = [
    (b"<html>\n", "not JSON"),
    (b"[]\n", "not an object of the Kubernetes API"),
    (b"{}\n", "not an event of a watch"),
    (b'{"type":"MODIFIED","object":{}}\n', "not an event of a watch"),
    (b'{"type":"SURPRISE","object":{"metadata":{"name":"a"}}}\n', "not an event of a watch"),
    (b'{"type":"ADDED","object":{"metadata":{}}}\n', "without a name"),
    (b'{"type":"ERROR","object":{"code":500,"message":"etcdserver: no leader"}}\n', "etcdserver: no leader"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
async def test_garbage_in_a_watch_is_an_error(server: ApiServer, line: bytes, message: str) -> None:
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
        server.send(line)
        with pytest.raises(RegistryError, match=message):
            await following(stream)


ANSWERS = [
    (web.Response, {"body": b"<html>"}, "not JSON"),
    (web.Response, {"body": b"[]"}, "not an object of the Kubernetes API"),
    (web.Response, {"body": b"{}"}, "not a list of EndpointSlices"),
    (web.Response, {"body": b'{"items":[{}],"metadata":{"resourceVersion":"1"}}'}, "without a name"),
    (web.Response, {"body": b'{"items":7,"metadata":{}}'}, "not a list of EndpointSlices"),
    (web.Response, {"status": 302, "headers": {"Location": "/login"}}, "status 302"),
    (
        web.Response,
        {"status": 503, "body": b'{"message":"the server is busy"}'},
        "status 503: the server is busy",
    ),
]


@pytest.mark.parametrize(("kind", "options", "message"), ANSWERS)
async def test_garbage_in_a_list_is_an_error_and_never_an_empty_set(
    server: ApiServer, kind: type[web.Response], options: dict[str, Any], message: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return kind(**options)

    server.answer = answer
    async with aclosing(watcher(server).watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match=message):
            await following(stream)


async def test_nobody_listening_is_an_error(unused_tcp_port: int) -> None:
    nobody = ApiServer()
    nobody.url = f"http://127.0.0.1:{unused_tcp_port}"
    async with aclosing(watcher(nobody).watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match="Cannot connect"):
            await following(stream)


async def test_a_closed_watch_leaves_nothing_behind(server: ApiServer) -> None:
    before = len(asyncio.all_tasks())
    stream = watcher(server).watch(frozenset({"chat", "orders.else"}))
    await following(stream)
    await watched(server, 2)
    await stream.aclose()  # type: ignore[attr-defined]
    await until(lambda: not server.watches and len(asyncio.all_tasks()) <= before)


async def test_through_a_restart_of_the_server_nothing_is_lost(server: ApiServer) -> None:
    server.apply(pods("chat", "a", "b"))
    async with supervised(watcher(server)) as (supervisor, updates):
        await until(lambda: [ids(update) for update in updates] == [["a", "b"]])
        await watched(server)
        port = int(server.url.rpartition(":")[2])
        await server.stop()
        await until(lambda: supervisor.sources[0].failures > 1)
        server.apply(pods("chat", "a", "b", "c"))
        await server.start(port)
        await until(lambda: [ids(update) for update in updates] == [["a", "b"], ["a", "b", "c"]])
        assert supervisor.sources[0].state is SourceState.LIVE


# -- who we are ----------------------------------------------------------------------------------------------


RULES = {("holdfast", verb, "shop") for verb in ("list", "watch")}


async def test_a_token_is_sent_and_its_file_is_read_each_time(server: ApiServer, tmp_path: Path) -> None:
    server.tokens, server.rules = {"first": "holdfast"}, RULES
    token = tmp_path / "token"
    token.write_text("first\n")
    async with aclosing(watcher(server, token_file=str(token)).watch(CHAT)) as stream:
        await following(stream)
        await watched(server)
        server.tokens = {"second": "holdfast"}
        token.write_text("second\n")
        server.apply(pods("chat", "a"))
        assert ids(await following(stream)) == ["a"]
        server.end_watches()
        server.apply(pods("chat", "b"))
        assert ids(await following(stream)) == ["b"]
    sent = [request.headers["Authorization"] for request in server.asked]
    assert sent == ["Bearer first", "Bearer first", "Bearer second"]


async def test_a_token_in_the_configuration_is_sent(server: ApiServer) -> None:
    server.tokens = {"secret": "holdfast"}
    async with aclosing(watcher(server, token="secret").watch(CHAT)) as stream:
        await following(stream)


async def test_a_token_that_is_refused_is_named_by_where_it_is(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"right": "holdfast"}
    token = tmp_path / "token"
    token.write_text("wrong")
    cases: list[tuple[dict[str, str], str]] = [
        ({"token_file": str(token)}, f"the token in {token} is not accepted .status 401"),
        ({"token": "wrong"}, "the token is not accepted"),
        ({}, "nobody .no token is set. is not accepted"),
        ({"token_file": str(tmp_path / "missing")}, "token: .*missing"),
    ]
    for options, message in cases:
        async with aclosing(watcher(server, **options).watch(CHAT)) as stream:
            with pytest.raises(RegistryError, match=message):
                await following(stream)


@pytest.mark.parametrize("missing", ["list", "watch"])
async def test_a_missing_permission_is_said(server: ApiServer, missing: str) -> None:
    server.tokens, server.rules = {"t": "holdfast"}, RULES - {("holdfast", missing, "shop")}
    async with aclosing(watcher(server, token="t").watch(CHAT)) as stream:
        with pytest.raises(
            RegistryError,
            match=f"may not `list` and `watch` `endpointslices` of `discovery.k8s.io` in the namespace shop "
            f".status 403.: .*holdfast.* cannot {missing} resource",
        ):
            await following(stream)
            await following(stream)


async def test_an_expired_token_is_survived_once_the_file_has_the_new_one(
    server: ApiServer, tmp_path: Path
) -> None:
    server.apply(pods("chat", "a"))
    server.tokens = {"new": "holdfast"}
    token = tmp_path / "token"
    token.write_text("old")
    async with supervised(watcher(server, token_file=str(token))) as (supervisor, updates):
        await until(lambda: supervisor.sources[0].failures > 0)
        token.write_text("new")
        await until(lambda: [ids(update) for update in updates] == [["a"]])


def account(folder: Path, server: ApiServer, certificate: Path) -> dict[str, Any]:
    """A pod's service account below `folder`, and its environment."""
    (folder / "token").write_text("pod-token")
    (folder / "namespace").write_text("shop")
    shutil.copy(certificate, folder / "ca.crt")
    port = server.url.rpartition(":")[2]
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
    return {"environ": environ, "account": folder, "grace": 5.0}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own CA, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "server.crt", folder / "server.key"
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubernetes"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:kubernetes.default.svc"]
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(["openssl", "req", "-x509", *options, *names, *files], check=True, capture_output=True)
    return paths


@pytest.fixture
async def secure(certificate: tuple[Path, Path]) -> AsyncIterator[ApiServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    server = ApiServer()
    server.tokens, server.rules = {"pod-token": "holdfast"}, RULES
    server.apply(pods("chat", "a"))
    await server.start(tls=context)
    yield server
    await server.stop()


async def test_in_a_pod_everything_is_found_by_itself(
    secure: ApiServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    section = KubernetesRegistry(kind="kubernetes")
    options = account(tmp_path, secure, certificate[0])
    async with aclosing(KubernetesWatcher(section, **options).watch(CHAT)) as stream:
        assert ids(await following(stream)) == ["a"]


async def test_a_certificate_of_somebody_else_is_refused(secure: ApiServer) -> None:
    async with aclosing(watcher(secure, token="pod-token").watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match=r"(?i)certificate verify failed"):
            await following(stream)
    assert secure.asked == []


async def test_the_name_in_the_certificate_may_be_another_than_in_the_address(
    secure: ApiServer, certificate: tuple[Path, Path]
) -> None:
    for name, good in (("kubernetes.default.svc", True), ("example.com", False)):
        tls = {"ca": str(certificate[0]), "server_name": name}
        async with aclosing(watcher(secure, token="pod-token", tls=tls).watch(CHAT)) as stream:
            if good:
                assert ids(await following(stream)) == ["a"]
            else:
                with pytest.raises(RegistryError, match=r"example\.com"):
                    await following(stream)


async def test_outside_of_a_cluster_an_address_is_needed(tmp_path: Path) -> None:
    section = KubernetesRegistry(kind="kubernetes")
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "not in a Kubernetes cluster .*: set `address`"),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "No such file.*automountServiceAccountToken"),
    ]
    for environ, message in cases:
        stream = KubernetesWatcher(section, environ=environ, account=tmp_path).watch(CHAT)
        with pytest.raises(RegistryError, match=message):
            await following(stream)


async def test_another_server_never_gets_the_token_of_the_pod(
    server: ApiServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    section = KubernetesRegistry(kind="kubernetes", address=server.url)
    options = account(tmp_path, server, certificate[0])
    async with aclosing(KubernetesWatcher(section, **options).watch(CHAT)) as stream:
        await following(stream)
    assert "Authorization" not in server.asked[0].headers
    assert "/namespaces/default/" in server.asked[0].path


async def test_the_family_of_the_clusters_own_address_is_preferred(tmp_path: Path) -> None:
    from discovery.kubernetes_api import access_of

    (tmp_path / "namespace").write_text("shop")
    section = KubernetesRegistry(kind="kubernetes")
    for host, family, base in (
        ("10.96.0.1", "IPv4", "https://10.96.0.1:443"),
        ("fd00::1", "IPv6", "https://[fd00::1]:443"),
        ("kubernetes.default.svc", "IPv4", "https://kubernetes.default.svc:443"),
    ):
        access = access_of(section, {"KUBERNETES_SERVICE_HOST": host}, tmp_path)
        assert (access.family, access.base) == (family, base)
