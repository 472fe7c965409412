"""One process takes the place of another: what the app has to give for that, and in which order it goes.

`proxy.takeover` knows how the two processes speak; this file knows what must happen before what, so that the
old one can go on as if nothing had happened until the new one is there, and nobody is served by both or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from config.schema import Address, Config
from proxy.events import EventLog
from proxy.figures import add_figures, figures_of, grown, set_figures
from proxy.handover import HandoverError
from proxy.listener import Listener, open_sockets
from proxy.plane import Plane
from proxy.takeover import Limits, Predecessor, Successor

_HANDSHAKE = 1.0
"""Seconds in which a TLS handshake or PROXY header that is under way when the proxy is replaced may end."""

Group = tuple[str, Address, Sequence[socket.socket]]
"""What listening sockets are for, the address as it is configured, and the sockets."""


class Estate(Protocol):
    """A running process, as far as it can be handed over."""

    events: EventLog

    @property
    def plane(self) -> Plane:
        """Its data plane."""

    @property
    def config(self) -> Config:
        """What holds now."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """Those for clients."""

    @property
    def reloading(self) -> asyncio.Lock:
        """Held while the configuration changes."""

    @property
    def ending(self) -> bool:
        """Whether it has begun to leave, and takes no other way out."""

    def sockets(self) -> list[Group]:
        """Everything that listens."""

    def entries(self) -> list[tuple[str, str, bool]]:
        """What it has entered in registries: service, id, and whether it counts as up."""

    async def renew_entries(self) -> None:
        """Keep them after all."""

    async def close_registry(self) -> bytes | None:
        """Stop serving the embedded registry; its contents, None when there is none."""

    async def reopen_registry(self, contents: bytes) -> None:
        """Serve it again after all."""

    async def stop_accepting(self) -> None:
        """Accept nothing more: another process does from now on."""

    async def retire(self) -> None:
        """End everything but the connections of clients."""


class Replacement:
    """The replacement of this process by a new one: at most one, once."""

    def __init__(self, estate: Estate, command: Sequence[str], limits: Limits | None = None) -> None:
        """`command` is the command line of the new process; none when it could not be started again."""
        self._estate = estate
        self._command = command
        self._limits = limits or Limits()
        self._under_way = asyncio.Lock()
        self._successor: Successor | None = None
        self._giving: asyncio.Task[None] | None = None
        self.over = asyncio.Event()
        """The new process has everything that it can have."""
        self.on_successor: Callable[[int], None] = lambda pid: None
        """Told of the process that will take this one's place, just before it does."""

    @property
    def kept_entries(self) -> Sequence[Sequence[object]]:
        """Service and id of what the process that has taken this one's place keeps entered."""
        return self._successor.entries if self._successor is not None else ()

    @property
    def successor(self) -> int | None:
        """The process that has taken this one's place; None while there is none."""
        return self._successor.pid if self._successor is not None else None

    async def begin(self) -> int:
        """Start a new process and let it accept; the hand-over of connections goes on by itself.

        Returns its process id. Raises `HandoverError` when it does not get there: this process goes on as if
        nothing had happened.
        """
        estate = self._estate
        if not self._command:
            raise HandoverError("this process was started without a file that a new one could read")
        if estate.ending:
            raise HandoverError("this process is shutting down")
        if self._under_way.locked() or self._successor is not None:
            raise HandoverError("an upgrade is under way")
        async with self._under_way, estate.reloading:
            estate.events.emit("upgrade_started")
            try:
                successor = await Successor.start(self._command, self._limits)
                figures = await self._give(successor)
            except HandoverError as error:
                estate.events.emit("upgrade_failed", reason=str(error))
                raise
            self._successor = successor
            await estate.stop_accepting()
        estate.events.emit("upgraded", pid=successor.pid)
        self._giving = asyncio.create_task(self._give_connections(successor, figures))
        return successor.pid

    async def _give(self, successor: Successor) -> dict[str, Any]:
        """Hand over what the new process needs, and let it accept; the figures that it begins with."""
        estate = self._estate
        plane = estate.plane
        groups = estate.sockets()
        # Two processes must not answer for one registry: callers wait in the socket's queue meanwhile.
        contents = await estate.close_registry()
        try:
            figures = figures_of(plane)
            facts = {
                "figures": figures,
                "table": plane.table.save(),
                "registry": contents or b"",
                "entries": estate.entries(),
                "sockets": [(_name(purpose, address), len(socks)) for purpose, address, socks in groups],
            }
            await successor.give(facts, [sock for _, _, socks in groups for sock in socks])
            if estate.ending:
                raise HandoverError("this process is shutting down")
            self.on_successor(successor.pid)
            await successor.confirm()
        except BaseException:
            await successor.dismiss()
            if contents is not None:
                await estate.reopen_registry(contents)
            await estate.renew_entries()
            raise
        return figures

    async def _give_connections(self, successor: Successor, figures: dict[str, Any]) -> None:
        """Let the new process have every connection that can change its process."""
        estate = self._estate
        plane = estate.plane
        try:
            await estate.retire()
            clients, tunnels = len(plane.clients), len(plane.sessions)
            closing = sum(tunnel.pinned for tunnel in plane.sessions)
            estate.events.emit("handing_over", clients=clients, tunnels=tunnels, closing=closing)
            shaking = any(one.config.tls or one.config.proxy_protocol for one in estate.listeners)
            await successor.give_connections(
                plane,
                lambda: grown(figures_of(plane), figures),
                at_least=_HANDSHAKE if shaking else 0.0,
                at_most=estate.config.shutdown,
            )
        finally:
            self.over.set()

    async def close(self) -> None:
        """Hand over nothing more."""
        if self._giving is not None:
            self._giving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._giving


class Inheritance:
    """What a process begins with: the old one's listening sockets and what it knew, or nothing."""

    def __init__(self, predecessor: Predecessor | None = None) -> None:
        self._predecessor = predecessor
        self._sockets: dict[str, list[list[socket.socket]]] = {}
        self.registry = b""
        """The contents of the old process's embedded registry."""
        self.entries: Sequence[Sequence[object]] = ()
        """What the old process has entered in registries."""

    async def take(self, plane: Plane, config: Config) -> None:
        """Take over what the old process knows. Raises `HandoverError`."""
        assert self._predecessor is not None
        facts, sockets = await self._predecessor.take()
        for name, number in facts["sockets"]:
            self._sockets.setdefault(name, []).append(sockets[:number])
            del sockets[:number]
        plane.table.load(facts["table"], config, plane.clock())
        set_figures(plane, facts["figures"])
        self.registry = facts["registry"]
        self.entries = facts.get("entries", ())  # a version before 0.2 enters nothing

    def claim(self, purpose: str, address: Address) -> list[socket.socket]:
        """Listening sockets for an address: those of the old process, else new ones. Raises `OSError`."""
        groups = self._sockets.get(_name(purpose, address))
        return groups.pop(0) if groups else open_sockets(address, private=purpose == "admin")

    def drop_unclaimed(self) -> None:
        """Close what nobody has claimed: the new configuration does not listen there."""
        for sock in (sock for groups in self._sockets.values() for group in groups for sock in group):
            if sock.family == socket.AF_UNIX:
                Path(sock.getsockname()).unlink(missing_ok=True)
            sock.close()
        self._sockets.clear()

    async def take_connections(self, plane: Plane) -> None:
        """Go on with every connection that the old process hands over."""
        assert self._predecessor is not None
        await self._predecessor.take_connections(plane, lambda more: add_figures(plane, more))


def _name(purpose: str, address: Address) -> str:
    return f"{purpose} {address}"
