"""What has happened, in order: the last events in a ring, followers that wake on each, and the process log.

Owned by one event loop. The ring is every follower's queue at once: a follower is only a sequence number, so
a slow one costs nothing and, when it has fallen out of the ring, is told how much it has missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from proxy.visible import visible

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

    def since(self, seq: int) -> list[Event]:
        """The events after `seq`. Where some of them are lost, the first is `{"kind": "lost", "count": n}`.

        A `seq` from the future is another process's: everything that is there is new to whoever asks.
        """
        if seq > self.last:
            return list(self._ring)
        kept = len(self._ring)
        wanted = min(self.last - seq, kept)
        found = list(self._ring)[kept - wanted :]
        lost = self.last - seq - wanted
        if lost:
            mark: Event = {"seq": self.last - wanted, "at": found[0]["at"], "kind": "lost", "count": lost}
            found.insert(0, mark)
        return found

    async def wait(self, seq: int, timeout: float) -> bool:
        """Wait for an event after `seq`; False when none has come in `timeout` seconds."""
        if self.last == seq:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await asyncio.wait((waiter,), timeout=timeout)
            finally:
                self._waiting.discard(waiter)
        return self.last != seq


def encode(event: Event) -> bytes:
    """One event as a line of JSON, without the line's end."""
    return orjson.dumps(event, default=str)


def _short(fact: object) -> str:
    if isinstance(fact, str) and fact and " " not in fact and '"' not in fact and fact.isprintable():
        return fact
    return visible(orjson.dumps(fact, default=str).decode())
