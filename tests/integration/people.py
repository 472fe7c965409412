"""Those who use the chat through the gateway: published clients, and a note of all that they see."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from tests.integration.stage import PATIENCE

QUESTIONS = (
    "Where is my order?", "怎么退货?", "How do I pay?", "I forgot my password", "多久能收到?", "thanks",
)  # fmt: skip
RETURN = 0.05
"""Seconds after which a client that was not let in knocks again, at first; doubled each time."""


@dataclass
class Journal:
    """What all clients together have seen. Times are `time.monotonic` readings."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """Longest time from a request to its answer."""
    served: list[tuple[float, str]] = field(default_factory=list)
    """When a request or handshake was sent, and the instance that answered it."""
    closes: list[tuple[float, int]] = field(default_factory=list)
    """When a WebSocket ended, and by which code (1006: without a Close)."""
    gaps: list[float] = field(default_factory=list)
    """From the end of a WebSocket to the welcome on the next."""
    refused: list[str] = field(default_factory=list)
    """Handshakes that failed."""
    waits: list[float] = field(default_factory=list)
    """From a question to its answer, reconnecting included."""


class Talker:
    """A customer: asks, waits for acknowledgement and answer, and comes back when the connection ends."""

    def __init__(self, number: int, url: str, journal: Journal, *, think: float) -> None:
        """`think`: seconds between an answer and the next question, on the average."""
        self.session = f"S{number}"
        self.said: list[str] = []
        self.messages: dict[int, dict[str, Any]] = {}
        """All messages of the session that came, by sequence number."""
        self.order: list[int] = []
        """Sequence numbers as they came."""
        self.acknowledged: dict[str, int] = {}
        self.errors: list[dict[str, Any]] = []
        self.moves: list[str] = []
        """Instances that took over while the connection stayed open."""
        self._url = url.replace("http", "ws", 1)
        self._journal = journal
        self._random = random.Random(number)
        self._think = think
        self._asked_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Talks until `stop` is set and the last question is answered."""
        ended = 0.0
        while True:
            socket = await self._enter(ended)
            try:
                await self._talk(socket, stop)
                await socket.close()
                return
            except ConnectionClosed as closed:
                ended = time.monotonic()
                code = closed.rcvd.code if closed.rcvd is not None else 1006
                self._journal.closes.append((ended, code))

    async def _enter(self, ended: float) -> ClientConnection:
        pause = RETURN
        async with asyncio.timeout(PATIENCE):
            while True:
                sent = time.monotonic()
                url = f"{self._url}/ws?session={self.session}&last_seq={max(self.messages, default=0)}"
                try:
                    socket = await websocket(url, open_timeout=PATIENCE, ping_interval=None)
                    welcome = json.loads(await socket.recv())
                except (InvalidHandshake, InvalidMessage, ConnectionClosed, OSError) as error:
                    self._journal.refused.append(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(pause * self._random.uniform(0.5, 1.0))
                    pause = min(1.0, pause * 2)
                    continue
                assert welcome["type"] == "welcome"
                self._journal.served.append((sent, welcome["instance"]))
                if ended:
                    self._journal.gaps.append(time.monotonic() - ended)
                return socket

    async def _talk(self, socket: ClientConnection, stop: asyncio.Event) -> None:
        if self.said and not self._has_answer(self.said[-1]):
            # Perhaps it was lost with the connection; if not, the chat knows its id.
            await self._ask(socket, self.said[-1])
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._random.uniform(0.5, 1.5) * self._think):
                    while True:
                        await self._read(socket)
            self.said.append(f"c-{len(self.said)}")
            self._asked_at = time.monotonic()
            await self._ask(socket, self.said[-1])

    async def _ask(self, socket: ClientConnection, id: str) -> None:
        text = QUESTIONS[int(id[2:]) % len(QUESTIONS)]
        await socket.send(json.dumps({"type": "message", "id": id, "text": text}))
        async with asyncio.timeout(PATIENCE):
            while not self._has_answer(id):
                await self._read(socket)
        self._journal.waits.append(time.monotonic() - self._asked_at)

    def _has_answer(self, id: str) -> bool:
        asked = self.acknowledged.get(id)
        return asked is not None and any(m.get("reply_to") == asked for m in self.messages.values())

    async def _read(self, socket: ClientConnection) -> None:
        frame = json.loads(await socket.recv())
        if frame["type"] == "message":
            known = self.messages.setdefault(frame["seq"], frame)
            assert known == frame, "a sequence number has two meanings"
            self.order.append(frame["seq"])
        elif frame["type"] == "ack":
            known_seq = self.acknowledged.setdefault(frame["id"], frame["seq"])
            assert known_seq == frame["seq"], "a message was stored twice"
        elif frame["type"] == "error":
            self.errors.append(frame)
        elif frame["type"] == "welcome":
            # In the middle of a connection: the gateway has moved it.
            self.moves.append(frame["instance"])


def check_conversation(talker: Talker) -> None:
    """Every question was stored and answered exactly once, and all of that was shown once and in order."""
    assert not talker.errors, talker.errors
    messages = [talker.messages[seq] for seq in sorted(talker.messages)]
    assert sorted(talker.messages) == list(range(1, len(messages) + 1))
    asked = [message for message in messages if message["from"] == "user"]
    assert [message["id"] for message in asked] == talker.said
    answers = [message["reply_to"] for message in messages if message["from"] == "bot"]
    assert answers == [message["seq"] for message in asked]
    assert talker.order == sorted(talker.messages), "a message was shown twice, or out of order"


class Traffic:
    """HTTP requests at a steady rate, whatever becomes of the earlier ones: GET and POST in turn."""

    def __init__(self, session: aiohttp.ClientSession, url: str, journal: Journal, *, rate: float) -> None:
        """`rate` in requests per second. The session should keep no cookies, lest all go to one instance."""
        self._session = session
        self._url = url
        self._journal = journal
        self._rate = rate

    async def run(self, stop: asyncio.Event) -> None:
        """Asks until `stop` is set, and waits for every answer."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            number = 0
            while not stop.is_set():
                await asyncio.sleep(began + number / self._rate - time.monotonic())
                group.create_task(self._request(number))
                number += 1

    async def _request(self, number: int) -> None:
        sent = time.monotonic()
        method, path = (("GET", "/healthz"), ("POST", "/api/echo"))[number % 2]
        body = f"request {number}".encode() if method == "POST" else None
        self._journal.requests += 1
        try:
            async with self._session.request(method, self._url + path, data=body) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._journal.failures.append(f"{method} {type(error).__name__} {error}")
            return
        self._journal.slowest = max(self._journal.slowest, time.monotonic() - sent)
        if response.status != 200 or (body is not None and answer != body):
            why = json.loads(answer).get("error") if response.status >= 400 else "another answer"
            self._journal.failures.append(f"{method} {response.status} {why}")
            return
        name = response.headers["X-Instance"] if body is not None else json.loads(answer)["instance"]
        self._journal.served.append((sent, name))
