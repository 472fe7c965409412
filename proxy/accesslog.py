"""The access log: one JSON line per request, formatted in batches and written by a thread.

The loop only appends tuples. A blocked pipe or a full disk never holds it up: what the writer cannot take is
dropped and counted.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from proxy.endpoint import Endpoint
    from proxy.table import RouteState

Line = tuple[
    float,  # finished, a `time.monotonic` reading
    float,  # started, likewise
    float,  # when the instance's response head came, likewise; negative: it never did
    str,  # client address
    bytes,  # method
    bytes,  # target, as received
    bytes,  # host
    "RouteState | None",
    "Endpoint | None",  # the one that answered, or that failed last
    int,  # status as the client saw it
    str,  # reason code; empty when the instance answered by itself
    int,  # body or tunnel bytes from the client
    int,  # the same to the client
    int,  # attempts: instances tried
    bytes,  # request id
    str,  # http or websocket
    bytes,  # user agent
]
"""What the data plane appends: raw values, made into text later."""

BATCH = 256
"""Lines that are formatted at once: well under a millisecond of the loop's time."""

_WAITING = 256
"""Batches that may wait for the writer before more are dropped."""

_WAITING_BYTES = 32 << 20
"""Bytes that may: a target may have 16 KiB, and other fields as much as the whole head."""

_NAMES = 4096
"""Pairs of route and instance whose names are remembered as text."""

_PLAIN = bytes(code for code in range(0x20, 0x7F) if code not in b'"\\')
"""What stands for itself in a JSON string."""

# By hand, because it takes 1.6 us where a dictionary and a general serializer take 3.6.
_LINE = (
    b'{"time":"%b.%03dZ","client":"%b","method":"%b","target":"%b","host":"%b",%b,"status":%d,"reason":%b,'
    b'"bytes_in":%d,"bytes_out":%d,"duration_ms":%.3f,"response_ms":%b,"attempts":%d,"request_id":%b,'
    b'"protocol":"%b","user_agent":%b}\n'
)

_log = logging.getLogger("holdfast.accesslog")


