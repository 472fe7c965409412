"""As much of RFC 6455 section 5 as a client and an echo server of short messages need."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_FIN, _MASKED = 0x80, 0x80
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Frame(NamedTuple):
    """One frame, its payload unmasked."""

    opcode: int
    payload: bytes


def encode(opcode: int, payload: bytes, *, masked: bool = False) -> bytes:
    """One final frame. The masking key is all zeroes: valid, and neither end spends time on masking."""
    mask = _MASKED if masked else 0
    size = len(payload)
    if size < 126:
        head = bytes((_FIN | opcode, mask | size))
    elif size < 1 << 16:
        head = bytes((_FIN | opcode, mask | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FIN | opcode, mask | 127)) + size.to_bytes(8, "big")
    return head + (b"\0\0\0\0" if masked else b"") + payload


def decode(buffer: bytearray) -> Iterator[Frame]:
    """Takes the complete frames off the front of `buffer`. Raises `ValueError` for a fragmented message."""
    while len(buffer) >= 2:
        start, size = 2, buffer[1] & 0x7F
        if size >= 126:
            start += 2 if size == 126 else 8
            if len(buffer) < start:
                return
            size = int.from_bytes(buffer[2:start], "big")
        masked = buffer[1] & _MASKED
        body = start + 4 if masked else start
        if len(buffer) < body + size:
            return
        if not buffer[0] & _FIN:
            raise ValueError("a message in fragments, where only whole ones were sent")
        frame = Frame(buffer[0] & 0x0F, bytes(buffer[body : body + size]))
        if masked and (key := bytes(buffer[start:body])) != b"\0\0\0\0":
            frame = Frame(frame.opcode, _unmask(frame.payload, key))
        del buffer[: body + size]
        yield frame


def _unmask(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    stream = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")


def accept(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())
