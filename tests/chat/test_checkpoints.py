"""What an instance tells a proxy that can move WebSockets: true at every byte, whatever cuts it off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

import chat.client
from chat.answer import Answer, Context
from chat.server import ChatServer
from tests.chat.conftest import PATIENCE

BY_PROXY = {"Holdfast-Migrate": "1"}


class Proxy:
    """The proxy's end of a WebSocket: it sees the pings too."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, **frame: Any) -> None:
        await self._socket.send_str(json.dumps(frame))

    async def say(self, id: str) -> None:
        await self.send(type="message", id=id, text="hello")

    async def barrier(self) -> None:
        await self._socket.ping(b"barrier")

    async def close(self) -> None:
        await self._socket._writer.close(1001)

    async def hear(self, until: str) -> list[str]:
        """Everything up to that: checkpoints without prefix, `pong`, `close REASON`, and frames in short."""
        heard: list[str] = []
        async with asyncio.timeout(PATIENCE):
            while not heard or heard[-1] != until:
                heard.append(self._short(await self._socket.receive()))
        return heard

    def _short(self, received: aiohttp.WSMessage) -> str:
        if received.type is WSMsgType.PING:
            return bytes(received.data).decode().removeprefix("holdfast-resume")
        if received.type is WSMsgType.PONG:
            return "pong"
        if received.type is WSMsgType.CLOSE:
            return f"close {received.extra}"
        assert received.type is WSMsgType.TEXT, received
        frame = json.loads(received.data)
        kind = frame["type"]
        return (
            f"{kind} {frame['seq']}"
            if kind == "message"
            else f"{kind} {frame['state']}"
            if kind == "state"
            else kind
        )


Connect = Callable[..., Awaitable[Proxy]]


@pytest.fixture
async def connect(http: aiohttp.ClientSession) -> AsyncIterator[Connect]:
    opened: list[aiohttp.ClientWebSocketResponse] = []

    async def open_one(server: ChatServer, *, headers: dict[str, str] = BY_PROXY, **query: Any) -> Proxy:
        socket = await http.ws_connect(
            f"{server.url}/ws", params=query, headers=headers, autoping=False, autoclose=False
        )
        opened.append(socket)
        return Proxy(socket)

    yield open_one
    for one in opened:
        await one.close()


async def test_each_frame_is_announced_with_what_will_hold_once_it_is_there(serve, connect) -> None:  # type: ignore[no-untyped-def]
    proxy = await connect(await serve(), session="S")
    await proxy.say("c-1")
    assert await proxy.hear("state REPLY_OK") == [
        "@0:S.0", "welcome",
        "+1@1:S.0", "ack",
        "+1@1:S.1", "message 1", "state AWAIT_NLP",
        "+1@1:S.2", "message 2", "state REPLY_OK",
    ]  # fmt: skip
    # What there is nothing to say about is counted all the same, or the proxy would keep it for ever.
    await proxy.send(type="typing")
    assert await proxy.hear("@2:S.2") == ["@2:S.2"]
    await proxy.send(type="nonsense")
    assert await proxy.hear("error") == ["+1@3:S.2", "error"]


async def test_who_resumes_is_told_at_once_from_where(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    proxy = await connect(server, session="S")
    await proxy.say("c-1")
    await proxy.hear("state REPLY_OK")
    again = await connect(server, session="other", headers={**BY_PROXY, "Holdfast-Resume": "S.1"})
    assert await again.hear("message 2") == ["@0:S.1", "welcome", "+1@0:S.2", "message 2"]
    # The same message again, from whoever kept it: acknowledged, counted, and not said twice.
    await again.say("c-1")
    assert await again.hear("ack") == ["+1@1:S.2", "ack"]


async def test_an_agents_session_and_the_frame_that_chose_it_hold_together(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    user = await connect(server, session="S")
    await user.say("c-1")
    await user.hear("state REPLY_OK")
    agent = await connect(server, role="agent")
    await agent.send(type="join", session="S")
    assert await agent.hear("message 3") == [
        "@0:", "welcome",
        "+1@1:S.0", "welcome",
        "+1@1:S.1", "message 1", "+1@1:S.2", "message 2", "+1@1:S.3", "message 3",
    ]  # fmt: skip
    await agent.send(type="bye")
    heard = await agent.hear("welcome")
    assert heard[-2:] == ["+1@2:", "welcome"]


async def test_who_is_no_such_proxy_is_not_pinged(serve, connect) -> None:  # type: ignore[no-untyped-def]
    talk = await connect(await serve(), session="S", headers={})
    await talk.say("c-1")
    heard = await talk.hear("state REPLY_OK")
    assert not [one for one in heard if "@" in one]


async def test_what_comes_while_the_close_is_being_written_is_not_counted(serve, connect) -> None:  # type: ignore[no-untyped-def]
    """It is stored, but its ack goes nowhere: the proxy has to send it again, whatever a pong says."""
    server = await serve()
    proxy = await connect(server, session="S")
    await proxy.hear("welcome")
    (client,) = server._clients
    may_close = asyncio.Event()
    send = client._socket.send_frame

    async def slowly(*arguments: Any) -> None:
        await may_close.wait()
        await send(*arguments)

    client._socket.send_frame = slowly
    client.close(1012)
    await proxy.say("c-1")
    await proxy.barrier()
    assert await proxy.hear("pong") == ["pong"]
    assert [m.client_id for m in await server.store.messages("S", 0, 9) if m.client_id] == ["c-1"]
    may_close.set()
    assert await proxy.hear("close S.0") == ["close S.0"]


class Silence:
    """An engine that has never anything to say."""

    async def answer(self, text: str, context: Context) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize(("stuck", "reached"), [("send_str", 2), ("ping", 1)])
async def test_a_close_that_cuts_the_writing_off_says_where_it_really_ended(  # type: ignore[no-untyped-def]
    serve, connect, monkeypatch: pytest.MonkeyPatch, stuck: str, reached: int
) -> None:
    """Of a long history the second message, or its checkpoint, is written, and nothing more is taken."""
    monkeypatch.setattr(chat.client, "CLOSE_TIMEOUT", 0.1)
    write = getattr(web.WebSocketResponse, stuck)
    holding = asyncio.Event()

    async def slowly(response: web.WebSocketResponse, data: Any) -> None:
        await write(response, data)
        if (b"+1@0:S.2" if stuck == "ping" else '"seq":2,"from"') in data:
            holding.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(web.WebSocketResponse, stuck, slowly)
    server = await serve(engine=Silence())
    for number in range(5):
        await server.services.sessions.receive("S", f"c-{number}", "hello")
    proxy = await connect(server, session="S")
    async with asyncio.timeout(PATIENCE):
        await holding.wait()
    await proxy.close()
    heard = await proxy.hear(f"close S.{reached}")
    assert [one for one in heard if one.startswith("message")] == [f"message {n + 1}" for n in range(reached)]
