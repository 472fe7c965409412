"""Gives the answers that are owed: a bounded queue in front of the engine, and the housekeeping around it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from chat.answer import FAILED, Answer, Context, Engine, language
from chat.hub import Hub
from chat.metrics import Metrics
from chat.session import Claim, Sessions
from chat.store import StoreError

_log = logging.getLogger("holdfast.chat.responder")

WORKERS = 4
CAPACITY = 256
"""Sessions that may wait for an answer. When it is reached, no more is read from clients."""
ENGINE_TIMEOUT = 20.0
"""Seconds after which the engine is said to have failed."""


class Responder:
    """A queue of sessions in which an answer is owed, and the workers that give it.

    A session is in the queue at most once and with one worker at most, so answers come in order. Who puts a
    session in waits while the queue is full: that is how a slow engine slows down those who ask.
    """

    def __init__(
        self, sessions: Sessions, engine: Engine, hub: Hub, metrics: Metrics, *, capacity: int = CAPACITY
    ) -> None:
        self._sessions = sessions
        self._engine = engine
        self._hub = hub
        self._metrics = metrics
        self._capacity = capacity
        self._queue: deque[str] = deque()
        # In the queue or with a worker; the value says whether it was put again while with the worker.
        self._known: dict[str, bool] = {}
        self._changed = asyncio.Condition()
        self._claimed: set[str] = set()
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the workers."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]

    async def close(self) -> None:
        """Stops the workers; what is unfinished stays owed in the store, for any instance and at once."""
        claimed = self.claimed
        for task in self._workers:
            task.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if claimed:
            try:
                await self._sessions.release(claimed)
            except StoreError as error:
                _log.warning("cannot give leases back; they will run out: %s", error)

    @property
    def claimed(self) -> frozenset[str]:
        """Sessions whose lease must be kept alive now."""
        return frozenset(self._claimed)

    @property
    def waiting(self) -> int:
        """Length of the queue."""
        return len(self._queue)

    async def put(self, session: str) -> None:
        """An answer is owed in `session`. Waits while the queue is full."""
        async with self._changed:
            await self._changed.wait_for(lambda: session in self._known or self._has_room())
            if session in self._known:
                self._known[session] = True
                return
            self._known[session] = False
            self._queue.append(session)
            self._changed.notify_all()

    async def settled(self, session: str) -> None:
        """Waits until nothing is owed in `session` that this process would answer."""
        async with self._changed:
            await self._changed.wait_for(lambda: session not in self._known)

    def _has_room(self) -> bool:
        return len(self._queue) < self._capacity

    async def _work(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._queue) > 0)
                session = self._queue.popleft()
                self._known[session] = False
                self._changed.notify_all()
            try:
                await self._serve(session)
            except StoreError as error:
                # Still owed: the housekeeper will find it.
                _log.warning("cannot answer in session %s: %s", session, error)
            finally:
                self._claimed.discard(session)
                async with self._changed:
                    if self._known.pop(session):
                        self._known[session] = False
                        self._queue.append(session)
                    self._changed.notify_all()

    async def _serve(self, session: str) -> None:
        while (claim := await self._sessions.claim(session)) is not None:
            self._claimed.add(session)
            began = time.perf_counter()
            answer = await self._ask(claim)
            change = await self._sessions.answer(claim, answer.text, fitting=answer.fitting)
            self._claimed.discard(session)
            seconds = time.perf_counter() - began
            self._metrics.answered(seconds, fitting=answer.fitting, kept=change is not None)
            if change is not None:
                self._hub.publish(change)

    async def _ask(self, claim: Claim) -> Answer:
        context = Context(claim.message.session, claim.history)
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT):
                return await self._engine.answer(claim.message.text, context)
        except Exception:
            # Whatever the engine is, its failure is told to the user, not to the connection.
            _log.exception("the engine failed in session %s", claim.message.session)
            return Answer(FAILED[language(claim.message.text)], fitting=False)


class Housekeeper:
    """What has to be looked at now and then: owed answers, idle sessions, leases, missed notices."""

    def __init__(self, sessions: Sessions, responder: Responder, hub: Hub, *, poll: float) -> None:
        """`poll`: seconds between two looks for what the bus missed."""
        self._sessions = sessions
        self._responder = responder
        self._hub = hub
        self._jobs: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (sessions.lease / 4, self.renew),
            # An answer is late by the lease of the instance that died, and by this.
            (sessions.lease / 8, self.recover),
            (min(10.0, sessions.ttl / 4), self.expire),
            (poll, hub.catch_up),
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts looking."""
        self._tasks = [asyncio.create_task(self._every(*job)) for job in self._jobs]

    async def close(self) -> None:
        """Stops looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def renew(self) -> None:
        """Keeps the leases of answers in the making."""
        if claimed := self._responder.claimed:
            await self._sessions.renew(claimed)

    async def recover(self) -> None:
        """Takes up answers that are owed and that nobody is giving: their instance has died."""
        for session in await self._sessions.store.owed(self._sessions.clock(), 100):
            await self._responder.put(session)

    async def expire(self) -> None:
        """Times out sessions whose context has outlived its time to live."""
        before = self._sessions.clock() - self._sessions.ttl
        for session in await self._sessions.store.idle(before, 100):
            change = await self._sessions.time_out(session)
            if change is not None:
                self._hub.publish(change)

    async def _every(self, seconds: float, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await job()
            except StoreError as error:
                _log.warning("%s failed: %s", getattr(job, "__name__", "housekeeping"), error)
