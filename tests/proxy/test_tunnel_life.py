"""How tunnels that stay where they are come to an end: drains, ages, silence, on a clock that tests turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from discovery.model import Status
from proxy.frames import Opcode, encode_close, encode_frame, payload_of
from tests.proxy.conftest import Stage, Wire

MASK = b"abcd"
SWITCHED = (
    b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"  # RFC 6455 section 1.3
)
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
LEAVING = encode_close(1012, "this instance is leaving, please reconnect")


def rules(stage: Stage, drain: dict[str, Any] | None = None, **websocket: Any) -> None:
    stage.configure({"websocket": websocket, "drain": drain or {"timeout": "30s", "jitter": "0s"}})


async def tunnel(stage: Stage) -> tuple[Wire, Wire]:
    client, server = await stage.pair(HANDSHAKE)
    await server.head()
    server.send(SWITCHED)
    assert (await client.head()).status == 101
    return client, server


async def nothing(wire: Wire) -> bool:
    """Whether nothing has come, although everything that was under way has had its turn."""
    for _ in range(20):
        await asyncio.sleep(0.001)
    return not wire.reader._buffer and not wire.reader.at_eof()  # type: ignore[attr-defined]


def bytes_of(stage: Stage) -> tuple[int, int]:
    """Of the only tunnel: what has come from each side."""
    (tunnel,) = stage.plane.sessions
    return tunnel.bytes  # type: ignore[attr-defined,no-any-return]


async def seconds(stage: Stage, count: int) -> None:
    for _ in range(count):
        stage.clock.advance(1.0)


class Later:
    """Stands in for the loop's `call_later`: time goes by on the stage's clock."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.due: list[tuple[float, Any]] = []

    def call_later(self, seconds: float, act: Any) -> Later:
        self.due.append((self.stage.clock() + seconds, act))
        return self

    def cancel(self) -> None:
        self.due.clear()

    def advance(self, seconds: float) -> None:
        until = self.stage.clock() + seconds
        while self.due and min(at for at, _ in self.due) <= until:
            first = min(self.due, key=lambda entry: entry[0])
            self.due.remove(first)
            self.stage.clock.advance(max(0.0, first[0] - self.stage.clock()))
            first[1]()
        self.stage.clock.advance(until - self.stage.clock())


@pytest.fixture
def later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Later:
    """Drains take their timers from here."""
    later = Later(stage)

    class Loop:
        call_later = staticmethod(later.call_later)

    class Around:
        loop = Loop()

        def __getattr__(self, name: str) -> Any:
            return getattr(stage.plane, name)

    monkeypatch.setattr(stage.drainer, "_plane", Around())
    return later


@pytest.mark.parametrize("way", ["mark", "gone"])
async def test_close_waits_for_the_end_of_a_message_in_fragments(
    stage: Stage, later: Later, way: str
) -> None:
    rules(stage, on_drain="close")
    client, server = await tunnel(stage)
    server.send(b"\x01\x03one")
    assert await client.exactly(5) == b"\x01\x03one"
    if way == "mark":
        stage.mark(stage.origins[0], Status.DRAINING)
    else:
        stage.apply()
    later.advance(0.1)
    assert await nothing(client)
    server.send(b"\x89\x01p\x80\x03two" + encode_frame(Opcode.TEXT, b"too late"))
    assert await client.exactly(8 + len(LEAVING)) == b"\x89\x01p\x80\x03two" + LEAVING
    client.send(encode_close(1012, "", MASK))
    assert await server.exactly(8) == encode_close(1012, "", MASK)
    server.close()
    assert await client.rest() == b""


async def test_closes_are_spread_over_the_jitter_by_the_drains_own_chance(stage: Stage, later: Later) -> None:
    rules(stage, {"timeout": "30s", "jitter": "10s"}, on_drain="close")
    pairs = [await tunnel(stage) for _ in range(10)]
    stage.drainer._random.seed(7)
    stage.mark(stage.origins[0], Status.DRAINING)
    stage.drainer._random.seed(7)
    delays = sorted(stage.drainer._random.uniform(0.0, 10.0) for _ in pairs)
    open_tunnels = lambda: sum(t.state == "open" for t in stage.plane.sessions)  # noqa: E731
    passed = 0.0
    for index, delay in enumerate(delays):
        later.advance(delay - passed - 1e-6)
        assert open_tunnels() == 10 - index
        later.advance(2e-6)
        passed = delay + 1e-6
        assert open_tunnels() == 9 - index
    for client, server in pairs:
        assert await client.exactly(len(LEAVING)) == LEAVING
        client.close()
        server.close()


