"""Nacos followed: by its push over gRPC, or by asking its HTTP API again and again.

Nacos answers for a service that nobody registered as for one that is empty, so an empty set is ABSENT until
an instance was seen in the same unbroken sequence. Instances end with the server that holds them: what a
server lacks in its first answer may just not have registered again yet, and that answer is marked as partial.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from config.registries import NacosRegistry
from discovery.model import RegistryError, Update
from discovery.nacos import connection as grpc_connection
from discovery.nacos.connection import Connection, ask, connect, namespace_of
from discovery.nacos.entry import instances_of
from discovery.nacos.http import TIMEOUT, HttpApi
from discovery.nacos.servers import Servers

KIND = "nacos"
KEEPALIVE = 5.0
"""Seconds between questions on an open connection. Each tells the server that we are there, and finds out
whether it still is."""
RESYNC = 60.0
"""Seconds in which every service is asked for again, whatever was pushed. Longer than other clients need to
register again with a server that started over: the same answer twice counts as a confirmation."""
PARALLEL = 32
"""Questions at the same time."""

_T = TypeVar("_T")


class _Sight:
    """What has been told of one service in one unbroken sequence of answers."""

    def __init__(self, registry: NacosRegistry, service: str) -> None:
        self.service = service
        self._clusters = frozenset(registry.clusters)
        self._answered = False
        self._seen = False

    def update(self, hosts: Sequence[Mapping[str, Any]], at: float) -> Update:
        """The next set. Raises `RegistryError` when the server talks nonsense."""
        refused: list[str] = []
        instances = instances_of(self.service, hosts, self._clusters, refused)
        # An entry that was left out may be that of an instance that is known.
        partial = not self._answered or bool(refused)
        self._answered, self._seen = True, self._seen or bool(instances)
        known = instances if self._seen else None
        return Update(self.service, known, at, KIND, tuple(refused), partial=partial)


class _Subscription(_Sight):
    """A service followed by pushes. They may overtake each other, and answers: the server's own clock orders
    them, as long as it does not go backwards."""

    def __init__(self, registry: NacosRegistry, service: str) -> None:
        super().__init__(registry, service)
        self.pushes = 0
        """That came so far."""
        self._stamp = 0

    def pushed(self, info: Mapping[str, Any], at: float) -> Update | None:
        """Takes a push. None when it is older than what is known, or the server's clock has been set back:
        it has to be asked then."""
        self.pushes += 1
        stamp = _stamp(info)
        if stamp < self._stamp:
            return None
        self._stamp = stamp
        return self.update(_hosts(info), at)

    def answered(self, info: Mapping[str, Any], pushes: int, at: float) -> Update | None:
        """Takes an answer to a question that was asked when so many pushes had come: if there was none since,
        it is the newest there is, whatever its stamp. None when a push was newer."""
        stamp = _stamp(info)
        if pushes != self.pushes and stamp < self._stamp:
            return None
        self._stamp = stamp
        return self.update(_hosts(info), at)


class PushWatcher:
    """Yields each service's instances as the server pushes them. `keepalive`, `resync` and `timeout` are in
    seconds."""

    kind = KIND

    def __init__(
        self,
        registry: NacosRegistry,
        *,
        keepalive: float = KEEPALIVE,
        resync: float = RESYNC,
        timeout: float = grpc_connection.TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._servers = Servers(registry.address)
        self._keepalive = keepalive
        self._resync = resync
        self._timeout = timeout
        self._clock = clock

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Raises `RegistryError` when the connection ends, for whatever reason, one question is not answered,
        or a server sends us away; the next attempt goes to another one."""
        server, instead = self._servers.current, None
        try:
            async with HttpApi(self._registry, timeout=self._timeout) as api:
                connection = await connect(server, self._registry, self._timeout)
                try:
                    async with aclosing(self._follow(api, connection, services)) as updates:
                        async for update in updates:
                            yield update
                finally:
                    instead = connection.instead
                    await connection.close()
        except RegistryError:
            self._servers.failed(server, instead)
            raise

    async def _follow(
        self, api: HttpApi, connection: Connection, services: frozenset[str]
    ) -> AsyncGenerator[Update]:
        following = _Following(self._registry, api, connection, services, self._clock)
        task = asyncio.create_task(following.keep_asking(self._keepalive, self._resync))
        try:
            while True:
                yield await following.news()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class _Following:
    """The subscriptions of one connection, and what they have brought."""

    def __init__(
        self,
        registry: NacosRegistry,
        api: HttpApi,
        connection: Connection,
        services: frozenset[str],
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._api = api
        self._connection = connection
        self._clock = clock
        self._subscriptions = {service: _Subscription(registry, service) for service in sorted(services)}
        self._told: asyncio.Queue[Update | RegistryError] = asyncio.Queue()
        self._doubtful: asyncio.Queue[str] = asyncio.Queue()
        """Services whose pushes came out of order."""
        connection.on_push = self._pushed
        connection.on_end = self._told.put_nowait

    async def news(self) -> Update:
        """The next set. Raises `RegistryError` when there will be none."""
        told = await self._told.get()
        if isinstance(told, RegistryError):
            raise told
        return told

    async def keep_asking(self, keepalive: float, resync: float) -> None:
        """Subscribes to all, and goes on asking every `keepalive` seconds, for each of them in `resync`."""
        services = list(self._subscriptions)
        rounds = max(1, round(resync / keepalive))
        clock = asyncio.get_running_loop()
        try:
            for batch in _batches(services, PARALLEL):
                await self._ask_all(batch)
            for batch in itertools.cycle(services[start::rounds] for start in range(rounds)):
                due = clock.time() + keepalive
                while (service := await self._doubt(due)) is not None:
                    await self._ask_all([service])
                if batch:
                    await self._ask_all(batch)
                else:
                    await self._connection.request("HealthCheckRequest", {})
        except RegistryError as error:
            self._told.put_nowait(error)
        except Exception as error:
            self._told.put_nowait(RegistryError(f"{type(error).__name__}: {error}"))

    async def _doubt(self, until: float) -> str | None:
        try:
            async with asyncio.timeout_at(until):
                return await self._doubtful.get()
        except TimeoutError:
            return None

    async def _ask_all(self, services: Sequence[str]) -> None:
        await asyncio.gather(*(self._ask(self._subscriptions[service]) for service in services))

    async def _ask(self, subscription: _Subscription) -> None:
        """To subscribe again changes nothing but is answered."""
        pushes = subscription.pushes
        body = {
            "namespace": namespace_of(self._registry),
            "groupName": self._registry.group,
            "serviceName": subscription.service,
            "subscribe": True,
            "clusters": "",
        }
        answer = await ask(self._api, self._connection, "SubscribeServiceRequest", body)
        update = subscription.answered(answer.get("serviceInfo") or {}, pushes, self._clock())
        if update is not None:
            self._told.put_nowait(update)

    def _pushed(self, push: Mapping[str, Any]) -> None:
        at = self._clock()
        info = push.get("serviceInfo") or {}
        if info.get("groupName", self._registry.group) != self._registry.group:
            return
        subscription = self._subscriptions.get(_name(info))
        if subscription is None:
            return
        update = subscription.pushed(info, at)
        if update is not None:
            self._told.put_nowait(update)
        else:
            self._doubtful.put_nowait(subscription.service)


class PollWatcher:
    """Yields each service's instances as often as it asks, every `poll` seconds. Losing one is seen that much
    later than with pushes."""

    kind = KIND

    def __init__(
        self,
        registry: NacosRegistry,
        *,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._servers = Servers(registry.address)
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep
        self._random = rng or random.Random()

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Raises `RegistryError` as soon as one question is not answered; the next attempt goes to another
        server."""
        server = self._servers.current
        sights = [_Sight(self._registry, service) for service in sorted(services)]
        try:
            async with HttpApi(self._registry, timeout=self._timeout) as api:
                while True:
                    for batch in _batches(sights, PARALLEL):
                        answers = [api.list(server, sight.service) for sight in batch]
                        for sight, hosts in zip(batch, await asyncio.gather(*answers), strict=True):
                            yield sight.update(hosts, self._clock())
                    await self._sleep(self._registry.poll * self._random.uniform(0.9, 1.0))
        except RegistryError:
            self._servers.failed(server)
            raise


def _batches(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _hosts(info: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    hosts = info.get("hosts") or ()
    if not isinstance(hosts, (list, tuple)):
        raise RegistryError(f"service {info.get('name')}: not a list of instances: {hosts!r:.80}")
    return hosts


def _name(info: Mapping[str, Any]) -> str:
    """Some servers put the group in front."""
    return str(info.get("name", "")).rpartition("@@")[2]


def _stamp(info: Mapping[str, Any]) -> int:
    """When the server made this, by its own clock, in milliseconds. Raises `RegistryError`."""
    try:
        return int(info.get("lastRefTime", 0))
    except (TypeError, ValueError) as error:
        raise RegistryError(f"lastRefTime: {error}") from error