class AccessLog:
    """Writes to a file, to standard output (`-`), or nowhere (None; `enabled` is False then).

    Raises `OSError` when the file cannot be opened. All methods are for the loop's thread. Times are
    `time.monotonic` readings; `wall` and `monotonic` exist so that tests can say the time.
    """

    def __init__(
        self,
        path: str | None,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.enabled = path is not None
        """Whether it is worth making a `Line` at all."""
        self.lines = 0
        """Lines handed to the writer."""
        self._wall, self._monotonic = wall, monotonic
        self._pending: list[Line] = []
        self._second, self._second_text = -1, b""
        self._known: dict[tuple[int, int], tuple[bytes, object, object]] = {}
        self._refused = 0
        self._writer = _Writer(path) if path is not None else None

    @property
    def dropped(self) -> int:
        """Lines lost so far because the writer was blocked or the disk refused them."""
        return self._refused + (self._writer.failed if self._writer is not None else 0)

    def append(self, line: Line) -> None:
        """Take one line; every `BATCH` lines, and at each `flush`, they go to the writer."""
        pending = self._pending
        pending.append(line)
        if len(pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Format what is pending and hand it to the writer. Never blocks."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        if self._writer is None:
            return
        offset = self._wall() - self._monotonic()
        text = b"".join([self._format(line, offset) for line in pending])
        if self._writer.offer(len(pending), text):
            self.lines += len(pending)
        else:
            self._refused += len(pending)

    def reopen(self) -> None:
        """Go on in a new file of the same name: what was written so far has been moved away (SIGUSR1)."""
        self.flush()
        if self._writer is not None:
            self._writer.reopen()

    def close(self, timeout: float = 1.0) -> None:
        """Write what is pending and end; gives up after `timeout` seconds when the writer is blocked."""
        self.flush()
        if self._writer is not None:
            self._writer.close(timeout)
            self._refused += self._writer.failed
            self._writer = None
        self.enabled = False

    def _format(self, line: Line, offset: float) -> bytes:
        (
            finished, started, head_at, client, method, target, host, route, endpoint, status, reason,
            bytes_in, bytes_out, attempts, request_id, protocol, user_agent,
        ) = line  # fmt: skip
        said = (client.encode(), method, target, host, request_id, user_agent)
        # Nearly every line is plain text, and then quoting it is all there is to do.
        if b"".join(said).translate(None, _PLAIN):
            said = _escaped(*said)
        who, method, target, host, request_id, user_agent = said
        millis = int((finished + offset) * 1000)
        return _LINE % (
            self._clock_text(millis // 1000),
            millis % 1000,
            who,
            method,
            target,
            host,
            self._names(route, endpoint),
            status,
            b'"%b"' % reason.encode() if reason else b"null",
            bytes_in,
            bytes_out,
            (finished - started) * 1000,
            b"%.3f" % ((head_at - started) * 1000) if head_at >= 0 else b"null",
            attempts,
            b'"%b"' % request_id if request_id else b"null",
            protocol.encode(),
            b'"%b"' % user_agent if user_agent else b"null",
        )

    def _names(self, route: RouteState | None, endpoint: Endpoint | None) -> bytes:
        """Route, service, instance and version as JSON members: there are few, so they are remembered."""
        instance = endpoint.instance if endpoint is not None else None
        key = (id(route), id(instance))
        known = self._known.get(key)
        if known is None:
            members = {
                "route": route.name if route is not None else None,
                "service": route.service.name if route is not None else None,
                "instance": instance.id if instance is not None else None,
                "version": (instance.version or None) if instance is not None else None,
            }
            if len(self._known) >= _NAMES:
                self._known.clear()
            # The objects are kept along, lest another one gets their id.
            known = self._known[key] = (orjson.dumps(members)[1:-1], route, instance)
        return known[0]

    def _clock_text(self, second: int) -> bytes:
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return self._second_text


def _escaped(
    who: bytes, method: bytes, target: bytes, host: bytes, request_id: bytes, user_agent: bytes
) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
    def escape(text: bytes) -> bytes:
        return orjson.dumps(text.decode("latin-1"))[1:-1]

    return escape(who), escape(method), escape(target), escape(host), escape(request_id), escape(user_agent)


class _Writer:
    """The thread that writes, and the bounded queue before it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = self._open()
        self._queue: queue.Queue[tuple[int, bytes] | None] = queue.Queue(_WAITING)
        self._offered = 0
        """Bytes that were put into the queue. Owner: the loop's thread."""
        self._taken = 0
        """Bytes that are no longer in it. Owner: the thread."""
        self._moved = threading.Event()
        self._ending = threading.Event()
        self.failed = 0
        """Lines that the file or pipe refused. Owner: the thread."""
        self._complained = False
        # A daemon: a reader that has stopped reading must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def offer(self, lines: int, text: bytes) -> bool:
        if self._offered - self._taken > _WAITING_BYTES:
            return False
        try:
            self._queue.put_nowait((lines, text))
        except queue.Full:
            return False
        self._offered += len(text)
        return True

    def reopen(self) -> None:
        self._moved.set()
        self._wake()

    def close(self, timeout: float) -> None:
        self._ending.set()
        self._wake()
        self._thread.join(timeout)

    def _wake(self) -> None:
        # When it is full the thread is awake, or blocked in a write, and looks at the marks afterwards.
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def _open(self) -> int:
        if self._path == "-":
            return os.dup(1)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _run(self) -> None:
        while not (self._ending.is_set() and self._queue.empty()):
            item = self._queue.get()
            if item is not None:
                self._write(*item)
                self._taken += len(item[1])
            if self._moved.is_set():
                self._moved.clear()
                self._replace()
        os.close(self._descriptor)

    def _write(self, lines: int, text: bytes) -> None:
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self.failed += lines - bytes(text[: len(text) - len(rest)]).count(b"\n")
            if not self._complained:
                _log.warning("cannot write the access log %s: %s", self._path, error)
            self._complained = True
        else:
            self._complained = False

    def _replace(self) -> None:
        try:
            descriptor = self._open()
        except OSError as error:
            _log.warning("cannot reopen the access log %s, going on with the old file: %s", self._path, error)
            return
        os.close(self._descriptor)
        self._descriptor = descriptor
