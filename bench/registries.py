"""The registries that benchmarks run against: those of the contract suite, and the one inside the proxy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, SecretStr

from bench.children import free_ports
from config.registries import EmbeddedRegistry, RemoteRegistry
from config.units import Address
from discovery.consul_registrar import ConsulRegistrar
from discovery.model import Instance
from tests.contract.backend import backends


class Registry(Protocol):
    """What is measured: see `tests.contract.backend.Backend`."""

    async def start(self) -> None:
        """Begins, before the proxy does. Raises `Missing` when there is no such server here."""

    async def stop(self) -> None:
        """Ends everything that was started."""

    def section(self) -> RemoteRegistry | EmbeddedRegistry:
        """The proxy's `registry`."""

    async def put(self, instance: Instance) -> None:
        """Registers it."""

    async def put_many(self, instances: Sequence[Instance]) -> None:
        """Registers all of these, or replaces what they say."""

    async def remove(self, instance: Instance) -> None:
        """Deregisters it."""


class Embedded:
    """In the proxy itself, told over HTTP."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self._listen = Address("127.0.0.1", port)
        self._registrar = ConsulRegistrar(f"http://{self._listen}", ttl=3600.0)

    async def start(self) -> None:
        """It begins with the proxy."""

    async def stop(self) -> None:
        await self._registrar.close()

    def section(self) -> EmbeddedRegistry:
        return EmbeddedRegistry(kind="embedded", listen=self._listen)

    async def put(self, instance: Instance) -> None:
        await self._registrar.register(instance)

    async def put_many(self, instances: Sequence[Instance]) -> None:
        for instance in instances:
            await self._registrar.register(instance)

    async def remove(self, instance: Instance) -> None:
        await self._registrar.deregister(instance)


REGISTRIES: dict[str, Callable[[Path], Registry]] = {"embedded": Embedded} | {
    kind.name: kind
    for kind in backends()
    # A real Kubernetes takes no loopback addresses, and benchmarks listen nowhere else.
    if not kind.name.startswith("embedded") and kind.name != "kubernetes"
}
"""By name."""


def written(section: RemoteRegistry | EmbeddedRegistry) -> dict[str, Any]:
    """As it stands in a configuration file, secrets included."""
    return {name: _written(getattr(section, name)) for name in sorted(section.model_fields_set)}


def _written(value: Any) -> Any:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case Address():
            return str(value)
        case BaseModel():
            return {name: _written(getattr(value, name)) for name in sorted(value.model_fields_set)}
        case tuple():
            return [_written(item) for item in value]
        case _:
            return value
