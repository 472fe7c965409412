"""One holdfast process, put together: the only file that knows everybody.

Registry events come in through `App._updated`, which applies them to the table and hands what must be emptied
to the drainer, all in one synchronous run. Forwarding begins before anything that needs aiohttp is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from config.load import ConfigError, Problem, load, read
from config.plan import Change, Effect, diff
from config.schema import Address, Config, EmbeddedRegistry
from config.tree import Place
from discovery.model import Update, Watcher
from discovery.static import static_updates
from discovery.watch import Source, Supervisor
from proxy.accesslog import AccessLog
from proxy.allocator import Tide
from proxy.drain import Drainer
from proxy.endpoint import State
from proxy.errors import Reason
from proxy.events import EventLog
from proxy.frames import CloseCode
from proxy.handover import HandoverError
from proxy.health import Checker
from proxy.listener import Listener, remove_socket
from proxy.plane import Plane
from proxy.replacement import Group, Inheritance, Replacement
from proxy.table import Cause, Departure, Table
from proxy.takeover import Predecessor

if TYPE_CHECKING:
    from aiohttp import web

    from discovery.embedded.server import RegistryServer
    from proxy.sidecar import Sidecar

_TICK = 0.5
"""Seconds between the chores: access log, clock text, ends of ejections, the loop's lag."""
_SHUTDOWN_JITTER = 5.0
"""Most seconds over which the WebSockets of a proxy that ends are closed."""

_SETTLE = 2.0
"""Seconds in which whoever asks `/readyz` can have heard that a process leaves that is in no registry."""

_ADMIN_CONNECTIONS = 256
"""At once; each costs a descriptor that a client could have."""
_NO_ROUTES = "the file has none any more; that is taken over only on request (SIGHUP, holdfast reload)"

_log = logging.getLogger("holdfast")


