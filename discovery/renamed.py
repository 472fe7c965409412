"""A registry that calls some services otherwise, as during a move from one registry to another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from discovery.model import Instance, Update, Watcher
from discovery.registrar import Registrar


class Renamed:
    """A watcher seen through `names`: service here to service there. Two of ours may be one of theirs."""

    def __init__(self, watcher: Watcher, names: Mapping[str, str]) -> None:
        self.kind = watcher.kind
        self._watcher = watcher
        self._names = dict(names)

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """As the watcher itself, under the names here."""
        ours: dict[str, list[str]] = {}
        for service in sorted(services):
            ours.setdefault(self._names.get(service, service), []).append(service)
        stream = self._watcher.watch(frozenset(ours))
        try:
            async for update in stream:
                for service in ours[update.service]:
                    yield replace(update, service=service, instances=_under(service, update.instances))
        finally:
            if (close := getattr(stream, "aclose", None)) is not None:
                await close()


class RenamedRegistrar:
    """A registrar that enters services under the names that they have there."""

    def __init__(self, registrar: Registrar, names: Mapping[str, str]) -> None:
        self.kind = registrar.kind
        self.interval = registrar.interval
        self._registrar = registrar
        self._names = dict(names)

    async def register(self, instance: Instance) -> None:
        """As the registrar itself."""
        await self._registrar.register(self._there(instance))

    async def beat(self, instance: Instance) -> bool:
        """As the registrar itself."""
        return await self._registrar.beat(self._there(instance))

    async def deregister(self, instance: Instance) -> None:
        """As the registrar itself."""
        await self._registrar.deregister(self._there(instance))

    async def close(self) -> None:
        """As the registrar itself."""
        await self._registrar.close()

    def _there(self, instance: Instance) -> Instance:
        return replace(instance, service=self._names.get(instance.service, instance.service))


def _under(service: str, instances: tuple[Instance, ...] | None) -> tuple[Instance, ...] | None:
    return instances and tuple(replace(instance, service=service) for instance in instances)
