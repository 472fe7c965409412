"""People of all kinds, who note what they were answered: requests, uploads, and WebSocket conversations."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp

PATIENCE = 30.0
"""Seconds after which an answer will not come any more."""
OUTCOMES = frozenset((200, 502, 503, 504))
"""What a request may be answered while things break: by an instance, or by the proxy with a reason."""


class Book:
    """What all of them have seen."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0
        self.echoes = 0
        self.closes: Counter[int] = Counter()

    @property
    def requests(self) -> int:
        return sum(self.outcomes.values())

    def __str__(self) -> str:
        answers = ", ".join(f"{count} {what}" for what, count in self.outcomes.most_common())
        closes = ", ".join(f"{count} with {code}" for code, count in self.closes.items()) or "none"
        return f"requests: {answers}; slowest {self.slowest:.1f} s; {self.echoes} echoes, closes: {closes}"


class Load:
    """`stop` ends it in order: nobody begins anything new, and what was begun is waited for."""

    def __init__(self, url: str, book: Book, seed: int) -> None:
        self._url = url
        self._book = book
        self._seed = seed
        self._ending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, session: aiohttp.ClientSession, *, askers: int, senders: int, talkers: int) -> None:
        makers = ((self._ask, askers), (self._send, senders), (self._talk, talkers))
        for make, count in makers:
            for number in range(count):
                rng = random.Random(f"{self._seed} {make.__name__} {number}")
                self._tasks.append(asyncio.create_task(make(session, rng)))

    async def stop(self) -> None:
        """Raises what any of them has failed with."""
        self._ending.set()
        await asyncio.gather(*self._tasks)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            pass

    async def _ask(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        while not self._ending.is_set():
            path = "/slow" if rng.random() < 0.1 else "/x"
            await self._request(session, "GET", path, None)
            await self._pause(rng.uniform(0.0, 0.08))

    async def _send(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        while not self._ending.is_set():
            body = rng.randbytes(rng.randrange(1, 200_000))
            method, slowly = rng.choice(("POST", "PUT")), rng.random() < 0.3
            await self._request(session, method, "/echo", body, slowly=slowly)
            await self._pause(rng.uniform(0.0, 0.3))

    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: bytes | None,
        *,
        slowly: bool = False,
    ) -> None:
        book, begun = self._book, asyncio.get_running_loop().time()
        data = _slowly(body) if slowly and body is not None else body
        try:
            async with session.request(method, self._url + path, data=data) as response:
                answer = await response.read()
        except (aiohttp.ClientError, ConnectionError) as error:
            # An answer that had begun when its instance broke is broken off; nobody must take it for whole.
            book.outcomes[f"{method} {type(error).__name__}"] += 1
            return
        finally:
            book.slowest = max(book.slowest, asyncio.get_running_loop().time() - begun)
        book.outcomes[f"{method} {response.status}"] += 1
        if response.status not in OUTCOMES:
            book.wrong.append(f"{method} {path}: {response.status}")
        elif response.status == 200 and body is not None and answer != body:
            book.wrong.append(f"{method} {path}: {len(answer)} bytes came back of {len(body)}")

    async def _talk(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        while not self._ending.is_set():
            try:
                async with session.ws_connect(f"{self._url}/ws", max_msg_size=0) as socket:
                    await self._converse(socket, rng)
            except aiohttp.WSServerHandshakeError as error:
                self._book.outcomes[f"WS {error.status}"] += 1
                await self._pause(0.1)

    async def _converse(self, socket: aiohttp.ClientWebSocketResponse, rng: random.Random) -> None:
        """Numbers go out; each must come back at least once, the first times in order."""
        book, heard = self._book, -1
        for number in itertools.count():
            if self._ending.is_set():
                break
            await socket.send_str(f"{number} {'x' * rng.randrange(0, 300)}")
            while heard < number:
                message = await socket.receive(timeout=PATIENCE)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    book.closes[socket.close_code or 0] += 1
                    if socket.close_code not in (1011, 1012, 1013):
                        book.wrong.append(f"a WebSocket was closed with {socket.close_code}")
                    return
                echoed = int(message.data.split(" ")[0])
                if echoed > heard + 1:
                    book.wrong.append(f"after {heard} came {echoed}")
                    return
                book.echoes += 1
                heard = max(heard, echoed)
            await self._pause(rng.uniform(0.05, 0.3))
        await socket.close()


async def _slowly(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 40_000):
        yield body[start : start + 40_000]
        await asyncio.sleep(0.05)
