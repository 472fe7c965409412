"""Nacos: a real server by gRPC, and its double by gRPC and by HTTP for what takes a real one too long."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from config.registries import NacosRegistry
from discovery.model import Instance, Watcher
from discovery.nacos.connection import Connection, ask, connect
from discovery.nacos.entry import entry_of
from discovery.nacos.http import HttpApi
from discovery.nacos.registrar import BeatRegistrar, ConnectionRegistrar
from discovery.nacos.servers import Servers
from discovery.nacos.watcher import PollWatcher, PushWatcher
from discovery.registrar import Registrar
from tests.contract.backend import Ability, RegistrarBackend, in_parallel
from tests.discovery.nacos_double import NacosDouble
from tests.discovery.nacos_real import RealNacos, shared


class _ByConnection(RegistrarBackend):
    """Registered and followed by gRPC. A connection owns one instance of a service, or a batch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._batch: dict[str, Instance] = {}
        self._api: HttpApi | None = None
        self._connection: Connection | None = None

    @abstractmethod
    def section(self) -> NacosRegistry:
        """Of the running server."""

    async def stop(self) -> None:
        await self.leave()
        if self._connection is not None:
            await self._connection.close()
        if self._api is not None:
            await self._api.close()

    def watcher(self) -> Watcher:
        # With the usual times a frozen server would be noticed after eight seconds.
        return PushWatcher(self.section(), keepalive=0.3, timeout=1.0)

    def registrar(self, *, brief: bool = False) -> Registrar:
        return ConnectionRegistrar(self.section())

    async def put_many(self, instances: Sequence[Instance]) -> None:
        self._api = HttpApi(self.section())
        self._connection = await connect(Servers(self.section().address).current, self.section())
        self._batch = {instance.id: instance for instance in instances}
        await self._enter_batch()

    async def remove(self, instance: Instance) -> None:
        if self._batch.pop(instance.id, None) is None:
            await super().remove(instance)
        else:
            await self._enter_batch()

    async def _enter_batch(self) -> None:
        assert self._api is not None and self._connection is not None
        body = {
            "namespace": "public",
            "groupName": self.section().group,
            "serviceName": next(iter(self._batch.values())).service,
            "type": "batchRegisterInstance",
            "instances": [entry_of(instance) for instance in self._batch.values()],
        }
        await ask(self._api, self._connection, "BatchInstanceRequest", body)


class Real(_ByConnection):
    """A real server, one for all tests of a run."""

    name = "nacos"
    patience = 20.0
    lacks: ClassVar[Mapping[Ability, str]] = {
        Ability.KILL: "a real server takes ten seconds to start; its double is killed instead",
        Ability.EMPTY: "nothing makes a real server forget what a connection owns; its double does",
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._server: RealNacos | None = None

    @property
    def server(self) -> RealNacos:
        assert self._server is not None
        return self._server

    async def start(self) -> None:
        self._server = await shared()

    def section(self) -> NacosRegistry:
        return self.server.section()

    async def freeze(self) -> None:
        self.server.freeze()

    async def thaw(self) -> None:
        self.server.thaw()


class _WithDouble(RegistrarBackend):
    """What hurts the double."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.double = NacosDouble()
        self._running = False

    async def start(self) -> None:
        await self.double.start()
        self._running = True

    async def stop(self) -> None:
        await super().stop()  # type: ignore[safe-super]
        await self.double.stop()

    async def kill(self) -> None:
        self._running = False
        await self.double.stop()

    async def restart(self) -> None:
        # Ephemeral entries do not outlive a server: those who watch are let in when they are back.
        if not self._running:
            self.double.readable = False
            await self.start()
            await self.registered()
            self.double.readable = True

    async def registered(self) -> None:
        # A beat would find out that the entry is gone, but its times are not shorter than usual here.
        await asyncio.gather(*(entry.update(entry.instance) for entry in self._entries.values()))
        await super().registered()

    async def forget(self) -> None:
        self.double.forget()

    async def freeze(self) -> None:
        self.double.freeze()

    async def thaw(self) -> None:
        self.double.thaw()


class Double(_WithDouble, _ByConnection):
    """The double by gRPC."""

    name = "nacos-double"

    def section(self) -> NacosRegistry:
        return self.double.section()


class Polled(_WithDouble):
    """The double by HTTP: asked again and again, entries kept by beats."""

    name = "nacos-http"
    lacks: ClassVar[Mapping[Ability, str]] = {
        Ability.IDS: "an instance is its address there, and takes it from whoever had it"
    }

    def section(self) -> NacosRegistry:
        """Of the running server."""
        return self.double.section(transport="http", poll="50ms")

    async def stop(self) -> None:
        await self.leave()
        await self.double.stop()

    def watcher(self) -> Watcher:
        return PollWatcher(self.section(), timeout=1.0)

    def registrar(self, *, brief: bool = False) -> Registrar:
        return BeatRegistrar(self.section(), ttl=0.5 if brief else 30.0)

    async def put_many(self, instances: Sequence[Instance]) -> None:
        await in_parallel(self.registrar, instances)


BACKENDS = (Real, Double, Polled)
