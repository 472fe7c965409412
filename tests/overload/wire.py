"""Blocking sockets that speak just enough: the crowds, floods and probes of these tests."""

from __future__ import annotations

import socket

MASK = b"abcd"


def get(path: str, host: str = "web") -> bytes:
    """A request."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def upgrade(path: str, host: str = "web") -> bytes:
    """A WebSocket's handshake."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def dial(port: int, first: bytes = b"", *, timeout: float = 30.0, receive: int = 0) -> socket.socket:
    """A connection on which `first` has been sent; `receive` bounds what the kernel takes in for it."""
    sock = socket.socket()
    if receive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    sock.settimeout(timeout)
    try:
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(first)
    except BaseException:
        sock.close()
        raise
    return sock


def until(sock: socket.socket, mark: bytes) -> bytes:
    """What arrives up to and including `mark`; nothing behind it may have been sent yet."""
    data = b""
    while not data.endswith(mark):
        piece = sock.recv(4096)
        if not piece:
            raise ConnectionError(f"ended after {data!r:.200}")
        data += piece
    return data


def talk(port: int, path: str, host: str = "web", *, timeout: float = 30.0) -> socket.socket:
    """An open WebSocket."""
    sock = dial(port, upgrade(path, host), timeout=timeout)
    try:
        head = until(sock, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
    except BaseException:
        sock.close()
        raise
    return sock


def say(sock: socket.socket, text: bytes) -> bytes:
    """Send a short message and read the frame that comes back."""
    masked = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(text))
    sock.sendall(bytes((0x82, 0x80 | len(text))) + MASK + masked)
    frame = b""
    while len(frame) < 2 + len(text):
        piece = sock.recv(2 + len(text) - len(frame))
        if not piece:
            raise ConnectionError(f"ended after {frame!r}")
        frame += piece
    return frame[2:]


def ask(sock: socket.socket, path: str = "/", host: str = "web") -> bytes:
    """Ask on a kept connection; the head and the two bytes of the answer."""
    sock.sendall(get(path, host))
    return until(sock, b"\r\n\r\nok")
