"""Handing a running proxy over to a new process, and taking one over: both sides of `proxy.handover`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.copying import PlainTunnel
from proxy.downstream import Downstream
from proxy.endpoint import Endpoint, State
from proxy.frames import CloseCode, FrameFollower, encode_close
from proxy.handover import VARIABLE, Channel, HandoverError, Parked, can_detach, copy_of, release
from proxy.moving import MovingTunnel
from proxy.plane import Plane
from proxy.session import Tunnel
from proxy.table import RouteState
from proxy.tunnel import Origin

_SWEEP = 0.02
"""Seconds between looks for connections that have come to rest."""
_CONFIRM = 5.0
"""Seconds in which the old process must say that this one may accept."""
_UPGRADED = "the proxy is upgraded, please reconnect"

Places = dict[str, dict[str, str]]
"""The addresses of the instances that a process knows, by service and id."""

_log = logging.getLogger("holdfast.takeover")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a new process may take, before it is given up. Seconds."""

    ready: float = 30.0
    """To start, and to read its configuration."""
    up: float = 15.0
    """From having been given everything to being able to accept."""


class Successor:
    """The new process, as the old one sees it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel, limits: Limits) -> None:
        self.process = process
        self._channel = channel
        self._limits = limits
        self.entries: Sequence[Sequence[object]] = ()
        """Service and id of what it keeps entered in registries."""
        self._places: Places = {}
        self._given = 0
        self._closing: set[Tunnel] = set()
        """Tunnels that cannot go over, and have been told to end."""

    @property
    def pid(self) -> int:
        """Of the new process."""
        return self.process.pid

    @classmethod
    async def start(cls, command: Sequence[str], limits: Limits) -> Successor:
        """Start it with this command line, and wait until it is ready to take over.

        Raises `HandoverError` when it does not get there; it has ended then.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                # Not uvloop's: its child inherits a second copy of each standard stream, and so on.
                process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
                    command,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {VARIABLE: str(theirs.fileno())},
                )
        except OSError as error:
            ours.close()
            raise HandoverError(f"the new process cannot be started: {error}") from error
        successor = cls(process, Channel(asyncio.get_running_loop(), ours), limits)
        await successor._hear("ready", limits.ready)
        return successor

    async def give(self, facts: dict[str, Any], sockets: Sequence[socket.socket]) -> None:
        """Hand over the listening sockets and what is known. Raises `HandoverError`, as `start` does.

        When it returns the new process could accept, and waits for `confirm`.
        """
        await self._say("take", facts, [sock.fileno() for sock in sockets])
        heard = await self._hear("up", self._limits.up)
        self._places, self.entries = heard["places"], heard.get("entries", ())

    async def confirm(self) -> None:
        """Let the new process accept. Raises `HandoverError`, as `start` does."""
        await self._say("yours", {})

    async def dismiss(self) -> None:
        """End the new process after all, before `confirm`."""
        self._channel.close()
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    async def _say(self, kind: str, facts: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        try:
            await self._channel.send(kind, facts, descriptors)
        except HandoverError as error:
            await self.dismiss()
            raise HandoverError(f"the new process did not take over: {error}") from error

    async def _hear(self, kind: str, seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                _, facts, _ = await self._channel.expect(kind)
        except TimeoutError:
            why = f"it did not say {kind!r} within {seconds:g} s"
        except HandoverError as error:
            why = str(error)
        except asyncio.CancelledError:
            await self.dismiss()
            raise
        else:
            return facts
        await self.dismiss()
        code = self.process.returncode
        if code and code > 0:
            why += f" (exit code {code})"
        raise HandoverError(f"the new process did not take over: {why}")

    async def give_connections(
        self, plane: Plane, figures: Callable[[], dict[str, Any]], *, at_least: float, at_most: float
    ) -> None:
        """Hand over clients and tunnels as they come to rest; what cannot go over is ended.

        It takes `at_least` so many seconds, in which handshakes that were under way may come to an end and
        TLS clients are not closed while they are idle, and `at_most` so many. `figures` is asked in the end
        for what was counted here meanwhile.
        """
        began = plane.clock()
        for tunnel in plane.sessions:
            if tunnel.pinned:
                self._close(plane, tunnel, at_most)
        try:
            while (spent := plane.clock() - began) < at_least or plane.clients or len(plane.sessions):
                if spent >= at_most:
                    break
                await self._sweep(plane, at_most, shut=spent >= at_least)
                await asyncio.sleep(_SWEEP)
            await self._channel.send("figures", figures())
        except HandoverError as error:
            _log.error("the new process is gone, what is left stays here: %s", error)
            await plane.quiet()
        finally:
            self._channel.close()
        _log.info("handed over %d connections, %d tunnels stay", self._given, len(plane.sessions))

    async def _sweep(self, plane: Plane, at_most: float, *, shut: bool) -> None:
        for client in tuple(plane.clients):
            if client.pinned:
                client.leaving = True
                if shut:
                    client.shut_when_idle()
                continue
            saved = client.save()
            if saved is not None and can_detach(saved[1]):
                await self._send(plane, "client", saved[0], (saved[1],), client.let_go)
        for tunnel in plane.sessions:
            whole = tunnel.save()
            if tunnel in self._closing or whole is None or not all(map(can_detach, whole[1])):
                continue
            facts, transports = whole
            if self._places.get(facts["service"], {}).get(facts["instance"]) == facts["address"]:
                kind = "moving" if "relay" in facts else "plain"
                await self._send(plane, kind, facts, transports, tunnel.let_go)
            elif tunnel.endpoint.state in (State.READY, State.STARTING):
                # The new process does not know its instance. One that is leaving anyway is being seen to.
                self._close(plane, tunnel, at_most)

    def _close(self, plane: Plane, tunnel: Tunnel, at_most: float) -> None:
        self._closing.add(tunnel)
        service = plane.table.services.get(tunnel.endpoint.instance.service)
        spread = min(service.config.drain.jitter if service is not None else 0.0, at_most)
        delay = plane.random.uniform(0.0, spread)
        plane.loop.call_later(delay, tunnel.close, CloseCode.SERVICE_RESTART, _UPGRADED)

    async def _send(
        self,
        plane: Plane,
        kind: str,
        facts: dict[str, Any],
        transports: Sequence[asyncio.Transport],
        let_go: Callable[[], None],
    ) -> None:
        descriptors: list[int] = []
        try:
            for transport in transports:
                descriptors.append(copy_of(transport))
        except OSError:
            for descriptor in descriptors:
                os.close(descriptor)
            return  # there will be descriptors again once others have gone over
        # Up to here it was one synchronous run: nothing was read or written after the facts were made.
        let_go()
        for transport in transports:
            release(transport)
        try:
            await self._channel.send(kind, facts, descriptors)
        except HandoverError:
            await _adopt(plane, kind, facts, descriptors)
            raise
        self._given += 1
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

    async def fail(self, why: str) -> None:
        """Say why this process cannot take over."""
        with contextlib.suppress(HandoverError):
            await self._channel.send("failed", {"why": why})

    async def up(self, plane: Plane, entries: Sequence[Sequence[object]]) -> None:
        """Say that this process can accept, and which entries in registries it keeps; returns when it may.

        Whatever has become of the old one: if it did not want this process it would have ended it.
        """
        places: Places = {
            name: {id: endpoint.instance.address for id, endpoint in service.endpoints.items()}
            for name, service in plane.table.services.items()
        }
        try:
            await self._channel.send("up", {"places": places, "entries": entries})
            async with asyncio.timeout(_CONFIRM):
                await self._channel.expect("yours")
        except (HandoverError, TimeoutError) as error:
            _log.warning("the old process ended within the hand-over: %s", error)

    async def take_connections(self, plane: Plane, count: Callable[[dict[str, Any]], None]) -> None:
        """Go on with everything that the old process hands over, until it has nothing more.

        `count` is given the figures that the old process has counted meanwhile.
        """
        try:
            while (message := await self._channel.receive()) is not None:
                kind, facts, descriptors = message
                try:
                    if kind == "figures":
                        count(facts)
                    else:
                        await _adopt(plane, kind, facts, descriptors)
                except Exception:
                    _log.exception("what the old process handed over could not be used: %s", kind)
        except HandoverError as error:
            _log.warning("the old process ended within the hand-over: %s", error)
        finally:
            self._channel.close()


async def _adopt(plane: Plane, kind: str, facts: dict[str, Any], descriptors: list[int]) -> None:
    connections = [await Parked.attach(plane, descriptor) for descriptor in descriptors]
    if kind == "client":
        if plane.draining:
            connections[0].transport.close()
        else:
            Downstream.load(plane, facts, connections[0])
        return
    route, endpoint = _place(plane, facts)
    if route is None or endpoint is None:
        _turn_away(facts, connections)
        return
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
    if plane.draining:
        tunnel.close(CloseCode.SERVICE_RESTART, "the proxy is restarting")


def _place(plane: Plane, facts: dict[str, Any]) -> tuple[RouteState | None, Endpoint | None]:
    """The route and the endpoint that a tunnel belongs to, here: a route may have another name now."""
    routes = [route for route in plane.table.routes if route.service.name == facts["service"]]
    route = next((r for r in routes if r.name == facts["route"]), routes[0] if routes else None)
    service = plane.table.services.get(facts["service"])
    endpoint = service.endpoints.get(facts["instance"]) if service is not None else None
    if endpoint is not None and endpoint.instance.address != facts["address"]:
        endpoint = None
    return route, endpoint


def _turn_away(facts: dict[str, Any], connections: Sequence[Parked]) -> None:
    """The instance of a tunnel has vanished within the hand-over: say so where nothing is half said."""
    if "relay" in facts:
        boundary = not facts["relay"]["_server_open"]
    else:
        follower = facts["server"][1]
        boundary = follower is not None and FrameFollower.load(follower).boundary
    client, *_ = connections
    if boundary:
        client.transport.write(encode_close(CloseCode.SERVICE_RESTART, _UPGRADED))
    for connection in connections:
        connection.transport.close()
