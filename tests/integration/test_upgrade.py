"""`holdfast upgrade`: a new process takes over everything, and nobody who is connected notices."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed

from proxy.frames import Opcode, encode_frame
from tests.integration.stage import PATIENCE, Gateway, Stage, exists, free_port
from tests.integration.support_upgrade import Dynasty, Origin, children, gone, handshake, until

MASK = b"\x11\x22\x33\x44"
ROUTES = [{"match": {"path": "/"}, "service": "web"}]
MIGRATING = {"on_drain": "migrate", "replay": True}
KINDS = pytest.mark.parametrize(
    "rules", [{"on_drain": "close"}, {"on_drain": "migrate"}], ids=["copied", "relayed"]
)


@pytest.fixture
async def dynasty(stage: Stage) -> AsyncIterator[Dynasty]:
    dynasty = Dynasty(stage)
    yield dynasty
    await dynasty.end()


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin.open() as origin:
        yield origin


def web_service(*addresses: str, **more: Any) -> dict[str, Any]:
    instances = [{"id": f"i{n}", "address": address} for n, address in enumerate(addresses)]
    return {"services": {"web": {"instances": instances, **more}}, "routes": ROUTES}


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


async def self_signed(folder: Path) -> tuple[str, str]:
    """A certificate for localhost and its key, as files."""
    certificate, key = str(folder / "localhost.crt"), str(folder / "localhost.key")
    process = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
        "-keyout", key, "-out", certificate,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0
    return certificate, key


class Backend:
    """An HTTP application that answers at once, or when it is told to."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()
        self.app = web.Application()
        self.app.router.add_get("/download", self._download)
        self.app.router.add_get("/ws", self._echo)
        self.app.router.add_get("/old", self._echo)
        self.app.router.add_route("*", "/{path:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(text=f"answer to {request.path}")

    async def _download(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first half, ")
        self.entered.set()
        await self.let_go.wait()
        await response.write(b"second half")
        return response

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket


# -- WebSockets -------------------------------------------------------------------------------------------


@KINDS
async def test_half_a_frame_in_flight_on_both_sides_arrives_whole(
    dynasty: Dynasty, origin: Origin, rules: dict[str, Any]
) -> None:
    gateway = await dynasty.gateway(**web_service(origin.address, websocket=rules))
    client_in, client_out = await handshake(gateway)
    server_in, server_out = await origin.accepted.get()
    question = encode_frame(Opcode.TEXT, b"a question that is sent in two parts", MASK)
    answer = encode_frame(Opcode.TEXT, b"an answer that is sent in two parts")
    # A whole one first: once it has arrived, the half behind it has reached the proxy.
    first = encode_frame(Opcode.TEXT, b"first", MASK)
    client_out.write(first + question[:11])
    server_out.write(encode_frame(Opcode.TEXT, b"first") + answer[:9])
    assert await server_in.readexactly(len(first)) == first
    assert await client_in.readexactly(7) == encode_frame(Opcode.TEXT, b"first")
    await dynasty.upgrade(gateway)
    await gone(gateway.child.pid)
    client_out.write(question[11:])
    server_out.write(answer[9:])
    assert await server_in.readexactly(len(question)) == question
    assert await client_in.readexactly(len(answer)) == answer
    # Where messages begin is still known: a Close of the proxy's comes between two of them.
    status, sessions = await gateway.ask("GET", "/v1/sessions")
    (session,) = sessions["sessions"]
    assert (status, session["messages_in"], session["messages_out"]) == (200, 2, 2)
    client_out.close()


@KINDS
async def test_what_a_slow_reader_has_not_taken_yet_is_not_lost(
    dynasty: Dynasty, origin: Origin, rules: dict[str, Any]
) -> None:
    gateway = await dynasty.gateway(**web_service(origin.address, websocket=rules))
    client_in, client_out = await handshake(gateway, receive_buffer=4096)
    _, server_out = await origin.accepted.get()
    frames = [encode_frame(Opcode.BINARY, b"%06d" % n + bytes(20_000)) for n in range(1000)]

    async def push() -> None:
        for frame in frames:
            server_out.write(frame)
            await server_out.drain()

    pushing = asyncio.create_task(push())
    # The client's own buffer, the kernel's and the proxy's are full, and nobody moves.
    sent = [-1, -2]

    async def stuck() -> bool:
        await gateway.ask("GET", "/healthz")
        sent[:] = [(await sessions_of(gateway))[0]["bytes_out"], sent[0]]
        return sent[0] == sent[1] > 0 and not pushing.done()

    await until(stuck)
    new = await dynasty.upgrade(gateway)
    assert exists(gateway.child.pid), "the reader is too slow for its tunnel to go over at once"
    for frame in frames:
        assert await client_in.readexactly(len(frame)) == frame
    await pushing
    await gone(gateway.child.pid)
    server_out.write(frames[7])
    assert await client_in.readexactly(len(frames[7])) == frames[7]
    assert [s["bytes_out"] for s in await sessions_of(gateway)] == [sum(map(len, frames)) + len(frames[7])]
    assert exists(new)
    client_out.close()


async def sessions_of(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await gateway.ask("GET", "/v1/sessions"))[1]["sessions"]
    return found


async def test_a_tunnel_that_is_no_websocket_keeps_its_half_closed_side(
    stage: Stage, dynasty: Dynasty
) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()
    answer = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
        got.put_nowait(await reader.read())
        await answer.wait()
        writer.write(b"the answer")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    gateway = await dynasty.gateway(**web_service(address))
    host, _, port = gateway.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(b"the question")
    writer.write_eof()
    assert await got.get() == b"the question"
    await dynasty.upgrade(gateway)
    await gone(gateway.child.pid)
    answer.set()
    assert await reader.read() == b"the answer"
    writer.close()
    server.close()
    await server.wait_closed()


async def test_replay_goes_on_in_the_new_process_from_what_the_old_one_knew(dynasty: Dynasty) -> None:
    async with Origin.open() as one, Origin.open() as two:
        gateway = await dynasty.gateway(**web_service(one.address, two.address, websocket=MIGRATING))
        _, client_out = await handshake(gateway)
        message = encode_frame(Opcode.TEXT, b"not confirmed by anybody", MASK)
        client_out.write(message)
        first, other = await next_of(one, two)
        assert (await first[0].readexactly(len(message))) == message
        await dynasty.upgrade(gateway)
        await gone(gateway.child.pid)
        first[1].transport.abort()
        second = await asyncio.wait_for(other.accepted.get(), PATIENCE)
        assert await second[0].readexactly(len(message)) == message
        client_out.close()


async def next_of(*origins: Origin) -> tuple[Any, Origin]:
    """The next connection, and the origin that did not get it."""
    waiting = {asyncio.create_task(origin.accepted.get()): origin for origin in origins}
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    return done.pop().result(), waiting[rest.pop()]


async def test_a_tunnel_that_may_wait_on_a_draining_instance_goes_on_waiting(dynasty: Dynasty) -> None:
    async with Origin.open() as one:
        gateway = await dynasty.gateway(
            **web_service(
                one.address, websocket={"on_drain": "wait"}, drain={"timeout": "60s", "jitter": "0s"}
            )
        )
        client_in, client_out = await handshake(gateway)
        _, server_out = await one.accepted.get()
        assert (await gateway.ask("POST", "/v1/services/web/instances/i0/drain"))[0] == 200
        await dynasty.upgrade(gateway)
        await gone(gateway.child.pid)
        frame = encode_frame(Opcode.TEXT, b"still here")
        server_out.write(frame)
        assert await client_in.readexactly(len(frame)) == frame
        (instance,) = (await gateway.ask("GET", "/v1/services/web/instances"))[1]["instances"]
        assert (instance["state"], instance["tunnels"]) == ("draining", 1)
        client_out.close()


# -- HTTP -------------------------------------------------------------------------------------------------


async def test_a_download_ends_in_the_old_process_which_then_exits(stage: Stage, dynasty: Dynasty) -> None:
    backend = Backend()
    gateway = await dynasty.gateway(**web_service(await stage.serve(backend.app)))
    session = await stage.client()
    response = await session.get(f"{gateway.url}/download")
    await backend.entered.wait()
    await dynasty.upgrade(gateway)
    async with (await stage.client()).get(f"{gateway.url}/meanwhile") as other:
        assert await other.text() == "answer to /meanwhile"
    assert exists(gateway.child.pid)
    backend.let_go.set()
    assert await response.text() == "first half, second half"
    await gone(gateway.child.pid)

    # It was counted, although by a process that is no more.
    async def counted() -> bool:
        return requests_in(await gateway.metrics()) == 2

    await until(counted)
    async with session.get(f"{gateway.url}/after") as after:
        assert await after.text() == "answer to /after"


def requests_in(metrics: dict[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("holdfast_requests_total{"))


async def test_a_download_that_does_not_end_is_cut_at_the_deadline(stage: Stage, dynasty: Dynasty) -> None:
    backend = Backend()
    gateway = await dynasty.gateway(**web_service(await stage.serve(backend.app)), shutdown="200ms")
    response = await (await stage.client()).get(f"{gateway.url}/download")
    await backend.entered.wait()
    await dynasty.upgrade(gateway)
    with pytest.raises(aiohttp.ClientError):
        await response.text()
    await gone(gateway.child.pid)
    backend.let_go.set()
    async with (await stage.client()).get(f"{gateway.url}/after") as after:
        assert await after.text() == "answer to /after"


async def test_kept_connections_go_over_and_are_used_right_after(stage: Stage, dynasty: Dynasty) -> None:
    gateway = await dynasty.gateway(**web_service(await stage.serve(Backend().app)))
    host, _, port = gateway.addresses[0].rpartition(":")
    streams = [await asyncio.open_connection(host, int(port)) for _ in range(20)]

    async def ask(n: int, again: str) -> None:
        reader, writer = streams[n]
        writer.write(f"GET /{n}{again} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        await read_answer(reader, f"answer to /{n}{again}")

    await asyncio.gather(*(ask(n, "") for n in range(20)))
    half = await asyncio.open_connection(host, int(port))
    half[1].write(b"GET /half HTTP/1.1\r\nHo")
    accepted = (await gateway.metrics())["holdfast_connections_total"]
    for again in ("b", "c"):
        await dynasty.upgrade(gateway)
        # The old process may be handing over at this very moment.
        await asyncio.gather(*(ask(n, again) for n in range(20)))
    for pid in dynasty.line(gateway)[:-1]:
        await gone(pid)
    half[1].write(b"st: h\r\n\r\n")
    await read_answer(half[0], "answer to /half")
    metrics = await gateway.metrics()
    assert metrics["holdfast_connections_open"] == 21
    assert metrics["holdfast_connections_total"] == accepted == 21
    assert requests_in(metrics) == 61
    for _, writer in (*streams, half):
        writer.close()


async def read_answer(reader: asyncio.StreamReader, text: str) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    assert head.startswith(b"HTTP/1.1 200"), head
    assert await reader.readexactly(len(text)) == text.encode()
    return head


# -- what else a process holds ------------------------------------------------------------------------------


async def test_weights_drains_splits_ejections_and_counters_survive(stage: Stage, dynasty: Dynasty) -> None:
    addresses = [await stage.serve(Backend().app) for _ in range(4)]
    instances = [
        {"id": f"i{n}", "address": address, "metadata": {"version": f"v{1 + n % 2}"}}
        for n, address in enumerate(addresses)
    ]
    gateway = await dynasty.gateway(
        services={"web": {"instances": instances, "sticky": {"by": "header", "name": "X-User"}}},
        routes=[{"name": "all", "service": "web", "split": {"v1": 100}}],
    )
    session = await stage.client()
    for n in range(10):
        async with session.get(gateway.url, headers={"X-User": f"u{n % 3}"}) as response:
            assert response.status == 200
    changes = (
        ("PATCH", "/v1/services/web/instances/i0", {"weight": 7}),
        ("POST", "/v1/services/web/instances/i1/drain", None),
        ("POST", "/v1/services/web/instances/i3/eject", None),
        ("PUT", "/v1/routes/all/split", {"split": {"v1": 30, "v2": 70}}),
    )
    for method, path, body in changes:
        status, answer = await gateway.ask(method, path, body)
        assert status == 200, answer

    async def instance_of(user: str) -> str:
        _, answer = await gateway.ask("GET", f"/v1/explain?url=/&header=X-User:{user}")
        return next(str(instance["id"]) for instance in answer["instances"] if instance["taken"])

    async def state() -> dict[str, Any]:
        _, found = await gateway.ask("GET", "/v1/services/web/instances")
        kept = ("id", "weight", "state", "version")
        metrics = await gateway.metrics()
        counted = ("holdfast_requests_total{", "holdfast_connections_total", "holdfast_request_duration")
        return {
            "instances": [{key: i[key] for key in kept} for i in found["instances"]],
            "split": (await gateway.ask("GET", "/v1/routes/all/split"))[1],
            "metrics": {k: v for k, v in metrics.items() if k.startswith(counted) and "created" not in k},
            "users": [await instance_of(f"u{n}") for n in range(3)],
        }

    before = await state()
    assert {i["state"] for i in before["instances"]} == {"ready", "draining", "ejected"}
    assert requests_in(before["metrics"]) == 10
    for _ in range(2):
        await dynasty.upgrade(gateway)
        assert await state() == before
    # They are what holds, not only what is shown: an operator takes them back where they were made.
    assert (await gateway.ask("POST", "/v1/services/web/instances/i1/undrain"))[0] == 200
    assert [i["state"] for i in (await state())["instances"]] == ["ready", "ready", "ready", "ejected"]


REGISTRY = {
    "registry": [{"kind": "embedded", "listen": "127.0.0.1:0"}],
    "services": {"web": {}},
    "routes": ROUTES,
}


class Registrar:
    """What instances say to the registry."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self._session = session
        self._url = gateway.registry

    async def put(self, path: str, body: Any = None) -> None:
        async with self._session.put(f"{self._url}/v1/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            await response.read()

    async def register(self, id: str, port: int, ttl: str = "30s") -> None:
        body = {
            "ID": id,
            "Name": "web",
            "Address": "127.0.0.1",
            "Port": port,
            "Check": {"TTL": ttl, "Status": "passing"},
        }
        await self.put("agent/service/register", body)

    async def ask(self, path: str, **query: str) -> tuple[int, Any]:
        async with self._session.get(f"{self._url}/v1/{path}", params=query) as response:
            assert response.status == 200, await response.text()
            return int(response.headers.get("X-Consul-Index", 0)), await response.json()


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
async def test_the_registry_goes_over_with_contents_and_leases(
    stage: Stage, dynasty: Dynasty, tmp_path: Path, kept: str
) -> None:
    registry = dict(REGISTRY["registry"][0])  # type: ignore[index]
    if kept == "on disk":
        registry["data"] = str(tmp_path / "registry")
    gateway = await dynasty.gateway(**{**REGISTRY, "registry": [registry]})
    registrar = Registrar(await stage.client(), gateway)
    port = int((await stage.serve(Backend().app)).rpartition(":")[2])
    await registrar.register("a", port)
    await registrar.register("short", port, ttl="1s")
    await registrar.put("kv/colour", "blue")
    await registrar.put("agent/check/pass/service:a")
    await gateway.ready("web", "a", "short")
    index, before = await registrar.ask("health/service/web")
    waiting = asyncio.create_task(registrar.ask("health/service/web", index=str(index), wait="60s"))
    await dynasty.upgrade(gateway)
    await registrar.put("agent/check/pass/service:a")
    index_after, after = await registrar.ask("health/service/web")
    assert index_after >= index
    assert [entry["Service"] for entry in after] == [entry["Service"] for entry in before]
    assert (await registrar.ask("kv/colour"))[1][0]["Key"] == "colour"
    # Whoever was waiting was answered, and waits on; leases go on running.
    at, _ = await asyncio.wait_for(waiting, PATIENCE)
    assert at >= index
    checks: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE):
        while checks.get("short") != "critical":
            at, entries = await registrar.ask("health/service/web", index=str(at), wait="5s")
            checks = {e["Service"]["ID"]: e["Checks"][-1]["Status"] for e in entries}
    assert checks["a"] == "passing"
    await gateway.ready("web", "a")
    async with (await stage.client()).get(gateway.url) as response:
        assert response.status == 200


# -- when it goes wrong -------------------------------------------------------------------------------------


async def test_a_wrong_new_configuration_is_refused_and_the_old_process_goes_on(
    stage: Stage, dynasty: Dynasty
) -> None:
    gateway = await dynasty.gateway(**web_service(await stage.serve(Backend().app)))
    gateway.write(services={"web": {"balanse": "random"}})
    status, answer = await gateway.ask("POST", "/v1/upgrade")
    assert (status, answer["error"]) == (409, "upgrade_failed")
    assert "services.web.balanse: is not a known key (did you mean 'balance'?)" in answer["detail"]
    async with (await stage.client()).get(gateway.url) as response:
        assert response.status == 200
    assert children(gateway.child.pid) == []


async def test_an_address_that_cannot_be_had_is_told_and_the_registry_goes_on(
    stage: Stage, dynasty: Dynasty
) -> None:
    gateway = await dynasty.gateway(**REGISTRY)
    registrar = Registrar(await stage.client(), gateway)
    port = int((await stage.serve(Backend().app)).rpartition(":")[2])
    await registrar.register("a", port)
    await gateway.ready("web", "a")
    taken = await stage.serve(web.Application())
    gateway.write(listen=[*gateway.config["listen"], {"address": taken}])
    status, answer = await gateway.ask("POST", "/v1/upgrade")
    assert (status, answer["error"]) == (409, "upgrade_failed")
    assert f"cannot listen on {taken}: address already in use" in answer["detail"]
    await still_registers(stage, gateway, registrar, port)
    # Mended, it works.
    gateway.write(listen=gateway.config["listen"][:1])
    await dynasty.upgrade(gateway)
    await gone(gateway.child.pid)
    await gateway.ready("web", "a", "b")


async def still_registers(stage: Stage, gateway: Gateway, registrar: Registrar, port: int) -> None:
    """The registry takes heartbeats, answers blocking queries, and the proxy hears of what is new."""
    await registrar.put("agent/check/pass/service:a")
    index, entries = await registrar.ask("health/service/web")
    assert [entry["Service"]["ID"] for entry in entries] == ["a"]
    waiting = asyncio.create_task(registrar.ask("health/service/web", index=str(index), wait="60s"))
    await registrar.register("b", port)
    _, entries = await asyncio.wait_for(waiting, PATIENCE)
    assert {entry["Service"]["ID"] for entry in entries} == {"a", "b"}
    await gateway.ready("web", "a", "b")
    async with (await stage.client()).get(gateway.url) as response:
        assert response.status == 200


async def test_a_new_process_that_dies_with_everything_in_its_hands_disturbs_nobody(
    stage: Stage, dynasty: Dynasty, tmp_path: Path
) -> None:
    """Killed after it was given the sockets, the table and the registry, and before it accepted anybody."""
    gateway = await dynasty.gateway(**REGISTRY, shutdown="5s")
    registrar = Registrar(await stage.client(), gateway)
    port = int((await stage.serve(Backend().app)).rpartition(":")[2])
    await registrar.register("a", port)
    await gateway.ready("web", "a")
    pipe = tmp_path / "certificate"
    os.mkfifo(pipe)
    # Whoever opens the pipe to read waits for a writer: the new process stops at its second listener.
    tls = {"certificate": str(pipe), "key": str(pipe)}
    gateway.write(listen=[*gateway.config["listen"], {"address": "127.0.0.1:0", "tls": tls}])
    async with websocket(f"{gateway.url.replace('http', 'ws')}/ws") as socket:
        upgrade = asyncio.create_task(gateway.ask("POST", "/v1/upgrade"))

        opened = -1
        async with asyncio.timeout(PATIENCE):
            while opened < 0:
                try:
                    opened = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:
                    await asyncio.sleep(0.01)
        # The registry is in nobody's hands: this waits.
        heartbeat = asyncio.create_task(registrar.put("agent/check/pass/service:a"))
        async with (await stage.client()).get(gateway.url) as response:
            assert response.status == 200
        (new,) = children(gateway.child.pid)
        os.kill(new, signal.SIGKILL)
        os.close(opened)
        status, answer = await upgrade
        assert (status, answer["error"]) == (409, "upgrade_failed")
        await heartbeat
        await still_registers(stage, gateway, registrar, port)
        await socket.send("hello")
        assert await socket.recv() == "hello"


async def test_the_second_upgrade_may_follow_at_once_and_two_at_once_are_one(
    stage: Stage, dynasty: Dynasty
) -> None:
    gateway = await dynasty.gateway(**web_service(await stage.serve(Backend().app)))
    async with websocket(f"{gateway.url.replace('http', 'ws')}/ws") as socket:
        both = await asyncio.gather(*(gateway.ask("POST", "/v1/upgrade") for _ in range(2)))
        assert sorted(status for status, _ in both) == [200, 409]
        assert "under way" in next(answer["detail"] for status, answer in both if status == 409)
        for _ in range(2):
            await dynasty.upgrade(gateway)
            await socket.send("hello")
            assert await socket.recv() == "hello"
        *old, new = dynasty.line(gateway)
        for pid in old:
            await gone(pid)
        assert exists(new)
    assert len(old) == 3


async def test_signals_and_reloads_meanwhile_do_not_disturb_it(stage: Stage, dynasty: Dynasty) -> None:
    backend = Backend()
    gateway = await dynasty.gateway(**web_service(await stage.serve(backend.app)))
    response = await (await stage.client()).get(f"{gateway.url}/download")
    await backend.entered.wait()
    so_far = len(gateway.child.lines)
    gateway.child.signal(signal.SIGUSR2)
    new = int((await gateway.child.said(r"upgraded pid=(\d+)"))[1])
    await gateway.child.said(r"handing_over")
    # The old one is not asked any more.
    for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1):
        gateway.child.signal(number)
    await gateway.child.said("forwarding on", after=so_far)
    os.kill(new, signal.SIGHUP)
    await gateway.child.said(r"reloaded: 0 changes")
    backend.let_go.set()
    assert await response.text() == "first half, second half"
    await gone(gateway.child.pid)
    assert dynasty.line(gateway) == [gateway.child.pid, new]
    assert gateway.child.output.count("reloaded: ") == 1


# -- what changes with it -----------------------------------------------------------------------------------


async def test_the_new_process_lives_by_the_new_configuration(stage: Stage, dynasty: Dynasty) -> None:
    address = await stage.serve(Backend().app)
    service = {"instances": [{"id": "i", "address": address}], "drain": {"jitter": "100ms"}}
    removed = stage.folder / "removed.sock"
    gateway = await dynasty.gateway(
        listen=[{"address": "127.0.0.1:0"}, {"address": f"unix:{removed}"}],
        services={"web": service, "old": service},
        routes=[{"match": {"path": "/old"}, "service": "old"}, *ROUTES],
    )
    url = gateway.url.replace("http", "ws")
    second = free_port()
    async with AsyncExitStack() as stack:
        kept = await stack.enter_async_context(websocket(f"{url}/ws"))
        lost = await stack.enter_async_context(websocket(f"{url}/old"))
        gateway.write(
            listen=[gateway.config["listen"][0], {"address": f"127.0.0.1:{second}"}],
            services={"web": service},
            routes=[{"name": "renamed", "service": "web"}],
        )
        await dynasty.upgrade(gateway)
        async with (await stage.client()).get(f"http://127.0.0.1:{second}/new") as response:
            assert await response.text() == "answer to /new"
        await kept.send("hello")
        assert await kept.recv() == "hello"
        with pytest.raises(ConnectionClosed, match=r"upgraded|leaving") as closed:
            await asyncio.wait_for(lost.recv(), PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert not removed.exists()
        assert [s["route"] for s in await sessions_of(gateway)] == ["renamed"]
        async with (await stage.client()).get(f"{gateway.url}/old") as response:
            assert response.status == 400, "it goes where everything goes now, and is no WebSocket"


async def test_a_unix_socket_goes_over_and_stays_where_it_is(stage: Stage, dynasty: Dynasty) -> None:
    path = f"{stage.folder}/public.sock"
    config = web_service(await stage.serve(Backend().app))
    gateway = await dynasty.gateway(**config, listen=[{"address": f"unix:{path}"}])
    session = await stage.client(connector=aiohttp.UnixConnector(path))
    for n in range(3):
        async with session.get(f"http://h/{n}") as response:
            assert await response.text() == f"answer to /{n}"
        await dynasty.upgrade(gateway)
    for pid in dynasty.line(gateway)[:-1]:
        await gone(pid)
    async with (await stage.client(connector=aiohttp.UnixConnector(path))).get("http://h/new") as response:
        assert await response.text() == "answer to /new"


async def test_two_listeners_on_addresses_of_the_systems_choice_stay_two(
    stage: Stage, dynasty: Dynasty
) -> None:
    config = web_service(await stage.serve(Backend().app))
    gateway = await dynasty.gateway(**config, listen=[{"address": "127.0.0.1:0"}] * 2)
    await dynasty.upgrade(gateway)
    await gone(gateway.child.pid)
    session = await stage.client()
    assert len(set(gateway.addresses)) == 2
    for address in gateway.addresses:
        async with session.get(f"http://{address}/x") as response:
            assert await response.text() == "answer to /x"


# -- TLS ----------------------------------------------------------------------------------------------------


@needs_openssl
async def test_tls_is_drained_while_what_is_plain_goes_over(
    stage: Stage, dynasty: Dynasty, tmp_path: Path
) -> None:
    certificate, key = await self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=certificate)
    gateway = await dynasty.gateway(
        **web_service(await stage.serve(Backend().app), drain={"jitter": "300ms"}),
        listen=[
            {"address": "127.0.0.1:0"},
            {"address": "127.0.0.1:0", "tls": {"certificate": certificate, "key": key}},
        ],
    )
    plain, secure = gateway.addresses
    port = int(secure.rpartition(":")[2])
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        stays = await enter(websocket(f"ws://{plain}/ws"))
        leave = [await enter(websocket(f"wss://localhost:{port}/ws", ssl=trust)) for _ in range(10)]
        busy, idle = [
            await asyncio.open_connection("localhost", port, ssl=trust, server_hostname="localhost")
            for _ in range(2)
        ]
        for reader, writer in (busy, idle):
            writer.write(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b"close" not in (await read_answer(reader, "answer to /x")).lower()
        closes: list[tuple[float, int]] = []

        async def watch(client: Any) -> None:
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            closes.append((loop.time(), closed.value.rcvd.code))

        watching = [asyncio.create_task(watch(client)) for client in leave]
        await dynasty.upgrade(gateway)
        await gateway.child.said("handing_over clients=2 tunnels=11 closing=10")
        # A TLS client that still asks is answered, and told that this was the last time.
        busy[1].write(b"GET /y HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"connection: close" in (await read_answer(busy[0], "answer to /y")).lower()
        assert await busy[0].read() == b""
        assert await asyncio.wait_for(idle[0].read(), PATIENCE) == b""
        await asyncio.wait_for(asyncio.gather(*watching), PATIENCE)
        assert {code for _, code in closes} == {1012}
        assert len({round(at, 2) for at, _ in closes}) > 3, "they must not all come back at once"
        await gone(gateway.child.pid)
        await stays.send("hello")
        assert await stays.recv() == "hello"
        async with websocket(f"wss://localhost:{port}/ws", ssl=trust) as again:
            await again.send("again")
            assert await again.recv() == "again"
        for _, writer in (busy, idle):
            writer.transport.abort()


# -- around it ----------------------------------------------------------------------------------------------


async def test_the_verb_says_who_has_taken_over_or_why_nobody_has(stage: Stage, dynasty: Dynasty) -> None:
    gateway = await dynasty.gateway(**web_service(await stage.serve(Backend().app)))

    async def upgrade(*more: str) -> tuple[int, list[str]]:
        child = await stage.holdfast("upgrade", "--admin", gateway.admin, *more)
        return await child.ended(), child.lines

    code, lines = await upgrade()
    new = dynasty.line(gateway)[-1]
    assert (code, lines) == (0, [f"process {new} has taken over"])
    code, lines = await upgrade("--json")
    assert (code, json.loads("".join(lines))) == (0, {"pid": dynasty.line(gateway)[-1]})
    gateway.write(services={})
    code, lines = await upgrade()
    assert code == 1
    assert lines[0].startswith("holdfast: the new process did not take over: ")
    assert "routes" in "".join(lines)


async def test_systemd_is_told_by_the_old_process_who_is_the_main_one(
    stage: Stage, dynasty: Dynasty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        # Like systemd, which asks the kernel who has sent it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

        async def told() -> tuple[int, str]:
            readable = asyncio.Event()
            loop.add_reader(sock, readable.set)
            try:
                async with asyncio.timeout(PATIENCE):
                    await readable.wait()
            finally:
                loop.remove_reader(sock)
            data, ancillary, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(12))
            return int.from_bytes(ancillary[0][2][:4], "little"), data.decode()

        gateway = await dynasty.gateway(**web_service(await stage.serve(Backend().app)))
        first = gateway.child.pid
        assert await told() == (first, "READY=1")
        second = await dynasty.upgrade(gateway)
        # Until it is the main process nothing that the new one says counts (NotifyAccess=main).
        assert await told() == (first, f"MAINPID={second}")
        assert await told() == (second, "READY=1")
        third = await dynasty.upgrade(gateway)
        assert [await told(), await told()] == [(second, f"MAINPID={third}"), (third, "READY=1")]
        os.kill(third, signal.SIGTERM)
        assert await told() == (third, "STOPPING=1")
        await gone(third)


async def test_ten_upgrades_in_a_row_leave_no_descriptor_and_no_memory_behind(
    stage: Stage, dynasty: Dynasty
) -> None:
    gateway = await dynasty.gateway(**web_service(await stage.serve(Backend().app), websocket=MIGRATING))
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(websocket(f"{gateway.url.replace('http', 'ws')}/ws"))
            for _ in range(20)
        ]
        descriptors, memory = [], []
        for n in range(10):
            new = await dynasty.upgrade(gateway)
            for pid in dynasty.line(gateway)[:-1]:
                await gone(pid)
            for sock in sockets:
                await sock.send(f"hello {n}")
                assert await sock.recv() == f"hello {n}"
            descriptors.append(len(list(Path(f"/proc/{new}/fd").iterdir())))  # noqa: ASYNC240
            memory.append(resident(new))
        print("descriptors", descriptors, "KiB", memory)
        # The first has adopted as much as the last; an admin connection may be open or not.
        assert max(descriptors) <= descriptors[0] + 2
        assert memory[-1] < memory[0] * 1.1
        metrics = await gateway.metrics()
        assert metrics["holdfast_tunnels_open"] == metrics["holdfast_tunnels_total"] == 20


def resident(pid: int) -> int:
    """KiB of memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])
