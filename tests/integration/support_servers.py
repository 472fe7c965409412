"""WebSocket servers that know nothing of proxies: `python -m tests.integration.support_servers KIND PORT`.

Kinds: `echo` takes 100 ms over each message, `push` sends a numbered message every 50 ms, `triple` answers a
message by three. On SIGTERM a server stops taking new messages, answers those that it has, closes with 1001
and exits. At its end it tells how many messages it has sent on each connection.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

EMPTY = 0.02
"""Seconds in which a queue from which nothing comes is empty."""


class Server:
    """One of them. `answer` makes the answers to a message; a server without one speaks by itself."""

    def __init__(self, answer: Callable[[str], Awaitable[list[str]]] | None) -> None:
        self._answer = answer
        self.sent: dict[str, int] = {}
        self._ending = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()

    async def run(self, port: int) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ending.set)
        async with serve(self._serve, "127.0.0.1", port, ping_interval=None) as server:
            print("listening", flush=True)
            await self._ending.wait()
            server.close(close_connections=False)
            await asyncio.gather(*self._open)
        print("sent", json.dumps(self.sent), flush=True)

    async def _serve(self, socket: ServerConnection) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with suppress(ConnectionClosed):
                await (self._push(socket) if self._answer is None else self._reply(socket, self._answer))
                await socket.close(1001)
        finally:
            self._open.discard(task)

    async def _say(self, socket: ServerConnection, text: str) -> None:
        await socket.send(text)
        self.sent[str(socket.id)] = self.sent.get(str(socket.id), 0) + 1

    async def _push(self, socket: ServerConnection) -> None:
        for number in count():
            await self._say(socket, f"{socket.id} {number}")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._ending.wait()
                return

    async def _reply(self, socket: ServerConnection, answer: Callable[[str], Awaitable[list[str]]]) -> None:
        ending = asyncio.ensure_future(self._ending.wait())
        receiving = asyncio.ensure_future(socket.recv())
        try:
            while not self._ending.is_set():
                await asyncio.wait((ending, receiving), return_when=asyncio.FIRST_COMPLETED)
                if receiving.done():
                    await self._answer_to(socket, str(receiving.result()), answer)
                    receiving = asyncio.ensure_future(socket.recv())
            # What is in the kernel is left to whoever comes next; what is in the queue is answered.
            socket.transport.pause_reading()
            while (await asyncio.wait((receiving,), timeout=EMPTY))[0]:
                await self._answer_to(socket, str(receiving.result()), answer)
                receiving = asyncio.ensure_future(socket.recv())
        finally:
            for task in (ending, receiving):
                task.cancel()
            await asyncio.gather(ending, receiving, return_exceptions=True)
        closing = asyncio.ensure_future(socket.close(1001))
        await asyncio.sleep(0)  # the Close is on its way: its answer may be read
        socket.transport.resume_reading()
        await closing

    async def _answer_to(
        self, socket: ServerConnection, text: str, answer: Callable[[str], Awaitable[list[str]]]
    ) -> None:
        for part in await answer(text):
            await self._say(socket, part)


async def echo(text: str) -> list[str]:
    await asyncio.sleep(0.1)
    return [text]


async def triple(text: str) -> list[str]:
    return [f"{text} {part}" for part in "abc"]


if __name__ == "__main__":
    asyncio.run(Server({"echo": echo, "triple": triple, "push": None}[sys.argv[1]]).run(int(sys.argv[2])))