class App:
    """The running proxy. `start`, then `drain`, then `close`; each may be called once."""

    def __init__(self, config: Config, path: str | None = None, command: Sequence[str] = ()) -> None:
        """`path` is the file that `config` came from; without one there is nothing to reload.

        `command` is the command line that a new process is started with when this one is to be replaced.
        """
        self._path = path
        self._config = config
        self._bound = config
        """The configuration whose admin and registry addresses are in use; a reload does not move them."""
        self.events = EventLog()
        self.table = Table(self.events.emit)
        self._plane: Plane | None = None
        self._checker: Checker | None = None
        self._drainer: Drainer | None = None
        self.listeners: list[Listener] = []
        """Those for clients."""
        self._admin: web.AppRunner | None = None
        self._admin_sockets: list[socket.socket] = []
        self._registry: RegistryServer | None = None
        self._registry_socket: socket.socket | None = None
        self._inheritance = Inheritance()
        self.replacement = Replacement(self, command if path is not None else ())
        """By a new process (`holdfast upgrade`)."""
        self._supervisor: Supervisor | None = None
        self._sidecar: Sidecar | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._chore: asyncio.TimerHandle | None = None
        self._tide = Tide()
        self.reloading = asyncio.Lock()
        """Held while the configuration changes."""

    # -- what the admin API sees (proxy.admin.control.Control) ---------------------------------------------

    @property
    def plane(self) -> Plane:
        """The data plane. Only once started."""
        assert self._plane is not None
        return self._plane

    @property
    def config(self) -> Config:
        """What holds now."""
        return self._config

    @property
    def sources(self) -> Sequence[Source]:
        """The registries as they are doing."""
        return self._supervisor.sources if self._supervisor is not None else ()

    @property
    def sidecar(self) -> Sidecar:
        """What is entered in registries. Only once started."""
        assert self._sidecar is not None
        return self._sidecar

    @property
    def registry_url(self) -> str:
        """Where instances register; only with an embedded registry that has started."""
        assert self._registry is not None
        return self._registry.url

    @property
    def addresses(self) -> list[Address]:
        """The listeners, with their real ports."""
        return [listener.address for listener in self.listeners]

    @property
    def admin_address(self) -> Address:
        """The admin API's, with its real port."""
        wanted = self._bound.admin.address
        if wanted.path or not self._admin_sockets:
            return wanted
        return Address(wanted.host, self._admin_sockets[0].getsockname()[1])

    def where(self) -> str:
        """The addresses of everything that listens, as one line for people."""
        listening = f"forwarding on {', '.join(map(str, self.addresses))}, admin on {self.admin_address}"
        return listening if self._registry is None else f"{listening}, registry on {self.registry_url}"

    def unready(self) -> list[str]:
        """Why no traffic should be sent here; empty when it is ready."""
        plane = self._plane
        if plane is None or not self.listeners:
            return ["it is not listening yet"]
        if plane.draining:
            return ["it is shutting down"]
        reasons = self._sidecar.unready() if self._sidecar is not None else []
        unknown = sorted(name for name, state in self.table.services.items() if not state.known)
        if unknown:
            reasons.append(f"no registry has answered yet for {', '.join(unknown)}")
        awaited = self._supervisor.awaited() if self._supervisor is not None else {}
        for service, registries in awaited.items():
            if service not in unknown:
                reasons.append(f"not every registry has answered yet for {service}: {', '.join(registries)}")
        return reasons

    async def leave(self, settle: float | None = None) -> None:
        """Not ready from now on, taken out of every registry; returns when everybody can have heard of it.

        Requests are served as before. `settle`: seconds to wait for that, instead of the configured ones.
        """
        if settle is None and not self._config.register:
            settle = _SETTLE
        await self.sidecar.leave(self._config.shutdown, settle)

    def depart(self, departures: Sequence[Departure], deadline: float | None) -> None:
        """Empty endpoints within `deadline` seconds, or their service's drain timeout when None."""
        assert self._drainer is not None
        self._drainer.depart(departures, deadline)

    async def plan(self, data: bytes | None, source: str) -> Sequence[Change]:
        """What a reload with `data` (None: the file as it is) would change. Raises `ConfigError`."""
        # In a thread, as for every file: a large one takes seconds, and the loop has to forward.
        if data is None:
            new = await asyncio.to_thread(self._read)
        else:
            new = await asyncio.to_thread(read, data, source=source, environ=os.environ)
        return diff(self._config, new)

    async def reload(self, *, asked: bool = True) -> Sequence[Change]:
        """Take over the file: all of it, or nothing. Raises `ConfigError`.

        Unless somebody has `asked` for it, a file that has lost all its routes is refused: it is being
        written, or a disk is full.
        """
        async with self.reloading:
            if self.replacement.successor is not None:
                return ()  # the new process has begun with the file as it is
            try:
                new = await asyncio.to_thread(self._read)
                if not asked and self._config.routes and not new.routes:
                    raise ConfigError([Problem(Place(0, self._path or ""), "routes", _NO_ROUTES)])
                self._renew_certificates()
                changes = diff(self._config, new)
                if changes:
                    self._switch(new)
            except ConfigError as error:
                self.events.emit("reload_refused", problems=[str(problem) for problem in error.problems])
                raise
        if changes:
            self.events.emit("reloaded", changes=[str(change) for change in changes])
        for change in changes:
            if change.effect is Effect.RESTART:
                _log.warning("needs a restart to take effect: %s", change)
        return changes

    # -- life ----------------------------------------------------------------------------------------------

    async def start(self, predecessor: Predecessor | None = None) -> None:
        """Listen and forward, then start the registry, discovery and the admin API.

        With a `predecessor`, go on from where that process is. Raises `OSError` with a message for the
        operator when an address or a file cannot be had, and `HandoverError`.
        """
        config = self._config
        loop = asyncio.get_running_loop()
        plane = self._plane = Plane(loop, self.table, AccessLog(config.access_log.path))
        plane.configure(config)
        self._drainer = Drainer(plane, emit=self.events.emit)
        self._checker = Checker(plane, self._drainer.depart)
        inheritance = self._inheritance = Inheritance(predecessor)
        if predecessor is None:
            self.table.configure(config, plane.clock())
        else:
            # Everything slow comes before the old process lets go.
            await loop.run_in_executor(None, _import_the_rest)
            await inheritance.take(plane, config)
        self._admin_sockets = inheritance.claim("admin", config.admin.address)
        for listen in config.listen:
            self.listeners.append(Listener(plane, listen, inheritance.claim("listen", listen.address)))
        for update in static_updates(config.services, plane.clock()):
            self._updated(update)
        plane.wheel.start(loop)
        self._chores(loop.time())
        if predecessor is None:
            await self._accept()
            # Importing aiohttp takes longer than all that was done so far: clients need not wait for it.
            await loop.run_in_executor(None, _import_the_rest)
        await self._start_discovery(inheritance.registry)
        await self._enter(inheritance.entries)
        admin = self._admin = await self._make_admin()
        # What start-up made lives for ever: leave it out of every later collection.
        gc.collect()
        gc.freeze()
        if predecessor is not None:
            # Nothing can fail from here on: so nobody is accepted here whom the old process could not serve.
            # And nothing takes long: what is handed over waits.
            await predecessor.up(plane, self.sidecar.keys)
            await self._accept()
            self._go_on()
        await self._accept_admin(admin)
        self.events.emit(
            "started",
            listen=[str(address) for address in self.addresses],
            admin=str(self.admin_address),
        )

    async def _accept(self) -> None:
        for listener in self.listeners:
            await listener.start()

    async def _start_discovery(self, contents: bytes) -> None:
        from discovery.build import make_watcher

        watchers: list[Watcher] = []
        for registry in self._config.registry:
            if isinstance(registry, EmbeddedRegistry):
                from discovery.embedded.server import RegistryServer

                self._registry = RegistryServer(registry.data)
                if self._registry_socket is None:
                    self._registry_socket, *others = self._inheritance.claim("registry", registry.listen)
                    for sock in others:
                        sock.close()
                await self._registry.start(
                    registry.listen,
                    sock=self._registry_socket.dup(),
                    contents=contents if registry.data is None else b"",  # else it is all in the directory
                )
                watchers.append(self._registry.watcher())
            else:
                watchers.append(make_watcher(registry))
        if not watchers:
            return
        assert self._checker is not None
        state = self._config.state
        self._supervisor = Supervisor(
            watchers,
            self._updated,
            _watched(self._config),
            confirm=self._checker.ask,
            emit=self.events.emit,
            guard=self._config.guard,
            directory=Path(state) if state is not None else None,
            inherited={
                name: tuple(endpoint.instance for endpoint in self.table.services[name].endpoints.values())
                for name in _watched(self._config)
                if self.table.services[name].known
            },
            clock=self.plane.clock,
        )
        self._tasks.append(asyncio.create_task(self._supervisor.run(), name="discovery"))

    async def _enter(self, inherited: Sequence[Sequence[object]]) -> None:
        """Begin with the sections `register`."""
        from proxy.sidecar import Sidecar, places_of

        places = places_of(self._config.registry, lambda: self.registry_url, self._watch_own)
        self._sidecar = Sidecar(places, self.events.emit, clock=self.plane.clock)
        await self._sidecar.start(self._config.register, inherited)

    def _watch_own(self) -> Watcher:
        assert self._registry is not None
        return self._registry.watcher()

    async def _make_admin(self) -> web.AppRunner:
        from discovery.door import Runner
        from proxy.admin import make_app

        runner = Runner(make_app(self), most=_ADMIN_CONNECTIONS, shutdown_timeout=1.0)
        await runner.setup()
        return runner

    async def _accept_admin(self, runner: web.AppRunner) -> None:
        from aiohttp import web

        for sock in self._admin_sockets:
            await web.SockSite(runner, sock.dup()).start()

    async def drain(self) -> None:
        """Leave the registries, stop accepting, let everything finish, then cut what is left: all of it
        within `shutdown` seconds.

        A process that has been replaced has given its clients that time already.
        """
        plane = self.plane
        began, limit = plane.clock(), self._config.shutdown
        if self.replacement.successor is None:
            # Whoever has not heard of it yet still comes, and is served.
            await self.sidecar.leave(limit)
            await self.sidecar.outlive(limit - (plane.clock() - began))
        plane.draining = True
        limit -= plane.clock() - began
        if self.replacement.over.is_set():
            if not plane.clients and not len(plane.sessions):
                return
            limit = min(limit, _SHUTDOWN_JITTER)
        limit = max(0.0, limit)
        self.events.emit(
            "draining", clients=len(plane.clients), tunnels=len(plane.sessions), seconds=round(limit, 1)
        )
        self._stop_listening()
        for client in tuple(plane.clients):
            client.shut_when_idle()
        spread = min(_SHUTDOWN_JITTER, limit / 2)
        for tunnel in plane.sessions:
            plane.loop.call_later(
                plane.random.uniform(0.0, spread),
                tunnel.close,
                CloseCode.SERVICE_RESTART,
                "the proxy is restarting",
            )
        try:
            async with asyncio.timeout(limit):
                await plane.quiet()
        except TimeoutError:
            self.events.emit("drain_deadline", clients=len(plane.clients), tunnels=len(plane.sessions))
            for tunnel in plane.sessions:
                tunnel.abort()
            for client in tuple(plane.clients):
                client.cut(Reason.DRAINING)

    async def close(self) -> None:
        """End everything that is left."""
        await self.replacement.close()
        if self._plane is not None:
            self._plane.resolver.close()
        self._stop_listening()
        if self._sidecar is not None:
            await self._sidecar.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._checker is not None:
            await self._checker.close()
        if self._drainer is not None:
            self._drainer.close()
        if self._registry is not None:
            await self._registry.close()
        if self._admin is not None:
            await self._admin.cleanup()
        for sock in self._admin_sockets:
            sock.close()
        if self._admin_sockets and self.replacement.successor is None:
            remove_socket(self._bound.admin.address)
        if self._registry_socket is not None:
            self._registry_socket.close()
        if self._chore is not None:
            self._chore.cancel()
        if self._plane is not None:
            self._plane.wheel.stop()
            self._plane.log.close()

    def _stop_listening(self) -> None:
        for listener in self.listeners:
            listener.stop(for_good=self.replacement.successor is None)

    # -- replacement (proxy.replacement.Estate) ------------------------------------------------------------

    async def upgrade(self) -> int:
        """Start a new process that takes everything over; its process id, once it accepts.

        Raises `HandoverError` when it does not get there: this process goes on as if nothing had happened.
        """
        return await self.replacement.begin()

    def upgrade_soon(self) -> None:
        """Upgrade from a signal: what goes wrong goes to the log."""

        async def upgrade() -> None:
            with contextlib.suppress(HandoverError):
                await self.upgrade()

        self.plane.spawn(asyncio.ensure_future(upgrade()))

    def sockets(self) -> list[Group]:
        """Everything that listens."""
        groups: list[Group] = [("admin", self._bound.admin.address, self._admin_sockets)]
        groups += [("listen", listener.config.address, listener.sockets) for listener in self.listeners]
        if self._registry_socket is not None:
            groups.append(("registry", _embedded(self._bound).listen, [self._registry_socket]))
        return groups

    @property
    def ending(self) -> bool:
        """Whether it has begun to leave, and takes no other way out."""
        return self.plane.draining or self.sidecar.leaving

    def entries(self) -> list[tuple[str, str, bool]]:
        """What it has entered in registries: service, id, and whether it counts as up."""
        return self.sidecar.save()

    async def renew_entries(self) -> None:
        """Keep them after all."""
        await self.sidecar.renew()

    async def close_registry(self) -> bytes | None:
        """Stop serving the embedded registry; its contents, None when there is none."""
        if self._registry is None:
            return None
        await self._registry.close()
        return self._registry.contents()

    async def reopen_registry(self, contents: bytes) -> None:
        """Serve it again after all."""
        await self._stop_tasks("discovery")
        await self._start_discovery(contents)

    async def stop_accepting(self) -> None:
        """Accept nothing more: another process does from now on."""
        self._stop_listening()
        if self._admin is not None:
            for site in tuple(self._admin.sites):
                await site.stop()

    async def retire(self) -> None:
        """End everything but the connections of clients."""
        await self._stop_tasks("discovery", "config")
        await self.sidecar.release(self.replacement.kept_entries)
        if self._checker is not None:
            await self._checker.close()
        if self._admin is not None:
            await self._admin.cleanup()

    def _go_on(self) -> None:
        """Begin to take over the connections of the process that this one replaces."""
        self._inheritance.drop_unclaimed()
        # First, so that tunnels on these find the time that they have.
        leaving = (e for s in self.table.services.values() for e in s.endpoints.values())
        self.depart([Departure(e, Cause.DRAINING) for e in leaving if e.state is State.DRAINING], None)
        taking = self._inheritance.take_connections(self.plane)
        self._tasks.append(asyncio.create_task(taking, name="takeover"))

    async def _stop_tasks(self, *names: str) -> None:
        stopped = [task for task in self._tasks if task.get_name() in names]
        self._tasks = [task for task in self._tasks if task not in stopped]
        for task in stopped:
            task.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)

    def watch_file(self) -> None:
        """Reload whenever the configuration file's content changes."""
        if self._path is not None:
            self._tasks.append(asyncio.create_task(self._watch_file(self._path), name="config"))

    def reload_soon(self) -> None:
        """Reload from a signal: what is wrong goes to the log."""
        self.plane.spawn(asyncio.ensure_future(self._try_reload()))

    # -- inside --------------------------------------------------------------------------------------------

    async def _watch_file(self, path: str) -> None:
        from config.watch import watch

        await watch(path, partial(self._try_reload, asked=False))

    async def _try_reload(self, *, asked: bool = True) -> None:
        if self.replacement.successor is not None:
            return
        try:
            changes = await self.reload(asked=asked)
        except ConfigError as error:
            _log.error("the configuration stays as it was:\n%s", error)
        else:
            _log.info("reloaded: %d changes", len(changes))

    def _read(self) -> Config:
        if self._path is None:
            where = Place(0, "configuration")
            raise ConfigError([Problem(where, "", "this process was started without a file to reload")])
        return load(self._path, environ=os.environ)

    def _renew_certificates(self) -> None:
        for listener in self.listeners:
            try:
                listener.renew(listener.config)
            except OSError as error:
                raise ConfigError([Problem(Place(0, self._path or ""), "listen", str(error))]) from None

    def _switch(self, new: Config) -> None:
        """Make `new` what holds. Only what comes first can fail, and then nothing has changed."""
        plane = self.plane
        if new.access_log != self._config.access_log:
            try:
                log = AccessLog(new.access_log.path)
            except OSError as error:
                raise ConfigError(
                    [Problem(Place(0, self._path or ""), "access_log.path", str(error))]
                ) from None
            plane.log.close()
            plane.log = log
        former, self._config = self._config, new
        plane.configure(new)
        self.depart(self.table.configure(new, plane.clock()), None)
        for update in static_updates(new.services, plane.clock()):
            self._updated(update)
        assert self._checker is not None
        for name in {*former.services, *new.services}:
            self._checker.sync(name)
        if self._supervisor is not None:
            self._supervisor.set_services(_watched(new))
        if new.register != former.register:
            self.sidecar.configure(new.register)

    def _updated(self, update: Update) -> None:
        """A full set of a service's instances has come: nothing starts on those that are not in it."""
        plane = self.plane
        departures = self.table.apply(update, plane.clock())
        swapped = plane.clock()
        for departure in departures:
            plane.counters.observe_eviction(update.source, departure.cause.value, swapped - update.at)
        self.depart(departures, None)
        assert self._checker is not None
        self._checker.sync(update.service)

    def _chores(self, due: float) -> None:
        plane = self.plane
        now = plane.loop.time()
        plane.counters.loop_lag.observe(max(0.0, now - due))
        plane.log.flush()
        plane.tick()
        self.table.expire(plane.clock())
        self.table.compare(plane.clock())
        self._tide.look(plane.counters.connections_open + plane.counters.tunnels_open)
        self._chore = plane.loop.call_later(_TICK, self._chores, now + _TICK)


def _watched(config: Config) -> frozenset[str]:
    """The services whose instances come from a registry."""
    return frozenset(name for name, service in config.services.items() if service.instances is None)


def _embedded(config: Config) -> EmbeddedRegistry:
    return next(registry for registry in config.registry if isinstance(registry, EmbeddedRegistry))


def _import_the_rest() -> None:
    for module in ("aiohttp.web", "proxy.admin", "proxy.sidecar", "discovery.build"):
        importlib.import_module(module)
