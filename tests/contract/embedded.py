"""The embedded registry: watched in memory, and over HTTP by the Consul watcher."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from config.schema import Address
from discovery.consul import ConsulWatcher
from discovery.consul_registrar import ConsulRegistrar
from discovery.embedded.server import RegistryServer
from discovery.model import Instance, Watcher
from discovery.registrar import Registrar
from tests.contract.backend import Ability, RegistrarBackend, in_parallel

_SAME_PROCESS = "it ends with the process that watches it"


class Remote(RegistrarBackend):
    """Over HTTP, as from another machine."""

    name = "embedded-remote"
    keeps = True
    """Whether on disk."""
    lacks: ClassVar = {Ability.FREEZE: "it would freeze the tests too; a frozen agent is tried with Consul"}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._address = Address("127.0.0.1", 0)
        self.server: RegistryServer | None = None

    @property
    def running(self) -> RegistryServer:
        assert self.server is not None
        return self.server

    async def start(self) -> None:
        self.server = RegistryServer(self.folder / "data" if self.keeps else None)
        self._address = await self.server.start(self._address)

    async def stop(self) -> None:
        await self.leave()
        await self.kill()

    def watcher(self) -> Watcher:
        return ConsulWatcher(f"http://{self._address}")

    def registrar(self, *, brief: bool = False) -> Registrar:
        return ConsulRegistrar(f"http://{self._address}", ttl=0.5 if brief else 30.0)

    async def put_many(self, instances: Sequence[Instance]) -> None:
        # Wide: what comes together is written to disk together.
        await in_parallel(self.registrar, instances, width=100)

    async def forget(self) -> None:
        await self.kill()
        shutil.rmtree(self.folder / "data")
        await self.start()

    async def kill(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            await server.close()

    async def restart(self) -> None:
        if self.server is None:
            await self.start()
            await self.registered()


class InMemory(Remote):
    """In the process that watches."""

    name = "embedded"
    keeps = False
    lacks: ClassVar = {
        Ability.KILL: _SAME_PROCESS,
        Ability.FREEZE: _SAME_PROCESS,
        Ability.EMPTY: "each change in memory is told by itself",
    }

    def watcher(self) -> Watcher:
        return self.running.watcher()


BACKENDS = (InMemory, Remote)
