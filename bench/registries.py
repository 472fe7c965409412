"""The registries that benchmarks run against: those of the contract suite, and the one inside the proxy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bench.children import free_ports
from discovery.consul_registrar import ConsulRegistrar
from discovery.model import Instance
from tests.contract.backend import backends


class Registry(Protocol):
    """What is measured: see `tests.contract.backend.Backend`."""

    async def start(self) -> None:
        """Begins, before the proxy does. Raises `Missing` when there is no such server here."""

    async def stop(self) -> None:
        """Ends everything that was started."""

    def settings(self) -> Mapping[str, Any]:
        """The proxy's `registry`."""

    async def put(self, instance: Instance) -> None:
        """Registers it."""

    async def remove(self, instance: Instance) -> None:
        """Deregisters it."""


class Embedded:
    """In the proxy itself, told over HTTP."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self._listen = f"127.0.0.1:{port}"
        self._registrar = ConsulRegistrar(f"http://{self._listen}", ttl=3600.0)

    async def start(self) -> None:
        """It begins with the proxy."""

    async def stop(self) -> None:
        await self._registrar.close()

    def settings(self) -> Mapping[str, Any]:
        return {"kind": "embedded", "listen": self._listen}

    async def put(self, instance: Instance) -> None:
        await self._registrar.register(instance)

    async def remove(self, instance: Instance) -> None:
        await self._registrar.deregister(instance)


REGISTRIES: dict[str, Callable[[Path], Registry]] = {"embedded": Embedded} | {
    kind.name: kind for kind in backends() if not kind.name.startswith("embedded")
}
"""By name."""
