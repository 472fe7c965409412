"""What upgrades are tried with: gateways whose successors end with the test, raw WebSockets on both sides."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.integration.stage import PATIENCE, Gateway, Stage

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def gone(pid: int) -> None:
    """Waits until there is no such process any more."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


class Dynasty:
    """Gateways that are replaced by upgrades, and the processes that this makes."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._gateways: list[Gateway] = []

    async def gateway(self, **config: Any) -> Gateway:
        """As `Stage.gateway`; whoever replaces it ends with the test too."""
        gateway = await self._stage.gateway(f"gateway{len(self._gateways)}", **config)
        self._gateways.append(gateway)
        return gateway

    async def upgrade(self, gateway: Gateway) -> int:
        """Replaces the gateway's process; the new one, which says where it listens."""
        so_far = len(gateway.child.lines)
        status, answer = await gateway.ask("POST", "/v1/upgrade")
        assert status == 200, answer
        await gateway.child.said(r"forwarding on ", after=so_far)
        return int(answer["pid"])

    def line(self, gateway: Gateway) -> list[int]:
        """Every process that the gateway has been so far, the newest last."""
        upgraded = re.compile(r"upgraded pid=(\d+)")
        found = (upgraded.search(line) for line in gateway.child.lines)
        return [gateway.child.pid, *(int(match[1]) for match in found if match)]

    async def end(self) -> None:
        """Ends all of them."""
        for gateway in self._gateways:
            for pid in self.line(gateway)[1:]:
                if _is_of(gateway, pid):
                    os.kill(pid, signal.SIGTERM)
                    try:
                        await gone(pid)
                    except TimeoutError:
                        os.kill(pid, signal.SIGKILL)


def _is_of(gateway: Gateway, pid: int) -> bool:
    """Whether a process of that number is there and is the gateway's: numbers are used again."""
    with suppress(OSError):
        return str(gateway.path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Origin:
    """Takes WebSocket handshakes and says nothing by itself: each connection is the test's to act on."""

    def __init__(self) -> None:
        self.address = ""
        self.accepted: asyncio.Queue[Streams] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Origin]:
        origin = cls()
        server = await asyncio.start_server(origin._serve, "127.0.0.1", 0)
        origin.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield origin
        finally:
            for writer in origin._writers:
                writer.close()
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID.encode()).digest()).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        self.accepted.put_nowait((reader, writer))


async def handshake(gateway: Gateway, *, receive_buffer: int = 0, path: str = "/ws") -> Streams:
    """A WebSocket of which the test sees every byte. `receive_buffer`: of the kernel, in bytes."""
    host, _, port = gateway.addresses[0].rpartition(":")
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 16)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 101 " in head, head
    return reader, writer


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what only asking can tell; each question is a round trip to another process."""
    async with asyncio.timeout(PATIENCE):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
