"""WebSocket load: messages in ping-pong over a few tunnels, and many tunnels in which nothing happens."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from bench import frames
from bench.children import BenchError

PATH = "/ws"
PAYLOAD = b'{"type":"message","id":"c-1","text":"where is my parcel, please?"}'

_MESSAGE = frames.encode(frames.TEXT, PAYLOAD, masked=True)
_ECHO = frames.encode(frames.TEXT, PAYLOAD)
_DIALS_AT_ONCE = 64
_SETTLE = 0.3
_OPEN_WITHIN = 20.0


@dataclass(frozen=True, slots=True)
class Echoed:
    """What came back during the measured time, and the CPU seconds that the proxy used for it."""

    messages: int
    seconds: float
    cpu: float


class Tunnel(asyncio.Protocol):
    """One WebSocket. Once playing, it sends the message again as soon as its echo is there."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._playing = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.echoes = 0
        self.fault: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # A reset instead of a FIN: thousands of tunnels leave no TIME_WAIT behind for the next proxy.
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        key = base64.b64encode(os.urandom(16))
        self._transport.write(
            b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % (PATH.encode(), self._port, key)
        )

    def play(self) -> None:
        assert self._transport is not None
        self._playing = True
        self._transport.write(_MESSAGE)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if data == _ECHO and not self._buffer:
            self._echo()
            return
        self._buffer += data
        if self.opened.done() or self._handshake():
            try:
                for frame in frames.decode(self._buffer):
                    self._frame(frame)
            except ValueError as error:
                self._give_up(str(error))

    def _handshake(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        line = bytes(self._buffer[: self._buffer.find(b"\r\n")])
        del self._buffer[: end + 4]
        if not line.startswith(b"HTTP/1.1 101"):
            self._give_up(f"the handshake was answered {line!r}")
            return False
        self.opened.set_result(None)
        return True

    def _frame(self, frame: frames.Frame) -> None:
        assert self._transport is not None
        if frame == (frames.TEXT, PAYLOAD):
            self._echo()
        elif frame.opcode == frames.PING:
            self._transport.write(frames.encode(frames.PONG, frame.payload, masked=True))
        else:
            self._give_up(f"an unexpected frame: opcode {frame.opcode}, {frame.payload[:80]!r}")

    def _echo(self) -> None:
        self.echoes += 1
        if self._playing and self._transport is not None:
            self._transport.write(_MESSAGE)

    def _give_up(self, reason: str) -> None:
        self.fault = self.fault or reason
        if not self.opened.done():
            self.opened.set_exception(BenchError(reason))
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._playing or not self.opened.done():
            self._give_up(f"the tunnel was cut: {exc or 'closed by the other side'}")
        self._transport = None

    def close(self) -> None:
        self._playing = False
        if self._transport is not None:
            self._transport.abort()


async def _open(port: int, count: int) -> list[Tunnel]:
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(_DIALS_AT_ONCE)

    async def one() -> Tunnel:
        async with gate:
            _, tunnel = await loop.create_connection(lambda: Tunnel(port), "127.0.0.1", port)
            await asyncio.wait_for(tunnel.opened, _OPEN_WITHIN)
            return tunnel

    tunnels = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    opened = [tunnel for tunnel in tunnels if isinstance(tunnel, Tunnel)]
    if len(opened) < count:
        for tunnel in opened:
            tunnel.close()
        reason = next(tunnel for tunnel in tunnels if isinstance(tunnel, BaseException))
        raise BenchError(f"only {len(opened)} of {count} tunnels opened: {reason!r}")
    return opened


@asynccontextmanager
async def tunnels(port: int, count: int) -> AsyncIterator[list[Tunnel]]:
    """`count` open tunnels for as long as the block lasts. Raises `BenchError` if one cannot be opened."""
    opened = await _open(port, count)
    try:
        yield opened
    finally:
        for tunnel in opened:
            tunnel.close()
        await asyncio.sleep(0)


async def ping_pong(
    port: int, *, connections: int, seconds: float, cpu: Callable[[], float], warm: float = 0.2
) -> Echoed:
    """One message at a time on each of `connections` tunnels, counted for `seconds`.

    Every echo is compared with what was sent. Raises `BenchError` when one differs or a tunnel is cut.
    """
    async with tunnels(port, connections) as opened:
        for tunnel in opened:
            tunnel.play()
        await asyncio.sleep(warm)
        cpu_before, count_before, began = cpu(), sum(t.echoes for t in opened), time.monotonic()
        await asyncio.sleep(seconds)
        count, took, used = sum(t.echoes for t in opened), time.monotonic() - began, cpu() - cpu_before
        if fault := next((t.fault for t in opened if t.fault), None):
            raise BenchError(fault)
        return Echoed(count - count_before, took, used)


async def idle_cost(port: int, *, count: int, memory: Callable[[], int], warm: int = 200) -> float:
    """Bytes of memory that each of `count` idle tunnels adds.

    The difference is taken from `warm` tunnels on, which use up what earlier work left free in the heap.
    """
    async with tunnels(port, warm):
        await asyncio.sleep(_SETTLE)
        before = memory()
        async with tunnels(port, count):
            await asyncio.sleep(_SETTLE)
            return (memory() - before) / count
