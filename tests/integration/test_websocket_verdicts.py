"""What a client may say, right and wrong, is answered through the proxy as it is without it.

Vectors from RFC 6455 sections 5 to 8, in the manner of Autobahn's (`test_autobahn` runs those where they can
be had), against the servers of two libraries. The client is wsproto's parser over bare sockets.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from tests.integration.stage import PATIENCE, Stage

MASK = b"\x37\xfa\x21\x3d"
TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
FIRST, MORE, LAST = 0x01, 0x00, 0x80
"""A message in parts, as text."""
ENDLESS = "highest bit of a length"
"""websockets takes it for a number, and waits."""
AT_ONCE = 32
OCTETWISE = 300
"""Vectors up to this size are also sent byte by byte."""

Seen = tuple[list[tuple[str, object]], int]
"""Messages and pongs in their order, and the code of the Close: 0 when the connection ended without one."""


def frame(first: int, payload: bytes = b"", *, masked: bool = True) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes((masked << 7 | size,))
    elif size < 1 << 16:
        length = struct.pack("!BH", masked << 7 | 126, size)
    else:
        length = struct.pack("!BQ", masked << 7 | 127, size)
    if not masked:
        return bytes((first,)) + length + payload
    key = (MASK * (size // 4 + 1))[:size]
    return bytes((first,)) + length + MASK + bytes(a ^ b for a, b in zip(payload, key, strict=True))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def right() -> dict[str, bytes]:
    """What RFC 6455 allows, each with a Close at its end."""
    bye = close(1000)
    euro = "κόσμε €".encode()
    found = {f"text of {size}": frame(TEXT, b"t" * size) for size in (0, 1, 125, 126, 127, 128, 65535, 65536)}
    found |= {f"bytes of {size}": frame(BINARY, bytes(size)) for size in (0, 125, 126, 65535, 65536, 300_000)}
    found |= {
        "two parts": frame(FIRST, b"frag") + frame(LAST, b"ment"),
        "empty parts": frame(FIRST) + frame(MORE) + frame(LAST),
        "ping within": frame(FIRST, b"a") + frame(PING, b"within") + frame(MORE, b"b") + frame(LAST, b"c"),
        "pong within": frame(FIRST, b"a") + frame(PONG, b"within") + frame(LAST, b"b"),
        "a character in two parts": frame(FIRST, euro[:-2]) + frame(LAST, euro[-2:]),
        "a byte a part": frame(FIRST) + b"".join(frame(MORE, bytes((c,))) for c in euro) + frame(LAST),
        "two messages in parts": 2 * (frame(FIRST, b"a") + frame(LAST, b"b")),
        "bytes in large parts": frame(0x02, bytes(70_000)) + frame(LAST, bytes(70_000)),
        "ping": frame(PING),
        "ping with bytes": frame(PING, b"\x00\xff\xfe"),
        "long ping": frame(PING, b"p" * 125),
        "ten pings": b"".join(frame(PING, b"%d" % n) for n in range(10)),
        "pong that nobody asked for": frame(PONG, b"who"),
        "pong and ping": frame(PONG, b"a") + frame(PING, b"b"),
        "messages and pings": b"".join(frame(TEXT, b"%d" % n) + frame(PING, b"%d" % n) for n in range(5)),
    }
    found = {name: said + bye for name, said in found.items()}
    codes = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    found |= {f"Close {code}": frame(TEXT, b"last") + close(code) for code in codes}
    return found | {
        "Close without a code": frame(CLOSE),
        "Close with a reason": close(1000, "tschüß".encode()),
        "Close with a long reason": close(1000, b"r" * 123),
        "message behind Close": close(1000) + frame(TEXT, b"late"),
        "ping behind Close": close(1000) + frame(PING, b"late"),
        "two Closes": close(1000) + close(1001),
    }


def wrong() -> dict[str, bytes]:
    """What RFC 6455 forbids, each behind a message that is right."""
    found = {f"reserved bit {bit:#x}": frame(TEXT | bit, b"r") for bit in (0x10, 0x20, 0x40, 0x70)}
    found |= {f"ping with reserved bit {bit:#x}": frame(PING | bit, b"r") for bit in (0x10, 0x20, 0x40)}
    found |= {f"opcode {code:#x}": frame(0x80 | code) for code in (*range(3, 8), *range(0xB, 0x10))}
    found |= {f"opcode {code:#x} with bytes": frame(0x80 | code, b"what") for code in (3, 7, 0xB, 0xF)}
    found |= {
        "ping of 126": frame(PING, b"p" * 126),
        "ping in parts": frame(0x09, b"p") + frame(LAST, b"q"),
        "pong in parts": frame(0x0A, b"p"),
        "Close in parts": frame(0x08, struct.pack("!H", 1000)),
        "not masked": frame(TEXT, b"bare", masked=False),
        "end without a beginning": frame(LAST, b"x") + frame(TEXT, b"y"),
        "part without a beginning": frame(MORE, b"x") + frame(LAST, b"y"),
        "a message within another": frame(FIRST, b"x") + frame(TEXT, b"y"),
        "a part within another": frame(FIRST, b"x") + frame(FIRST, b"y"),
        ENDLESS: b"\x82\xff" + b"\xff" * 8 + MASK,
        "half a code": frame(CLOSE, b"\x03"),
        "long Close": frame(CLOSE, b"\x03\xe8" + b"r" * 124),
        "a reason that is no text": close(1000, b"\xed\xa0\x80"),
    }
    found |= {f"code {code}": close(code) for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)}
    texts = (
        b"\x80",
        b"\xc0\xaf",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"ok\xff",
        b"\xf8\x88\x80",
    )
    found |= {f"text {text.hex()}": frame(TEXT, text) for text in texts}
    found |= {f"text {text.hex()} in parts": frame(FIRST, b"ok") + frame(LAST, text) for text in texts}
    return {name: frame(TEXT, b"before") + said for name, said in found.items()}


async def ask(address: str, path: str, said: bytes, octetwise: bool) -> Seen:
    """Say it, and see what comes until the connection ends; the server's Close is answered."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(
            b"GET %b HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            % path.encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        for piece in (said[n : n + 1] for n in range(len(said))) if octetwise else (said,):
            writer.write(piece)
            await asyncio.sleep(0)
        ear = Ear()
        # The other side may have closed while it was still being spoken to.
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if ear.hear(data):
                    writer.write(close(1000))
        return ear.seen, ear.code
    finally:
        writer.transport.abort()


