"""The embedded registry as a running thing: a `Store`, its clock, its checks, its disk and its socket."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from config.schema import Address
from discovery.door import Runner
from discovery.embedded.api import Api
from discovery.embedded.definition import CheckStatus
from discovery.embedded.journal import Journal, dump, load
from discovery.embedded.prober import Prober
from discovery.embedded.store import Store, UnknownIdError
from discovery.embedded.watcher import EmbeddedWatcher

PAUSE = 2.0
"""Seconds a timer may be late; more means that this process was stopped, and every TTL begins anew."""
SHUTDOWN = 0.5
"""Seconds that requests in hand have to finish when it closes; blocking queries are answered at once."""
CONNECTIONS = 10_000
"""At once; registrars keep theirs open between two heartbeats."""

_log = logging.getLogger(__name__)


class RegistryServer:
    """Speaks the Consul HTTP API on one address. `start` it once, `close` it once.

    `data` is the directory to keep the contents in; in memory only when None. `index` is where the index
    begins, by default the milliseconds since 1970: above everything that an earlier process can have told.
    """

    def __init__(
        self,
        data: str | Path | None = None,
        *,
        index: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = Store(time.time_ns() // 1_000_000 if index is None else index)
        self.address: Address | None = None
        """Where it listens, with the real port; None until started."""
        self._clock = clock
        self._journal = Journal(Path(data), self.store) if data is not None else None
        self._prober = Prober(self._probed)
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._settled = 0
        self._saving: set[asyncio.Task[None]] = set()
        self._api = Api(
            self.store,
            self._settle,
            node_address=lambda: self.node_address,
            leader=lambda: str(self.address),
            clock=clock,
        )
        self._runner = Runner(
            self._api.application(),
            most=CONNECTIONS,
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN,
        )

    @property
    def node_address(self) -> str:
        """The address of instances that registered without one: this machine's, as the listener knows it."""
        host = self.address.host if self.address else ""
        return host if host not in ("", "0.0.0.0", "::", "localhost") else "127.0.0.1"

    @property
    def url(self) -> str:
        """Base URL for registrars on this machine. Only once started."""
        assert self.address is not None
        return f"http://{Address(self.node_address, self.address.port)}"

    def watcher(self) -> EmbeddedWatcher:
        """A watcher inside this process."""
        return EmbeddedWatcher(self.store, self.node_address, self._clock)

    async def start(
        self, listen: Address, *, sock: socket.socket | None = None, contents: bytes = b""
    ) -> Address:
        """Reads the data directory, listens, and returns the address with its real port.

        `sock` is a listening socket to use instead of making one for `listen`; `contents` is what the method
        of that name gave in another process. Raises `OSError` with a message for the operator when the
        address or the directory cannot be had.
        """
        if contents:
            load(contents, self.store, self._clock())
        if self._journal is not None:
            self._journal.open(self._clock())
        try:
            await self._runner.setup()
            self.address = await self._listen(listen, sock)
        except BaseException:
            await self.close()
            raise
        self._follow()
        return self.address

    def contents(self) -> bytes:
        """Everything that is registered, for `start` in another process."""
        return dump(self.store)

    async def close(self) -> None:
        """Answers every blocking query, finishes what is in hand, writes what is left, and ends."""
        self._api.release()
        await self._runner.cleanup()
        await self._prober.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._saving:
            await asyncio.gather(*self._saving)
        if self._journal is not None:
            await self._journal.close()

    async def _listen(self, listen: Address, sock: socket.socket | None) -> Address:
        site: web.BaseSite
        if sock is not None:
            site = web.SockSite(self._runner, sock)
        elif listen.path:
            site = web.UnixSite(self._runner, listen.path)
        else:
            site = web.TCPSite(self._runner, listen.host or None, listen.port)
        try:
            await site.start()
        except OSError as error:
            reason = (
                "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            )
            raise OSError(error.errno, f"the registry cannot listen on {listen}: {reason}") from error
        name = self._runner.addresses[0]
        return Address(path=name) if isinstance(name, str) else Address(listen.host or name[0], name[1])

    async def _settle(self) -> None:
        """After a change: what follows from it is set going, and it is on disk."""
        self._follow()
        if self._journal is not None:
            await self._journal.flush()

    def _follow(self) -> None:
        if self.store.topics.index != self._settled:
            self._settled = self.store.topics.index
            self._prober.sync(self.store.probes())
        due = self.store.next_deadline
        if due != self._due:
            self._due = due
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            if due is not None:
                delay = max(0.0, due - self._clock())
                self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        now = self._clock()
        late = now - (self._due if self._due is not None else now)
        self._due = self._timer = None
        if late > PAUSE:
            _log.warning("this process was stopped for %.1f s; every TTL begins anew", late)
            self.store.renew(now)
        for expiry in self.store.expire(now):
            what = "deregistered" if expiry.deregistered else "critical"
            _log.warning("instance %s: %s, its check %s ran out", expiry.service_id, what, expiry.check_id)
        self._save_later()

    def _probed(self, check_id: str, status: CheckStatus, output: str) -> None:
        try:
            self.store.update_check(check_id, status, output, self._clock())
        except UnknownIdError:
            return
        self._save_later()

    def _save_later(self) -> None:
        """Settles a change that nobody waits for the answer to."""
        task = asyncio.create_task(self._settle())
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)