async def test_an_undrain_spares_those_whose_turn_has_not_come(stage: Stage, later: Later) -> None:
    rules(stage, {"timeout": "30s", "jitter": "10s"}, on_drain="close")
    pairs = [await tunnel(stage) for _ in range(10)]
    stage.mark(stage.origins[0], Status.DRAINING)
    later.advance(5.0)
    left = [t.state for t in stage.plane.sessions].count("open")
    assert 0 < left < 10
    stage.mark(stage.origins[0], Status.UP)
    later.advance(60.0)
    assert [t.state for t in stage.plane.sessions].count("open") == left
    for client, server in pairs:
        client.close()
        server.close()


async def test_wait_lets_tunnels_be_until_the_deadline(stage: Stage, later: Later) -> None:
    rules(stage, {"timeout": "30s", "jitter": "5s"}, on_drain="wait", idle="0s")
    client, server = await tunnel(stage)
    stage.mark(stage.origins[0], Status.DRAINING)
    later.advance(29.9)
    assert await nothing(client)
    server.send(encode_frame(Opcode.TEXT, b"still here"))
    await client.exactly(12)
    later.advance(0.2)
    assert await client.exactly(len(LEAVING)) == LEAVING
    later.advance(5.0)
    assert await client.ended()
    server.close()


@pytest.mark.parametrize("mode", ["close", "wait"])
async def test_no_more_close_in_a_second_than_the_service_allows(
    stage: Stage, later: Later, mode: str
) -> None:
    rules(stage, {"timeout": "3s", "jitter": "0s"}, on_drain=mode, max_closes_per_second=2, idle="0s")
    pairs = [await tunnel(stage) for _ in range(12)]
    stage.mark(stage.origins[0], Status.DRAINING)
    seen = []
    for _ in range(12):
        before = [t.state for t in stage.plane.sessions].count("open")
        later.advance(1.0)
        seen.append(before - [t.state for t in stage.plane.sessions].count("open"))
        await asyncio.sleep(0.002)
    assert sum(seen) == 12 and max(seen) <= 3
    assert len([count for count in seen if count]) >= 5
    for client, server in pairs:
        client.close()
        server.close()


async def test_a_tunnel_that_is_too_old_is_closed_within_a_tenth_more(stage: Stage) -> None:
    rules(stage, max_age="100s", idle="0s")
    client, server = await tunnel(stage)
    stage.clock.advance(99.0)
    assert await nothing(client)
    stage.clock.advance(11.2)
    assert (await client.exactly(len(LEAVING)))[:4] == LEAVING[:4]
    client.close()
    server.close()


async def test_a_tunnel_in_which_nothing_moves_is_closed(stage: Stage) -> None:
    rules(stage, idle="60s")
    client, server = await tunnel(stage)
    for _ in range(3):
        await seconds(stage, 40)
        server.send(encode_frame(Opcode.TEXT, b"hi"))
        await client.exactly(4)
    await seconds(stage, 55)
    assert await nothing(client)
    await seconds(stage, 25)
    assert await client.exactly(8) == encode_close(1001, "idle")
    client.close()
    server.close()


