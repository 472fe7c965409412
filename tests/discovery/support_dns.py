"""A name server that says what a test wants, in the wire format of RFC 1035, over UDP and TCP on one port."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

TYPES = {"A": 1, "CNAME": 5, "TXT": 16, "AAAA": 28, "SRV": 33}
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
UDP_RECORDS = 3
"""Records in an answer over UDP; the others are left out without a word, as Consul does."""


@dataclass(frozen=True)
class Record:
    name: str
    kind: str
    data: str
    """An address, a name, or `priority weight port target`."""
    ttl: int = 60

    def packed(self) -> bytes:
        data = self._data()
        head = struct.pack(">HHIH", TYPES[self.kind], 1, self.ttl, len(data))
        return _name(self.name) + head + data

    def _data(self) -> bytes:
        if self.kind in ("A", "AAAA"):
            return ipaddress.ip_address(self.data).packed
        if self.kind == "SRV":
            priority, weight, port, target = self.data.split()
            return struct.pack(">HHH", int(priority), int(weight), int(port)) + _name(target)
        return _name(self.data)


@dataclass
class NameServer:
    """`records` are all there are; a name without any does not exist. What is in `additional` comes along
    with every answer that is not empty."""

    records: list[Record] = field(default_factory=list)
    additional: list[Record] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    """Names that are answered with an error."""
    delays: dict[str, float] = field(default_factory=dict)
    """Seconds that a name takes."""
    garbage: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Transport, name and type of each question."""
    address: str = ""

    def of(self, name: str, *kinds: str) -> int:
        """How many questions there were for a name."""
        return sum(asked == name and (not kinds or kind in kinds) for _, asked, kind in self.asked)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[NameServer]:
        server = await asyncio.start_server(self._tcp, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), local_addr=("127.0.0.1", port))
        self.address = f"127.0.0.1:{port}"
        try:
            yield self
        finally:
            transport.close()
            server.close()

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering: set[asyncio.Task[None]] = set()

        async def answer(question: bytes) -> None:
            reply = await self.answer(question, "tcp")
            writer.write(struct.pack(">H", len(reply)) + reply)

        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = struct.unpack(">H", await reader.readexactly(2))
                task = asyncio.create_task(answer(await reader.readexactly(length)))
                answering.add(task)
                task.add_done_callback(answering.discard)
        for task in answering:
            task.cancel()
        writer.close()

    async def answer(self, question: bytes, transport: str) -> bytes:
        (number,) = struct.unpack(">H", question[:2])
        name, end = _read_name(question, 12)
        (kind,) = struct.unpack(">H", question[end : end + 2])
        word = next((word for word, value in TYPES.items() if value == kind), str(kind))
        self.asked.append((transport, name, word))
        await asyncio.sleep(self.delays.get(name, 0))
        if name in self.garbage:
            return question[:2] + b"\x80\x00\x00\x01\x00\x09"
        code, found = self._find(name, word)
        extra = self.additional if found else []
        if transport == "udp":
            found, extra = found[:UDP_RECORDS], []
        counts = struct.pack(">HHHH", 1, len(found), 0, len(extra))
        flags = struct.pack(">H", 0x8580 | code)  # an authoritative answer, recursion available
        body = question[12 : end + 4] + b"".join(record.packed() for record in [*found, *extra])
        return struct.pack(">H", number) + flags + counts + body

    def _find(self, name: str, kind: str) -> tuple[int, list[Record]]:
        if name in self.codes:
            return self.codes[name], []
        there = [record for record in self.records if record.name.lower() == name.lower()]
        found = [record for record in there if record.kind == kind]
        alias = next((record for record in there if record.kind == "CNAME"), None)
        if not found and alias is not None:
            return NOERROR, [alias, *self._find(alias.data, kind)[1]]
        return (NOERROR if there else NXDOMAIN), found


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._answering: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        task = asyncio.ensure_future(self._answer(data, peer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, data: bytes, peer: tuple[str, int]) -> None:
        self._transport.sendto(await self._server.answer(data, "udp"), peer)


def _name(name: str) -> bytes:
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    labels = []
    while length := message[at]:
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), at + 1
