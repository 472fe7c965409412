"""Numbered conversations and requests under a rolling restart, and the books of what they saw.

`Books` and `Conversation` are pure: what happened and when goes in. `people` and `requests` are the clients
that write into them. Times are in seconds of one monotonic clock.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace

import aiohttp

EVERY = 0.2
"""From one message of a conversation to its next."""
PATIENCE = 10.0
"""After which a request that is not answered has failed."""
LAST_WORDS = 3.0
"""At the end, for the echoes that are still on their way."""
RETURN = 0.05, 1.0
"""The wait before a refused client tries again: the first, and the longest."""
_TICK = 0.01


@dataclass(slots=True)
class Books:
    """What all clients of one trial saw."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    """One line for each request that was not answered 200."""
    slowest: float = 0.0
    """The longest time to an answer 200."""
    drops: list[str] = field(default_factory=list)
    """One line for each WebSocket that ended although its client did not end it."""
    refused: list[str] = field(default_factory=list)
    """One line for each handshake that did not come to be."""
    late: float = 0.0
    """By how much the load's own timer was late at most."""

    def answered(self, status: int, seconds: float) -> None:
        self.requests += 1
        if status == 200:
            self.slowest = max(self.slowest, seconds)
        else:
            self.failures.append(f"status {status}")

    def failed(self, why: str) -> None:
        self.requests += 1
        self.failures.append(why)


class Conversation:
    """One client's numbered messages and their echoes, over however many connections."""

    def __init__(self) -> None:
        self.sent = 0
        self.doubled = 0
        """Echoes of what had been echoed before."""
        self.reordered = 0
        """First echoes that came behind one of a later message."""
        self.longest = 0.0
        """The longest time from when a message was due to the echo of it or of a later one."""
        self._next = 0
        self._latest = -1
        self._waiting: dict[int, float] = {}
        """When messages were due that nothing has been heard of, nor of a later one."""
        self._unheard: set[int] = set()
        """Messages that were sent and not echoed."""

    def due(self, now: float) -> int:
        """It is time for the next message: its number. A client without a connection has to let it go by."""
        number, self._next = self._next, self._next + 1
        self._waiting[number] = now
        return number

    def said(self, number: int) -> None:
        """The message was handed to a connection."""
        self.sent += 1
        self._unheard.add(number)

    def heard(self, number: int, now: float) -> None:
        """An echo came."""
        if number not in self._unheard:
            self.doubled += 1
            return
        self._unheard.remove(number)
        if number < self._latest:
            self.reordered += 1
            return
        self._latest = number
        for earlier in [each for each in self._waiting if each <= number]:
            self.longest = max(self.longest, now - self._waiting.pop(earlier))

    @property
    def lost(self) -> int:
        """Messages that were sent and, so far, not echoed."""
        return len(self._unheard)

    def end(self, now: float) -> None:
        """Nothing is awaited any more; what was not heard of has been silent until now."""
        for since in self._waiting.values():
            self.longest = max(self.longest, now - since)
        self._waiting.clear()


def summary(books: Books, conversations: Iterable[Conversation]) -> dict[str, float]:
    """The figures of one trial."""
    all_of_them = list(conversations)
    return {
        "requests": books.requests,
        "failed": len(books.failures),
        "slowest": books.slowest,
        "dropped": len(books.drops),
        "refused": len(books.refused),
        "messages": sum(each.sent for each in all_of_them),
        "lost": sum(each.lost for each in all_of_them),
        "doubled": sum(each.doubled for each in all_of_them),
        "reordered": sum(each.reordered for each in all_of_them),
        "pause": max((each.longest for each in all_of_them), default=0.0),
        "late": books.late,
    }


class Client:
    """Has one conversation, and comes back at once when its connection ends."""

    def __init__(self, number: int, url: str, session: aiohttp.ClientSession, books: Books) -> None:
        self.conversation = Conversation()
        self.connected = asyncio.Event()
        self._url = url
        self._session = session
        self._books = books
        self._random = random.Random(number)
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._leaving = False

    async def live(self) -> None:
        """Connect, listen, and connect again, until `leave`."""
        wait = RETURN[0]
        while not self._leaving:
            try:
                async with self._session.ws_connect(self._url, timeout=_HANDSHAKE) as socket:
                    wait = RETURN[0]
                    self._socket = socket
                    self.connected.set()
                    await self._listen(socket)
                    if not self._leaving:
                        self._books.drops.append(f"closed {socket.close_code}")
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                if self._socket is not None:
                    self._books.drops.append(_told(error))
                else:
                    self._books.refused.append(_told(error))
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, RETURN[1])
            finally:
                self._socket = None

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                self.conversation.heard(int(message.data), time.monotonic())

    async def talk(self, stop: asyncio.Event) -> None:
        """A message every now and then, whether the earlier ones were echoed or not."""
        await asyncio.sleep(self._random.uniform(0, EVERY))
        due = time.monotonic()
        while not stop.is_set():
            number = self.conversation.due(due)
            socket = self._socket
            if socket is not None and not socket.closed:
                with suppress(ConnectionError):
                    await socket.send_str(str(number))
                    self.conversation.said(number)
            due += EVERY
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def leave(self) -> None:
        self._leaving = True
        if self._socket is not None:
            await self._socket.close()


_HANDSHAKE = aiohttp.ClientWSTimeout(ws_close=2.0)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:160]


async def request_on(
    session: aiohttp.ClientSession, url: str, rate: float, stop: asyncio.Event, books: Books
) -> None:
    """GETs, so many a second, however slowly they are answered. The session has to have `noting_reuse`."""
    started = time.monotonic()
    number = 0
    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            now = time.monotonic()
            due = started + number / rate
            if due <= now:
                group.create_task(ask(session, f"{url}?n={number}", books))
                number += 1
            else:
                await asyncio.sleep(due - now)


def noting_reuse() -> aiohttp.TraceConfig:
    """Notes of each request, in its `trace_request_ctx`, whether its last connection had been used before."""

    async def reused(session: object, context: SimpleNamespace, params: object) -> None:
        context.trace_request_ctx["reused"] = True

    async def created(session: object, context: SimpleNamespace, params: object) -> None:
        context.trace_request_ctx["reused"] = False

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    trace.on_connection_create_end.append(created)
    return trace


async def ask(session: aiohttp.ClientSession, url: str, books: Books) -> None:
    """One GET. As a browser does, it asks again when a kept-alive connection turns out to be closed before a
    byte of the answer, until it has a new one (RFC 9112 section 9.3.1): no proxy can prevent that.
    """
    began = time.monotonic()
    while True:
        connection = {"reused": False}
        try:
            async with session.get(url, trace_request_ctx=connection) as response:
                await response.read()
                books.answered(response.status, time.monotonic() - began)
        except (aiohttp.ServerDisconnectedError, ConnectionError) as error:
            if connection["reused"]:
                continue
            books.failed(_told(error))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            books.failed(_told(error))
        return


async def watch_time(books: Books) -> None:
    """Notes how late the load itself is, until it is cancelled."""
    while True:
        due = time.monotonic() + _TICK
        await asyncio.sleep(_TICK)
        books.late = max(books.late, time.monotonic() - due)
