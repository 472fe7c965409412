"""A TCP proxy of the tests' own between the gateway and what it speaks to: it delays, swallows and breaks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from enum import Enum


class Mode(Enum):
    """What a wire does with what passes."""

    OPEN = "open"
    SLOW = "slow"
    """Each piece takes a while."""
    HOLE = "hole"
    """Nothing passes any more, and nobody is told; what was said is delivered once it is open again."""
    REFUSE = "refuse"
    """Every connection is reset, and every new one too."""


class Wire:
    """Listens on a loopback port of its own and passes on to another. `delay` is in seconds, for SLOW."""

    def __init__(self, target: int, delay: float = 0.15) -> None:
        self.target = target
        self.port = 0
        self._delay = delay
        self._mode = Mode.OPEN
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def become(self, mode: Mode) -> None:
        """From now on."""
        self._mode = mode
        (self._open.clear if mode is Mode.HOLE else self._open.set)()
        if mode is Mode.REFUSE:
            self.reset()

    def reset(self) -> None:
        """Break off every connection that there is."""
        for writer in tuple(self._writers):
            _reset(writer)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self._mode is Mode.REFUSE:
                return
            await self._open.wait()
            back, other = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(other)
            # When either direction ends, in order or not, the other is of no use to these protocols.
            ways = [asyncio.create_task(self._copy(*way)) for way in ((reader, other), (back, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            _reset(writer)
        finally:
            for end in (writer, other):
                if end is not None:
                    self._writers.discard(end)
                    end.close()
            self._tasks.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self._mode is Mode.SLOW:
                    await asyncio.sleep(self._delay)
                await self._open.wait()
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
