"""Handing a running proxy over to a new process, and taking one over: both sides of `proxy.handover`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from proxy.downstream import Downstream
from proxy.endpoint import Endpoint
from proxy.handover import VARIABLE, Channel, HandoverError, Parked, can_detach, detach
from proxy.moving import MovingTunnel
from proxy.plane import Plane
from proxy.table import RouteState
from proxy.tunnel import Origin, PlainTunnel

READY_TIME = 30.0
"""Seconds that a new process may take to start, before it is given up."""
UP_TIME = 15.0
"""Seconds between having been given everything and accepting."""
_SWEEP = 0.02
"""Seconds between looks for connections that have come to rest."""

_log = logging.getLogger("holdfast.takeover")


class Successor:
    """The new process, as the old one sees it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.process = process
        self._channel = channel

    @property
    def pid(self) -> int:
        """Of the new process."""
        return self.process.pid

    @classmethod
    async def start(cls, arguments: Sequence[str]) -> Successor:
        """Start it with these arguments of the interpreter, and wait until it is ready to take over.

        Raises `HandoverError` when it does not get there; it has ended then.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                pass_fds=[theirs.fileno()],
                env=os.environ | {VARIABLE: str(theirs.fileno())},
            )
        successor = cls(process, Channel(asyncio.get_running_loop(), ours))
        await successor._hear("ready", READY_TIME)
        return successor

    async def give(self, facts: dict[str, Any], sockets: Sequence[socket.socket]) -> None:
        """Hand over the listening sockets and what is known. Raises `HandoverError`, as `start` does."""
        try:
            await self._channel.send("take", facts, [sock.fileno() for sock in sockets])
        except HandoverError:
            await self._end()
            raise
        await self._hear("up", UP_TIME)

    async def _hear(self, kind: str, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._channel.expect(kind)
        except (HandoverError, TimeoutError) as error:
            await self._end()
            code = self.process.returncode
            why = (
                f"it did not say {kind!r} within {seconds:g} s"
                if isinstance(error, TimeoutError)
                else str(error)
            )
            raise HandoverError(f"the new process did not take over (exit code {code}): {why}") from error

    async def _end(self) -> None:
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def give_connections(self, plane: Plane, seconds: float) -> None:
        """Hand over clients and tunnels as they come to rest, for at most so many seconds."""
        given = 0
        until = plane.clock() + seconds
        try:
            while (plane.clients or len(plane.sessions)) and plane.clock() < until:
                given += await self._sweep(plane)
                await asyncio.sleep(_SWEEP)
        except HandoverError as error:
            _log.error("the new process is gone, what is left stays here: %s", error)
            await plane.quiet()
        finally:
            self._channel.close()
        _log.info("handed over %d connections, %d tunnels stay", given, len(plane.sessions))

    async def _sweep(self, plane: Plane) -> int:
        given = 0
        for client in tuple(plane.clients):
            saved = client.save()
            if saved is not None and can_detach(saved[1]):
                facts, transport = saved
                client.let_go()
                await self._send("client", facts, (transport,))
                given += 1
        for tunnel in plane.sessions:
            whole = tunnel.save()
            if whole is not None and all(map(can_detach, whole[1])):
                facts, transports = whole
                tunnel.let_go()
                await self._send("moving" if "relay" in facts else "plain", facts, transports)
                given += 1
        return given

    async def _send(self, kind: str, facts: dict[str, Any], transports: Sequence[asyncio.Transport]) -> None:
        # Up to here it was one synchronous run: nothing was read or written after the facts were made.
        descriptors = [detach(transport) for transport in transports]
        try:
            await self._channel.send(kind, facts, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


class Predecessor:
    """The old process, as the new one sees it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def reach(cls, descriptor: int) -> Predecessor:
        """The process at the other end of an inherited descriptor (see `proxy.handover.VARIABLE`)."""
        os.set_inheritable(descriptor, False)
        return cls(Channel(asyncio.get_running_loop(), socket.socket(fileno=descriptor)))

    async def take(self) -> tuple[dict[str, Any], list[socket.socket]]:
        """Say that this process is ready; what it is told, and listening sockets. Raises `HandoverError`."""
        await self._channel.send("ready", {})
        _, facts, descriptors = await self._channel.expect("take")
        return facts, [socket.socket(fileno=descriptor) for descriptor in descriptors]

    async def up(self) -> None:
        """Say that this process accepts. Raises `HandoverError`."""
        await self._channel.send("up", {"pid": os.getpid()})

    async def take_connections(self, plane: Plane) -> None:
        """Go on with everything that the old process hands over, until it has nothing more."""
        try:
            while (message := await self._channel.receive()) is not None:
                kind, facts, descriptors = message
                try:
                    await _adopt(plane, kind, facts, descriptors)
                except Exception:
                    _log.exception("a connection could not be taken over")
        except HandoverError as error:
            _log.warning("the old process ended within the hand-over: %s", error)
        finally:
            self._channel.close()


async def _adopt(plane: Plane, kind: str, facts: dict[str, Any], descriptors: list[int]) -> None:
    connections = [await Parked.attach(plane, descriptor) for descriptor in descriptors]
    if kind == "client":
        Downstream.load(plane, facts, connections[0])
        return
    route, endpoint = _place(plane, facts)
    if route is None or endpoint is None:
        for connection in connections:
            connection.transport.abort()
        raise LookupError(f"the tunnel's route {facts['route']} or instance {facts['instance']} is gone")
    origin = Origin(*facts["origin"])
    lease = endpoint.enter(plane.clock())
    tunnel: MovingTunnel | PlainTunnel
    if kind == "moving":
        tunnel = MovingTunnel(
            plane, route, lease, origin, facts["handshake"], facts["protocol"], secure=facts["secure"]
        )
    else:
        tunnel = PlainTunnel(plane, route, lease, origin, websocket=facts["websocket"])
    tunnel.load(facts, *connections)


def _place(plane: Plane, facts: dict[str, Any]) -> tuple[RouteState | None, Endpoint | None]:
    """The route and the endpoint that a tunnel belongs to, here."""
    route = next((r for r in plane.table.routes if r.name == facts["route"]), None)
    service = plane.table.services.get(facts["service"])
    endpoint = service.endpoints.get(facts["instance"]) if service is not None else None
    if endpoint is not None and endpoint.instance.address != facts["address"]:
        endpoint = None
    return route, endpoint
