"""Questions to name servers, by aiodns: over TCP, each answered in time, none out of a cache.

TCP (RFC 7766) because servers leave records out of UDP answers without a word: of 100 instances Consul tells
19, and of addresses three. c-ares keeps answers for as long as their TTL says, also when the server is dead;
that ends with the resolver, so none of them lives longer than the shortest time between two questions.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from config.units import Address
from discovery.model import RegistryError

if TYPE_CHECKING:
    from aiodns import DNSResolver
    from pycares import DNSResult

TRIES = 4
"""c-ares gives up on an answer by the time that earlier ones took, and asks again, waiting twice as long; so
many rounds are longer than any `timeout`, which alone decides."""

Kind = Literal["SRV", "A", "AAAA"]


class NoSuchName(Exception):
    """NXDOMAIN: nothing has this name (RFC 1035 section 4.1.1). Or nothing can have it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One SRV record (RFC 2782)."""

    name: str
    """In lower case, without the last dot: the case of a name means nothing (RFC 1035 section 2.3.3)."""
    port: int
    priority: int
    weight: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name has of what was asked for; nothing when it has other records only (NODATA)."""

    targets: tuple[Target, ...] = ()
    addresses: tuple[str, ...] = ()
    brought: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Addresses of other names that came along, by name."""
    ttl: float | None = None
    """Seconds, the shortest of the records and the aliases on the way; None without any."""


@dataclass(slots=True)
class _Shared:
    resolver: DNSResolver
    made: float
    users: int = 0


class Resolver:
    """Asks `servers` (the system's when empty), each question with `timeout` seconds for its answer. An
    answer may be as old as `fresh` seconds. Made and closed in the loop that uses it. Raises `RegistryError`
    without aiodns, which is an extra."""

    def __init__(
        self,
        servers: tuple[Address, ...],
        *,
        timeout: float,
        fresh: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            import aiodns  # noqa: F401
        except ImportError as error:
            raise RegistryError("DNS needs aiodns: install holdfast[dns]") from error
        self._servers = servers
        self._timeout = timeout
        self._fresh = fresh
        self._clock = clock
        self._addresses: list[str] | None = None
        self._shared: _Shared | None = None

    async def ask(self, name: str, kind: Kind) -> Answer:
        """Raises `NoSuchName`, and `RegistryError` when there is no answer or an error."""
        from aiodns.error import ARES_EBADNAME, ARES_ENODATA, ARES_ENOTFOUND, DNSError

        try:
            async with asyncio.timeout(self._timeout), self._borrowed() as resolver:
                result = await resolver.query_dns(name, kind)
        except DNSError as error:
            code, text = error.args
            if code in (ARES_ENOTFOUND, ARES_EBADNAME):
                raise NoSuchName(name) from error
            if code == ARES_ENODATA:
                return Answer()
            raise RegistryError(f"{name} {kind}: {text}") from error
        except UnicodeError as error:
            raise NoSuchName(name) from error
        except TimeoutError:
            raise RegistryError(f"{name} {kind}: no answer in {self._timeout:.1f} s") from None
        return _answer(result)

    async def close(self) -> None:
        """Ends what is out."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.resolver.close()

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[DNSResolver]:
        if self._addresses is None:
            self._addresses = await _found(self._servers)
        if self._shared is not None and self._clock() - self._shared.made >= self._fresh:
            old, self._shared = self._shared, None
            if not old.users:
                await old.resolver.close()
        if self._shared is None:
            self._shared = _Shared(self._make(), self._clock())
        shared = self._shared
        shared.users += 1
        try:
            yield shared.resolver
        finally:
            shared.users -= 1
            if not shared.users and shared is not self._shared:
                await shared.resolver.close()

    def _make(self) -> DNSResolver:
        from aiodns import DNSResolver
        from pycares import ARES_FLAG_USEVC

        addresses = self._addresses or []
        return DNSResolver(
            addresses,
            timeout=self._timeout / max(1, len(addresses)),
            tries=TRIES,
            flags=ARES_FLAG_USEVC,
        )


async def _found(servers: tuple[Address, ...]) -> list[str]:
    """Their addresses: c-ares takes no names."""
    found = []
    for server in servers:
        host = server.host or "127.0.0.1"
        try:
            ipaddress.ip_address(host)
        except ValueError:
            try:
                loop = asyncio.get_running_loop()
                places = await loop.getaddrinfo(host, server.port, type=socket.SOCK_STREAM)
            except OSError as error:
                raise RegistryError(f"name server {server}: {error.strerror or error}") from error
            host = str(places[0][4][0])
        found.append(str(Address(host, server.port)))
    return found


def _answer(result: DNSResult) -> Answer:
    from pycares import AAAARecordData, ARecordData, SRVRecordData

    answers = [record.data for record in result.answer]
    brought: dict[str, list[str]] = {}
    for record in result.additional:
        if isinstance(record.data, (ARecordData, AAAARecordData)):
            brought.setdefault(_folded(record.name), []).append(record.data.addr)
    return Answer(
        targets=tuple(
            Target(_folded(data.target), data.port, data.priority, data.weight)
            for data in answers
            if isinstance(data, SRVRecordData)
        ),
        addresses=tuple(data.addr for data in answers if isinstance(data, (ARecordData, AAAARecordData))),
        brought=brought,
        ttl=min((float(record.ttl) for record in result.answer), default=None),
    )


def _folded(name: str) -> str:
    return name.rstrip(".").lower()
