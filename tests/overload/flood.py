"""One client that takes all it can get: `python -m tests.overload.flood KIND PORT`, until it is ended."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Callable

from tests.overload.wire import MASK, dial, get, talk

ENDLESS = 1 << 50
FRAMES = (b"\x82\x80" + MASK) * 40_000
"""Empty messages."""
CHUNKS = b"1\r\nx\r\n" * 40_000


def _swallow(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 20):
            pass


def _pour(sock: socket.socket, piece: bytes) -> None:
    """Send for ever, and read what comes back."""
    threading.Thread(target=_swallow, args=(sock,), daemon=True).start()
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(piece)


def frames(port: int, host: str) -> None:
    """Empty messages to an instance."""
    _pour(talk(port, "/mute", host), FRAMES)


def spray(port: int, host: str) -> None:
    """Empty messages from an instance."""
    _swallow(talk(port, "/flood", host))


def download(port: int, host: str) -> None:
    """One endless answer."""
    _swallow(dial(port, get(f"/size/{ENDLESS}")))


def upload(port: int, host: str) -> None:
    """One endless request."""
    head = f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {ENDLESS}\r\n\r\n"
    _pour(dial(port, head.encode()), bytes(1 << 20))


def chunks(port: int, host: str) -> None:
    """One endless request in chunks of one byte."""
    _pour(
        dial(port, f"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()), CHUNKS
    )


def chunked(port: int, host: str) -> None:
    """Answers in chunks of one byte."""
    _pour(dial(port), get("/chunks/100000"))


def pipeline(port: int, host: str) -> None:
    """Requests without waiting for answers, which the proxy gives itself."""
    _pour(dial(port), get("/", "nobody") * 2000)


def connections(port: int, host: str) -> None:
    """New connections."""
    while True:
        with contextlib.suppress(OSError):
            dial(port, get("/")).close()


def handshakes(port: int, host: str) -> None:
    """New TLS connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    while True:
        with contextlib.suppress(OSError), dial(port) as sock, context.wrap_socket(sock):
            pass


KINDS: dict[str, Callable[[int, str], None]] = {
    of.__name__: of
    for of in (frames, spray, download, upload, chunks, chunked, pipeline, connections, handshakes)
}

if __name__ == "__main__":
    print("begun", flush=True)
    KINDS[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
