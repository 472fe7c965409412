"""What the contract suite asks of a registry: a server that can be hurt, instances to put in, a watcher.

Each file of this folder with a tuple `BACKENDS` takes part. A backend lives as long as the tests of its
kind, in one event loop; services and ids are new in each test, so nothing has to be cleaned up in between.
"""

from __future__ import annotations

import asyncio
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import ClassVar

from config.registries import RemoteRegistry
from discovery.model import Instance, Watcher
from discovery.register import Registration, State
from discovery.registrar import Registrar


class Ability(Enum):
    """What not every registry can do, or not every server be made to do. A test names those it needs."""

    IDS = "instances keep the ids they were registered with"
    WEIGHT = "weights"
    METADATA = "metadata"
    DRAINING = "a mark for instances that leave"
    CRASH = "notices an instance that ended without a word"
    KILL = "a server that can be killed and comes back with its data"
    FREEZE = "a server that can be frozen"
    EMPTY = "a server that can be made to lose everything while it is watched"


class Missing(Exception):
    """A server that this machine does not have; the message says how it gets one. Never raised in CI for one
    that must be there."""


class Backend(ABC):
    """One kind of registry, with the ways of its own to be changed. Instances are addressed by host and port;
    the port is the same for all, and nobody listens there."""

    name: ClassVar[str]
    """For test ids: `consul`, `etcd`, …"""
    lacks: ClassVar[Mapping[Ability, str]] = {}
    """What it cannot, and why: the reason of the skip."""
    patience: ClassVar[float] = 10.0
    """Seconds in which a change must have been seen, whatever the load of the machine."""
    many: ClassVar[int] = 1000
    """Instances in the test with very many."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    async def start(self) -> None:
        """Begins, and returns once it answers. Raises `Missing` when there is no such server here."""

    @abstractmethod
    async def stop(self) -> None:
        """Ends everything that was started, also after a `start` that failed half way."""

    @abstractmethod
    def watcher(self) -> Watcher:
        """A watcher of the product's, new each time, that notices a frozen server within `patience`."""

    def section(self) -> RemoteRegistry:
        """The part of a configuration that names the running server; not for one that lives in the tests."""
        raise AssertionError(f"{self.name} is in no configuration of a process of its own")

    # -- instances --------------------------------------------------------------------------------------

    @abstractmethod
    async def put(self, instance: Instance, *, brief: bool = False) -> None:
        """Registers it, or replaces what is registered under its id (address, weight, metadata, draining).

        `brief`: it is going to crash, so that what keeps it alive must run out within `patience`.
        """

    @abstractmethod
    async def remove(self, instance: Instance) -> None:
        """Deregisters it in order."""

    async def crash(self, instance: Instance) -> None:
        """It ends without a word: the registry has to notice, and does so within `patience`."""
        raise self._lacking(Ability.CRASH)

    async def put_many(self, instances: Sequence[Instance]) -> None:
        """Registers all of these in whatever way is quick; they may be removed by `remove`."""
        for instance in instances:
            await self.put(instance)

    async def forget(self) -> None:
        """The registry loses everything and goes on; whoever watches is told of emptiness."""
        raise self._lacking(Ability.EMPTY)

    # -- the server -------------------------------------------------------------------------------------

    async def kill(self) -> None:
        """Ends it at once; its data stays."""
        raise self._lacking(Ability.KILL)

    async def restart(self) -> None:
        """Begins again after `kill`, at the same address and with its data; returns once it answers, and what
        is kept alive is registered again. Nothing when it runs.
        """
        raise self._lacking(Ability.KILL)

    async def freeze(self) -> None:
        """It stops in the middle of everything, connections open."""
        raise self._lacking(Ability.FREEZE)

    async def thaw(self) -> None:
        """It goes on."""
        raise self._lacking(Ability.FREEZE)

    def _lacking(self, ability: Ability) -> AssertionError:
        """A test asks for what this kind says that it lacks, instead of naming what it needs."""
        return AssertionError(f"{self.name} has no {ability.name}: {self.lacks.get(ability, 'it should')}")


class RegistrarBackend(Backend):
    """A registry in which the product can register: its registrars enter instances and keep them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._entries: dict[tuple[str, str], Registration] = {}

    @abstractmethod
    def registrar(self, *, brief: bool = False) -> Registrar:
        """A registrar of the product's; `brief`: its entries end within seconds when nobody keeps them."""

    async def put(self, instance: Instance, *, brief: bool = False) -> None:
        found = self._entries.get((instance.service, instance.id))
        if found is not None:
            assert await found.update(instance), found.last_error
            return
        entry = Registration(self.registrar(brief=brief), instance)
        self._entries[instance.service, instance.id] = entry
        assert await entry.start(), entry.last_error

    async def remove(self, instance: Instance) -> None:
        entry = self._entries.pop((instance.service, instance.id), None)
        if entry is not None:
            assert await entry.deregister()
            return
        registrar = self.registrar()
        await registrar.deregister(instance)
        await registrar.close()

    async def crash(self, instance: Instance) -> None:
        await self._entries.pop((instance.service, instance.id)).release()

    async def registered(self) -> None:
        """Waits until every entry is where it should be, as after a restart of the server."""
        async with asyncio.timeout(self.patience):
            while any(e.state is not State.REGISTERED for e in self._entries.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def leave(self) -> None:
        """Gives up every entry that is left, for `stop`."""
        for entry in self._entries.values():
            await entry.release()
        self._entries.clear()


def backends() -> list[type[Backend]]:
    """All of them: those of each file here that has some."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    names = [f.stem for f in files if not f.stem.startswith(("test_", "conftest"))]
    modules = [importlib.import_module(f"tests.contract.{name}") for name in names]
    return [backend for module in modules for backend in getattr(module, "BACKENDS", ())]


async def in_parallel(make: Callable[[], Registrar], instances: Sequence[Instance], width: int = 20) -> None:
    """Registers many by `width` registrars at a time. Nobody keeps the entries alive."""

    async def enter(mine: Sequence[Instance]) -> None:
        registrar = make()
        for instance in mine:
            await registrar.register(instance)
        await registrar.close()

    await asyncio.gather(*(enter(instances[start::width]) for start in range(width)))
