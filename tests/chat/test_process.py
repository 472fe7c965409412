"""Real processes: what survives their deaths, sudden and announced."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed

HANGING = """
import asyncio, sys
from chat import server
from chat.__main__ import main
from chat.answer import KnowledgeBase
async def hang(self, text, context):
    await asyncio.Event().wait()
KnowledgeBase.answer = hang
sys.exit(main(sys.argv[1:]))
"""


async def test_a_start_is_quick(spawn) -> None:  # type: ignore[no-untyped-def]
    began = time.perf_counter()
    await spawn()
    assert time.perf_counter() - began < 5.0


async def test_two_instances_share_a_session(spawn, connect) -> None:  # type: ignore[no-untyped-def]
    one, two = await asyncio.gather(spawn("--id", "one"), spawn("--id", "two"))
    user = await connect(one.url, session="S")
    agent = await connect(two.url, role="agent")
    assert (await user.until(type="welcome"))["instance"] == "one"
    await user.say("c-1", "Where is my order?")
    await user.until(type="state", state="REPLY_OK")
    await agent.send(type="join", session="S")
    await agent.until(type="message", seq=3)
    began = time.perf_counter()
    await agent.say("a-1", "I am on another instance")
    await user.until(type="message", from_="agent")
    await user.send(type="typing")
    await agent.until(type="typing")
    # The bus carried it: looking into the store alone would take longer.
    assert time.perf_counter() - began < 1.0
    assert user.seqs == agent.seqs == [1, 2, 3, 4]


async def test_a_kill_between_storing_and_answering_loses_and_doubles_nothing(spawn, connect) -> None:  # type: ignore[no-untyped-def]
    doomed = await spawn(program=HANGING)
    talk = await connect(doomed.url, session="S")
    await talk.say("c-1", "Where is my order?")
    await talk.until(type="ack", seq=1)
    # The answer has been claimed by now or is about to be; either way it never comes.
    doomed.kill()
    await doomed.ended()
    one, two = await asyncio.gather(spawn(), spawn())
    again = [await connect(process.url, session="S", last_seq=0) for process in (one, two)]
    for talk in again:
        await talk.say("c-1", "Where is my order?")
        while not (talk.of("ack") and talk.of("message")[1:]):
            await talk.next()
        assert talk.of("ack") == [{"type": "ack", "id": "c-1", "seq": 1}]
        assert talk.of("message")[1]["reply_to"] == 1
    for process in (one, two):
        talk = await connect(process.url, session="S", last_seq=0)
        await talk.say("c-2", "thanks")
        await talk.until(type="ack", id="c-2", seq=3)


@pytest.mark.slow
async def test_kills_at_any_moment_lose_and_double_nothing(spawn, connect) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(7)
    total, acked, seen = 60, set[str](), dict[int, dict[str, object]]()
    process = await spawn()
    for _ in range(5):
        talk = await connect(process.url, session="S", last_seq=max(seen, default=0))
        pending = [f"c-{number}" for number in range(total) if f"c-{number}" not in acked]
        for id in pending[: total // 4]:
            await talk.say(id, "hello")
        killer = asyncio.get_running_loop().call_later(rng.uniform(0.01, 0.15), process.kill)
        await talk.rest()
        killer.cancel()
        acked |= {frame["id"] for frame in talk.of("ack")}
        for frame in talk.of("message"):
            assert seen.setdefault(frame["seq"], frame) == frame
        await process.ended()
        process = await spawn("--rate", "1000/s", "--burst", "1000")
    talk = await connect(process.url, session="S", last_seq=0)
    for number in range(total):
        await talk.say(f"c-{number}", "hello")
    while len(talk.seqs) < 2 * total:
        await talk.next()
    messages = talk.of("message")
    assert talk.seqs == list(range(1, 2 * total + 1))
    assert sorted(m["id"] for m in messages if m["from"] == "user") == sorted(f"c-{n}" for n in range(total))
    asked = [m["seq"] for m in messages if m["from"] == "user"]
    assert sorted(m["reply_to"] for m in messages if m["from"] == "bot") == asked
    assert all(seen[seq] == messages[seq - 1] | {"type": "message"} for seq in seen)


async def test_sigterm_sends_clients_away_with_a_token_and_ends(spawn, connect, http) -> None:  # type: ignore[no-untyped-def]
    leaving, other = await asyncio.gather(spawn("--id", "leaving"), spawn("--id", "other"))
    async with websocket(leaving.url.replace("http", "ws") + "/ws") as socket:
        welcome = json.loads(await socket.recv())
        for number in range(8):
            message = {"type": "message", "id": f"c-{number}", "text": "hello"}
            await socket.send(json.dumps(message))
        leaving.kill(signal.SIGTERM)
        frames = []
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                frames.append(json.loads(await asyncio.wait_for(socket.recv(), 10)))
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    # Everything in hand was acknowledged and answered before the Close.
    assert len([frame for frame in frames if frame["type"] == "ack"]) == 8
    messages = [frame for frame in frames if frame["type"] == "message"]
    assert [frame["seq"] for frame in messages] == list(range(1, 17))
    token = closed.value.rcvd.reason
    assert token == f"{welcome['session']}.16"
    assert await leaving.ended() == 0

    moved = await connect(other.url, headers={"Holdfast-Resume": token})
    resumed = await moved.until(type="welcome")
    assert (resumed["session"], resumed["seq"], resumed["instance"]) == (welcome["session"], 16, "other")
    await moved.say("c-8", "thanks")
    await moved.until(type="message", reply_to=17)
    assert moved.seqs == [17, 18]


async def test_what_comes_after_the_close_of_the_server_is_stored_all_the_same(spawn, connect) -> None:  # type: ignore[no-untyped-def]
    """A client that has not seen the Close yet goes on sending; the next instance has what it sent."""
    leaving, other = await asyncio.gather(spawn(), spawn())
    reader, writer = await asyncio.open_connection("127.0.0.1", int(leaving.url.rsplit(":", 1)[1]))
    writer.write(
        b"GET /ws?session=S HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    leaving.kill(signal.SIGTERM)
    async with asyncio.timeout(10):
        received = b""
        while b"\x88\x05\x03\xf4S.0" not in received:
            received += await reader.read(4096)
    payload = b'{"type":"message","id":"late","text":"Where is my order?"}'
    close = b"\x03\xf4"
    for opcode, data in ((0x81, payload), (0x88, close)):
        # Masked with zeros, which changes nothing.
        writer.write(bytes([opcode, 0x80 | len(data)]) + bytes(4) + data)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    assert await leaving.ended() == 0
    talk = await connect(other.url, session="S", last_seq=0)
    await talk.until(type="message", reply_to=1)
    assert talk.of("message")[0]["id"] == "late"


async def test_a_second_sigterm_ends_at_once(spawn, connect) -> None:  # type: ignore[no-untyped-def]
    process = await spawn("--deadline", "60s", program=HANGING)
    talk = await connect(process.url, session="S")
    await talk.say("c-1", "hello")
    await talk.until(type="ack")
    process.kill(signal.SIGTERM)
    with pytest.raises(OSError):
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", int(process.url.rsplit(":", 1)[1]))
            writer.close()
            await asyncio.sleep(0.02)
    process.kill(signal.SIGTERM)
    assert await process.ended() == 1


async def test_an_instance_registers_itself_and_takes_itself_out_first(spawn, http) -> None:  # type: ignore[no-untyped-def]
    calls: list[tuple[str, str, object]] = []
    came = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        calls.append((request.method, request.path, json.loads(body) if body else None))
        came.set()
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        registry = f"http://127.0.0.1:{runner.addresses[0][1]}"
        process = await spawn("--registry", registry, "--id", "i-1", "--version", "v2", "--weight", "7")
        registered = next(body for method, path, body in calls if path == "/v1/agent/service/register")
        assert isinstance(registered, dict)
        assert (registered["ID"], registered["Name"], registered["Address"]) == ("i-1", "chat", "127.0.0.1")
        assert registered["Port"] == int(process.url.rsplit(":", 1)[1])
        assert registered["Meta"]["version"] == "v2"
        assert registered["Weights"]["Passing"] == 7
        process.kill(signal.SIGTERM)
        assert await process.ended() == 0
        assert calls[-1][1] == "/v1/agent/service/deregister/i-1"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--store", "nonsense"], 2, "is not a store"),
        (["--bus", "redis://x"], 2, "is not a bus"),
        (["--deadline", "soon"], 2, "is not a duration"),
        (["--rate", "often"], 2, "is not a rate"),
        (["--port", "99999"], 2, "is not a whole number from 0 to 65535"),
        (["--host", "192.0.2.1"], 1, "cannot start"),
        (["--store", "sqlite:////nonexistent/chat.db"], 1, "cannot start"),
    ],
)
async def test_a_wrong_start_says_why(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "chat", "--store", f"sqlite:///{tmp_path}/chat.db", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    async with asyncio.timeout(15):
        out, error = await process.communicate()
    assert process.returncode == code
    assert said in error.decode()
    assert "Traceback" not in error.decode()
    assert out == b""
