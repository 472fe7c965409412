"""A YAML or JSON file as registry: `services: {NAME: [instances]}`, watched for changes.

An instance is written as in the configuration: `"host:port"`, or `{address, id, weight, metadata}`. The file
may be replaced by renaming, or through a symlink as Kubernetes does with a ConfigMap, so what is watched are
the directories of the name and of the target, and the target is looked at anew after each event.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from config.load import ConfigError, read_as
from config.schema import Model, StaticInstance
from discovery.model import Instance, RegistryError, Update
from discovery.static import instances_from

STEP, DEBOUNCE = 5, 5
"""Milliseconds: how often the kernel's events are fetched, and how long they are gathered. Measured from the
change to the reader: 11 ms, against 51 with the library's own; each step wakes a thread, which is 0.5 % of a
core for ever (2.6 % with steps of 1 ms, 3 ms from the change to the reader)."""
LARGE = 64 << 10
"""Bytes from which a file is parsed in a thread, so that connections do not wait; a smaller one is sooner
there without."""


class _File(Model):
    services: dict[str, tuple[StaticInstance, ...]]


def parse(data: bytes, name: str = "file") -> dict[str, tuple[Instance, ...]]:
    """The instances of each service in such a file. `name` is for the message.

    Raises `RegistryError` with everything that is wrong, each with its line and column. JSON is YAML, but its
    own parser takes a hundredth of the time: 10,000 instances are 9 s of YAML.
    """
    try:
        services = _read_json(data) or read_as(_File, data, source=name).services
    except ConfigError as error:
        raise RegistryError("; ".join(map(str, error.problems))) from error
    for service, instances in services.items():
        ids = [instance.id for instance in instances]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise RegistryError(f"{name}: services.{service}: several instances have the id {twice[0]!r}")
    return {service: instances_from(service, instances) for service, instances in services.items()}


def _read_json(data: bytes) -> dict[str, tuple[StaticInstance, ...]] | None:
    """None for what is not JSON or not right; the other reader says where."""
    with suppress(ValueError):
        orjson.loads(data)  # knows no half of a surrogate pair, of which nothing could be written anywhere
        return _File.model_validate(json.loads(data, object_pairs_hook=_unique)).services
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


class FileWatcher:
    """Yields what the file says, and again whenever that changes."""

    kind = "file"

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        self._clock = clock

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Raises `RegistryError` or `OSError` when the file cannot be read or understood."""
        while True:
            target = self._path.resolve()
            changes = _changes({self._path.parent, target.parent})
            try:
                # The first step of the reader turns the kernel's watch on; reading before that would miss
                # a change in between.
                event = asyncio.ensure_future(anext(changes))
                await asyncio.sleep(0)
                seen = None
                while self._path.resolve() == target:
                    at = self._clock()
                    if (stamp := self._stamp()) != seen:
                        seen = stamp
                        for update in await self._updates(services, at, seen[2]):
                            yield update
                    await event
                    event = asyncio.ensure_future(anext(changes))
            finally:
                event.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await event
                await changes.aclose()

    async def _updates(self, services: frozenset[str], at: float, size: int) -> list[Update]:
        if size < LARGE:
            return self._read(services, at)
        return await asyncio.to_thread(self._read, services, at)

    def _stamp(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _read(self, services: frozenset[str], at: float) -> list[Update]:
        found = parse(self._path.read_bytes(), str(self._path))
        return [Update(service, found.get(service), at, self.kind) for service in sorted(services)]


def _changes(directories: set[Path]) -> AsyncGenerator[set[Any], None]:
    from watchfiles import awatch

    return awatch(
        *directories, watch_filter=None, step=STEP, debounce=DEBOUNCE, recursive=False, rust_timeout=1000
    )
