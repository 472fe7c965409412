"""Upgrade requests: tunnels begun, refused, and what passes through them."""

from __future__ import annotations

import asyncio
import json

import pytest

from discovery.model import Status
from proxy.frames import FrameFollower, Opcode, encode_close, encode_frame

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
MASK = b"abcd"


# The example of RFC 6455 section 1.3.
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"


def upgrade(protocol: bytes = b"echo", extra: bytes = b"") -> bytes:
    if b"websocket" in protocol:
        extra += KEY + VERSION
    return b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: %b\r\n%b\r\n" % (
        protocol,
        extra,
    )


def switched(protocol: bytes = b"echo", extra: bytes = b"") -> bytes:
    if protocol == b"websocket":
        extra = extra or ACCEPT
    return b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\nX-A: 1\r\n%b\r\n" % (
        protocol,
        extra,
    )


async def tunnel(stage, protocol: bytes = b"echo"):
    client, origin = await stage.pair(upgrade(protocol))
    head = await origin.head()
    assert (head.get("connection"), head.get("upgrade")) == ("Upgrade", protocol.decode().lower())
    origin.send(switched(protocol))
    head = await client.head()
    assert (head.status, head.get("upgrade"), head.get("x-a")) == (101, protocol.decode().lower(), "1")
    assert head.get("connection") == "Upgrade"
    return client, origin


async def test_bytes_pass_both_ways_until_either_side_closes(stage):
    client, origin = await tunnel(stage)
    client.send(b"\x00any\xff")
    assert await origin.exactly(5) == b"\x00any\xff"
    origin.send(b"back")
    assert await client.exactly(4) == b"back"
    assert stage.endpoint().inflight == 1
    origin.close()
    assert await client.rest() == b""
    client.close()
    await stage.until(lambda: not stage.endpoint().inflight)
    assert (stage.log.lines[0][9], stage.log.lines[0][11:13]) == (101, (5, 4))


async def test_half_a_close_leaves_the_other_direction_open(stage):
    client, origin = await tunnel(stage)
    client.send(b"last words")
    client.finish()
    assert await origin.rest() == b"last words"
    origin.send(b"answer")
    assert await client.exactly(6) == b"answer"
    origin.finish()
    assert await client.rest() == b""
    await stage.until(lambda: not stage.plane.counters.tunnels_open)


async def test_a_reset_goes_through_at_once(stage):
    client, origin = await tunnel(stage)
    client.reset()
    assert await origin.ended()


async def test_early_data_of_both_sides_is_kept_in_order(stage):
    client, origin = await stage.pair(upgrade() + b"early")
    await origin.head()
    client.send(b" bird")
    await asyncio.sleep(0)
    origin.send(switched() + b"eager")
    assert (await client.head()).status == 101
    assert await client.exactly(5) == b"eager"
    assert await origin.exactly(10) == b"early bird"


