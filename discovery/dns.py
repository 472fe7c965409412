"""DNS as registry: SRV records, or A and AAAA with a port, asked for again when their time is over.

Source: RFC 2782 (SRV), RFC 1035, RFC 2308 (NXDOMAIN and NODATA). Only these two may empty a set; everything
else that is no answer is an error. Targets of SRV records are resolved here, so that the data plane never has
to; one of them is one instance, whatever number of addresses it has.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from config.registries import DnsRecord, DnsRegistry
from config.units import Address
from discovery.dns_resolver import Answer, Kind, NoSuchName, Resolver, Target
from discovery.labels import MAX_WEIGHT, instance_from
from discovery.model import DEFAULT_WEIGHT, Instance, RegistryError, Update

TARGETS = 32
"""Questions for targets of one service at the same time."""
LITTLE = 100
"""A weight of 0 is so many times less than 1: "a very small chance of being selected" (RFC 2782)."""

_FAMILIES: tuple[tuple[Kind, int], ...] = (("A", 4), ("AAAA", 6))


@dataclass(frozen=True, slots=True)
class _Found:
    """What a name has."""

    instances: tuple[Instance, ...] | None = None
    """None: there is no such name."""
    refused: tuple[str, ...] = ()
    ttl: float | None = None
    """Seconds until it is over."""


_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class DnsWatcher:
    """Yields the instances of each service each time its name was asked for.

    A name that fails while others are answered keeps what it said before; when all of them fail, DNS does.
    """

    kind = "dns"

    def __init__(
        self,
        registry: DnsRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._random = rng or random.Random()

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Raises `RegistryError` when each of the names failed when it was last asked for."""
        resolver = Resolver(
            self._registry.server, timeout=self._registry.timeout, fresh=self._registry.ttl_min
        )
        answers: asyncio.Queue[tuple[str, Update | RegistryError]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._follow(resolver, service, answers)) for service in sorted(services)
        ]
        failing: set[str] = set()
        try:
            while True:
                service, answer = await answers.get()
                if isinstance(answer, Update):
                    failing.discard(service)
                    yield answer
                    continue
                new = service not in failing
                failing.add(service)
                if failing == services:
                    raise answer
                if new:
                    _log.warning("registry dns: %s; what it said before holds", answer)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await resolver.close()

    async def _follow(
        self, resolver: Resolver, service: str, answers: asyncio.Queue[tuple[str, Update | RegistryError]]
    ) -> None:
        seen = False
        while True:
            ttl = None
            try:
                found = await self._ask(resolver, service)
            except RegistryError as error:
                answers.put_nowait((service, error))
            except Exception as error:
                answers.put_nowait((service, RegistryError(f"{service}: {type(error).__name__}: {error}")))
            else:
                # That there is no such name says that its instances went only if it was there before.
                seen = seen or found.instances is not None
                told = () if seen and found.instances is None else found.instances
                answers.put_nowait((service, Update(service, told, self._clock(), self.kind, found.refused)))
                ttl = found.ttl
            await asyncio.sleep(self._pause(ttl))

    def _pause(self, ttl: float | None) -> float:
        """Seconds until a name is asked for again. Somewhat early, so that many do not come at once."""
        least, most = self._registry.ttl_min, self._registry.ttl_max
        wanted = min(most, ttl if ttl is not None else least) * self._random.uniform(0.9, 1.0)
        return max(least, wanted)

    async def _ask(self, resolver: Resolver, service: str) -> _Found:
        name = self._registry.names.get(service)
        if name is None:
            name = f"{service}.{self._registry.domain}" if self._registry.domain else service
        if self._registry.record is DnsRecord.ADDRESS:
            return await self._addresses(resolver, service, name)
        return await _services(resolver, service, name)

    async def _addresses(self, resolver: Resolver, service: str, name: str) -> _Found:
        port = self._registry.port
        assert port is not None
        answers = await _together(_known(resolver, name, kind) for kind, _ in _FAMILIES)
        known = [answer for answer in answers if answer is not None]
        hosts = {host for answer in known for host in answer.addresses}
        found = [Instance(service, str(Address(host, port)), host, port) for host in hosts]
        ttl = min((answer.ttl for answer in known if answer.ttl is not None), default=None)
        return _Found(_ordered(found) if known else None, ttl=ttl)


async def _services(resolver: Resolver, service: str, name: str) -> _Found:
    answer = await _known(resolver, name, "SRV")
    if answer is None:
        return _Found()
    # A target of "." says that the service is decidedly not there (RFC 2782).
    targets = [target for target in answer.targets if target.name]
    places = await _places(resolver, {target.name for target in targets}, answer.brought)
    found: dict[str, Instance] = {}
    refused = []
    for target, weight, backup in _weighed(targets):
        host, id = places[target.name], f"{target.name}:{target.port}"
        if host is None or not target.port:
            refused.append(f"{id}: {'no address' if target.port else 'no port'}")
        elif id not in found:
            metadata = {"backup": "true"} if backup else {}
            found[id] = instance_from(service, id, host, target.port, metadata, weight=weight)
    return _Found(_ordered(found.values()), tuple(refused), answer.ttl)


async def _places(
    resolver: Resolver, names: set[str], brought: Mapping[str, Sequence[str]]
) -> dict[str, str | None]:
    """The address of each target, None where it has none. Of the older family if there is one: not every
    machine has a route for the newer."""
    room = asyncio.Semaphore(TARGETS)

    async def asked(name: str) -> str | None:
        for kind, version in _FAMILIES:
            async with room:
                answer = await _known(resolver, name, kind)
            if answer is not None and (host := _first(answer.addresses, version)):
                return host
        return None

    places = {name: name if _is_address(name) else _first(brought.get(name, ()), 4) for name in names}
    missing = sorted(name for name, host in places.items() if host is None)
    places.update(zip(missing, await _together(map(asked, missing)), strict=True))
    return places


def _first(hosts: Iterable[str], version: int) -> str | None:
    """The same one of several in whatever order they come: another address is another instance."""
    addresses = (ipaddress.ip_address(host) for host in hosts)
    return min((str(address) for address in addresses if address.version == version), default=None)


async def _together(questions: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All answers; the first error ends the other questions."""
    tasks = [asyncio.create_task(question) for question in questions]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _known(resolver: Resolver, name: str, kind: Kind) -> Answer | None:
    try:
        return await resolver.ask(name, kind)
    except NoSuchName:
        return None


def _weighed(targets: Sequence[Target]) -> Iterator[tuple[Target, int, bool]]:
    """Each target with its weight, and whether it is only a backup: all but those of the lowest number."""
    ordered = sorted(targets, key=lambda target: (target.priority, -target.weight))
    for priority, group in groupby(ordered, key=lambda target: target.priority):
        tier = list(group)
        weights = {target.weight for target in tier}
        for target in tier:
            yield target, _weight(target.weight, weights), priority != ordered[0].priority


def _weight(weight: int, all_weights: set[int]) -> int:
    if len(all_weights) == 1 and weight <= 1:
        return DEFAULT_WEIGHT  # nobody has stated one: 0 is what RFC 2782 asks for then, 1 what Consul tells
    if 0 in all_weights and max(all_weights) * LITTLE <= MAX_WEIGHT:
        return weight * LITTLE or 1
    return weight or 1


def _ordered(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    return tuple(sorted(instances, key=lambda instance: instance.id))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
