"""What two processes say to each other when one takes over from the other (`holdfast upgrade`).

The old process starts the new one with one end of a socket pair. On it go, both as messages of plain values:
what has to be known, and the descriptors of listening sockets and live connections (SCM_RIGHTS, unix(7)).

    new: ready      it has read its configuration and imported everything
    old: take       listening sockets, table, registry; the old one no longer serves the registry
    new: up         it has all it needs to accept, and says which instances it knows
    old: yours      the new process may accept; the old one does no more
    old: client …   an idle client connection, a tunnel's two connections; any number
         plain …
         moving …
         figures    what was counted since `take`
    old: closes     nothing is left to hand over

Instead of `ready` or `up` the new one may say `failed`, and why. Until `yours` the new process has accepted
nothing, and the old one can go on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pickle
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

from proxy.plane import Plane

VARIABLE = "HOLDFAST_HANDOVER"
"""Environment variable with the number of the descriptor that leads to the old process."""
_HEADER = struct.Struct("!IH")
_MOST_DESCRIPTORS = 250
"""The kernel takes 253 in one message (SCM_MAX_FD)."""

Message = tuple[str, dict[str, Any], list[int]]
"""Kind, facts (plain values), descriptors."""


class HandoverError(Exception):
    """The other process ended, or said what cannot be understood. The message is for the operator."""


class _Plain(pickle.Unpickler):
    """Reads plain values only: what comes from the other process can make no object of any class."""

    def find_class(self, module: str, name: str) -> Any:
        raise HandoverError(f"a hand-over message holds a {module}.{name}")


def _encode(kind: str, facts: dict[str, Any], descriptors: int) -> tuple[bytes, bytes]:
    body = pickle.dumps((kind, facts), protocol=4)
    return _HEADER.pack(len(body), descriptors), body


def report_failure(descriptor: int, why: str) -> None:
    """Tell the old process why this one cannot take over, before there is a loop. Closes the descriptor."""
    with contextlib.suppress(OSError), socket.socket(fileno=descriptor) as sock:
        sock.sendall(b"".join(_encode("failed", {"why": why}, 0)))


class Channel:
    """One end of the socket pair; used by one task for sending and one for receiving."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock

    async def send(self, kind: str, facts: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message. The descriptors stay open here. Raises `HandoverError`."""
        header, body = _encode(kind, facts, len(descriptors))
        try:
            while True:
                try:
                    socket.send_fds(self._sock, [header], descriptors)
                    break
                except BlockingIOError:
                    await self._writable()
            await self._loop.sock_sendall(self._sock, body)
        except OSError as error:
            raise HandoverError(f"the other process is gone: {error}") from error

    async def receive(self) -> Message | None:
        """The next message; None when the other side has closed. Raises `HandoverError`."""
        header, descriptors = b"", []
        try:
            while len(header) < _HEADER.size:
                try:
                    data, fds, _, _ = socket.recv_fds(
                        self._sock, _HEADER.size - len(header), _MOST_DESCRIPTORS
                    )
                except BlockingIOError:
                    await self._readable()
                    continue
                for descriptor in fds:
                    # Else the next successor would inherit these connections, and hold them open for ever.
                    os.set_inheritable(descriptor, False)
                descriptors += fds
                if not data:
                    return None
                header += data
            size, count = _HEADER.unpack(header)
            body = await self._exactly(size)
        except OSError as error:
            raise HandoverError(f"the other process is gone: {error}") from error
        if len(descriptors) != count:
            raise HandoverError("a hand-over message lost descriptors on its way")
        kind, facts = _Plain(io.BytesIO(body)).load()
        return kind, facts, descriptors

    async def expect(self, wanted: str) -> Message:
        """The next message, which must be of this kind. Raises `HandoverError`, also for `failed`."""
        message = await self.receive()
        if message is None:
            raise HandoverError("it ended")
        if message[0] == "failed":
            raise HandoverError(message[1]["why"])
        if message[0] != wanted:
            raise HandoverError(f"it said {message[0]!r}, not {wanted!r}")
        return message

    def close(self) -> None:
        """Say that there is nothing more."""
        self._sock.close()

    async def _exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            data = await self._loop.sock_recv(self._sock, min(size - len(received), 1 << 20))
            if not data:
                raise HandoverError("the other process ended within a message")
            received += data
        return bytes(received)

    async def _readable(self) -> None:
        await self._wait(self._loop.add_reader, self._loop.remove_reader)

    async def _writable(self) -> None:
        await self._wait(self._loop.add_writer, self._loop.remove_writer)

    async def _wait(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        descriptor = self._sock.fileno()
        add(descriptor, lambda: None if future.done() else future.set_result(None))
        try:
            await future
        finally:
            remove(descriptor)


class _Nobody(asyncio.Protocol):
    """Takes the place of a connection's protocol once the connection belongs to another process."""


def copy_of(transport: asyncio.Transport) -> int:
    """A second descriptor of a connection, for another process. Raises `OSError` when there is none left."""
    return os.dup(transport.get_extra_info("socket").fileno())


def release(transport: asyncio.Transport) -> None:
    """Let go of a connection of which there is a copy: its peer does not notice.

    Nothing may be waiting to be written. What has not been read stays in the kernel for the next owner.
    """
    transport.set_protocol(_Nobody())
    transport.abort()


def is_secure(transport: asyncio.Transport) -> bool:
    """Whether a connection is TLS: its keys cannot go to another process."""
    return transport.get_extra_info("ssl_object") is not None


def can_detach(transport: asyncio.Transport) -> bool:
    """Whether a connection can change its process: plain, open, and with nothing left to write."""
    return not transport.is_closing() and not is_secure(transport) and transport.get_write_buffer_size() == 0


class Parked(asyncio.Protocol):
    """Holds a connection of another process until its real protocol is there, and loses nothing meanwhile.

    uvloop begins to read by itself, whatever is said before; so what comes is kept.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""
        self._ended = False
        self._lost: tuple[Exception | None] | None = None

    @classmethod
    async def attach(cls, plane: Plane, descriptor: int) -> Parked:
        """Take over a connection by its descriptor. Raises `OSError`."""
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        parked = cls()
        await plane.loop.connect_accepted_socket(lambda: parked, sock)
        return parked

    def give_to(self, protocol: asyncio.Protocol) -> None:
        """Make it the connection of `protocol`, which gets everything that has happened so far."""
        if self._lost is None:
            self.transport.set_protocol(protocol)
        if self._received:
            protocol.data_received(self._received)
        if self._lost is not None:
            protocol.connection_lost(*self._lost)
        elif self._ended and not protocol.eof_received():
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        self._ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._lost = (exc,)
