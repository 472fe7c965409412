"""What discovery speaks of: instances, and full sets of them.

Imports nothing of the other rooms, does no I/O. The proxy depends on this file and on nothing else in here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

DEFAULT_WEIGHT = 100
"""Weight of an instance that states none, in every registry."""

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


class Status(Enum):
    """What the registry says of an instance. One that it no longer lists has no status: it is gone."""

    UP = "up"
    """May be given work."""
    DRAINING = "draining"
    """Leaving (`draining=true`, maintenance): keeps what it has, gets nothing new."""
    DOWN = "down"
    """Its health check in the registry is critical: act as for a crash."""
    DOUBTFUL = "doubtful"
    """Used only while nobody else can be: the registry has lost it in a way that is not believed yet, or it
    comes and goes. Only the guards of `discovery.belief` say so, no registry does."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a service, as a registry describes it.

    `host` is a name, an IP address, or empty for a unix socket, whose `path` is set then. `weight` is
    relative to the other instances of the service; 0 means no new work. `metadata` keys with a meaning:
    `version`, `zone`, `protocol`, `backup`. Equality is by value: an equal instance is no change.
    """

    service: str
    id: str
    host: str = ""
    port: int = 0
    path: str = ""
    weight: int = DEFAULT_WEIGHT
    status: Status = Status.UP
    metadata: Mapping[str, str] = field(default_factory=lambda: _NO_METADATA, hash=False)

    @property
    def address(self) -> str:
        """`host:port`, `[v6]:port` or `unix:/path`: what a person reads, and what identity is compared by."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def version(self) -> str:
        """The label that splits go by; empty when there is none."""
        return self.metadata.get("version", "")

    @property
    def backup(self) -> bool:
        """Used only while no other instance is ready."""
        return self.metadata.get("backup") == "true"


@dataclass(frozen=True, slots=True)
class Update:
    """The full set of one service's instances, as one registry knows it now.

    `instances` is None when the registry does not know the service at all (ABSENT); an empty tuple when it
    knows it and nothing is there. A registry that cannot answer yields no update but raises.
    `at` is the `time.monotonic` reading when the event arrived; eviction delay is measured from it.
    `source` is the kind of the registry that caused it, for the metrics' label.
    `refused` are the entries that made no sense and were left out, each with the reason.
    `behind` are the seconds that the answer may be old, as the registry itself says; 0: it is right.
    `partial`: the registry may have started over, and whoever it lacks may not have registered again yet.
    """

    service: str
    instances: tuple[Instance, ...] | None
    at: float
    source: str = ""
    refused: tuple[str, ...] = ()
    behind: float = 0.0
    partial: bool = False


class RegistryError(Exception):
    """A registry could not be reached, or answered what it must not. The message is for the operator."""


class Watcher(Protocol):
    """One registry's event source. Knows how to connect and to read; has no retries of its own."""

    kind: str
    """`embedded`, `consul`, `file`, …: the label of its metrics."""

    def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Yields the full set of each of `services` at once, and again after each change, until it fails.

        Raises `RegistryError` (or `OSError`) when the registry fails; `supervise` then starts it again.
        """
        ...
