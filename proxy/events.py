"""What has happened, in order: the last events in a ring, followers that wake on each, and the process log.

Owned by one event loop. The ring is every follower's queue at once: a follower is only a sequence number, so
a slow one costs nothing and, when it has fallen out of the ring, is told how much it has missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import orjson

Event = dict[str, object]
"""`{"seq": n, "at": ISO 8601 in UTC, "kind": …}` and the facts of that kind."""

KEPT = 1000
"""Events in the ring."""

_log = logging.getLogger("holdfast.events")


class EventLog:
    """The events of one process. `emit` may be called only on the thread of the loop that follows."""

    def __init__(self, size: int = KEPT, wall: Callable[[], float] = time.time) -> None:
        self._ring: deque[Event] = deque(maxlen=size)
        self._wall = wall
        self._waiting: set[asyncio.Future[None]] = set()
        self.last = 0
        """Sequence number of the newest event; 0 before the first."""

    def emit(self, kind: str, **facts: object) -> None:
        """Record an event and wake the followers. Facts must be what JSON can say, or have a useful `str`."""
        self.last += 1
        at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")
        self._ring.append({"seq": self.last, "at": at, "kind": kind, **facts})
        if _log.isEnabledFor(logging.INFO):
            _log.info("%s %s", kind, " ".join(f"{name}={_short(fact)}" for name, fact in facts.items()))
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def since(self, seq: int) -> tuple[int, list[Event]]:
        """How many events after `seq` are lost, and those that are still there.

        A `seq` from the future is another process's: everything that is there is new to whoever asks.
        """
        if seq > self.last:
            return 0, list(self._ring)
        wanted = min(self.last - seq, len(self._ring))
        lost = self.last - seq - wanted
        return lost, list(self._ring)[len(self._ring) - wanted :] if wanted else []

    async def follow(self, seq: int) -> AsyncIterator[Event]:
        """Every event after `seq`, for ever. Where some are lost comes one `{"kind": "lost", "count": n}`."""
        while True:
            upto = self.last
            lost, events = self.since(seq)
            if lost:
                first = events[0]
                yield {"seq": upto - len(events), "at": first["at"], "kind": "lost", "count": lost}
            for event in events:
                yield event
            seq = upto
            if seq == self.last:
                await self._news()

    async def _news(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)


def encode(event: Event) -> bytes:
    """One event as a line of JSON, without the line's end."""
    return orjson.dumps(event, default=str)


def _short(fact: object) -> str:
    if isinstance(fact, str) and fact and " " not in fact and '"' not in fact and fact.isprintable():
        return fact
    return orjson.dumps(fact, default=str).decode()
