"""An instance for overload: `python -m tests.overload.origin`.

What it does is in the path: `/size/N` answers N bytes, `/chunks/N` N chunks of one byte; WebSockets are sent
back (`/echo`), never read (`/deaf`), read and never answered (`/mute`), or flooded with empty frames
(`/flood`); anything else is answered when its body is complete.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

from proxy.frames import apply_mask
from proxy.handshake import accept_for

_PIECE = bytes(64 << 10)
_FLOOD = b"\x82\x00" * (32 << 10)
"""Empty binary frames."""
_KEY = re.compile(rb"(?i)sec-websocket-key: *([^\r]*)\r\n")
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)\r\n")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Origin(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._path = b""
        self._left = 0
        """Bytes of the answer that are still to be sent, -1: without end; or of the body to come."""
        self._sends = self._receives = self._tunnel = False
        self._ready = True
        self._chunked = False
        self._end = b""
        """The last bytes of a body in chunks."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._receives:
            self._left -= len(data)
            self._end = (self._end + data)[-5:]
            if self._left <= 0 or (self._chunked and self._end == b"0\r\n\r\n"):
                self._receives = False
                self.transport.write(OK)
            return
        self._buffer += data
        while self._buffer and not self._sends and not self._receives:
            if self._tunnel:
                if not self._echo():
                    return
                continue
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self._buffer = rest
            self._answer(head + b"\r\n")

    def _answer(self, head: bytes) -> None:
        self._path = head.split(b" ")[1]
        kind, _, number = self._path[1:].partition(b"/")
        if key := _KEY.search(head):
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_for(key[1])
            )
            self._tunnel = True
            if kind == b"deaf":
                self.transport.pause_reading()
            elif kind == b"mute":
                self._receives, self._left = True, 1 << 62
            elif kind == b"flood":
                self._sends, self._left = True, -1
                self._send()
        elif kind == b"size":
            self._left, self._sends = int(number), True
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self._left)
            self._send()
        elif kind == b"chunks":
            body = b"1\r\nx\r\n" * int(number) + b"0\r\n\r\n"
            self.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        elif length := _LENGTH.search(head):
            self._left = int(length[1]) - len(self._buffer)
            self._buffer = b""
            self._receives = self._left > 0
            if not self._receives:
                self.transport.write(OK)
        elif b"chunked" in head.lower():
            self._receives, self._left, self._chunked = True, 1 << 62, True
            body, self._buffer = self._buffer, b""
            self.data_received(body)
        else:
            self.transport.write(OK)

    def _echo(self) -> bool:
        """Take one small frame; whether there was a whole one."""
        buffer = self._buffer
        if len(buffer) < 6 or len(buffer) < (size := 6 + (buffer[1] & 0x7F)):
            return False
        self._buffer = buffer[size:]
        payload = apply_mask(buffer[6:size], buffer[2:6])
        first = 0x8A if buffer[0] == 0x89 else buffer[0]
        self.transport.write(bytes((first, len(payload))) + payload)
        return True

    def _send(self) -> None:
        piece = _FLOOD if self._left < 0 else _PIECE
        while self._ready and self._left and not self.transport.is_closing():
            data = piece if self._left < 0 else piece[: self._left]
            if self._left > 0:
                self._left -= len(data)
            self.transport.write(data)
        if not self._left:
            self._sends = False

    def pause_writing(self) -> None:
        self._ready = False

    def resume_writing(self) -> None:
        self._ready = True
        if self._sends:
            self._send()


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Origin, "127.0.0.1", 0, backlog=4096)
    print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main()) if len(sys.argv) == 1 else sys.exit("no arguments")
