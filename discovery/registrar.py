"""What a registry must be able to do for one that enters itself; `discovery.register` keeps the entry."""

from __future__ import annotations

from typing import Protocol

from discovery.model import Instance


class Registrar(Protocol):
    """One registry's way to hold an entry. Has no retries and no schedule of its own.

    Every call may raise `RegistryError` or `OSError`: the registry is away, or refuses. One call at a time.
    """

    kind: str
    """`consul`, `etcd`, …: for logs and metrics."""
    interval: float
    """Seconds between two beats while all is well."""

    async def register(self, instance: Instance) -> None:
        """Makes the entry, or replaces what it says (weight, metadata, draining)."""
        ...

    async def beat(self, instance: Instance) -> bool:
        """Keeps the entry. False when the registry does not have it (any more): it must be made again."""
        ...

    async def deregister(self, instance: Instance) -> None:
        """Removes the entry; no error when there is none."""
        ...

    async def close(self) -> None:
        """Ends the connections; never raises. What was registered ends by its time to live."""
        ...
