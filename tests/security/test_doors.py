"""Who can reach the ports of the admin API and the registry, and has no business there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from aiohttp import web

from config.schema import Address
from discovery import door
from discovery.door import Runner
from discovery.embedded import http
from proxy.admin import server
from proxy.app import App
from tests.security.conftest import ask, request, until
from tests.security.test_pages import registry

TOKEN = "Authorization: Bearer sesame"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/config",
        "/healthz/../v1/config",
        "/dashboard/../v1/config",
        "/dashboard/%2e%2e/v1/config",
        "/%76%31/config",
        "//v1/config",
        "/v1/config%2f",
        "/v1/%2e%2e/v1/config",
        "/;/v1/config",
        "http://127.0.0.1/v1/config",
        "http://evil.example/v1/config",
        "/V1/CONFIG",
    ],
)
async def test_no_way_to_write_a_path_leads_past_the_token(guarded: App, path: str) -> None:
    answer = await ask(guarded.admin_address, request(f"GET {path}"))
    assert answer.status == 401
    assert b"sesame" not in answer.raw


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v1/config HTTP/1.0\r\n\r\n",
        b"GET /v1/config HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /v1/config HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        request("GET /v1/config", "Authorization: Bearer sesame2"),
        request("GET /v1/config", "Authorization: Bearer sesam"),
        request("GET /v1/config", "Authorization: Basic sesame"),
        request("GET /v1/config?token=sesame"),
        request("GET /v1/config", "Cookie: token=sesame"),
        request("GET /v1/config", "X-Forwarded-For: 127.0.0.1"),
        request("HEAD /v1/config"),
        request("TRACE /v1/config"),
        request("PROPFIND /v1/config"),
    ],
)
async def test_no_kind_of_request_leads_past_the_token(guarded: App, raw: bytes) -> None:
    answer = await ask(guarded.admin_address, raw)
    assert answer.status in (400, 401)
    assert b"listen" not in answer.body


@pytest.mark.parametrize("module", ["proxy/admin/guard.py", "chat/http.py"])
def test_tokens_are_compared_in_constant_time(module: str) -> None:
    """By the function that is made for it; how long it takes cannot be tested."""
    source = (Path(__file__).parents[2] / module).read_text(encoding="utf-8")
    assert "hmac.compare_digest(" in source
    assert "token ==" not in source


async def test_somebody_who_guesses_is_counted_and_told_of_once(guarded: App) -> None:
    for guess in range(5):
        await ask(guarded.admin_address, request("GET /v1/config", f"Authorization: Bearer {guess}"))
    events = [event for event in guarded.events.since(0) if event["kind"] == "admin_refused"]
    assert [(event["code"], event["by"], event["count"]) for event in events] == [
        ("unauthorized", "127.0.0.1", 1)
    ]
    scrape = await ask(guarded.admin_address, request("GET /metrics", TOKEN))
    assert b'holdfast_admin_refused_total{code="unauthorized"} 5.0' in scrape.body


@pytest.mark.parametrize(
    "raw", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"GET * HTTP/1.1\r\n\r\n"]
)
async def test_what_is_no_http_is_refused_and_not_logged(
    app: App, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for face in (app.admin_address, registry(app)):
            assert (await ask(face, raw)).status == 400
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("depth", [200_000])
async def test_bodies_nested_deeply_are_refused(app: App, depth: int) -> None:
    deep = b"[" * depth
    put = request("PUT /v1/agent/service/register", body=deep)
    assert (await ask(registry(app), put)).status == 400
    patch = request("POST /v1/leave", "Content-Type: application/json", body=deep[:60_000])
    assert (await ask(app.admin_address, patch)).status in (400, 413)


async def test_bodies_that_are_too_large_are_refused(app: App) -> None:
    head = "Content-Length: 999999999999"
    assert (await ask(registry(app), request("PUT /v1/kv/x", head), head_only=True)).status == 413
    plan = request("POST /v1/plan", "Content-Type: application/json", head)
    assert (await ask(app.admin_address, plan, head_only=True)).status == 413
    bomb = request("PUT /v1/kv/x", body=b"x" * (513 << 10))
    assert (await ask(registry(app), bomb)).status == 413


async def test_bodies_that_take_too_long_are_given_up(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_TIME", 0.05)
    monkeypatch.setattr(server, "_BODY_TIMEOUT", 0.05)
    slow = "Content-Length: 5"
    assert (await ask(registry(app), request("PUT /v1/kv/x", slow), head_only=True)).status == 408
    plan = request("POST /v1/plan", "Content-Type: application/json", slow)
    assert (await ask(app.admin_address, plan, head_only=True)).status == 408


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def face(stack: AsyncExitStack, *, most: int, head_time: float) -> tuple[Runner, Address]:
    """An application behind a door, which says hello."""

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = Runner(app, most=most, head_time=head_time)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, Address("127.0.0.1", runner.addresses[0][1])


async def connect(stack: AsyncExitStack, where: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(where.host, where.port)
    stack.callback(writer.close)
    return reader, writer


@pytest.mark.parametrize("said", [b"", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_who_sends_no_head_is_cut_off(stack: AsyncExitStack, said: bytes) -> None:
    _, where = await face(stack, most=10, head_time=0.05)
    reader, writer = await connect(stack, where)
    writer.write(said)
    async with asyncio.timeout(5):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_a_head_may_come_in_pieces_and_more_requests_after_it(stack: AsyncExitStack) -> None:
    _, where = await face(stack, most=10, head_time=5.0)
    reader, writer = await connect(stack, where)
    for piece in (
        b"\r\n",
        b"GET / HT",
        b"TP/1.1\r\nHost: x\r",
        b"\n\r",
        b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        writer.write(piece)
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        for _ in range(2):
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


async def test_more_connections_than_may_be_are_told_so(stack: AsyncExitStack) -> None:
    runner, where = await face(stack, most=3, head_time=5.0)
    served = await connect(stack, where)
    served[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await served[0].readuntil(b"hello")
    silent = [await connect(stack, where) for _ in range(2)]
    await until(lambda: len(runner._callers) == 2)
    reader, _ = await connect(stack, where)
    async with asyncio.timeout(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 503")
    silent[0][1].close()
    await until(lambda: len(runner._callers) == 1)
    assert (await ask(where, request("GET /"))).status == 200


async def test_an_end_does_not_wait_for_the_silent(stack: AsyncExitStack) -> None:
    runner, where = await face(stack, most=3, head_time=60.0)
    reader, _ = await connect(stack, where)
    await until(lambda: len(runner._callers) == 1)
    async with asyncio.timeout(2):
        await runner.cleanup()
        with pytest.raises(ConnectionError):
            assert await reader.read() == b""
            raise ConnectionResetError


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_who_sends_no_second_head_is_cut_off_too(
    stack: AsyncExitStack, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "KEEPALIVE", 0.05)
    _, where = await face(stack, most=10, head_time=5.0)
    reader, writer = await connect(stack, where)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.readuntil(b"hello")
        writer.write(said)
        assert await reader.read() == b""
