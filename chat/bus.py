"""How instances tell each other that something happened in a session.

A notice is a hint, never data: messages are read from the store, so a lost, doubled or late notice costs at
most time (`Housekeeper` compares revisions every now and then and finds what a notice missed).

Instances on one machine share an SQLite file, and beside it a directory of unix datagram sockets, one per
process. That was chosen over polling the file (which costs every process a read many times a second, and the
user the polling interval) and over UDP on loopback (which needs ports and lets any local user listen in):
a notice takes well under a millisecond, an idle chat does nothing, the file's permissions decide who may take
part, and containers that share the file's volume share the bus.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import orjson

from chat.record import Origin
from chat.store import Store

_log = logging.getLogger("holdfast.chat.bus")

_MAX_DATAGRAM = 16 << 10
_RETRY = 0.01
_SUFFIX = ".sock"


class Kind(StrEnum):
    """What a notice says."""

    CHANGED = "changed"
    """The session has new messages or a new state."""
    TYPING = "typing"
    """Somebody is writing."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One hint about one session. `origin` says who is typing."""

    session: str
    kind: Kind
    origin: Origin = Origin.USER


Handler = Callable[[Notice], None]


class Bus(Protocol):
    """Carries notices to the other processes, never back to the sender."""

    poll: float
    """Seconds between two looks into the store for what notices missed."""

    async def open(self, handler: Handler) -> None:
        """Begins to deliver. Raises `OSError` when it cannot."""

    def publish(self, notice: Notice) -> None:
        """Never blocks and never fails."""

    async def close(self) -> None:
        """Delivers nothing more."""


class LocalBus:
    """No other process shares the store, or none can be told: the store is looked at often instead."""

    poll = 0.5

    async def open(self, handler: Handler) -> None:
        """Nobody will call the handler."""

    def publish(self, notice: Notice) -> None:
        """The hub has told this process's connections already."""

    async def close(self) -> None:
        """Nothing is open."""


class UnixBus:
    """One datagram socket per process in a common directory."""

    poll = 2.0

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        self._socket: socket.socket | None = None
        self._descriptor = -1
        # What each peer has yet to be told, in order; a dict because the same notice is told once.
        self._waiting: dict[str, dict[Notice, None]] = {}
        self._flush: asyncio.Handle | None = None
        self._handler: Handler | None = None

    async def open(self, handler: Handler) -> None:
        """Binds this process's socket. Raises `OSError` when the directory cannot be used."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._path(self._name))
        self._handler = handler
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._receive)

    def publish(self, notice: Notice) -> None:
        """Told to every peer once the current callback is done, with all that comes until then."""
        for peer in self._peers():
            self._waiting.setdefault(peer, {})[notice] = None
        if self._waiting and self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._send)

    async def close(self) -> None:
        """Sends what is waiting, if the peers take it, and removes the socket."""
        if self._socket is None:
            return
        if self._flush is not None:
            self._flush.cancel()
            self._send()
        if self._flush is not None:
            self._flush.cancel()
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        (self._directory / self._name).unlink(missing_ok=True)
        os.close(self._descriptor)

    def _path(self, name: str) -> str:
        # A socket's address has room for 107 bytes, the directory's path may be longer.
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def _peers(self) -> list[str]:
        try:
            names = [entry.name for entry in self._directory.iterdir()]
        except OSError as error:
            _log.warning("cannot list %s: %s", self._directory, error)
            return []
        return [name for name in names if name.endswith(_SUFFIX) and name != self._name]

    def _send(self) -> None:
        self._flush = None
        for peer in list(self._waiting):
            self._send_to(peer)
        if self._waiting:
            self._flush = asyncio.get_running_loop().call_later(_RETRY, self._send)

    def _send_to(self, peer: str) -> None:
        assert self._socket is not None
        notices = self._waiting[peer]
        try:
            while notices:
                some = list(notices)[:100]
                data = orjson.dumps([[n.session, n.kind, n.origin] for n in some])
                self._socket.sendto(data, self._path(peer))
                for notice in some:
                    del notices[notice]
        except BlockingIOError:
            # Its queue is full (10 datagrams): it is busy. What is told twice is still told once.
            return
        except (ConnectionRefusedError, FileNotFoundError):
            # The process that bound it is dead.
            (self._directory / peer).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot tell %s: %s", peer, error)
        del self._waiting[peer]

    def _receive(self) -> None:
        assert self._socket is not None and self._handler is not None
        for _ in range(64):
            try:
                data = self._socket.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                return
            try:
                notices = [Notice(session, Kind(kind), Origin(o)) for session, kind, o in orjson.loads(data)]
            except (ValueError, TypeError):
                _log.warning("a datagram on the bus is not a notice: %r", data[:80])
                continue
            for notice in notices:
                self._handler(notice)


def make_bus(url: str | None, store: Store) -> Bus:
    """`unix:DIRECTORY`, `local:`, or None: a directory beside the SQLite file, otherwise local.

    Raises `ValueError` for anything else.
    """
    if url is None:
        return LocalBus() if store.file is None else UnixBus(Path(f"{store.file}.bus"))
    scheme, colon, rest = url.partition(":")
    if scheme == "unix" and rest:
        return UnixBus(Path(rest))
    if scheme == "local" and colon and not rest:
        return LocalBus()
    raise ValueError("this is not a bus; write it as unix:/run/chat.bus or local:")
