"""One server in this process: the contract as a client sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from chat.answer import Answer, Context
from chat.message import MAX_FRAME


async def test_a_message_is_acknowledged_shown_and_answered(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve(id="i-1")
    talk = await connect(server.url, session="S", last_seq=0)
    await talk.say("c-1", "Where is my order?")
    await talk.until(type="state", state="REPLY_OK")
    assert [(frame["type"], frame.get("seq")) for frame in talk.frames] == [
        ("welcome", 0), ("ack", 1), ("message", 1), ("state", None), ("message", 2), ("state", None),
    ]  # fmt: skip
    assert talk.frames[0] == {
        "type": "welcome", "session": "S", "state": "INIT", "desk": "bot", "seq": 0, "instance": "i-1",
    }  # fmt: skip
    user, bot = talk.of("message")
    assert (user["from"], user["id"], user["text"]) == ("user", "c-1", "Where is my order?")
    assert (bot["from"], bot["reply_to"]) == ("bot", 1)
    assert "My orders" in bot["text"]


async def test_a_client_without_a_session_is_given_one_it_can_come_back_to(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    talk = await connect(server.url)
    session = (await talk.until(type="welcome"))["session"]
    await talk.say("c-1", "hello")
    await talk.until(type="state", state="REPLY_OK")
    again = await connect(server.url, session=session, last_seq=1)
    welcome = await again.until(type="welcome")
    assert (welcome["seq"], welcome["state"]) == (2, "REPLY_OK")
    await again.until(type="message")
    assert again.seqs == [2]


async def test_a_duplicate_gets_the_same_ack_and_no_second_answer(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    talk = await connect(server.url, session="S")
    for _ in range(3):
        await talk.say("c-1", "hello")
    await talk.say("c-2", "thanks")
    second = await talk.until(type="ack", id="c-2")
    await talk.until(type="message", reply_to=second["seq"])
    assert {frame["seq"] for frame in talk.of("ack") if frame["id"] == "c-1"} == {1}
    other = await connect(server.url, session="S")
    await other.say("c-1", "hello")
    assert (await other.until(type="ack"))["seq"] == 1
    history = await server.store.messages("S", 0, 100)
    assert sorted(m.reply_to for m in history if m.reply_to) == [m.seq for m in history if m.client_id]


async def test_two_tabs_see_the_same_messages(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    one, two = await connect(server.url, session="S"), await connect(server.url, session="S")
    await one.until(type="welcome")
    await two.until(type="welcome")
    await one.say("one-1", "hello")
    await two.until(type="state", state="REPLY_OK")
    await two.say("two-1", "thanks")
    for talk in (one, two):
        while len(talk.seqs) < 4:
            await talk.next()
    assert one.of("message") == two.of("message")
    assert one.seqs == [1, 2, 3, 4]


async def test_what_is_wrong_is_said_and_the_connection_goes_on(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    talk = await connect(server.url, session="S")
    await talk.socket.send_str("{")
    assert (await talk.until(type="error"))["code"] == "bad_frame"
    await talk.socket.send_bytes(b"\x00")
    assert (await talk.until(type="error"))["detail"] == "frames are text"
    await talk.say("long", "x" * 4001)
    assert (await talk.until(type="error", id="long"))["code"] == "text_too_long"
    await talk.send(type="join", session="S")
    assert (await talk.until(type="error"))["code"] == "forbidden"
    await talk.say("c-1", "hello")
    await talk.until(type="ack", id="c-1", seq=1)


async def test_a_frame_beyond_the_limit_ends_the_connection_with_1009(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    talk = await connect(server.url, session="S")
    await talk.say("c-1", "x" * MAX_FRAME)
    await talk.rest()
    assert talk.socket.close_code == 1009


async def test_who_talks_too_fast_is_told_and_may_send_it_again(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve(rate=20.0, burst=3)
    talk = await connect(server.url, session="S")
    for number in range(4):
        await talk.say(f"c-{number}", "hello")
    refused = await talk.until(type="error")
    assert (refused["code"], refused["id"]) == ("rate_limited", "c-3")
    other = await connect(server.url, session="T")
    await other.say("c-0", "hello")
    await other.until(type="ack")
    async with asyncio.timeout(5):
        while not [frame for frame in talk.of("ack") if frame["id"] == "c-3"]:
            await talk.say("c-3", "hello")
            await talk.next()


async def test_an_agent_is_called_joins_and_hands_back(serve, connect, http) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    user = await connect(server.url, session="S")
    await user.send(type="agent")
    await user.until(type="state", desk="waiting")
    async with http.get(f"{server.url}/api/sessions") as response:
        (listed,) = (await response.json())["sessions"]
    assert (listed["id"], listed["desk"], listed["last"]["from"]) == ("S", "waiting", "bot")
    assert listed["waiting_since"] is not None

    agent = await connect(server.url, role="agent")
    assert (await agent.until(type="welcome"))["session"] is None
    await agent.say("a-0", "too early")
    assert (await agent.until(type="error"))["code"] == "not_joined"
    await agent.send(type="join", session="S")
    assert (await agent.until(type="welcome", session="S"))["desk"] == "agent"
    await agent.say("a-1", "I am human")
    assert (await user.until(type="message", from_="agent"))["text"] == "I am human"
    await user.say("c-1", "Where is my order?")
    asked = await agent.until(type="message", from_="user")
    await user.send(type="typing")
    await agent.until(type="typing", from_="user")
    await agent.send(type="agent")
    assert (await agent.until(type="error"))["code"] == "forbidden"
    await agent.send(type="bye")
    await agent.until(type="welcome", session=None)
    # What the agent left unanswered is answered by the assistant.
    assert "My orders" in (await user.until(type="message", reply_to=asked["seq"]))["text"]


async def test_a_goodbye_ends_the_session_and_the_connection(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    talk, other = await connect(server.url, session="S"), await connect(server.url, session="S")
    await talk.say("c-1", "hello")
    await talk.until(type="message", from_="bot")
    await talk.send(type="bye")
    assert (await talk.rest())[-1] == {"type": "state", "state": "END", "desk": "bot"}
    assert talk.socket.close_code == 1000
    await other.until(type="state", state="END")
    await other.say("c-2", "anyone?")
    assert (await other.until(type="error", id="c-2"))["code"] == "ended"
    await other.say("c-1", "hello")
    await other.until(type="ack", id="c-1", seq=1)


async def test_the_resume_field_wins_over_the_query_and_nonsense_in_it_does_not(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    talk = await connect(server.url, session="S")
    await talk.say("c-1", "hello")
    await talk.until(type="state", state="REPLY_OK")
    moved = await connect(server.url, headers={"Holdfast-Resume": "S.1"})
    assert (await moved.until(type="welcome"))["session"] == "S"
    await moved.until(type="message")
    assert moved.seqs == [2]
    other = await connect(server.url, session="T", headers={"Holdfast-Resume": "going away"})
    assert (await other.until(type="welcome"))["session"] == "T"


async def test_a_close_of_the_client_is_answered_with_its_position(serve) -> None:  # type: ignore[no-untyped-def]
    import websockets.asyncio.client as websockets

    server = await serve()
    uri = server.url.replace("http", "ws") + "/ws?session=S"
    async with websockets.connect(uri) as socket:
        for number in range(5):
            message = {"type": "message", "id": f"c-{number}", "text": "hello"}
            await socket.send(json.dumps(message))
        await socket.close(code=1001)
    assert socket.close_code == 1001
    token = socket.protocol.close_rcvd.reason  # type: ignore[union-attr]
    session, _, seq = token.partition(".")
    assert session == "S"
    # Everything sent before the Close was consumed and acknowledged before it was answered.
    assert len([m for m in await server.store.messages("S", 0, 99) if m.client_id]) == 5
    assert int(seq) >= 5


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/ws?session=a/b", 400, "bad_session"),
        ("/ws?session=S&last_seq=x", 400, "bad_parameter"),
        ("/ws?session=S&last_seq=-1", 400, "bad_parameter"),
        ("/ws?session=S&role=boss", 400, "bad_role"),
    ],
)
async def test_a_bad_handshake_is_refused_with_a_reason(serve, http, path, status, code) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await http.ws_connect(server.url + path)
    assert refused.value.status == status
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    async with http.get(server.url + path, headers=headers) as response:
        assert (await response.json())["error"] == code


async def test_the_http_api_answers_in_json(serve, connect, http) -> None:  # type: ignore[no-untyped-def]
    server = await serve(id="i-1", version="v2")
    talk = await connect(server.url, session="S")
    for number in range(3):
        await talk.say(f"c-{number}", "hello")
    await talk.until(type="state", state="REPLY_OK")

    async def get(path: str, status: int = 200) -> dict[str, Any]:
        async with http.get(server.url + path) as response:
            assert response.status == status, path
            assert response.content_type == "application/json"
            fields: dict[str, Any] = await response.json()
            return fields

    page = await get("/api/sessions/S/messages?after=2&limit=2")
    assert [message["seq"] for message in page["messages"]] == [3, 4]
    assert (page["session"], page["seq"], page["more"]) == ("S", 6, True)
    assert (await get("/api/sessions/S/messages?after=6"))["messages"] == []
    assert (await get("/api/sessions/nobody/messages", 404))["error"] == "unknown_session"
    assert (await get("/api/sessions/a.b/messages", 400))["error"] == "bad_session"
    assert (await get("/api/sessions/S/messages?after=x", 400))["error"] == "bad_parameter"
    assert (await get("/ws", 426))["error"] == "websocket_expected"
    assert (await get("/nowhere", 404))["error"] == "not_found"
    for path in ("/healthz", "/readyz", "/startupz"):
        assert await get(path) == {"status": "ready", "instance": "i-1", "version": "v2"}
    async with http.put(f"{server.url}/api/sessions") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
    async with http.post(f"{server.url}/api/echo", data=b"body", headers={"Content-Type": "a/b"}) as response:
        assert (await response.read(), response.headers["X-Instance"]) == (b"body", "i-1")


async def test_the_pages_are_served_whole_and_need_no_other_host(serve, http) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    for path, mark in (("/", "chat.js"), ("/agent", "agent.js")):
        async with http.get(server.url + path) as response:
            page = await response.text()
            assert response.status == 200
            assert response.content_type == "text/html"
            assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert mark in page
        assert "//" not in page.replace("<!--", "")
    for name in ("chat.js", "agent.js", "link.js", "log.js", "texts.js", "style.css", "icon.svg"):
        async with http.get(f"{server.url}/{name}") as response:
            assert response.status == 200
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_metrics_count_what_happened(serve, connect, http) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    talk = await connect(server.url, session="S")
    await talk.say("c-1", "hello")
    await talk.say("c-1", "hello")
    await talk.until(type="message", from_="bot")
    async with http.get(f"{server.url}/metrics") as response:
        text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for line in (
        'holdfast_chat_connections{role="user"} 1.0',
        'holdfast_chat_frames_total{type="say"} 2.0',
        "holdfast_chat_duplicates_total 1.0",
        'holdfast_chat_answers_total{result="fitting"} 1.0',
        "holdfast_chat_sessions 1.0",
    ):
        assert line in text


async def test_with_a_token_agents_must_show_it_and_users_need_none(serve, connect, http) -> None:  # type: ignore[no-untyped-def]
    server = await serve(agent_token="sesame")
    await (await connect(server.url, session="S")).until(type="welcome")
    for query, offered in (({}, ""), ({"token": "sesame"}, ""), ({}, "d3Jvbmc"), ({}, "%"), ({}, "_w")):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            headers = {"Sec-WebSocket-Protocol": f"holdfast-chat, holdfast-token.{offered}"}
            await connect(server.url, headers=headers, role="agent", **query)
        assert refused.value.status == 401
    for headers in (
        {"Authorization": "Bearer sesame"},
        {"Sec-WebSocket-Protocol": "holdfast-chat, holdfast-token.c2VzYW1l"},
    ):
        await (await connect(server.url, headers=headers, role="agent")).until(type="welcome")
    async with http.get(f"{server.url}/api/sessions") as response:
        assert (response.status, (await response.json())["error"]) == (401, "unauthorized")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    headers = {"Authorization": "Bearer sesame"}
    async with http.get(f"{server.url}/api/sessions", headers=headers) as response:
        assert response.status == 200


async def test_a_store_that_fails_is_said_and_the_message_may_come_again(serve, connect, http) -> None:  # type: ignore[no-untyped-def]
    server = await serve()
    talk = await connect(server.url, session="S")
    await talk.say("c-1", "hello")
    await talk.until(type="state", state="REPLY_OK")
    database = server.store._writer.raw_connection()
    database.execute("alter table chat_messages rename to gone")
    database.close()
    await talk.say("c-2", "thanks")
    assert (await talk.until(type="error", id="c-2"))["code"] == "unavailable"
    async with http.get(f"{server.url}/api/sessions") as response:
        assert (response.status, (await response.json())["error"]) == (503, "store_unavailable")
    database = server.store._writer.raw_connection()
    database.execute("alter table gone rename to chat_messages")
    database.close()
    await talk.say("c-2", "thanks")
    await talk.until(type="ack", id="c-2")


class Gate:
    """An engine that answers when it is let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def answer(self, text: str, context: Context) -> Answer:
        await self.open.wait()
        return Answer(f"re: {text}")


