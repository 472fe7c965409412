"""WebSockets that move: real sockets, real servers and clients of published libraries, in this process."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType, web
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from wsproto.connection import Connection as WsprotoConnection
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from discovery.model import Instance, Status
from proxy.frames import Opcode, encode_close, encode_frame
from proxy.moving import _BY_OTHER
from proxy.timers import Wheel
from tests.proxy.conftest import PATIENCE, Clock, Origin, Stage, Wire

Handler = Callable[["Backend", ServerConnection], Awaitable[None]]
MASK = b"abcd"
MOVE: dict[str, Any] = {
    "on_drain": "migrate",
    "migrate": {"quiet": "30ms", "patience": "400ms", "timeout": "2s"},
}


class Now(Clock):
    """The real time."""

    def __call__(self) -> float:
        return time.monotonic()


class Live(Stage):
    """A stage on which time passes by itself, in fine ticks."""

    @property
    def clock(self) -> Clock:  # type: ignore[override]
        return self._now

    @clock.setter
    def clock(self, clock: Clock) -> None:
        self._now = Now()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plane.wheel = Wheel(self.clock, tick=0.01)
        self.plane.wheel.start(self.plane.loop)
        self.backends: list[Backend] = []
        self.dialled: list[ClientConnection] = []

    def rules(self, **websocket: Any) -> None:
        """Configure how tunnels live; without jitter."""
        self.configure({"websocket": MOVE | websocket, "drain": {"timeout": "20s", "jitter": "0s"}})

    async def backend(self, id: str, handler: Handler, *, port: int = 0, **options: Any) -> Backend:
        """A new instance that a library serves, known to the table at once."""
        backend = Backend(id)
        await backend.start(handler, port, **options)
        self.backends.append(backend)
        self.publish()
        return backend

    def publish(self, *without: Backend) -> None:
        """What the registry says: every backend but those."""
        known = [b.instance for b in self.backends if b not in without] + [o.instance for o in self.origins]
        self.apply(*known)

    async def remove(self, backend: Backend) -> None:
        """End an instance for good, and tell the registry."""
        self.backends.remove(backend)
        await backend.stop()
        self.publish()

    def drain(self, id: str, seconds: float | None = None) -> None:
        """What the admin's drain does."""
        self.drainer.depart(self.table.drain("s", id, self.clock()), seconds)

    def states(self) -> set[str]:
        """Where the tunnels are in their lives."""
        return {tunnel.state for tunnel in self.plane.sessions}  # type: ignore[attr-defined]

    async def dial(self, path: str = "/chat?room=1", **options: Any) -> ClientConnection:
        """A client of a published library."""
        listener = self.listeners[0] if self.listeners else await self.listen()
        url = f"ws://127.0.0.1:{listener.address.port}{path}"
        client = await connect(url, compression=None, ping_interval=None, proxy=None, **options)
        self.dialled.append(client)
        return client

    async def close(self) -> None:
        for transport in [w.writer.transport for w in self.clients] + [c.transport for c in self.dialled]:
            transport.abort()
        for backend in self.backends:
            await backend.stop()
        await self.until(lambda: not self.plane.tasks)
        await super().close()
        self.plane.wheel.stop()
        assert not self.plane.moves._moving and not self.plane.moves._active
        assert len(self.plane.sessions) == 0