class Ear:
    """What the client hears."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []
        self.code = 0
        self._parser = Connection(ConnectionType.CLIENT)
        self._parts: list[object] = []

    def hear(self, data: bytes) -> bool:
        """Whether the Close is in it."""
        if self.code:
            raise AssertionError(f"said behind Close: {data!r}")
        self._parser.receive_data(data)
        for event in self._parser.events():
            self._note(event)
        return bool(self.code)

    def _note(self, event: Event) -> None:
        assert not self.code, f"said behind Close: {event}"
        if isinstance(event, TextMessage | BytesMessage):
            self._parts.append(event.data)
            if event.message_finished:
                empty = "" if isinstance(event, TextMessage) else b""
                self.seen.append(("message", empty.join(self._parts)))  # type: ignore[arg-type]
                self._parts = []
        elif isinstance(event, Pong):
            self.seen.append(("pong", bytes(event.payload)))
        elif isinstance(event, CloseConnection):
            self.code = int(event.code)
        else:
            assert isinstance(event, Ping), event
            raise AssertionError("a ping that the server did not send")


async def verdicts(address: str, path: str, vectors: dict[str, bytes]) -> dict[str, Seen]:
    """Of each vector in one piece, and of the short ones byte by byte."""
    few = asyncio.Semaphore(AT_ONCE)

    async def one(said: bytes, octetwise: bool) -> Seen:
        async with few, asyncio.timeout(PATIENCE):
            return await ask(address, path, said, octetwise)

    cases = {name: (said, False) for name, said in vectors.items()}
    cases |= {f"{name}, octets": (said, True) for name, said in vectors.items() if len(said) < OCTETWISE}
    seen = await asyncio.gather(*(one(*case) for case in cases.values()))
    return dict(zip(cases, seen, strict=True))


@pytest.mark.parametrize("library", ["wsproto", "websockets"])
async def test_right_and_wrong_are_answered_as_without_the_proxy(stage: Stage, library: str) -> None:
    origin = await stage.spawn("origin", "-m", "tests.integration.support_echo", library)
    address = (await origin.said(r"listening on (\S+)"))[1]
    modes = {"close": {"on_drain": "close"}, "migrate": {"on_drain": "migrate", "replay": True}}
    gateway = await stage.gateway(
        services={mode: {"instances": [address], "websocket": rules} for mode, rules in modes.items()},
        routes=[{"match": {"path": f"/{mode}"}, "service": mode} for mode in modes],
    )
    for vectors in (right(), wrong()):
        if library == "websockets":
            vectors.pop(ENDLESS, None)
        direct = await verdicts(address, "/", vectors)
        assert all(code for _, code in direct.values())
        for mode in modes:
            through = await verdicts(gateway.addresses[0], f"/{mode}", vectors)
            for name, (expected, code) in direct.items():
                seen, found = through[name]
                if library == "websockets":
                    # Its messages wait in a queue; how many are answered before Close is a matter of chance.
                    expected, seen = pongs(expected), pongs(seen)
                assert (str(seen)[:300], found) == (str(expected)[:300], code), (mode, name)
                assert seen == expected, (mode, name)


def pongs(seen: list[tuple[str, object]]) -> list[tuple[str, object]]:
    return [(kind, payload) for kind, payload in seen if kind == "pong"]
