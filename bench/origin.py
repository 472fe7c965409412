"""The servers behind the proxies: a WebSocket echo, and an HTTP origin for machines without nginx.

Run as `python -m bench.origin {http,echo} PORT`. Both do as little as they can, so that the proxy in front
is what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path
from typing import cast

import uvloop

from bench import frames

BODY = b'{"service":"origin","status":"ok","detail":"a small answer, as most of an API are"}'

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
_KEY = re.compile(rb"\r\nsec-websocket-key:[ \t]*([^\r]+)\r\n", re.IGNORECASE)


def nginx_config(port: int, folder: Path) -> str:
    """nginx as origin: answers from its configuration, logs nothing, keeps connections for good."""
    return f"""\
daemon off;
pid {folder}/origin.pid;
error_log stderr error;
worker_processes 1;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/origin-body;
    proxy_temp_path {folder}/origin-proxy;
    fastcgi_temp_path {folder}/origin-fastcgi;
    uwsgi_temp_path {folder}/origin-uwsgi;
    scgi_temp_path {folder}/origin-scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        default_type application/json;
        location / {{ return 200 '{BODY.decode()}'; }}
    }}
}}
"""


class Answer(asyncio.Protocol):
    """Answers each bodyless request with the same bytes, without reading more of it than where it ends."""

    def __init__(self) -> None:
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        if heads and self._transport is not None:
            self._transport.write(_ANSWER * len(heads))


class Echo(asyncio.Protocol):
    """Accepts any WebSocket handshake and sends every message back."""

    def __init__(self) -> None:
        self._open = False
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        assert transport is not None
        size = len(data) - 6
        # The shortest way for what nearly always comes: one short frame with a zero key. A size field of
        # 126 or 127 announces a longer one and is never the size of what follows it here.
        if (
            self._open
            and not self._buffer
            and 0 <= size < 126
            and data[0] in (0x81, 0x82)
            and data[1] == 0x80 | size
            and data[2:6] == b"\0\0\0\0"
        ):
            transport.write(data[:1] + bytes((size,)) + data[6:])
            return
        self._buffer += data
        if self._open or self._handshake(transport):
            self._answer(transport)

    def _handshake(self, transport: asyncio.Transport) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[: end + 4])
        del self._buffer[: end + 4]
        key = _KEY.search(head)
        if key is None:
            transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            transport.close()
            return False
        transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + frames.accept(key[1].strip()) + b"\r\n\r\n"
        )
        self._open = True
        return True

    def _answer(self, transport: asyncio.Transport) -> None:
        for frame in frames.decode(self._buffer):
            if frame.opcode in (frames.TEXT, frames.BINARY):
                transport.write(frames.encode(frame.opcode, frame.payload))
            elif frame.opcode == frames.PING:
                transport.write(frames.encode(frames.PONG, frame.payload))
            elif frame.opcode == frames.CLOSE:
                transport.write(frames.encode(frames.CLOSE, frame.payload))
                transport.close()
                return


async def serve(kind: str, port: int) -> None:
    """Serves until cancelled."""
    factory = {"http": Answer, "echo": Echo}[kind]
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("http", "echo"))
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    uvloop.run(serve(given.kind, given.port))