async def test_a_refused_upgrade_leaves_an_ordinary_connection(stage):
    client, origin = await stage.pair(upgrade(b"websocket") + GET)
    await origin.head()
    origin.send(b"HTTP/1.1 426 No\r\nContent-Length: 2\r\n\r\nno")
    head, body = await client.message()
    assert (head.status, body) == (426, b"no")
    head = await origin.head()
    assert (head.line, head.get("upgrade")) == ("GET / HTTP/1.1", None)
    origin.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_upgrade_without_connection_upgrade_is_not_asked_for(stage):
    client, origin = await stage.pair(b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n")
    assert (await origin.head()).get("upgrade") is None
    origin.send(switched(b"websocket"))
    assert json.loads((await client.message())[1])["error"] == "upstream_invalid"


@pytest.mark.parametrize("asked", [b"h2c", b"H2C", b"h2", b"h2c-14", b"HTTP/2.0"])
async def test_http_2_cannot_be_tunnelled_past_the_routes(stage, asked):
    _, origin = await stage.pair(upgrade(asked, b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n"))
    head = await origin.head()
    assert (head.get("upgrade"), head.get("http2-settings"), head.get("connection")) == (None, None, None)


async def test_one_of_several_protocols_may_be_chosen_and_no_other(stage):
    client, origin = await stage.pair(upgrade(b"h2c, Foo/2 ,websocket"))
    assert (await origin.head()).get("upgrade") == "foo/2, websocket"
    origin.send(switched(b"foo/2"))
    assert (await client.head()).get("upgrade") == "foo/2"
    other = await stage.client()
    other.send(upgrade(b"foo, bar"))
    wire = await stage.origins[0].accept()
    await wire.head()
    wire.send(switched(b"baz"))
    assert (await other.message())[0].status == 502


def handshake(
    *lines: bytes, start: bytes = b"GET /ws HTTP/1.1", key: bytes = KEY, version: bytes = VERSION
) -> bytes:
    fields = b"Host: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + key + version + b"".join(lines)
    return start + b"\r\n" + fields + b"\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        handshake(key=b""),
        handshake(key=b"Sec-WebSocket-Key: c2hvcnQ=\r\n"),
        handshake(key=b"Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==\r\n"),
        handshake(KEY),
        handshake(version=b""),
        handshake(start=b"POST /ws HTTP/1.1"),
        handshake(b"Content-Length: 5\r\n") + b"hello",
        handshake(b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        handshake(b"Content-Length: 5\r\n"),
    ],
    ids=[
        "no key",
        "short key",
        "bad key",
        "two keys",
        "no version",
        "POST",
        "body",
        "chunks",
        "body to come",
    ],
)
async def test_a_handshake_that_is_none_is_400(stage, request_):
    origin = await stage.origin()
    client = await stage.client()
    client.send(request_)
    head, body = await client.message()
    assert (head.status, json.loads(body)["error"]) == (400, "bad_request")
    assert not origin.accepted


@pytest.mark.parametrize("version", [b"8", b"13, 8", b"1 3"])
async def test_another_version_of_websocket_is_426_and_told_which_is_spoken(stage, version):
    await stage.origin()
    client = await stage.client()
    client.send(handshake(version=b"Sec-WebSocket-Version: %b\r\n" % version))
    head, body = await client.message()
    assert (head.status, json.loads(body)["error"]) == (426, "upgrade_required")
    assert (head.get("sec-websocket-version"), head.get("upgrade")) == ("13", "websocket")
    client.send(handshake())
    (await stage.origins[0].accept()).close()


@pytest.mark.parametrize(
    "answer",
    [
        b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n",
        b"X-None: 1\r\n",
        ACCEPT + ACCEPT,
        ACCEPT + b"Sec-WebSocket-Protocol: other\r\n",
        ACCEPT + b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: talk\r\n",
        ACCEPT + b"Sec-WebSocket-Extensions: x-unasked\r\n",
    ],
    ids=["wrong accept", "no accept", "two accepts", "other protocol", "two protocols", "extension"],
)
async def test_a_101_that_agrees_to_something_else_makes_no_websocket(stage, answer):
    offers = b"Sec-WebSocket-Protocol: chat, talk\r\nSec-WebSocket-Extensions: permessage-deflate; a=1\r\n"
    client, origin = await stage.pair(handshake(offers))
    await origin.head()
    origin.send(switched(b"websocket", answer))
    head, body = await client.message()
    assert (head.status, json.loads(body)["error"]) == (502, "upstream_invalid")
    assert await origin.ended()


async def test_what_was_offered_may_be_chosen(stage):
    offers = b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: talk\r\n"
    offers += b"Sec-WebSocket-Extensions: a;b, c\r\n"
    client, origin = await stage.pair(handshake(offers))
    await origin.head()
    chosen = b"Sec-WebSocket-Protocol: talk\r\nSec-WebSocket-Extensions: c; d=1\r\n"
    origin.send(switched(b"websocket", ACCEPT + chosen))
    head = await client.head()
    assert (head.status, head.get("sec-websocket-protocol")) == (101, "talk")


async def test_in_a_tunnel_that_may_move_no_extension_was_offered(stage):
    stage.configure({"websocket": {"on_drain": "migrate"}})
    client, origin = await stage.pair(handshake(b"Sec-WebSocket-Extensions: c\r\n"))
    await origin.head()
    origin.send(switched(b"websocket", ACCEPT + b"Sec-WebSocket-Extensions: c\r\n"))
    assert (await client.message())[0].status == 502


async def test_a_426_says_what_to_upgrade_to(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 426 No\r\nConnection: Upgrade\r\nUpgrade: foo/2\r\nContent-Length: 2\r\n\r\nno")
    head, _ = await client.message()
    assert (head.status, head.get("connection"), head.get("upgrade")) == (426, "Upgrade", "foo/2")


async def test_a_switch_in_the_middle_of_a_request_body_is_502(stage):
    client, origin = await stage.pair(upgrade(extra=b"Content-Length: 5\r\n") + b"ab")
    await origin.until(b"ab")
    origin.send(switched())
    assert (await client.message())[0].status == 502


async def test_a_tunnels_backpressure_reaches_the_other_side(stage):
    client, origin = await tunnel(stage)
    origin.writer.transport.pause_reading()
    sent = 0
    while sent < 64 << 20:
        client.send(b"x" * 65536)
        sent += 65536
        try:
            async with asyncio.timeout(0.2):
                await client.writer.drain()
        except TimeoutError:
            break
    assert sent < 64 << 20
    origin.writer.transport.resume_reading()
    left = sent
    while left:
        left -= len(await origin.some())


async def test_an_idle_tunnel_is_closed_and_a_busy_one_is_not(stage):
    stage.configure({"websocket": {"idle": "60s", "on_drain": "close"}})
    client, origin = await tunnel(stage, b"websocket")
    for _ in range(4):
        stage.clock.advance(40)
        client.send(encode_frame(Opcode.TEXT, b"hi", MASK))
        await origin.exactly(8)
    while not client.reader._buffer:
        stage.clock.advance(1)
        await asyncio.sleep(0.0005)
    follower = FrameFollower()
    follower.feed(await client.some())
    assert follower.close_code == 1001
    client.send(encode_close(1001, mask=MASK))
    client.finish()
    assert await origin.some()
    origin.close()


async def test_a_websocket_of_a_leaving_instance_gets_close_1012_between_two_messages(stage):
    stage.configure({"websocket": {"on_drain": "close"}, "drain": {"jitter": 0, "timeout": "5s"}})
    client, origin = await tunnel(stage, b"websocket")
    message = encode_frame(Opcode.TEXT, b"hello")
    origin.send(message[:3])
    assert await client.exactly(3) == message[:3]
    stage.mark(stage.origins[0], Status.DRAINING)
    await asyncio.sleep(0.01)
    origin.send(message[3:])
    assert await client.exactly(4) == message[3:]
    follower = FrameFollower()
    follower.feed(await client.some())
    assert follower.close_code == 1012
    client.send(encode_close(1012, mask=MASK))
    assert await origin.some()
    origin.close()
    assert await client.ended()
