"""HTTP load: wrk for throughput, and a client with a fixed rate for latency.

wrk sends as fast as answers come, so its latencies are only connections divided by throughput. How long a
request takes is measured by `OpenLoop`, which sends at the times it was told to whatever the answers do.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

from bench.children import BenchError

_TICK = 0.001
_DURATION = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Wrk:
    """The outcome of one run of wrk. Latencies in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int
    """Socket errors and answers other than 2xx and 3xx."""

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @classmethod
    def parse(cls, text: str) -> Wrk:
        """Reads what `wrk --latency` prints. Raises `BenchError` when it is not that."""
        total = re.search(r"^\s*(\d+) requests in ([\d.]+)(us|ms|s|m|h),", text, re.M)
        p50 = re.search(r"^\s*50%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.M)
        p99 = re.search(r"^\s*99%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.M)
        if total is None or p50 is None or p99 is None:
            raise BenchError(f"wrk said something else than expected: {text.strip()[-400:]}")
        status = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        return cls(
            requests=int(total[1]),
            seconds=float(total[2]) * _DURATION[total[3]],
            p50=float(p50[1]) * _DURATION[p50[2]],
            p99=float(p99[1]) * _DURATION[p99[2]],
            failed=(int(status[1]) if status else 0) + sum(map(int, errors.groups() if errors else ())),
        )


def saturate(port: int, *, seconds: int, connections: int = 64, path: str = "/") -> Wrk:
    """Keeps `connections` busy for whole `seconds`. Raises `BenchError` without wrk, or when it fails."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise BenchError("wrk is missing; install it: sudo apt-get install wrk (or: make bench-tools)")
    command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{port}{path}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 15)
    except subprocess.TimeoutExpired:
        raise BenchError("wrk did not come to an end") from None
    if done.returncode:
        raise BenchError(f"wrk failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return Wrk.parse(done.stdout)


@dataclass(slots=True)
class Outcome:
    """What an open-loop run saw. Latencies in seconds, of the answers with status 200."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """One line for each request that was not answered 200: the status, or how the connection ended."""

    @property
    def sent(self) -> int:
        return len(self.latencies) + len(self.failures)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, owner: OpenLoop) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.ready(self)

    def send(self, request: bytes, since: float) -> None:
        assert self._transport is not None
        self._since = since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"unreadable answer: {error}")
            self.close()

    def on_message_complete(self) -> None:
        if self._since is None:
            return
        since, self._since = self._since, None
        self._owner.answered(self._parser.get_status_code(), since)
        if self._parser.should_keep_alive():
            self._owner.ready(self)
        else:
            self.close()

    def fail(self, reason: str) -> None:
        """Counts the request that is under way, if there is one, as failed."""
        if self._since is not None:
            self._since = None
            self._owner.failed(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"connection lost: {exc or 'closed by the other side'}")
        self._owner.lost(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class OpenLoop:
    """Sends `rate` requests a second to a port of this machine, however slowly they are answered.

    Latency runs from the moment a request is due to be written (a request that finds every connection busy
    waits, and its wait counts) to the end of the answer. Requests leave in groups, once a millisecond. Used
    as `async with OpenLoop(…) as load: await asyncio.sleep(…)`; leaving it waits for outstanding answers.
    """

    def __init__(
        self,
        port: int,
        *,
        rate: float,
        connections: int = 64,
        request: Callable[[int], bytes] | None = None,
        patience: float = 10.0,
    ) -> None:
        self.outcome = Outcome()
        self._port, self._rate, self._connections = port, rate, connections
        self._patience = patience
        plain = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port
        self._request = request or (lambda number: plain)
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._waiting: deque[float] = deque()
        self._dials: set[asyncio.Task[None]] = set()
        self._number = 0
        self._outstanding = 0
        self._sending = False
        self._started = 0.0
        self._quiet = asyncio.Event()

    async def __aenter__(self) -> OpenLoop:
        await asyncio.gather(*(self._dial() for _ in range(self._connections)))
        self._sending = True
        self._started = time.monotonic()
        self._tick()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._sending = False
        try:
            if self._outstanding:
                self._quiet.clear()
                await asyncio.wait_for(self._quiet.wait(), self._patience)
        except TimeoutError:
            self.outcome.failures += ["no answer"] * len(self._waiting)
            for connection in list(self._open):
                connection.fail("no answer")
        finally:
            for task in self._dials:
                task.cancel()
            for connection in list(self._open):
                connection.close()

    @property
    def due(self) -> int:
        """How many requests the schedule has asked for so far."""
        return self._number + len(self._waiting)

    def _tick(self) -> None:
        if not self._sending:
            return
        now = time.monotonic()
        for _ in range(int((now - self._started) * self._rate) - self.due):
            self._outstanding += 1
            self._waiting.append(now)
        self._flush()
        asyncio.get_running_loop().call_later(_TICK, self._tick)

    def _flush(self) -> None:
        while self._waiting and self._idle:
            connection = self._idle.popleft()
            connection.send(self._request(self._number), self._waiting.popleft())
            self._number += 1

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError as error:
            # A request's worth of failure, so that a port nobody listens on cannot pass as an idle one.
            self.outcome.failures.append(f"connect: {error}")

    def ready(self, connection: _Connection) -> None:
        self._open.add(connection)
        self._idle.append(connection)
        self._flush()

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._sending:
            task = asyncio.ensure_future(self._dial())
            self._dials.add(task)
            task.add_done_callback(self._dials.discard)

    def answered(self, status: int, since: float) -> None:
        if status == 200:
            self.outcome.latencies.append(time.monotonic() - since)
        else:
            self.outcome.failures.append(f"status {status}")
        self._settle()

    def failed(self, reason: str) -> None:
        self.outcome.failures.append(reason)
        self._settle()

    def _settle(self) -> None:
        self._outstanding -= 1
        if not self._outstanding:
            self._quiet.set()
