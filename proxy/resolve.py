"""Names of instances as addresses, without a name server in the way of requests.

Most instances come with addresses. Where one has a name, the system's resolver is asked in threads of its own
(it knows /etc/hosts and the search list), once for all who want the name; an answer is used for a few seconds
without asking, and for longer while the resolver fails or takes its time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

FRESH = 5.0
"""Seconds in which an answer is used as it is."""
STALE = 300.0
"""Seconds in which an old answer is better than waiting for a new one, or than none."""
_MOST = 4096
"""Names remembered; the oldest gives way."""
_THREADS = 8
"""Names asked for at once: a slow name server must not hold up the names of a quick one."""

Addresses = tuple[str, ...]
Lookup = Callable[[str], Addresses]


class Resolver:
    """Names to addresses for one loop. `observe` is given the seconds that each lookup took."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        observe: Callable[[float], None] = lambda seconds: None,
        lookup: Lookup | None = None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._observe = observe
        self._lookup = lookup or _ask_the_system
        self._known: dict[str, tuple[float, Addresses]] = {}
        self._asking: dict[str, asyncio.Task[Addresses]] = {}
        self._threads: ThreadPoolExecutor | None = None

    async def resolve(self, host: str) -> Addresses:
        """The addresses of a host, in the order to try them. An address is its own.

        Raises `OSError` when the name has none, or nothing is known of it and nobody answers.
        """
        if is_address(host):
            return (host,)
        known = self._known.get(host)
        age = self._clock() - known[0] if known is not None else STALE
        if known is not None and age < FRESH:
            return known[1]
        task = self._asking.get(host)
        if task is None:
            task = self._asking[host] = self._loop.create_task(self._ask(host))
            task.add_done_callback(_look_at)
        if known is not None and age < STALE:
            return known[1]
        return await asyncio.shield(task)

    @property
    def asking(self) -> tuple[asyncio.Task[Addresses], ...]:
        """The lookups under way."""
        return tuple(self._asking.values())

    async def _ask(self, host: str) -> Addresses:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolve")
        begun = self._clock()
        try:
            found = await self._loop.run_in_executor(self._threads, self._lookup, host)
        finally:
            del self._asking[host]
            self._observe(self._clock() - begun)
        self._known.pop(host, None)
        if len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[host] = self._clock(), found
        return found

    def close(self) -> None:
        """Forget everything; a lookup that hangs is not waited for."""
        for task in self._asking.values():
            task.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _look_at(task: asyncio.Task[Addresses]) -> None:
    """Who goes on with an old answer does not wait for the new one: its failure is nobody's."""
    if not task.cancelled():
        task.exception()


@lru_cache(4096)
def is_address(host: str) -> bool:
    """Whether it is an IP address, which needs no lookup."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _ask_the_system(host: str) -> Addresses:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} is not a host name") from error
    return tuple(dict.fromkeys(str(address[4][0]) for address in found))
