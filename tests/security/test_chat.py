"""The chat in front of other people's browsers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chat.options import Options
from chat.server import ChatServer
from config.schema import Address
from tests.security.conftest import Answer, ask, request

HANDSHAKE = (
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
)


@pytest.fixture
async def chat(tmp_path: Path) -> AsyncIterator[ChatServer]:
    server = ChatServer(Options(store=f"sqlite:///{tmp_path}/chat.db", bus="local:"))
    await server.start()
    yield server
    await server.close()


async def handshake(chat: ChatServer, role: str, *fields: str) -> Answer:
    raw = request(f"GET /ws?role={role}", *HANDSHAKE, *fields, host="chat.example")
    raw = raw.replace(b"Connection: close", b"Connection: Upgrade")
    return await ask(Address("127.0.0.1", chat.options.port), raw, head_only=True)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((), 101),
        (("Origin: http://chat.example",), 101),
        (("Origin: https://shop.example", "X-Forwarded-Host: shop.example"), 101),
        (("Origin: http://evil.example",), 403),
        (("Origin: http://chat.example.evil.example",), 403),
        (("Origin: null",), 403),
        (("Origin: http://[",), 403),
        (("Origin: ",), 403),
    ],
)
async def test_a_page_of_another_site_cannot_be_an_agent(
    chat: ChatServer, fields: tuple[str, ...], status: int
) -> None:
    assert (await handshake(chat, "agent", *fields)).status == status


async def test_a_page_of_another_site_may_hold_the_chat_for_users(chat: ChatServer) -> None:
    assert (await handshake(chat, "user", "Origin: http://shop.example")).status == 101


@pytest.mark.parametrize("path", ["/", "/agent", "/chat.js", "/api/sessions", "/nothing", "/healthz"])
async def test_no_answer_of_the_chat_is_framed_or_sniffed(chat: ChatServer, path: str) -> None:
    fields = (await ask(Address("127.0.0.1", chat.options.port), request(f"GET {path}"))).fields
    assert fields["x-content-type-options"] == "nosniff"
    policy = fields["content-security-policy"]
    assert "sandbox" in policy or "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "text/plain"])
async def test_what_is_echoed_is_no_page(chat: ChatServer, kind: str) -> None:
    raw = request("POST /api/echo", f"Content-Type: {kind}", body=b"<script>alert(1)</script>")
    fields = (await ask(Address("127.0.0.1", chat.options.port), raw)).fields
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["content-security-policy"].startswith("sandbox")


async def test_a_session_that_is_not_known_tells_nothing_and_logs_no_lines(
    chat: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(
        Address("127.0.0.1", chat.options.port), request("GET /api/sessions/a%0aINFO%20forged/x")
    )
    assert answer.status == 404
    assert b"\n" not in answer.body
    assert "forged" not in caplog.text
