"""An entry in Nacos: owned by a gRPC connection, or kept by beats over HTTP.

Over gRPC the open connection is the heartbeat: the entry goes the moment it ends, and is gone with the server
it was made at. So a beat mostly just looks whether the connection is still there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from config.registries import NacosRegistry
from discovery.model import Instance, RegistryError
from discovery.nacos import connection as grpc_connection
from discovery.nacos.connection import Connection, Unregistered, ask, connect, namespace_of
from discovery.nacos.entry import DEFAULT_CLUSTER, entry_of
from discovery.nacos.http import TIMEOUT, HttpApi
from discovery.nacos.servers import Server, Servers

_R = TypeVar("_R")

KIND = "nacos"
LOOK = 3.0
"""Seconds between looks at the connection: so long an entry may be missing after a server has gone. Also what
one call may take, a login and a new connection included."""
KEEPALIVE = 5.0
"""Seconds between questions to the server, which tell both sides that the other one is there."""
DEFAULT_TTL = 10.0
"""Seconds without a beat after which an instance registered over HTTP counts as crashed."""
BEATS_PER_TTL = 3
DELETE_AFTER = 2
"""Times the time to live until the server forgets an instance that does not beat; it calls it unhealthy
after one."""


class ConnectionRegistrar:
    """Holds entries through one connection: one for each service, which is Nacos' own rule."""

    kind = KIND
    interval = LOOK

    def __init__(
        self,
        registry: NacosRegistry,
        *,
        timeout: float = grpc_connection.TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._servers = Servers(registry.address)
        self._api = HttpApi(registry, timeout=timeout)
        self._timeout = timeout
        self._clock = clock
        self._connection: Connection | None = None
        self._entries: dict[str, str] = {}
        """Ids of what the connection owns, by service."""
        self._asked = 0.0

    async def register(self, instance: Instance) -> None:
        """Raises `RegistryError` when the server refuses, cannot be reached, or the connection holds another
        instance of the service already."""
        held = self._entries.get(instance.service, instance.id)
        if held != instance.id:
            raise RegistryError(f"{instance.service}: this connection holds {held}, and Nacos allows one")
        entry = entry_of(instance, _cluster(self._registry))
        if (connection := await self._alive()) is None:
            connection = await self._connect()
        try:
            await self._instance(connection, instance.service, "registerInstance", entry)
        except RegistryError:
            await self._drop()
            raise
        self._entries[instance.service] = instance.id

    async def beat(self, instance: Instance) -> bool:
        """False when the connection has ended, and the entry with it. Raises `RegistryError`."""
        connection = await self._alive()
        if connection is None or self._entries.get(instance.service) != instance.id:
            return False
        if self._clock() - self._asked < KEEPALIVE:
            return True
        try:
            await connection.request("HealthCheckRequest", {})
        except Unregistered:
            await self._drop()
            return False
        except RegistryError:
            await self._drop()
            raise
        self._asked = self._clock()
        return True

    async def deregister(self, instance: Instance) -> None:
        """Raises `RegistryError`. What another connection owns only that one can remove."""
        connection = await self._alive()
        if connection is None or self._entries.get(instance.service) != instance.id:
            return
        entry = entry_of(instance, _cluster(self._registry))
        # To a server that does not know the connection the entry is gone already.
        with suppress(Unregistered):
            await self._instance(connection, instance.service, "deregisterInstance", entry)
        self._entries.pop(instance.service, None)

    async def close(self) -> None:
        """Ends the connection, and what it owns at once: Nacos has no time to live for it."""
        await self._drop()
        await self._api.close()

    async def _connect(self) -> Connection:
        server = self._servers.current
        try:
            self._connection = await connect(server, self._registry, self._timeout)
        except RegistryError:
            self._servers.failed(server)
            raise
        self._entries.clear()
        return self._connection

    async def _alive(self) -> Connection | None:
        """The connection, unless it has ended."""
        if self._connection is not None and self._connection.failure is not None:
            await self._drop()
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._entries.clear()
        if connection is not None:
            self._servers.failed(connection.server, connection.instead)
            await connection.close()

    async def _instance(
        self, connection: Connection, service: str, what: str, entry: Mapping[str, Any]
    ) -> None:
        body = {
            "namespace": namespace_of(self._registry),
            "groupName": self._registry.group,
            "serviceName": service,
            "type": what,
            "instance": entry,
        }
        await ask(self._api, connection, "InstanceRequest", body)
        self._asked = self._clock()


class BeatRegistrar:
    """Holds entries by HTTP, kept by beats. `ttl`: seconds without one until it counts as crashed."""

    kind = KIND

    def __init__(
        self, registry: NacosRegistry, *, ttl: float = DEFAULT_TTL, timeout: float = TIMEOUT
    ) -> None:
        self.interval = ttl / BEATS_PER_TTL
        self._registry = registry
        self._servers = Servers(registry.address)
        self._api = HttpApi(registry, timeout=timeout)
        self._times = {
            "preserved.heart.beat.interval": _milliseconds(self.interval),
            "preserved.heart.beat.timeout": _milliseconds(ttl),
            "preserved.ip.delete.timeout": _milliseconds(DELETE_AFTER * ttl),
        }

    async def register(self, instance: Instance) -> None:
        """Raises `RegistryError` when the server refuses, or cannot be reached."""
        await self._to_server(self._api.register, instance)

    async def beat(self, instance: Instance) -> bool:
        """False when the server does not have it. Raises `RegistryError`."""
        return await self._to_server(self._api.beat, instance)

    async def deregister(self, instance: Instance) -> None:
        """Raises `RegistryError`."""
        await self._to_server(self._api.deregister, instance)

    async def close(self) -> None:
        """Leaves the entries to their time to live."""
        await self._api.close()

    async def _to_server(
        self, call: Callable[[Server, str, Mapping[str, Any]], Awaitable[_R]], instance: Instance
    ) -> _R:
        entry = entry_of(instance, _cluster(self._registry))
        entry["metadata"] |= self._times
        server = self._servers.current
        try:
            return await call(server, instance.service, entry)
        except RegistryError:
            self._servers.failed(server)
            raise


def _cluster(registry: NacosRegistry) -> str:
    """Where to register: in the first of the clusters that we look at."""
    return registry.clusters[0] if registry.clusters else DEFAULT_CLUSTER


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