async def test_a_drain_answers_what_is_in_hand_and_says_where_to_go_on(serve, connect, http) -> None:  # type: ignore[no-untyped-def]
    engine = Gate()
    server = await serve(engine=engine)
    talk, idle = await connect(server.url, session="S"), await connect(server.url, session="T")
    agent = await connect(server.url, role="agent")
    await idle.until(type="welcome")
    await agent.until(type="welcome")
    await talk.say("c-1", "question")
    await talk.until(type="ack")
    drained = asyncio.ensure_future(server.drain())
    for other in (idle, agent):
        await other.rest()
        assert other.socket.close_code == 1012
    with pytest.raises(aiohttp.ClientError):
        await connect(server.url, session="S")
    assert not drained.done()
    engine.open.set()
    frames = await talk.rest()
    assert [frame["text"] for frame in frames if frame["type"] == "message"] == ["question", "re: question"]
    assert talk.socket.close_code == 1012
    assert await drained is True


async def test_while_others_learn_of_the_leaving_new_sessions_are_still_served(serve, connect, http) -> None:  # type: ignore[no-untyped-def]
    server = await serve(settle=0.5)
    drained = asyncio.ensure_future(server.drain())
    await asyncio.sleep(0)
    async with http.get(f"{server.url}/readyz") as response:
        assert (response.status, (await response.json())["error"]) == (503, "not_ready")
    talk = await connect(server.url, session="S")
    await talk.say("c-1", "hello")
    await talk.until(type="message", from_="bot")
    await talk.rest()
    assert talk.socket.close_code == 1012
    assert await drained is True


