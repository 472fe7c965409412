"""What stands before HTTP where aiohttp serves it: so many connections, and a head in good time.

aiohttp waits for the first request of a connection without end, takes any number of connections, and logs a
traceback for everything that is not HTTP. So a face that others can reach would cost the whole process its
descriptors, and its log.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

HEAD_TIME = 10.0
"""Seconds in which the head of a connection's first request must come."""
KEEPALIVE = 75.0
"""Seconds in which the next one must."""
_LINGER = 1.0
"""Seconds for which a body that nobody wants is read on, so that its sender gets the answer."""
_LONGEST = 32 << 10
"""Bytes after which aiohttp may say itself what it thinks of a head that does not end."""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


def _is_ours(record: logging.LogRecord) -> bool:
    """Not what a client has done wrong: it was told so."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_log = logging.getLogger("holdfast.http")
_log.addFilter(_is_ours)


class Runner(web.AppRunner):
    """Runs an application behind such a door. All its sites use it."""

    def __init__(
        self, app: web.Application, *, most: int, head_time: float = HEAD_TIME, **settings: Any
    ) -> None:
        """`most` connections at once; a further one is answered 503. The others are `AppRunner`'s."""
        super().__init__(
            app,
            access_log=None,
            logger=_log,
            keepalive_timeout=KEEPALIVE,
            lingering_time=_LINGER,
            **settings,
        )
        self._most = most
        self._head_time = head_time
        self._callers: set[_Caller] = set()

    @property
    def server(self) -> web.Server | None:
        """What sites make a protocol of for each connection."""
        server = super().server
        if server is None:
            return None
        return cast(web.Server, partial(_Caller, server, self._callers, self._most, self._head_time))

    async def cleanup(self) -> None:
        """As `AppRunner`."""
        for caller in tuple(self._callers):
            caller.cut()
        await super().cleanup()


class _Caller(asyncio.Protocol):
    """A connection that has not said anything yet; then it is aiohttp's."""

    def __init__(self, server: web.Server, callers: set[_Caller], most: int, head_time: float) -> None:
        self._server = server
        self._callers = callers
        self._most = most
        self._head_time = head_time
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        if len(self._callers) + len(self._server.connections) >= self._most:
            self._transport.write(_FULL)
            self._transport.close()
            return
        self._callers.add(self)
        self._timer = asyncio.get_running_loop().call_later(self._head_time, self.cut)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self not in self._callers:
            return
        self._buffer = (self._buffer + data).lstrip(b"\r\n")  # RFC 9112 section 2.2
        if not self._buffer:
            return
        is_whole = b"\r\n\r\n" in self._buffer or b"\n\n" in self._buffer
        # What begins otherwise is no HTTP, and need not be waited for.
        if is_whole or len(self._buffer) > _LONGEST or not self._buffer[:1].isalpha():
            self._leave()
            handler = self._server()
            self._transport.set_protocol(handler)
            handler.connection_made(self._transport)
            handler.data_received(self._buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._leave()

    def cut(self) -> None:
        """End it: it took too long, or nobody serves any more."""
        self._leave()
        self._transport.abort()

    def _leave(self) -> None:
        self._callers.discard(self)
        if self._timer is not None:
            self._timer.cancel()
