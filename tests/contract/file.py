"""A watched file, replaced in one step at each change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from config.registries import FileRegistry
from discovery.file import FileWatcher
from discovery.labels import metadata_of
from discovery.model import Instance, Watcher
from tests.contract.backend import Ability, Backend


class File(Backend):
    """The file is the registry; that it is away is that it cannot be read."""

    name = "file"
    lacks: ClassVar = {
        Ability.CRASH: "nobody looks after an instance in a file",
        Ability.FREEZE: "there is no server",
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "instances.yaml"
        self._services: dict[str, dict[str, Instance]] = {}

    async def start(self) -> None:
        self._write()

    async def stop(self) -> None:
        self._path.unlink(missing_ok=True)

    def watcher(self) -> Watcher:
        return FileWatcher(self._path)

    def section(self) -> FileRegistry:
        return FileRegistry(kind="file", path=str(self._path))

    async def put(self, instance: Instance, *, brief: bool = False) -> None:
        await self.put_many([instance])

    async def put_many(self, instances: Sequence[Instance]) -> None:
        for instance in instances:
            self._services.setdefault(instance.service, {})[instance.id] = instance
        self._write()

    async def remove(self, instance: Instance) -> None:
        del self._services[instance.service][instance.id]
        self._write()

    async def forget(self) -> None:
        self._services.clear()
        self._write()

    async def kill(self) -> None:
        self._path.unlink()

    async def restart(self) -> None:
        if not self._path.exists():
            self._write()

    def _write(self) -> None:
        services = {
            name: [
                {
                    "address": instance.address,
                    "id": instance.id,
                    "weight": instance.weight,
                    "metadata": {k: v for k, v in metadata_of(instance).items() if k != "weight"},
                }
                for instance in instances.values()
            ]
            for name, instances in self._services.items()
        }
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps({"services": services}))
        beside.replace(self._path)


BACKENDS = (File,)