async def test_a_drain_ends_at_its_deadline_whatever_is_unfinished(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve(engine=Gate(), deadline=0.3)
    talk = await connect(server.url, session="S")
    await talk.say("c-1", "question")
    await talk.until(type="ack")
    assert await server.drain() is False


async def test_another_instance_answers_what_a_closed_one_left(serve, connect) -> None:  # type: ignore[no-untyped-def]
    first = await serve(engine=Gate(), deadline=0.2)
    talk = await connect(first.url, session="S")
    await talk.say("c-1", "Where is my order?")
    await talk.until(type="ack")
    await first.close()
    second = await serve()
    again = await connect(second.url, session="S", last_seq=1)
    assert "My orders" in (await again.until(type="message", reply_to=1))["text"]


async def test_a_client_that_reads_nothing_does_not_hold_up_the_others(serve, connect) -> None:  # type: ignore[no-untyped-def]
    server = await serve(rate=10_000.0, burst=10_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port, limit=1024)
    writer.write(
        b"GET /ws?session=S HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    talk = await connect(server.url, session="S")
    for number in range(150):
        await talk.say(f"c-{number}", f"{number} " + "客" * 3900)
    while len(talk.seqs) < 300:
        await talk.next()
    assert talk.seqs == list(range(1, 301))
    writer.close()