@pytest.mark.parametrize("moving", [True, False])
async def test_a_side_that_answers_pings_lives_and_one_that_does_not_is_dead(
    stage: Stage, moving: bool
) -> None:
    rules(stage, on_drain="migrate" if moving else "close", ping="10s", idle="0s")
    client, server = await tunnel(stage)
    stage.clock.advance(10.2)
    for _ in range(4):
        ping = await client.exactly(15)
        assert ping[:2] == b"\x89\x0d"
        to_server = await server.exactly(19)
        assert to_server[:2] == b"\x89\x8d"
        before = bytes_of(stage)
        client.send(encode_frame(Opcode.PONG, ping[2:], MASK))
        server.send(encode_frame(Opcode.PONG, payload_of(to_server)))
        await stage.until(
            lambda before=before: all(a > b for a, b in zip(bytes_of(stage), before, strict=True))
        )
        if not moving:
            # Bytes are copied: answers nobody asked for, which RFC 6455 section 5.5.3 allows.
            assert (await client.exactly(15))[:1] == (await server.exactly(19))[:1] == b"\x8a"
        stage.clock.advance(10.2)  # both were heard
        stage.clock.advance(10.2)  # both are silent again, and asked
    stage.clock.advance(10.2)
    await stage.until(lambda: not len(stage.plane.sessions))
    client.close()


async def test_a_side_that_could_not_be_asked_is_not_held_for_dead(stage: Stage) -> None:
    rules(stage, ping="10s", idle="0s")
    client, server = await tunnel(stage)
    server.send(b"\x82\x05ab")  # half a frame: no ping fits behind it
    await client.exactly(4)
    client.send(b"\x82\x85" + MASK)
    await server.exactly(6)
    for _ in range(5):
        stage.clock.advance(10.2)
    assert await nothing(client)
    assert len(stage.plane.sessions) == 1
    client.close()
    server.close()


async def test_an_instance_that_dies_between_two_messages_ends_in_a_close_1012(stage: Stage) -> None:
    client, server = await tunnel(stage)
    server.send(encode_frame(Opcode.TEXT, b"whole"))
    assert await client.exactly(7) == b"\x81\x05whole"
    server.reset()
    assert await client.rest() == encode_close(1012, "this instance is gone, please reconnect")
    # Nothing of the client's that comes late resets the connection before it has read that (RFC 6455 7.1.1).
    client.send(bytes(1 << 20))
    assert [tunnel.state for tunnel in stage.plane.sessions] == ["parting"]
    client.finish()
    await stage.until(lambda: stage.plane.counters.tunnel_closes == {(1012, "proxy"): 1})


async def test_a_client_that_never_closes_its_side_is_left_in_the_end(stage: Stage) -> None:
    client, server = await tunnel(stage)
    server.reset()
    assert await client.rest() == encode_close(1012, "this instance is gone, please reconnect")
    (parting,) = stage.plane.sessions
    parting.on_deadline()
    await stage.until(lambda: stage.plane.counters.tunnel_closes == {(1012, "proxy"): 1})


async def test_an_instance_that_dies_within_a_frame_ends_in_nothing_more(stage: Stage) -> None:
    client, server = await tunnel(stage)
    half = encode_frame(Opcode.TEXT, b"half of this")[:6]
    server.send(half)
    assert await client.exactly(6) == half
    server.reset()
    assert await client.rest() == b""
    client.finish()
    await stage.until(lambda: stage.plane.counters.tunnel_closes == {(1006, "upstream"): 1})


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_the_side_whose_close_comes_first_is_the_one_that_closed(stage: Stage, first: str) -> None:
    client, server = await tunnel(stage)
    one, other = (client, server) if first == "client" else (server, client)
    said = encode_close(1000, "", MASK if first == "client" else b"")
    answer = encode_close(1000, "", b"" if first == "client" else MASK)
    one.send(said)
    assert await other.exactly(len(said)) == said
    other.send(answer)
    assert await one.exactly(len(answer)) == answer
    server.finish()
    assert await client.rest() == b""
    client.finish()
    await stage.until(lambda: stage.plane.counters.tunnel_closes == {(1000, first): 1})


async def test_what_passes_in_a_live_tunnel_is_credited_when_it_is_asked_for(stage: Stage) -> None:
    client, server = await tunnel(stage)
    for _ in range(2):
        server.send(encode_frame(Opcode.TEXT, b"hello"))
        await client.exactly(7)
        stage.plane.sessions.book()
        stage.plane.sessions.book()
    endpoint = stage.endpoint()
    assert (endpoint.messages_out, endpoint.bytes_out) == (2, 14)
    assert (endpoint.messages_in, endpoint.bytes_in) == (0, 0)
