"""What travels over Nacos' gRPC: JSON with a type name and headers, in a protobuf message of two fields.

Source: `nacos_grpc_service.proto` of Nacos, and "Encoding" of the protocol buffers documentation. The message
never changes, so it is written and read by hand: no generated code, no second library.

    Payload  { Metadata metadata = 2; google.protobuf.Any body = 3; }
    Metadata { string type = 3; map<string, string> headers = 7; string clientIp = 8; }
    Any      { bytes value = 2; }
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from discovery.model import RegistryError

_BYTES = 2
"""The wire type of a field with a length."""


@dataclass(frozen=True, slots=True)
class Payload:
    """One request or response: `type` is the name of its class in Nacos, `body` its fields."""

    type: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    client_ip: str = ""


def encode(payload: Payload) -> bytes:
    """The bytes of a payload."""
    headers = b"".join(
        _part(7, _part(1, key.encode()) + _part(2, value.encode())) for key, value in payload.headers.items()
    )
    metadata = _part(3, payload.type.encode()) + headers + _part(8, payload.client_ip.encode())
    return _part(2, metadata) + _part(3, _part(2, orjson.dumps(payload.body)))


def decode(data: bytes) -> Payload:
    """The payload in `data`. Raises `RegistryError` when it is none; unknown fields are passed over."""
    try:
        parts = dict(_parts(data))
        metadata = list(_parts(parts.get(2, b"")))
        names = dict(metadata)
        body = orjson.loads(dict(_parts(parts.get(3, b""))).get(2) or b"{}")
        if not isinstance(body, dict):
            raise ValueError("its body is no JSON object")
        pairs = [dict(_parts(entry)) for number, entry in metadata if number == 7]
        headers = {pair.get(1, b"").decode(): pair.get(2, b"").decode() for pair in pairs}
        return Payload(names.get(3, b"").decode(), body, headers, names.get(8, b"").decode())
    except (ValueError, IndexError) as error:
        raise RegistryError(f"what came is not Nacos' protocol: {error}") from error


def _part(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value if value else b""


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that have a length. Raises `ValueError` or `IndexError` when it is none."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        match key & 7:
            case 0:  # a number
                _, at = _read_varint(data, at)
            case 1:  # 64 bits
                at += 8
            case 5:  # 32 bits
                at += 4
            case 2:
                length, at = _read_varint(data, at)
                if at + length > len(data):
                    raise ValueError("a field is longer than the message")
                yield key >> 3, data[at : at + length]
                at += length
            case wire:
                raise ValueError(f"unknown wire type {wire}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a number is too long")
