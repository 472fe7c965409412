"""One chat instance: what it is made of, how it starts, and how it leaves without anybody noticing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp import WSCloseCode, web

from chat.answer import Engine, KnowledgeBase
from chat.bus import make_bus
from chat.client import Client, Services
from chat.http import Phase, make_app
from chat.hub import Hub
from chat.limit import RateLimit
from chat.metrics import Metrics
from chat.options import Options
from chat.responder import Housekeeper, Responder
from chat.session import Clock, Sessions
from chat.store import Store

if TYPE_CHECKING:
    from discovery.register import Registration

_log = logging.getLogger("holdfast.chat")


class ChatServer:
    """Everything one instance consists of. `start`, then `drain` or just `close`."""

    def __init__(self, options: Options, *, engine: Engine | None = None, clock: Clock = time.time) -> None:
        """Raises `ValueError` for a store or bus that cannot be, `OSError` when it cannot listen."""
        self.store = Store(options.store)
        self._bus = make_bus(options.bus, self.store)
        self._socket = _listen(options.host, options.port)
        self.options = _complete(options, self._socket.getsockname()[1])
        self.phase = Phase.STARTING
        self.metrics = Metrics(self.options.id, options.version)
        # Another incarnation under the same name must not be taken for this one.
        owner = f"{self.options.id[:100]}/{secrets.token_hex(8)}"
        sessions = Sessions(self.store, owner, clock, ttl=options.context_ttl)
        self._hub = Hub(self.store, self._bus)
        self._responder = Responder(sessions, engine or KnowledgeBase.load(), self._hub, self.metrics)
        self._housekeeper = Housekeeper(sessions, self._responder, self._hub, poll=self._bus.poll)
        limit = RateLimit(options.rate, options.burst, time.monotonic)
        self.services = Services(self.options.id, sessions, self._hub, self._responder, limit, self.metrics)
        self.metrics.watch("sessions", "Sessions with a connection here.", lambda: self._hub.sessions)
        self.metrics.watch("queue", "Sessions that wait for an answer.", lambda: self._responder.waiting)
        self._clients: set[Client] = set()
        self._gone = asyncio.Event()
        self._runner = web.AppRunner(make_app(self), access_log=None, shutdown_timeout=1.0)
        self._site: web.SockSite | None = None
        self._registration: Registration | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"http://{host}:{self.options.port}"

    async def start(self) -> None:
        """Opens the store and the bus, listens, registers. Raises `StoreError` or `OSError`."""
        await self.store.open()
        await self._bus.open(self._hub.notice)
        self._responder.start()
        self._housekeeper.start()
        await self._runner.setup()
        self._site = web.SockSite(self._runner, self._socket, backlog=1024)
        await self._site.start()
        self.phase = Phase.READY
        if self.options.registry is not None:
            self._registration = _registration(self.options)
            await self._registration.start()

    @contextlib.contextmanager
    def connected(self, client: Client) -> Iterator[None]:
        """Remembers a client for as long as its connection lasts."""
        self._clients.add(client)
        try:
            yield
        finally:
            self._clients.discard(client)
            if not self._clients:
                self._gone.set()

    async def drain(self) -> bool:
        """Leaves: not ready, deregistered, what is in hand finished, clients sent elsewhere (Close 1012).

        True when everything was done within the deadline. `close` must follow.
        """
        try:
            async with asyncio.timeout(self.options.deadline):
                self.phase = Phase.LEAVING
                await self._deregister()
                await asyncio.sleep(self.options.settle)
                self.phase = Phase.CLOSING
                if self._site is not None:
                    # A refused connection is tried elsewhere by any proxy; a 503 is not.
                    await self._site.stop()
                await asyncio.gather(*(self._send_away(client) for client in self._clients))
                while self._clients:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            _log.warning("%d clients were still here at the deadline", len(self._clients))
            return False
        return True

    async def close(self) -> None:
        """Ends everything at once; what is stored stays, and what is owed is answered by other instances."""
        await self._deregister()
        await self._runner.cleanup()
        self._socket.close()
        await self._housekeeper.close()
        await self._responder.close()
        await self._hub.close()
        await self._bus.close()
        await self.store.close()

    async def _send_away(self, client: Client) -> None:
        await asyncio.sleep(random.uniform(0.0, self.options.spread))
        await client.finish()
        client.close(WSCloseCode.SERVICE_RESTART)

    async def _deregister(self) -> None:
        registration, self._registration = self._registration, None
        if registration is not None:
            await registration.deregister()


async def serve(options: Options) -> int:
    """Runs an instance until SIGTERM or SIGINT and drains it; a second signal ends the process at once.

    Prints one line, `listening on URL`, when it is ready. Returns the exit code: 0, or 1 if the deadline cut
    something off. Raises `ValueError`, `OSError` or `StoreError` when it cannot start.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            # Nothing needs cleaning up: the store is as safe as after kill -9.
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = ChatServer(options)
    try:
        await server.start()
        sys.stdout.write(f"listening on {server.url}\n")
        sys.stdout.flush()
        await stop.wait()
        done = await server.drain()
    finally:
        await server.close()
    return 0 if done else 1


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        why = "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise OSError(error.errno, f"cannot listen on {where}: {why}") from error
    listener.setblocking(False)
    return listener


def _complete(options: Options, port: int) -> Options:
    machine = socket.gethostname()
    advertise = options.advertise or (machine if options.host in ("", "0.0.0.0", "::") else options.host)
    return replace(
        options, port=port, advertise=advertise, id=options.id or f"{options.service}-{machine}-{port}"
    )


def _registration(options: Options) -> Registration:
    from discovery.consul_registrar import ConsulRegistrar
    from discovery.model import Instance
    from discovery.register import Registration

    assert options.registry is not None
    metadata = {"version": options.version} if options.version else {}
    instance = Instance(
        service=options.service,
        id=options.id,
        host=options.advertise,
        port=options.port,
        weight=options.weight,
        metadata=metadata,
    )
    return Registration(ConsulRegistrar(options.registry), instance)