class Backend:
    """An instance: a server of the `websockets` library."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.got: list[str | bytes] = []
        """Messages that the application has read, of all connections."""
        self.resumes: list[str | None] = []
        """Holdfast-Resume of each handshake, in order."""
        self.handshakes: list[Any] = []
        self.open: set[ServerConnection] = set()

    async def start(self, handler: Handler, port: int = 0, **options: Any) -> None:
        async def run(connection: ServerConnection) -> None:
            assert connection.request is not None
            self.handshakes.append(connection.request)
            self.resumes.append(connection.request.headers.get("Holdfast-Resume"))
            self.open.add(connection)
            try:
                await handler(self, connection)
            except ConnectionClosed:
                pass
            finally:
                self.open.discard(connection)

        self.server = await serve(run, "127.0.0.1", port, ping_interval=None, close_timeout=1, **options)
        self.port = next(iter(self.server.sockets)).getsockname()[1]
        self.instance = Instance("s", self.id, "127.0.0.1", self.port)

    def crash(self) -> None:
        """All connections end without a word, and nobody listens any more."""
        for connection in tuple(self.open):
            connection.transport.abort()
        self.server.close(close_connections=False)

    async def leave(self, code: int, reason: str) -> None:
        await asyncio.gather(*(connection.close(code, reason) for connection in tuple(self.open)))

    async def stop(self) -> None:
        for connection in tuple(self.open):
            connection.transport.abort()
        self.server.close()
        await self.server.wait_closed()


async def echo(backend: Backend, connection: ServerConnection) -> None:
    async for message in connection:
        backend.got.append(message)
        await connection.send(f"{backend.id}:{message!s}")


def slow_echo(seconds: float, answers: int = 1) -> Handler:
    async def handler(backend: Backend, connection: ServerConnection) -> None:
        async for message in connection:
            await asyncio.sleep(seconds)
            backend.got.append(message)
            for _ in range(answers):
                await connection.send(f"{backend.id}:{message!s}")

    return handler


async def swallow(backend: Backend, connection: ServerConnection) -> None:
    async for message in connection:
        backend.got.append(message)


@pytest.fixture
async def live(tmp_path: Any) -> AsyncIterator[Live]:
    stage = Live(tmp_path)
    stage.rules()
    yield stage
    await stage.close()


async def heard(client: ClientConnection, count: int) -> list[Any]:
    async with asyncio.timeout(PATIENCE):
        return [await client.recv() for _ in range(count)]


def bodies(messages: list[Any]) -> list[str]:
    return [message.partition(":")[2] for message in messages]


def make_leave(live: Live, way: str) -> None:
    first = live.backends[0]
    if way == "admin":
        live.drain("a")
    elif way == "mark":
        first.instance = replace(first.instance, status=Status.DRAINING)
        live.publish()
    else:
        live.publish(first)


@pytest.mark.parametrize("way", ["admin", "mark", "deregistration"])
@pytest.mark.parametrize("answers", [1, 3])
async def test_a_planned_leaving_loses_and_doubles_nothing(live: Live, way: str, answers: int) -> None:
    live.rules(migrate={"quiet": "80ms", "patience": "3s", "timeout": "2s"})
    a = await live.backend("a", slow_echo(0.04, answers))
    async with await live.dial() as client:
        for number in range(5):
            await client.send(str(number))
        # What is on its way would be lost with the instance; the move waits until it has been read.
        await live.until(lambda: live.endpoint().inflight == 1 and a.got)
        b = await live.backend("b", slow_echo(0.04, answers))
        make_leave(live, way)
        await live.until(lambda: live.states() == {"quieting"})
        for number in range(5, 10):
            await client.send(str(number))
        told = await heard(client, 10 * answers)
        assert bodies(told) == [str(n) for n in range(10) for _ in range(answers)]
        assert a.got + b.got == [str(n) for n in range(10)]
        assert b.got
    assert sum(live.plane.counters.move_pauses.buckets) == 1


async def test_a_pusher_is_followed_by_the_next_without_a_gap(live: Live) -> None:
    async def push(backend: Backend, connection: ServerConnection) -> None:
        number = 0
        while True:
            await connection.send(f"{backend.id}:{number}")
            number += 1
            await asyncio.sleep(0.05)

    await live.backend("a", push)
    async with await live.dial() as client:
        assert bodies(await heard(client, 3)) == ["0", "1", "2"]
        await live.backend("b", push)
        live.drain("a")
        told: list[str] = []
        while not told or not told[-1].startswith("b:1"):
            told += await heard(client, 1)
    turn = next(index for index, message in enumerate(told) if message.startswith("b"))
    assert [m.partition(":")[0] for m in told] == ["a"] * turn + ["b"] * (len(told) - turn)
    assert bodies(told[:turn]) == [str(n + 3) for n in range(turn)]
    assert bodies(told[turn:]) == ["0", "1"]


@pytest.mark.parametrize("code", [1001, 1012])
async def test_the_reason_of_an_instances_own_close_reaches_the_next_one(live: Live, code: int) -> None:
    a = await live.backend("a", echo)
    cookie = {"Cookie": "who=me"}
    client = await live.dial(subprotocols=["v2", "v1"], additional_headers=cookie)
    await client.send("one")
    assert await client.recv() == "a:one"
    b = await live.backend("b", echo)
    await a.leave(code, "cursor=17")
    await client.send("two")
    assert await heard(client, 1) == ["b:two"]
    await client.close()
    assert b.resumes == ["cursor=17"]
    first, second = a.handshakes[0], b.handshakes[0]
    assert second.path == first.path == "/chat?room=1"
    for name in ("Cookie", "Sec-WebSocket-Protocol", "X-Forwarded-For", "X-Request-Id", "Host"):
        assert second.headers.get_all(name) == first.headers.get_all(name)
    assert second.headers["Sec-WebSocket-Key"] != first.headers["Sec-WebSocket-Key"]
    assert "Sec-WebSocket-Extensions" not in first.headers


async def test_a_checkpoint_is_the_token_when_the_instance_dies_without_a_word(live: Live) -> None:
    async def checkpoint(backend: Backend, connection: ServerConnection) -> None:
        await connection.ping("holdfast-resume:at-5")
        await echo(backend, connection)

    live.rules(replay=True)
    a = await live.backend("a", checkpoint)
    async with await live.dial() as client:
        await client.send("one")
        assert await heard(client, 1) == ["a:one"]
        b = await live.backend("b", swallow)
        a.crash()
        await live.until(lambda: b.got)
    assert b.resumes == ["at-5"] and b.got == ["one"]


@pytest.mark.parametrize("token", ["two\r\nX-Evil: 1", " edges ", "\x00", "", "ünï\tcode"])
async def test_a_token_that_is_no_field_value_is_left_out(live: Live, token: str) -> None:
    a = await live.backend("a", echo)
    async with await live.dial() as client:
        b = await live.backend("b", echo)
        await a.leave(1012, token)
        await client.send("on")
        assert await heard(client, 1) == ["b:on"]
    assert "X-Evil" not in b.handshakes[0].headers
    assert (b.resumes[0] is None) is (token != "ünï\tcode")


# -- the next instance refuses ----------------------------------------------------------------------------


def refuses(answer: bytes) -> Callable[[Any, Any], Awaitable[None]]:
    async def handler(wire: Any, head: Any) -> None:
        if answer:
            wire.send(answer)
            wire.close()

    return handler


def accepts(head: Any, *extra: str) -> bytes:
    """A right answer to a handshake."""
    key = head.get("sec-websocket-key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *extra]
    return "\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", "", ""]).encode()


async def chooses_another_protocol(wire: Any, head: Any) -> None:
    wire.send(accepts(head, "Sec-WebSocket-Protocol: v1"))


REFUSALS = {
    "503": refuses(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
    "wrong accept": refuses(
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
    ),
    "no answer": refuses(b""),
    "nonsense": refuses(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "another subprotocol": chooses_another_protocol,
}


@pytest.mark.parametrize("how", REFUSALS)
async def test_an_instance_that_does_not_accept_is_passed_over(live: Live, how: str) -> None:
    a = await live.backend("a", echo, subprotocols=["v2"])
    client = await live.dial(subprotocols=["v2", "v1"])
    bad = await live.origin("bad", apply=False)
    bad.serve(REFUSALS[how])
    live.publish()
    await a.leave(1012, "")
    await live.remove(a)
    await live.until(lambda: bad.accepted)
    b = await live.backend("b", echo, subprotocols=["v2"])
    await client.send("on")
    assert await heard(client, 1) == ["b:on"]
    await client.close()
    assert live.plane.counters.moves_failed == 0
    assert live.endpoint("bad").inflight == 0
    assert b.got == ["on"]


async def test_with_nobody_to_go_to_the_client_is_told_why_in_time(live: Live) -> None:
    live.rules(migrate={"quiet": "10ms", "timeout": "300ms"})
    await live.backend("a", echo)
    client = await live.dial()
    began = time.monotonic()
    live.drain("a")
    with pytest.raises(ConnectionClosed):
        await heard(client, 1)
    assert (client.close_code, client.close_reason) == (
        1012,
        "no instance could take over (no other instance is ready)",
    )
    assert 0.3 <= time.monotonic() - began < 2.0
    assert live.plane.counters.moves_failed == 1


async def test_the_reason_names_the_instance_that_refused(live: Live) -> None:
    live.rules(migrate={"quiet": "10ms", "timeout": "300ms"})
    a = await live.backend("a", echo)
    bad = await live.origin("bad", apply=False)
    bad.serve(REFUSALS["503"])
    client = await live.dial()
    live.publish()
    await a.leave(1012, "")
    await live.remove(a)
    with pytest.raises(ConnectionClosed):
        await heard(client, 1)
    assert client.close_code == 1012
    assert "no instance could take over (bad: answered the handshake with 503" in (client.close_reason or "")


async def test_a_single_instance_restarts_behind_its_clients(live: Live) -> None:
    a = await live.backend("a", echo)
    async with await live.dial() as client:
        await client.send("before")
        assert await heard(client, 1) == ["a:before"]
        a.server.close(close_connections=False)
        await a.leave(1012, "restart")
        await live.until(lambda: live.states() == {"dialing"})
        assert live.endpoint().inflight == 0  # it may be waited for
        await client.send("meanwhile")
        again = Backend("a")
        await again.start(echo, a.port)
        live.backends.append(again)
        assert await heard(client, 1) == ["a:meanwhile"]
        assert again.resumes == ["restart"]


async def test_an_instance_that_accepts_and_leaves_at_once_is_not_hammered(live: Live) -> None:
    async def leaves(backend: Backend, connection: ServerConnection) -> None:
        await connection.close(1012, "not yet")

    live.rules(migrate={"quiet": "10ms", "timeout": "600ms"})
    a = await live.backend("a", leaves)
    client = await live.dial()
    with pytest.raises(ConnectionClosed):
        await heard(client, 1)
    assert client.close_code == 1012
    assert 3 <= len(a.handshakes) <= 10


# -- crashes ------------------------------------------------------------------------------------------------


async def test_a_crash_with_replay_loses_nothing(live: Live) -> None:
    live.rules(replay=True)
    a = await live.backend("a", slow_echo(0.05))
    async with await live.dial() as client:
        for number in range(8):
            await client.send(str(number))
        await live.until(lambda: len(a.got) == 3)
        b = await live.backend("b", echo)
        a.crash()
        told = await heard(client, 8)
        while told[-1] != "b:7":
            told += await heard(client, 1)
    assert {*a.got, *b.got} == {str(n) for n in range(8)}
    assert b.got == [str(n) for n in range(8)]
    assert bodies(told) == [*a.got[: len(told) - 8], *b.got]


async def test_a_crash_without_replay_is_told_to_the_client(live: Live) -> None:
    a = await live.backend("a", echo)
    await live.backend("b", echo)
    client = await live.dial()
    if not a.open:
        a = live.backends[1]
    a.crash()
    with pytest.raises(ConnectionClosed):
        await heard(client, 1)
    assert (client.close_code, client.close_reason) == (1012, "the instance died")


async def test_a_whole_service_that_is_killed_one_by_one_keeps_its_clients(live: Live) -> None:
    live.rules(replay={"pace": "10ms", "hold": "50ms"})
    await live.backend("i0", echo)
    async with await live.dial() as client:
        for number in range(6):
            await client.send(str(number))
            assert (await heard(client, 1))[0].endswith(f":{number}")
            await live.until(lambda: not next(iter(live.plane.sessions))._relay._outbox.kept)
            await live.backend(f"i{number + 1}", echo)
            live.backends[number].crash()
            await live.until(lambda n=number: live.backends[n + 1].open)


@pytest.mark.parametrize("size", [10, 300_000])
@pytest.mark.parametrize("fragments", [True, False])
async def test_a_server_message_cut_off_by_a_crash_never_breaks_the_clients_frames(
    live: Live, size: int, fragments: bool
) -> None:
    live.rules(replay=True)
    first = await live.origin("a")
    client = await live.client()
    client.send(HANDSHAKE)
    server = await first.accept()
    server.send(accepts(await server.head()))
    assert (await client.head()).status == 101
    whole = encode_frame(Opcode.TEXT, b"whole")
    half = encode_frame(Opcode.BINARY, b"x" * size)
    if fragments:
        half = bytes([half[0] & 0x7F]) + half[1:] + half[:1]  # one fragment, and the first byte of another
        server.send(whole + half)
    else:
        server.send(whole + half[:-1])
    passed = await client.exactly(len(whole))
    await live.backend("b", echo)
    gone = fragments or size > 64 << 10
    if gone:
        passed += await client.some()
    server.reset()
    if gone:
        while not judged(passed)[1]:
            passed += await client.some()
        assert judged(passed) == ([b"whole"], 1012)
        client.send(encode_close(1012, "", MASK))
        assert await client.ended()
    else:
        client.send(encode_frame(Opcode.TEXT, b"go on", MASK))
        assert passed == whole
        assert await client.until(b"on") == encode_frame(Opcode.TEXT, b"b:go on")


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def judged(stream: bytes) -> tuple[list[bytes], int]:
    """Whole messages and the Close code in what a client got, by an independent parser."""
    parser = WsprotoConnection(ConnectionType.CLIENT)
    parser.receive_data(stream)
    found: list[bytes] = []
    part, code = b"", 0
    for event in parser.events():
        if isinstance(event, TextMessage | BytesMessage):
            part += event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            if event.message_finished:
                found.append(part)
                part = b""
        elif isinstance(event, CloseConnection):
            code = int(event.code)
    return found, code


# -- many at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "count"), [("drain", 500), ("own close", 150), ("crash", 150)])
async def test_hundreds_move_sixteen_at_a_time(live: Live, how: str, count: int) -> None:
    live.rules(replay=True, migrate={"quiet": "1ms", "timeout": "20s", "concurrency": 16})
    a = await live.backend("a", echo)
    clients = await asyncio.gather(*(live.dial() for _ in range(count)))
    at_once = []

    async def counting(backend: Backend, connection: ServerConnection) -> None:
        at_once.append(live.plane.moves.active("s"))
        await echo(backend, connection)

    b = await live.backend("b", counting)
    if how == "drain":
        live.drain("a")
    elif how == "own close":
        a.server.close(close_connections=False)
        await a.leave(1012, "")
    else:
        a.crash()
    async with asyncio.timeout(20):
        await live.until(lambda: len(b.handshakes) == count and live.states() == {"relaying"})
        await asyncio.gather(*(client.send("on") for client in clients))
        assert set(await asyncio.gather(*(client.recv() for client in clients))) == {"b:on"}
    assert len(b.handshakes) == count and max(at_once) <= 16
    assert max(at_once) > 8, "they do not wait for one another either"
    await asyncio.gather(*(client.close() for client in clients))
    assert live.endpoint("a").inflight == 0


# -- the client meanwhile -----------------------------------------------------------------------------------


async def hangs(wire: Any, head: Any) -> None:
    """Accepts a connection and never answers the handshake."""


async def raw(live: Live, first: Origin) -> tuple[Wire, Wire]:
    """A raw client and the raw instance behind it, after the handshake."""
    client = await live.client()
    client.send(HANDSHAKE)
    server = await first.accept()
    server.send(accepts(await server.head()))
    assert (await client.head()).status == 101
    return client, server


@pytest.mark.parametrize("phase", ["settling", "quieting", "closing", "dialing"])
@pytest.mark.parametrize("how", ["close", "vanish"])
async def test_a_client_may_leave_at_any_moment_of_a_move(live: Live, phase: str, how: str) -> None:
    live.rules(migrate={"quiet": "50ms", "patience": "300ms", "timeout": "2s"})
    origin = await live.origin("a")
    client, server = await raw(live, origin)
    if phase == "settling":
        client.send(b"\x01\x80abcd")
        await server.exactly(6)
    live.drain("a")
    if phase == "dialing":
        server.send(encode_close(1001))
    await live.until(lambda: live.states() == {phase})
    if how == "close":
        client.send(encode_close(1000, "bye", MASK))
        if phase in ("settling", "quieting"):
            assert (await server.exactly(11))[:1] == b"\x88"
            server.send(encode_close(1000, "bye"))
        elif phase == "closing":
            server.send(encode_close(1001))
        close = await client.rest()
        assert judged(close)[1] in (1000, 1001)
    else:
        client.reset()
    await live.until(lambda: not len(live.plane.sessions))
    assert live.endpoint().inflight == 0
    assert live.plane.counters.moves_failed == 0


async def test_what_a_client_said_before_its_close_is_still_delivered(live: Live) -> None:
    a = await live.backend("a", echo)
    client = await live.dial()
    await a.leave(1012, "")
    await live.remove(a)
    await live.until(lambda: live.states() == {"dialing"})
    await client.send("last words")
    closing = asyncio.create_task(client.close(1000, "bye"))
    b = await live.backend("b", swallow)
    await closing
    assert client.close_code == 1000
    assert b.got == ["last words"]


async def test_client_pings_are_answered_while_there_is_no_instance(live: Live) -> None:
    a = await live.backend("a", echo)
    async with await live.dial() as client:
        hanging = await live.origin("hanging", apply=False)
        hanging.serve(hangs)
        live.publish()
        await a.leave(1012, "")
        await live.remove(a)
        await live.until(lambda: hanging.accepted)
        for _ in range(3):
            async with asyncio.timeout(PATIENCE):
                await (await client.ping())
        assert live.states() == {"dialing"}
        live.origins.remove(hanging)
        await hanging.stop()
        b = await live.backend("b", echo)
        await client.send("on")
        assert await heard(client, 1) == ["b:on"]
        assert b.got == ["on"]


async def test_a_ping_that_the_old_instance_left_unanswered_is_answered(live: Live) -> None:
    origin = await live.origin("a")
    client, server = await raw(live, origin)
    client.send(encode_frame(Opcode.PING, b"there?", MASK))
    await server.exactly(12)
    server.send(encode_close(1012))
    assert await client.exactly(8) == encode_frame(Opcode.PONG, b"there?")


async def test_a_move_keeps_the_pressure_of_a_client_that_reads_slowly(live: Live) -> None:
    size = 256 << 10

    async def flood(backend: Backend, connection: ServerConnection) -> None:
        for _ in range(100):
            await connection.send(b"x" * size)
            backend.got.append(backend.id)
        await connection.wait_closed()

    live.rules(migrate={"quiet": "10ms", "patience": "50ms", "timeout": "2s"})
    await live.backend("a", flood)
    client = await live.dial(max_queue=1, max_size=None)
    (tunnel,) = live.plane.sessions
    await live.until(lambda: tunnel._server_holds & _BY_OTHER)  # type: ignore[attr-defined]
    b = await live.backend("b", flood)
    live.drain("a")
    async with asyncio.timeout(20):
        while not b.open:
            await client.recv()
    await live.until(lambda: tunnel._server_holds & _BY_OTHER)  # type: ignore[attr-defined]
    transport = tunnel._client  # type: ignore[attr-defined]
    assert transport.get_write_buffer_size() < 4 << 20
    assert len(b.got) < 100
    async with asyncio.timeout(20):
        while len(b.got) < 100:
            await client.recv()
    client.transport.abort()


async def test_a_client_that_was_held_by_a_slow_instance_is_read_again_by_the_next(live: Live) -> None:
    origin = await live.origin("a")
    live.rules(replay={"bytes": "64MiB"})
    client, server = await raw(live, origin)
    (tunnel,) = live.plane.sessions
    message = encode_frame(Opcode.BINARY, b"x" * 60_000, MASK)
    count = 0
    while not tunnel._holds:  # type: ignore[attr-defined]
        client.send(message)
        count += 1
        await asyncio.sleep(0)
    b = await live.backend("b", swallow, max_size=None)
    server.reset()
    client.send(encode_frame(Opcode.TEXT, b"the end", MASK))
    await live.until(lambda: b.got and b.got[-1] == "the end")
    assert len(b.got) == count + 1


async def test_more_than_can_be_kept_makes_the_client_wait_and_loses_nothing(live: Live) -> None:
    live.rules(replay={"messages": 10, "hold": "30ms", "pace": "10ms"})
    a = await live.backend("a", echo)
    async with await live.dial() as client:
        for number in range(200):
            await client.send(str(number))
        assert bodies(await heard(client, 200)) == [str(n) for n in range(200)]
        await live.until(lambda: not next(iter(live.plane.sessions))._relay._outbox.kept)
    assert a.got == [str(n) for n in range(200)]


async def test_a_client_that_breaks_the_protocol_is_told_1002_behind_the_answers_to_what_was_right(
    live: Live,
) -> None:
    origin = await live.origin("a")
    client, server = await raw(live, origin)
    fine = encode_frame(Opcode.TEXT, b"fine", MASK)
    client.send(fine + b"\x81\x00")
    assert await server.exactly(len(fine)) == fine
    # It is sent what a client's own Close would be, and answers in its time.
    first, size = await server.exactly(2)
    assert first == 0x80 | Opcode.CLOSE
    await server.exactly(4 + (size & 0x7F))
    server.send(encode_frame(Opcode.TEXT, b"answer") + encode_close(1000))
    expected = encode_frame(Opcode.TEXT, b"answer")
    assert await client.exactly(len(expected)) == expected
    close = await client.exactly(2)
    assert judged(close + await client.exactly(close[1])) == ([], 1002)
    # RFC 6455 7.1.7: what follows cannot be read, so no answer is waited for; and 7.1.1: no reset before it.
    assert [tunnel.state for tunnel in live.plane.sessions] == ["over"]
    client.send(bytes(1 << 20) + encode_close(1002, "", MASK))
    assert await client.rest() == b""


# -- deadlines ----------------------------------------------------------------------------------------------


async def test_at_the_drain_deadline_a_tunnel_moves_at_once(live: Live) -> None:
    live.rules(migrate={"quiet": "10s", "patience": "20s", "timeout": "2s"})
    await live.backend("a", echo)
    async with await live.dial() as client:
        await live.backend("b", echo)
        live.drain("a", 0.1)
        await live.until(lambda: live.states() == {"quieting"})
        await client.send("on")
        assert await heard(client, 1) == ["b:on"]


async def test_an_undrain_leaves_those_where_they_are_that_have_not_begun(live: Live) -> None:
    live.rules(migrate={"quiet": "300ms", "patience": "2s", "concurrency": 1})
    await live.backend("a", echo)
    clients = [await live.dial() for _ in range(3)]
    await live.backend("b", echo)
    live.drain("a")
    await live.until(lambda: "quieting" in live.states())
    live.drainer.depart(live.table.undrain("s", "a", live.clock()))
    for client in clients:
        await client.send("on")
    told = [(await heard(client, 1))[0] for client in clients]
    assert sorted(told) == ["a:on", "a:on", "b:on"]
    for client in clients:
        await client.close()


async def test_a_death_while_it_is_being_left_is_acted_on_at_once(live: Live) -> None:
    live.rules(replay=True, migrate={"quiet": "10s", "patience": "20s", "timeout": "2s"})
    await live.backend("a", swallow)
    async with await live.dial() as client:
        await client.send("one")
        b = await live.backend("b", swallow)
        live.drain("a")
        await live.until(lambda: live.states() == {"quieting"})
        live.backends[0].crash()
        await live.until(lambda: b.got)
    assert b.got == ["one"]


# -- aiohttp on both sides ----------------------------------------------------------------------------------


async def test_an_aiohttp_server_and_client_notice_nothing_of_a_move(live: Live) -> None:
    live.rules(replay=True)
    runners = []

    async def instance(id: str) -> Instance:
        async def handle(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse(autoping=True)
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(f"{id}:{message.data}")
            return socket

        app = web.Application()
        app.router.add_get("/chat", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return Instance("s", id, "127.0.0.1", runner.addresses[0][1])

    a = await instance("a")
    live.apply(a)
    listener = await live.listen()
    url = f"http://127.0.0.1:{listener.address.port}/chat"
    async with ClientSession() as session, session.ws_connect(url) as client:
        await client.send_str("1")
        assert await client.receive_str() == "a:1"
        b = await instance("b")
        live.apply(a, b)
        live.drain("a")
        await live.until(lambda: not live.endpoint("a").inflight)
        await client.send_str("2")
        message = await client.receive()
        assert (message.type, message.data) == (WSMsgType.TEXT, "b:2")
    for runner in runners:
        await runner.cleanup()
