"""Many customers of the chat in one process: `python -m tests.integration.support_clients LIBRARY URL N S`.

There are `S` seconds between an answer and the next question of each, on the average.

It says `ready` when all are connected. On SIGUSR1 it tells, as one line of JSON, what was seen since it was
asked before; on SIGTERM it lets every conversation come to its end, tells the last of it, and exits.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Protocol

import aiohttp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE = 30.0
"""Seconds after which an answer is said to be lost."""
AT_ONCE = 20
"""Handshakes under way at the beginning."""


class Closed(Exception):
    """The connection has ended, by this code."""


class Socket(Protocol):
    """A WebSocket of either library."""

    async def send(self, text: str) -> None:
        """Raises `Closed`."""

    async def receive(self) -> str:
        """The next text frame. Raises `Closed`."""


class ByWebsockets:
    """`websockets`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Socket]:
        async with connect(url, open_timeout=PATIENCE) as socket:
            yield cls(socket)

    async def send(self, text: str) -> None:
        try:
            await self._socket.send(text)
        except ConnectionClosed as closed:
            raise Closed(str(closed)) from None

    async def receive(self) -> str:
        try:
            return str(await self._socket.recv())
        except ConnectionClosed as closed:
            raise Closed(str(closed)) from None


class ByAiohttp:
    """aiohttp's client; all share one session."""

    session: aiohttp.ClientSession

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Socket]:
        async with cls.session.ws_connect(url, heartbeat=20.0) as socket:
            yield cls(socket)

    async def send(self, text: str) -> None:
        try:
            await self._socket.send_str(text)
        except ConnectionError:
            raise Closed(str(self._socket.close_code)) from None

    async def receive(self) -> str:
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise Closed(str(self._socket.close_code))
        return str(message.data)


@dataclass
class Seen:
    """What all clients together have seen since the last report. Times in seconds."""

    began: float = field(default_factory=time.monotonic)
    answered: int = 0
    longest: float = 0.0
    """From a question to its answer."""
    carried: float = 0.0
    """The same of questions that were asked before this began."""
    closes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Talker:
    """One customer, who asks numbered questions one after the other, on one connection."""

    def __init__(self, name: str, socket: Socket, think: float, seen: Callable[[], Seen]) -> None:
        self._name = name
        self._think = think
        self._socket = socket
        self._seen = seen
        self._random = random.Random(name)
        self._last = 0
        self._questions = 0
        self._acknowledged: dict[str, int] = {}
        self._answers: dict[int, int] = {}
        """How often the question of that sequence number was answered."""

    async def talk(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and the last question is answered."""
        try:
            pause = self._random.uniform(0.0, 2.0) * self._think
            while not await self._listen(stop, pause):
                await self._ask()
                pause = self._random.uniform(0.5, 1.5) * self._think
        except Closed as closed:
            self._seen().closes.append(f"{self._name}: {closed}")

    async def _listen(self, stop: asyncio.Event, seconds: float) -> bool:
        """Hear what comes by itself for so long; whether it is time to stop."""
        stopping = asyncio.ensure_future(stop.wait())
        hearing = asyncio.ensure_future(self._hear_on())
        try:
            await asyncio.wait((stopping, hearing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if hearing.done():
                hearing.result()
        finally:
            for task in (stopping, hearing):
                task.cancel()
            await asyncio.gather(stopping, hearing, return_exceptions=True)
        return stop.is_set()

    async def _hear_on(self) -> None:
        while True:
            self._take(await self._socket.receive())

    async def _ask(self) -> None:
        id = f"{self._name}-{self._questions}"
        self._questions += 1
        asked = time.monotonic()
        await self._socket.send(json.dumps({"type": "message", "id": id, "text": f"hello {id}"}))
        try:
            async with asyncio.timeout(PATIENCE):
                while self._answers.get(self._acknowledged.get(id, 0), 0) == 0:
                    self._take(await self._socket.receive())
        except TimeoutError:
            self._seen().lost.append(id)
            return
        seen = self._seen()
        seen.answered += 1
        waited = time.monotonic() - asked
        if asked >= seen.began:
            seen.longest = max(seen.longest, waited)
        else:
            seen.carried = max(seen.carried, waited)

    def _take(self, text: str) -> None:
        frame, seen = json.loads(text), self._seen()
        if frame["type"] == "ack":
            if self._acknowledged.setdefault(frame["id"], frame["seq"]) != frame["seq"]:
                seen.doubled.append(f"{frame['id']} was stored twice")
        elif frame["type"] == "message":
            seq = frame["seq"]
            if seq <= self._last:
                seen.doubled.append(f"{self._name}: {seq} after {self._last}")
            elif seq != self._last + 1:
                seen.reordered.append(f"{self._name}: {seq} after {self._last}")
            self._last = max(self._last, seq)
            if frame["from"] == "bot":
                to = frame["reply_to"]
                self._answers[to] = self._answers.get(to, 0) + 1
                if self._answers[to] > 1:
                    seen.doubled.append(f"{self._name}: {to} was answered twice")
        elif frame["type"] == "error":
            seen.errors.append(f"{self._name}: {text}")


class Crowd:
    """All of them, and what is told of them."""

    def __init__(
        self, library: type[ByWebsockets] | type[ByAiohttp], url: str, number: int, think: float
    ) -> None:
        self._library = library
        self._url = url
        self._number = number
        self._think = think
        self._seen = Seen()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._report)
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        few = asyncio.Semaphore(AT_ONCE)
        ready = asyncio.Event()
        waiting = self._number

        async def connected() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                ready.set()

        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(self._client(n, few, connected)) for n in range(self._number)]
            await ready.wait()
            print("ready", flush=True)
            await asyncio.wait(clients)
        self._report()

    async def _client(
        self, number: int, few: asyncio.Semaphore, connected: Callable[[], Awaitable[None]]
    ) -> None:
        await few.acquire()
        try:
            async with self._library.open(f"{self._url}/ws?role=user") as socket:
                few.release()
                await connected()
                await Talker(f"c{number}", socket, self._think, lambda: self._seen).talk(self._stop)
        except (OSError, aiohttp.ClientError) as error:
            self._seen.errors.append(f"c{number}: {error!r}")

    def _report(self) -> None:
        print("seen", json.dumps(asdict(self._seen)), flush=True)
        self._seen = Seen()


async def main(library: str, url: str, number: str, think: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        ByAiohttp.session = session
        kind = ByAiohttp if library == "aiohttp" else ByWebsockets
        await Crowd(kind, url, int(number), float(think)).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
