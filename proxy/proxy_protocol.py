"""The header that a load balancer puts before a connection to say whose it is: PROXY protocol v1 and v2.

Source: HAProxy's "The PROXY protocol", versions 1 & 2 (2020). Pure.
"""

from __future__ import annotations

import ipaddress
import re

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1 = re.compile(
    rb"PROXY (?:UNKNOWN[^\r\n]*|TCP([46]) ([0-9a-fA-F.:]+) [0-9a-fA-F.:]+ [0-9]{1,5} [0-9]{1,5})\r\n"
)
_V1_MOST = 107
_SHORTEST = len(b"PROXY UNKNOWN\r\n")
_V2_MOST = 4096


class HeaderError(ValueError):
    """There is no valid PROXY header where one must be."""


def parse_header(buffer: bytes) -> tuple[str | None, int] | None:
    """The client's address and the offset behind the header; None while it is incomplete.

    The address is None when the header says that the connection is the balancer's own (LOCAL, UNKNOWN).
    Raises `HeaderError`.
    """
    if buffer[:12] == _SIGNATURE[: len(buffer)]:
        return _parse_v2(buffer)
    if buffer[:6] != b"PROXY "[: len(buffer)]:
        raise HeaderError("no PROXY header")
    if b"\r\n" not in buffer[:_V1_MOST]:
        if len(buffer) >= _V1_MOST:
            raise HeaderError("the PROXY header is too long")
        return None
    match = _V1.match(buffer)
    if match is None:
        raise HeaderError("the PROXY header is malformed")
    return (_ip(match[1], match[2].decode()) if match[1] else None), match.end()


def missing(buffer: bytes) -> int:
    """How many bytes of an incomplete header are certainly still to come: nobody may read further than it.

    What follows belongs to TLS, which must find it on the socket.
    """
    if buffer[:12] != _SIGNATURE[: len(buffer)]:
        return max(1, _SHORTEST - len(buffer))
    if len(buffer) < 16:
        return _SHORTEST - len(buffer) if len(buffer) < _SHORTEST else 16 - len(buffer)
    return 16 + int.from_bytes(buffer[14:16], "big") - len(buffer)


def _parse_v2(buffer: bytes) -> tuple[str | None, int] | None:
    if len(buffer) < 16:
        return None
    command, family = buffer[12], buffer[13] >> 4
    length = int.from_bytes(buffer[14:16], "big")
    if command >> 4 != 2 or command & 15 > 1 or length > _V2_MOST:
        raise HeaderError("the PROXY header is malformed")
    end = 16 + length
    if len(buffer) < end:
        return None
    if command & 15 == 0 or family not in (1, 2):
        return None, end
    size = 4 if family == 1 else 16
    if length < 2 * size + 4:
        raise HeaderError("the PROXY header is too short")
    return str(ipaddress.ip_address(buffer[16 : 16 + size])), end


def _ip(family: bytes, text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text) if family == b"4" else ipaddress.IPv6Address(text))
    except ValueError as error:
        raise HeaderError("the PROXY header is malformed") from error
