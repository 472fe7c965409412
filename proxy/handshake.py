"""What a WebSocket handshake has to say, on either side (RFC 6455 section 4). Pure.

Both ends check this too, but what passes a proxy as a tunnel passes its routes and limits: so nothing becomes
one that is no WebSocket for the other end.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from proxy.errors import ProxyError, Reason
from proxy.head import NO_BODY, RequestHead, ResponseHead

PROTOCOL = b"websocket"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 section 1.3."""
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
"""Sixteen octets in base64 (RFC 6455 section 4.1)."""


def check_request(head: RequestHead) -> None:
    """Raises `ProxyError` for a request that asks for a WebSocket as RFC 6455 section 4.2.1 forbids.

    `BAD_REQUEST`, or `UPGRADE_REQUIRED` where only the version is not spoken (section 4.4). Requests that ask
    for other protocols pass.
    """
    if PROTOCOL not in head.upgrade.split(b", "):
        return
    if head.method != b"GET" or head.body != NO_BODY:
        raise ProxyError(Reason.BAD_REQUEST, "a WebSocket handshake is a GET without a body")
    keys = head.get_all(b"sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise ProxyError(Reason.BAD_REQUEST, "Sec-WebSocket-Key is not sixteen octets in base64")
    versions = head.get_all(b"sec-websocket-version")
    if not versions:
        raise ProxyError(Reason.BAD_REQUEST, "a WebSocket handshake names its version")
    if versions != [b"13"]:
        raise ProxyError(Reason.UPGRADE_REQUIRED)


def check_answer(head: RequestHead, response: ResponseHead) -> None:
    """Raises `ProxyError` (`UPSTREAM_INVALID`) for a 101 that does not agree to what `head` offered.

    The response has to be known to switch to `PROTOCOL`.
    """
    offered = [field for index, field in enumerate(head.fields) if index not in head.dropped]
    key = next(iter(_values(offered, b"sec-websocket-key")), b"")
    if _values(response.fields, b"sec-websocket-accept") != [accept_for(key)]:
        raise _invalid("Sec-WebSocket-Accept does not answer the key")
    chosen = _values(response.fields, b"sec-websocket-protocol")
    if len(chosen) > 1 or not set(chosen) <= set(_elements(offered, b"sec-websocket-protocol")):
        raise _invalid("a subprotocol was chosen that was not offered")
    extensions = b"sec-websocket-extensions"
    if not _names(response.fields, extensions) <= _names(offered, extensions):
        raise _invalid("an extension was chosen that was not offered")


def accept_for(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that answers a key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


def _invalid(detail: str) -> ProxyError:
    return ProxyError(Reason.UPSTREAM_INVALID, detail)


def _values(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value.strip(b" \t") for own, value in fields if own.lower() == name]


def _elements(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [element.strip(b" \t") for value in _values(fields, name) for element in value.split(b",")]


def _names(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> set[bytes]:
    """Of a list whose elements may have parameters: the elements without them."""
    return {element.partition(b";")[0].rstrip(b" \t") for element in _elements(fields, name)} - {b""}
