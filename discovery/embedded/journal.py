"""Keeps the embedded registry's contents in a directory: whole snapshots, written atomically.

What was answered is on disk: `flush` returns when everything that changed before the call is, and changes
that come meanwhile share the next write. So a kill loses nothing that a registrar was told.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from discovery.disk import write_atomic
from discovery.embedded.definition import CheckDefinition, CheckStatus, ServiceDefinition
from discovery.embedded.kv import Pair
from discovery.embedded.store import Check, Service, Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _SavedCheck:
    definition: CheckDefinition
    status: CheckStatus
    output: str
    create_index: int
    modify_index: int


@dataclass(frozen=True, slots=True)
class _SavedService:
    definition: ServiceDefinition
    create_index: int
    modify_index: int
    checks: tuple[_SavedCheck, ...]


@dataclass(frozen=True, slots=True)
class _SavedPair:
    key: str
    value: str
    flags: int
    create_index: int
    modify_index: int


@dataclass(frozen=True, slots=True)
class _Saved:
    index: int
    services: tuple[_SavedService, ...]
    pairs: tuple[_SavedPair, ...]


_SAVED = TypeAdapter(_Saved)


def dump(store: Store) -> bytes:
    """The store's contents without anything that belongs to this process's clock."""
    services = tuple(
        _SavedService(
            service.definition,
            service.create_index,
            service.modify_index,
            tuple(
                _SavedCheck(c.definition, c.status, c.output, c.create_index, c.modify_index)
                for c in service.checks.values()
            ),
        )
        for service in store.services
    )
    pairs = tuple(
        _SavedPair(p.key, base64.b64encode(p.value).decode(), p.flags, p.create_index, p.modify_index)
        for p in store.kv
    )
    return _SAVED.dump_json(_Saved(store.topics.index, services, pairs))


def load(data: bytes, store: Store, now: float) -> None:
    """Puts what `dump` wrote into an empty store. Raises `ValueError` when it is something else."""
    saved = _SAVED.validate_json(data)
    services = [
        Service(
            s.definition,
            s.create_index,
            s.modify_index,
            {
                c.definition.id: Check(c.definition, c.status, c.create_index, c.modify_index, c.output)
                for c in s.checks
            },
        )
        for s in saved.services
    ]
    store.restore(services, saved.index, now)
    store.kv.restore(
        [Pair(p.key, base64.b64decode(p.value), p.flags, p.create_index, p.modify_index) for p in saved.pairs]
    )


class Journal:
    """Writes one store into one directory, which it holds a lock on while open."""

    def __init__(self, directory: Path, store: Store) -> None:
        self._path = directory / "registry.json"
        self._lock_path = directory / "lock"
        self._store = store
        self._lock: int | None = None
        self._written = 0
        self._writing: asyncio.Task[None] | None = None

    def open(self, now: float) -> None:
        """Takes the lock and reads what is there. Raises `OSError` with a message for the operator, also when
        another process has the lock.

        A file that cannot be understood is moved aside and reported: an empty registry fills itself within
        one heartbeat, one that does not start never does.
        """
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            why = error.strerror or str(error)
            raise OSError(error.errno, f"the registry cannot use the directory {folder}: {why}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise OSError(f"{self._path.parent} is in use by another registry") from None
        self._lock = lock
        try:
            load(self._path.read_bytes(), self._store, now)
        except FileNotFoundError:
            pass
        except (ValidationError, ValueError) as error:
            aside = self._path.with_suffix(".corrupt")
            self._path.replace(aside)
            _log.error("%s cannot be read (%s); moved to %s, starting empty", self._path, error, aside)
        self._written = self._store.topics.index

    async def flush(self) -> None:
        """Returns when all that changed before is on disk, or writing failed (which is logged)."""
        index = self._store.topics.index
        while self._written < index:
            if self._writing is None:
                self._writing = asyncio.create_task(self._write())
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Writes what is left and gives the lock back."""
        await self.flush()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _write(self) -> None:
        index = self._store.topics.index
        try:
            await asyncio.to_thread(write_atomic, self._path, dump(self._store))
        except OSError as error:
            _log.error("%s cannot be written: %s; a restart would lose the last changes", self._path, error)
        self._written = index
        self._writing = None
