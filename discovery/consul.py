"""Consul, or an embedded registry on another machine, followed by blocking queries.

Source: Consul HTTP API, "Blocking Queries" and "List Service Instances for Service". The rules kept here: the
index is used only as long as one connection after another works, and starts over at 0 whenever it goes down;
an answer with the same index is no change; the real wait may be 17/16 of the asked one, and no answer after
that and a grace means a frozen agent.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from discovery.entry import instances_of
from discovery.model import Instance, RegistryError, Update

GRACE = 5.0
"""Seconds beyond the longest wait until an agent that says nothing counts as frozen; also the time for an
answer that need not wait."""
WATCHES = 128
"""Blocking queries at the same time. Agents drop connections above about 200 from one address."""
REFRESH = 1.0
"""Seconds between looks at a service for which no blocking query is left."""
HOT = 0.25
"""Seconds to wait after an answer that came without a wait and without news: something in between does not
know blocking queries."""

_Answer = tuple[int, tuple[Instance, ...]]


class ConsulWatcher:
    """Yields the instances of each service, whatever their checks say (`Status` tells).

    `address` is the agent's base URL, `wait` the seconds one query may wait, `datacenter` None for the
    agent's own.
    """

    kind = "consul"

    def __init__(
        self,
        address: str = "http://127.0.0.1:8500",
        *,
        token: str | None = None,
        datacenter: str | None = None,
        wait: float = 55.0,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._base = address.rstrip("/")
        self._headers = {"X-Consul-Token": token} if token else None
        self._datacenter = datacenter
        self._wait = wait
        self._grace = grace
        self._clock = clock
        self._random = rng or random.Random()

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Raises `RegistryError` as soon as one query fails or is answered with what it must not be."""
        answers: asyncio.Queue[Update | RegistryError] = asyncio.Queue()
        # aiohttp repeats a GET by itself on a kept connection that broke, and would hide a restart so.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        ordered = sorted(services)
        tasks = [
            asyncio.create_task(self._deliver(self._follow(session, service), answers))
            for service in ordered[:WATCHES]
        ]
        if ordered[WATCHES:]:
            tasks.append(asyncio.create_task(self._deliver(self._look(session, ordered[WATCHES:]), answers)))
        try:
            while True:
                answer = await answers.get()
                if isinstance(answer, RegistryError):
                    raise answer
                yield answer
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await session.close()

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
            new, instances = await self._ask(session, service, index)
            went_back = new < index
            seen = bool(instances) or (seen and not went_back)
            yield Update(service, instances if seen else None, self._clock(), self.kind)
            if new == index and self._clock() - asked < HOT:
                await asyncio.sleep(HOT)
            index = 0 if went_back else new

    async def _look(self, session: aiohttp.ClientSession, services: list[str]) -> AsyncIterator[Update]:
        """Many services, one after the other over and over."""
        seen: set[str] = set()
        while True:
            for service in services:
                _, instances = await self._ask(session, service, 0)
                if instances:
                    seen.add(service)
                yield Update(service, instances if service in seen else None, self._clock(), self.kind)
            await asyncio.sleep(REFRESH)

    async def _ask(self, session: aiohttp.ClientSession, service: str, index: int) -> _Answer:
        url = URL(f"{self._base}/v1/health/service/{quote(service, safe='')}", encoded=True)
        query, longest = {}, self._grace
        if index:
            wait = self._wait * self._random.uniform(0.9, 1.0)
            query = {"index": str(index), "wait": f"{round(wait * 1000)}ms"}
            longest += wait * 17 / 16
        if self._datacenter:
            query["dc"] = self._datacenter
        try:
            timeout = aiohttp.ClientTimeout(total=longest, connect=self._grace)
            async with session.get(url.extend_query(query), timeout=timeout) as response:
                body = await response.read()
        except TimeoutError:
            raise RegistryError(f"{self._base}: no answer in {longest:.1f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryError(f"{self._base}: {str(error) or type(error).__name__}") from error
        if response.status != 200:
            said = " ".join(body[:200].decode(errors="replace").split())
            raise RegistryError(f"{self._base}: status {response.status} for service {service}: {said}")
        return self._parse(service, response.headers.get("X-Consul-Index", ""), body)

    def _parse(self, service: str, index: str, body: bytes) -> _Answer:
        if not (index.isascii() and index.isdigit() and len(index) <= 20):
            raise RegistryError(f"{self._base}: service {service}: no X-Consul-Index; is this Consul?")
        try:
            entries = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RegistryError(f"{self._base}: service {service}: not JSON: {error}") from error
        if not isinstance(entries, list):
            raise RegistryError(f"{self._base}: service {service}: not a list of health entries")
        return max(1, int(index)), instances_of(service, entries)
