"""Consul, or an embedded registry on another machine, followed by blocking queries.

Source: Consul HTTP API, "Blocking Queries", "Consistency Modes" and "List Service Instances for Service". The
rules kept here: the index is used only as long as one connection after another works, and starts over at 0
whenever it goes down; an answer with the same index is no change; the real wait may be 17/16 of the asked
one, and no answer after that and a grace means a frozen agent.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from config.registries import RegistryTLS
from discovery.entry import instances_of
from discovery.model import RegistryError, Update
from discovery.transport import ssl_context

GRACE = 8.0
"""Seconds beyond the longest wait until an agent that says nothing counts as frozen; also the time for an
answer that need not wait. While a leader is elected agents hold every question for up to 7."""
WATCHES = 128
"""Services with a blocking query of their own. Agents drop connections above about 200 from one address."""
LOOKS = 8
"""Services without one that are asked at the same time."""
PULSES = ("/v1/catalog/services", "/v1/health/state/any")
"""What changes whenever any service does: followed for the services without a query of their own."""
REFRESH = 30.0
"""Seconds between looks at those services when nothing has changed."""
SPACING = 0.1
"""Seconds at least between two such looks: in a large cluster something always changes."""
HOT = 0.25
"""Seconds to wait after an answer that came without a wait and without news: something in between does not
know blocking queries."""
STALE = 5.0
"""Seconds since a server has heard from its leader above which its answers count as old. Followers of a
healthy one say some tenths."""

_NONE: Mapping[str, str] = MappingProxyType({})


class _Asked:
    """One answer of the agent, as far as HTTP goes."""

    def __init__(self, index: int, headers: Mapping[str, str], body: bytes) -> None:
        self.index = index
        self.headers = headers
        self.body = body

    @property
    def behind(self) -> float:
        """Seconds that it may be old; 0 while the server hears from its leader."""
        said = self.headers.get("X-Consul-LastContact", "0")
        contact = int(said) / 1000.0 if said.isascii() and said.isdigit() and len(said) < 16 else 0.0
        if self.headers.get("X-Consul-KnownLeader", "true") == "false":
            return max(contact, STALE)
        return contact if contact >= STALE else 0.0


class ConsulWatcher:
    """Yields the instances of each service, whatever their checks say (`Status` tells).

    `address` is the agent's base URL, `wait` the seconds one query may wait, `datacenter` None for the
    agent's own. With `stale` any server may answer, not only the leader; with `tag` only instances that have
    it are seen.
    """

    kind = "consul"

    def __init__(
        self,
        address: str = "http://127.0.0.1:8500",
        *,
        tls: RegistryTLS | None = None,
        token: str | None = None,
        datacenter: str | None = None,
        stale: bool = False,
        tag: str | None = None,
        wait: float = 55.0,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._base = address.rstrip("/")
        self._tls = tls or RegistryTLS()
        self._headers = {"X-Consul-Token": token} if token else None
        self._query = {"dc": datacenter} if datacenter else {}
        if stale:
            self._query["stale"] = ""
        self._tag = {"tag": tag} if tag else {}
        self._wait = wait
        self._grace = grace
        self._clock = clock
        self._random = rng or random.Random()

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Raises `RegistryError` as soon as one query fails or is answered with what it must not be."""
        answers: asyncio.Queue[Update | RegistryError] = asyncio.Queue()
        session = self._session()
        ordered = iter(sorted(services))
        streams = [self._follow(session, service) for service in islice(ordered, WATCHES)]
        if rest := list(ordered):
            streams.append(self._look(session, rest))
        tasks = [asyncio.create_task(self._deliver(stream, answers)) for stream in streams]
        try:
            while True:
                answer = await answers.get()
                if isinstance(answer, RegistryError):
                    raise answer
                yield answer
        finally:
            await _end(tasks)
            await session.close()

    def _session(self) -> aiohttp.ClientSession:
        # aiohttp repeats a GET by itself on a kept connection that broke, and would hide a restart so.
        if self._base.startswith("https:"):
            connector = aiohttp.TCPConnector(
                limit=0, force_close=True, resolver=aiohttp.ThreadedResolver(), ssl=ssl_context(self._tls)
            )
        else:
            connector = aiohttp.TCPConnector(limit=0, force_close=True, resolver=aiohttp.ThreadedResolver())
        return aiohttp.ClientSession(connector=connector, headers=self._headers)

    async def _deliver(
        self, stream: AsyncIterator[Update], answers: asyncio.Queue[Update | RegistryError]
    ) -> None:
        try:
            async for update in stream:
                answers.put_nowait(update)
        except RegistryError as error:
            answers.put_nowait(error)
        except Exception as error:
            answers.put_nowait(RegistryError(f"{self._base}: {type(error).__name__}: {error}"))

    async def _follow(self, session: aiohttp.ClientSession, service: str) -> AsyncIterator[Update]:
        """One service by blocking queries. An empty answer is ABSENT until the service was seen in this
        uninterrupted sequence: only then has the registry told that its instances went."""
        index, seen = 0, False
        while True:
            asked = self._clock()
            update, new = await self._instances(session, service, index)
            went_back = new < index
            seen = bool(update.instances) or (seen and not went_back)
            yield update if seen else replace(update, instances=None)
            if new == index and self._clock() - asked < HOT:
                await asyncio.sleep(HOT)
            index = 0 if went_back else new

    async def _look(self, session: aiohttp.ClientSession, services: list[str]) -> AsyncIterator[Update]:
        """Many services, each asked whenever anything has changed."""
        seen: set[str] = set()
        changed = asyncio.Event()
        gate = asyncio.Semaphore(LOOKS)

        async def look(service: str) -> Update:
            async with gate:
                update, _ = await self._instances(session, service, 0)
            if update.instances:
                seen.add(service)
            return update if service in seen else replace(update, instances=None)

        pulses = [asyncio.create_task(self._pulse(session, path, changed)) for path in PULSES]
        try:
            while True:
                changed.clear()
                for update in await _all(look(service) for service in services):
                    yield update
                await asyncio.sleep(SPACING)
                waiter = asyncio.create_task(changed.wait())
                first = asyncio.FIRST_COMPLETED
                try:
                    await asyncio.wait({waiter, *pulses}, timeout=REFRESH, return_when=first)
                finally:
                    waiter.cancel()
                for pulse in pulses:
                    if pulse.done():
                        pulse.result()
        finally:
            await _end(pulses)

    async def _pulse(self, session: aiohttp.ClientSession, path: str, changed: asyncio.Event) -> None:
        index = 0
        while True:
            asked = self._clock()
            new = (await self._ask(session, path, index)).index
            if new != index:
                changed.set()
            elif self._clock() - asked < HOT:
                await asyncio.sleep(HOT)
            index = 0 if new < index else new

    async def _instances(
        self, session: aiohttp.ClientSession, service: str, index: int
    ) -> tuple[Update, int]:
        path = f"/v1/health/service/{quote(service, safe='')}"
        answer = await self._ask(session, path, index, self._tag)
        try:
            entries = orjson.loads(answer.body)
        except orjson.JSONDecodeError as error:
            raise RegistryError(f"{self._base}: service {service}: not JSON: {error}") from error
        if not isinstance(entries, list):
            raise RegistryError(f"{self._base}: service {service}: not a list of health entries")
        if not entries and answer.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true":
            raise RegistryError(f"{self._base}: the token may not read the instances of service {service}")
        refused: list[str] = []
        instances = instances_of(service, entries, refused)
        update = Update(service, instances, self._clock(), self.kind, tuple(refused), answer.behind)
        return update, answer.index

    async def _ask(
        self, session: aiohttp.ClientSession, path: str, index: int, query: Mapping[str, str] = _NONE
    ) -> _Asked:
        full, longest = {**self._query, **query}, self._grace
        if index:
            wait = self._wait * self._random.uniform(0.9, 1.0)
            full |= {"index": str(index), "wait": f"{round(wait * 1000)}ms"}
            longest += wait * 17 / 16
        url = URL(self._base + path, encoded=True).extend_query(full)
        try:
            timeout = aiohttp.ClientTimeout(total=longest, connect=self._grace)
            async with session.get(url, timeout=timeout, server_hostname=self._tls.server_name) as response:
                body = await response.read()
        except TimeoutError:
            raise RegistryError(f"{self._base}: no answer in {longest:.1f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryError(f"{self._base}: {str(error) or type(error).__name__}") from error
        if response.status != 200:
            said = " ".join(body[:200].decode(errors="replace").split())
            raise RegistryError(f"{self._base}: status {response.status} for {path}: {said}")
        said = response.headers.get("X-Consul-Index", "")
        if not (said.isascii() and said.isdigit() and len(said) <= 20):
            raise RegistryError(f"{self._base}: {path}: no X-Consul-Index; is this Consul?")
        return _Asked(max(1, int(said)), response.headers, body)


async def _all(works: Iterable[Coroutine[Any, Any, Update]]) -> list[Update]:
    """All of them at once; the first that fails ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
