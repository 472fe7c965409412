"""Servers in this process and in real ones, and a client that remembers all it was sent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from chat.options import Options
from chat.server import ChatServer

PATIENCE = 15.0


class Talk:
    """A WebSocket to a chat instance, and every frame that came."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []
        self._read = 0

    async def send(self, **frame: Any) -> None:
        await self.socket.send_str(json.dumps(frame))

    async def say(self, id: str, text: str) -> None:
        await self.send(type="message", id=id, text=text)

    async def next(self) -> dict[str, Any] | None:
        """The next frame; None when the connection has ended."""
        async with asyncio.timeout(PATIENCE):
            received = await self.socket.receive()
        if received.type is not aiohttp.WSMsgType.TEXT:
            return None
        frame: dict[str, Any] = json.loads(received.data)
        self.frames.append(frame)
        return frame

    async def until(self, **wanted: Any) -> dict[str, Any]:
        """Reads until a frame has these fields (`from_` for `from`); fails when the connection ends."""
        fields = {name.rstrip("_"): value for name, value in wanted.items()}
        while (frame := await self.next()) is not None:
            if fields.items() <= frame.items():
                return frame
        raise AssertionError(f"the connection ended before {fields}; there were {self.frames}")

    async def rest(self) -> list[dict[str, Any]]:
        """Everything that comes until the connection ends."""
        start = len(self.frames)
        while await self.next() is not None:
            pass
        return self.frames[start:]

    def of(self, type: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == type]

    @property
    def seqs(self) -> list[int]:
        return [frame["seq"] for frame in self.of("message")]


Connect = Callable[..., Awaitable[Talk]]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def connect(http: aiohttp.ClientSession) -> AsyncIterator[Connect]:
    """Opens a WebSocket at a server's URL; keyword arguments are the query, `headers` the header."""
    open_now: list[aiohttp.ClientWebSocketResponse] = []

    async def open_one(url: str, headers: dict[str, str] | None = None, **query: Any) -> Talk:
        socket = await http.ws_connect(f"{url}/ws", params=query, headers=headers, autoclose=True)
        open_now.append(socket)
        return Talk(socket)

    yield open_one
    for socket in open_now:
        await socket.close()


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chat.db"


Serve = Callable[..., Awaitable[ChatServer]]


@pytest.fixture
async def serve(database: str) -> AsyncIterator[Serve]:
    """Starts servers in this process, all on one database."""
    running: list[ChatServer] = []

    async def start(engine: Any = None, clock: Any = None, **options: Any) -> ChatServer:
        settings = {"store": database, "settle": 0.0, "spread": 0.0, "deadline": 5.0, **options}
        extra = {} if clock is None else {"clock": clock}
        server = ChatServer(Options(**settings), engine=engine, **extra)
        running.append(server)
        await server.start()
        return server

    yield start
    for server in running:
        await server.close()


class Process:
    """One `python -m chat`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


Spawn = Callable[..., Awaitable[Process]]


@pytest.fixture
async def spawn(database: str) -> AsyncIterator[Spawn]:
    """Starts real processes on one database; `program` replaces `-m chat`."""
    running: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str, program: str | None = None) -> Process:
        what = ["-m", "chat"] if program is None else ["-c", program]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *what,
            *("--store", database, "--settle", "100ms", "--spread", "0s", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )
        running.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on http://127.0.0.1:"), line
        return Process(process, line.split()[-1])

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
        await process.wait()
        # The transport's pipes close with the event loop's next turns.
        process._transport.close()  # type: ignore[attr-defined]
