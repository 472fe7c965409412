"""What all connections of one process share: the data plane's surroundings.

Holds no decisions. Everything here is read on the hot path, so it is plain attributes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Protocol

from config.schema import Config
from proxy.accesslog import AccessLog
from proxy.descriptors import most_connections
from proxy.errors import Reason
from proxy.head import Limits
from proxy.headers import Networks
from proxy.metrics import Counters
from proxy.moves import Moves
from proxy.resolve import Resolver
from proxy.session import Sessions, Tunnel
from proxy.table import Table
from proxy.timers import Wheel

_log = logging.getLogger(__name__)

_TOLD = 16
"""Connections beyond the limit whose TLS handshake or PROXY header is waited for, to tell them by a 503."""

RESPONSE_LIMITS = Limits(line=16 << 10, head=256 << 10, count=1000)
"""What an instance's response head may measure: generous, yet not endless."""


FULL_READ = 250_000
"""Bytes that one read brings at most, about (uvloop asks for 256,000). libuv goes on reading while reads are
full, up to 32 times before anybody else has a turn; whoever gets one therefore pauses until its next turn."""


class Client(Protocol):
    """A client connection that speaks HTTP."""

    leaving: bool
    """The next answer is the last on this connection."""

    @property
    def pinned(self) -> bool:
        """It cannot change its process: it is TLS, whose keys are in this one's memory."""

    def shut_when_idle(self) -> None:
        """The proxy is ending: close as soon as nothing is under way."""

    def cut(self, reason: Reason) -> None:
        """The time to end is over: answer with this what has no answer yet, break off what has, and close."""

    def save(self) -> tuple[dict[str, Any], asyncio.Transport] | None:
        """What another process needs to go on with it, and the connection; None if it cannot now."""

    def let_go(self) -> None:
        """Another process has it now."""


class Plane:
    """The surroundings of every `Downstream`, `Exchange`, `Upstream` and `Tunnel`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        table: Table,
        log: AccessLog,
        *,
        clock: Callable[[], float] = time.monotonic,
        rand: random.Random | None = None,
    ) -> None:
        self.loop = loop
        self.table = table
        self.log = log
        self.clock = clock
        self.random = rand or random.Random()
        self.counters = Counters()
        self.sessions = Sessions()
        self.moves = Moves(clock)
        self.wheel = Wheel(clock)
        self.resolver = Resolver(loop, clock, self.counters.lookup_times.observe)
        self.clients: set[Client] = set()
        """Client connections that speak HTTP. Owner: downstream."""
        self.opening = 0
        """Client connections that do not speak HTTP yet: a TLS handshake or PROXY header comes first. Owner:
        listener."""
        self.draining = False
        """No new connections, and none is kept alive. Owner: app."""
        self.on_late_tunnel: Callable[[Tunnel], None] = lambda tunnel: None
        """Told of a tunnel whose endpoint began to leave during the handshake. Owner: drain."""
        self.limits = Limits(16 << 10, 64 << 10, 100)
        self.trusted: Networks = ()
        self.via = b""
        """The line by which requests are told that they came through here; empty for none."""
        self.date = b""
        self._id_prefix = b"%016x" % self.random.getrandbits(64)
        self._ids = 0
        self.copies = 0
        """Mirrored requests under way. Owner: mirror."""
        self._left = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.tick()

    def configure(self, config: Config) -> None:
        """Take over the parts of a configuration that the data plane reads."""
        self.limits = Limits(
            config.limits.request_line, config.limits.header_bytes, config.limits.header_count
        )
        wanted = config.limits.connections
        self.most_connections = most_connections(wanted)
        if self.most_connections < wanted and "connections" in config.limits.model_fields_set:
            _log.warning(
                "limits.connections is %d, but the system grants files for %d clients only",
                wanted,
                self.most_connections,
            )
        self.header_timeout = config.timeout.header
        self.body_timeout = config.timeout.body
        self.keepalive_timeout = config.timeout.keepalive
        self.via = b"Via: 1.1 %b\r\n" % config.via.encode() if config.via else b""
        self.trusted = tuple(ipaddress.ip_network(n, strict=False) for n in config.trusted_proxies)

    def begin_opening(self) -> bool:
        """Count a connection that does not speak HTTP yet; False: it is one too many and has to be closed."""
        counters = self.counters
        if counters.connections_open + counters.tunnels_open + self.opening >= self.most_connections + _TOLD:
            counters.connections_refused += 1
            return False
        self.opening += 1
        return True

    def tick(self) -> None:
        """Once a second: the Date that responses without one get."""
        self.date = formatdate(usegmt=True).encode()

    def request_id(self) -> bytes:
        """A request id that no other process and no earlier run gives out: 24 hexadecimal digits."""
        self._ids += 1
        return b"%b%08x" % (self._id_prefix, self._ids)

    def traceparent(self) -> bytes:
        """The start of a trace (W3C Trace Context): sampled, since who exports it decides what to keep."""
        bits = self.random.getrandbits
        return b"00-%032x-%016x-01" % (bits(128) or 1, bits(64) or 1)

    def log_refused(self, address: str, reason: Reason) -> None:
        """Count and log what was answered before it was a request."""
        self.counters.bad_request(reason.code)
        if self.log.enabled:
            now, status, code = self.clock(), reason.status, reason.code
            self.log.append(
                (now, now, -1.0, address, b"", b"", b"", None, None, status, code, 0, 0, 0, b"", "http", b"")
            )

    async def quiet(self) -> None:
        """Wait until no client connection and no tunnel is left."""
        while self.clients or len(self.sessions):
            await self._left.wait()
            self._left.clear()

    def left(self) -> None:
        """A client connection or a tunnel has ended."""
        self._left.set()

    def spawn(self, task: asyncio.Task[None]) -> None:
        """Keep a reference to a task for as long as it runs."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
