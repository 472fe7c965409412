"""Events as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiohttp import web

from proxy.admin.guard import Refused
from proxy.events import Event, EventLog, encode

_BEAT = 15.0
"""Seconds of silence after which a comment is sent, so that nobody on the way takes it for dead."""

_MOST = 64
"""Streams at once."""

_STALLED = 30.0
"""Seconds in which a reader must take what was written."""


class EventStreams:
    """All open streams. Each is only a number in the log: a slow one misses events, and is told so."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._tasks: set[asyncio.Task[object]] = set()

    async def serve(self, request: web.Request, since: int) -> web.StreamResponse:
        """Write events after `since` until the reader or the proxy goes. Raises `Refused`."""
        if len(self._tasks) >= _MOST:
            raise Refused(503, "too_many_streams", f"{_MOST} event streams are open", {"Retry-After": "5"})
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream",
                    "Cache-Control": "no-store",
                    "X-Accel-Buffering": "no",
                }
            )
            await response.prepare(request)
            # A reader that went away, or that stalls, or the end of the proxy: in each case this is over.
            with suppress(ConnectionError, TimeoutError, asyncio.CancelledError):
                await self._write(response, since)
            return response
        finally:
            self._tasks.discard(task)

    def close(self) -> None:
        """End every stream."""
        for task in self._tasks:
            task.cancel()

    async def _write(self, response: web.StreamResponse, seq: int) -> None:
        events = self._events
        await response.write(b"retry: 1000\n\n")
        while True:
            found = events.since(seq)
            seq = events.last
            if found:
                lines = [
                    b"id: %b\ndata: %b\n\n" % (str(event["seq"]).encode(), encode(event)) for event in found
                ]
                async with asyncio.timeout(_STALLED):
                    await response.write(b"".join(lines))
            elif not await events.wait(seq, _BEAT):
                async with asyncio.timeout(_STALLED):
                    await response.write(b": still here\n\n")


def _id(event: Event) -> bytes:
    return str(event["seq"]).encode()
