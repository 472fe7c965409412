"""The real data plane in this process, between a raw client and an origin that a test plays by hand."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from config.schema import Address, Config, Listen
from discovery.model import Instance, Status, Update
from proxy.drain import Drainer
from proxy.endpoint import Endpoint
from proxy.listener import Listener
from proxy.plane import Plane
from proxy.table import Table

PATIENCE = 5.0
"""Seconds after which a test that waits for bytes is a failed test."""


class Clock:
    """Moves only when it is told to, and then takes the plane's timers along."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.plane: Plane | None = None

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything that became due happen."""
        self.now += seconds
        assert self.plane is not None
        self.plane.wheel.advance()


class Lines:
    """An access log that keeps what it is given."""

    enabled = True

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def append(self, line: tuple[Any, ...]) -> None:
        self.lines.append(line)

    @property
    def outcomes(self) -> list[tuple[int, str]]:
        """Status and reason code of each request, in the order in which they ended."""
        return [(line[9], line[10]) for line in self.lines]


class Wire:
    """One raw connection, on either side of the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(mark)

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(count)

    async def some(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read(1 << 16)

    async def rest(self) -> bytes:
        """Everything until the other side's end. Raises `ConnectionResetError` when it was broken off."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    async def ended(self) -> bool:
        """Whether the other side has closed, in order or not, without another byte."""
        try:
            return await self.rest() == b""
        except ConnectionResetError:
            return True

    async def head(self) -> Head:
        return Head(await self.until(b"\r\n\r\n"))

    async def message(self) -> tuple[Head, bytes]:
        """A response with a Content-Length or in chunks, and its decoded body."""
        head = await self.head()
        if head.get("transfer-encoding") == "chunked":
            return head, await self.chunks()
        return head, await self.exactly(int(head.get("content-length") or 0))

    async def chunks(self) -> bytes:
        body = b""
        while size := int((await self.until(b"\r\n")).split(b";")[0], 16):
            body += await self.exactly(size)
            assert await self.exactly(2) == b"\r\n"
        while (await self.until(b"\r\n")) != b"\r\n":
            pass
        return body

    def finish(self) -> None:
        """End the sending side only."""
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Break the connection off with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Head:
    """A start line and its fields, as they were on the wire."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.line, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        self.fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field.lower() == name]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)


class Origin:
    """An instance: accepts connections and leaves what is said on them to the test."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.accepted = 0
        self.wires: list[Wire] = []
        self._waiting: asyncio.Queue[Wire] = asyncio.Queue()
        self.server: asyncio.Server
        self.instance: Instance

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.accepted += 1
        self.wires.append(wire)
        self._waiting.put_nowait(wire)

    async def accept(self) -> Wire:
        async with asyncio.timeout(PATIENCE):
            return await self._waiting.get()

    def serve(self, answer: bytes | Callable[[Wire, Head], Awaitable[None]]) -> None:
        """Answer every request (with a Content-Length at most) on every connection from now on."""
        self._waiting = _Serving(answer)  # type: ignore[assignment]

    async def stop(self) -> None:
        self.server.close()
        for wire in self.wires:
            wire.writer.transport.abort()


class _Serving:
    """Stands in for the queue of connections, and serves each."""

    def __init__(self, answer: bytes | Callable[[Wire, Head], Awaitable[None]]) -> None:
        self.answer = answer
        self.tasks: set[asyncio.Task[None]] = set()

    def put_nowait(self, wire: Wire) -> None:
        task = asyncio.ensure_future(self._serve(wire))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, wire: Wire) -> None:
        try:
            while True:
                head = Head(await wire.reader.readuntil(b"\r\n\r\n"))
                if head.get("transfer-encoding") == "chunked":
                    await wire.chunks()
                await wire.reader.readexactly(int(head.get("content-length") or 0))
                if isinstance(self.answer, bytes):
                    wire.send(self.answer)
                else:
                    await self.answer(wire, head)
        except (EOFError, OSError):
            wire.writer.transport.abort()


SERVICE: dict[str, Any] = {"balance": "round_robin"}


class Stage:
    """A data plane with one service `s`, its listeners, clients and origins; ends all of them."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.clock = Clock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.table = Table(lambda kind, **facts: self.events.append((kind, facts)), key=b"k" * 32)
        self.log = Lines()
        self.plane = Plane(
            asyncio.get_running_loop(),
            self.table,
            self.log,  # type: ignore[arg-type]
            clock=self.clock,
            rand=random.Random(1),
        )
        self.clock.plane = self.plane
        self.drainer = Drainer(self.plane, random.Random(1))
        self.origins: list[Origin] = []
        self.listeners: list[Listener] = []
        self.clients: list[Wire] = []
        self.configure()

    def configure(self, service: dict[str, Any] | None = None, **others: Any) -> None:
        """(Re)configure: keys of the service, and of the whole configuration."""
        document = {
            "services": {"s": SERVICE | (service or {})},
            "routes": [{"match": {"path": "/"}, "service": "s"}],
        } | others
        self.config = Config.model_validate(document)
        self.drainer.depart(self.table.configure(self.config, self.clock()))
        self.plane.configure(self.config)

    async def origin(self, id: str = "a", *, unix: bool = False, apply: bool = True, **facts: Any) -> Origin:
        """A new instance, known to the table at once."""
        origin = Origin(id)
        if unix:
            path = str(self.tmp / f"{id}.sock")
            origin.server = await asyncio.start_unix_server(origin._on_connection, path)
            origin.instance = Instance("s", id, path=path, **facts)
        else:
            origin.server = await asyncio.start_server(origin._on_connection, "127.0.0.1", 0)
            port = origin.server.sockets[0].getsockname()[1]
            origin.instance = Instance("s", id, "127.0.0.1", port, **facts)
        self.origins.append(origin)
        if apply:
            self.apply(*(o.instance for o in self.origins))
        return origin

    def apply(self, *instances: Instance) -> None:
        """What a registry would say, carried out."""
        self.drainer.depart(self.table.apply(Update("s", instances, self.clock()), self.clock()))

    def mark(self, origin: Origin, status: Status) -> None:
        """The registry changes its mind about one instance."""
        origin.instance = replace(origin.instance, status=status)
        self.apply(*(o.instance for o in self.origins))

    def endpoint(self, id: str = "a") -> Endpoint:
        return self.table.services["s"].endpoints[id]

    async def listen(self, **config: Any) -> Listener:
        """Open a listener; by default on a free port of 127.0.0.1."""
        config.setdefault("address", Address("127.0.0.1", 0))
        listener = Listener(self.plane, Listen(**config))
        self.listeners.append(listener)
        await listener.start()
        return listener

    async def client(self, listener: Listener | None = None, **options: Any) -> Wire:
        """A raw connection to the (first) listener."""
        if listener is None:
            listener = self.listeners[0] if self.listeners else await self.listen()
        where = listener.address
        if "sock" in options:
            streams = await asyncio.open_connection(**options)
        elif where.path:
            streams = await asyncio.open_unix_connection(where.path, **options)
        else:
            streams = await asyncio.open_connection(where.host, where.port, **options)
        wire = Wire(*streams)
        self.clients.append(wire)
        return wire

    async def pair(self, request: bytes) -> tuple[Wire, Wire]:
        """A client that has sent `request`, and the connection on which its only origin got it."""
        origin = self.origins[0] if self.origins else await self.origin()
        client = await self.client()
        client.send(request)
        return client, await origin.accept()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let the loop run until something holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        for listener in self.listeners:
            listener.stop()
        for wire in self.clients:
            wire.writer.transport.abort()
        for origin in self.origins:
            await origin.stop()
        self.drainer.close()
        async with asyncio.timeout(PATIENCE):
            await self.plane.quiet()
            await asyncio.gather(*self.plane.tasks)
        assert self.plane.counters.connections_open == 0
        assert self.plane.counters.tunnels_open == 0
        for state in self.table.services.values():
            for endpoint in state.endpoints.values():
                assert endpoint.inflight == 0, endpoint


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the proxy runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """See `Stage`; at the end nothing may be left open, leased or counted."""
    stage = Stage(tmp_path)
    yield stage
    await stage.close()
