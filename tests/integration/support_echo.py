"""WebSocket servers that send every message back: `python -m tests.integration.support_echo LIBRARY`.

Both are strict. `wsproto` takes what arrives frame by frame, and answers the frames that came before a wrong
one whatever the chunks they came in: what it does depends on nothing but the bytes. `websockets` is the
library as most people use it.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import cast

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

LINGER = 5.0
"""Seconds that a client has to close its side, once this one is closed."""


class Echo(asyncio.Protocol):
    """One connection, by wsproto."""

    def __init__(self) -> None:
        self._websocket = WSConnection(ConnectionType.SERVER)
        self._transport: asyncio.Transport | None = None
        self._parts: list[str] | list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._websocket.state in (ConnectionState.CLOSED, ConnectionState.REJECTING):
            return
        try:
            self._websocket.receive_data(data)
            for event in self._websocket.events():
                self._answer(event)
        except (LocalProtocolError, RemoteProtocolError):
            self._part()

    def _answer(self, event: Event) -> None:
        if isinstance(event, Request):
            self._send(AcceptConnection(extensions=[PerMessageDeflate()]))
        elif isinstance(event, TextMessage):
            self._collect(TextMessage, event)
        elif isinstance(event, BytesMessage):
            self._collect(BytesMessage, event)
        elif isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, CloseConnection):
            self._send(event.response())
            self._part()
        else:
            assert isinstance(event, Pong), event

    def _collect(self, kind: type[TextMessage] | type[BytesMessage], event: Message) -> None:
        self._parts.append(event.data)
        if event.message_finished:
            parts, self._parts = self._parts, []
            whole = "".join(parts) if kind is TextMessage else b"".join(parts)  # type: ignore[arg-type]
            self._send(kind(data=whole))  # type: ignore[arg-type]

    def _send(self, event: Event) -> None:
        assert self._transport is not None
        self._transport.write(self._websocket.send(event))

    def _part(self) -> None:
        """RFC 6455 7.1.1: finish, and read until the client has closed too."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER, self._transport.abort)


async def echo(socket: ServerConnection) -> None:
    """One connection, by websockets."""
    with suppress(ConnectionClosed):
        async for message in socket:
            await socket.send(message)


async def main(library: str) -> None:
    if library == "wsproto":
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        print(f"listening on 127.0.0.1:{port}", flush=True)
        await server.serve_forever()
    async with serve(echo, "127.0.0.1", 0, max_size=None, ping_interval=None) as serving:
        port = next(iter(serving.sockets)).getsockname()[1]
        print(f"listening on 127.0.0.1:{port}", flush=True)
        await serving.wait_closed()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
