"""What a request says of itself: the readers that routes, stickiness and hashing share.

Pure. A reader never raises, whatever the client has sent; what cannot be read is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol
from urllib.parse import unquote_to_bytes


class Head(Protocol):
    """The part of a request head that policies look at."""

    @property
    def method(self) -> bytes:
        """As received; methods are case-sensitive."""

    @property
    def path(self) -> bytes:
        """Request target without its query."""

    @property
    def query(self) -> bytes:
        """After the `?`, without it."""

    @property
    def host(self) -> bytes:
        """Lower case, without port."""

    @property
    def fields(self) -> Sequence[tuple[bytes, bytes]]:
        """Name and value as received, in order."""

    def get(self, name: bytes) -> bytes | None:
        """First value of a field, by its name in lower case."""


KeyOf = Callable[[Head, bytes], bytes]
"""(request, client address) -> what to hash; empty when the request does not say."""


def cookie_values(head: Head, name: bytes) -> Iterator[bytes]:
    """Every value that the request's Cookie fields give one name, in order, without quotes.

    RFC 6265 section 5.4 lets clients send duplicates, and HTTP/1.1 peers do send several Cookie fields.
    """
    for field, value in head.fields:
        # The length first: it spares most fields the copy that lower() makes.
        if len(field) != 6 or field.lower() != b"cookie" or name not in value:
            continue
        for pair in value.split(b";"):
            own, equals, content = pair.partition(b"=")
            if equals and own.strip(b" \t") == name:
                content = content.strip(b" \t")
                if len(content) > 1 and content[:1] == content[-1:] == b'"':
                    content = content[1:-1]
                yield content


def query_values(query: bytes, name: bytes) -> Iterator[bytes]:
    """Every value of one query parameter, in order, decoded; a parameter without `=` has an empty one."""
    if not query:
        return
    for pair in query.split(b"&"):
        own, _, value = pair.partition(b"=")
        if _decode(own) == name and pair:
            yield _decode(value)


def _decode(text: bytes) -> bytes:
    """Undo application/x-www-form-urlencoded: `+` is a space; a `%` that starts no code stands for itself."""
    if b"+" in text:
        text = text.replace(b"+", b" ")
    return unquote_to_bytes(text) if b"%" in text else text


def key_reader(spec: str) -> KeyOf:
    """The reader for `ip`, `path`, `header:NAME`, `cookie:NAME` or `query:NAME`.

    Raises `ValueError` for anything else.
    """
    kind, colon, text = spec.partition(":")
    name = text.encode()
    if kind == "ip" and not colon:
        return lambda head, client: client
    if kind == "path" and not colon:
        return lambda head, client: head.path
    if name and kind == "header":
        lower = name.lower()
        return lambda head, client: head.get(lower) or b""
    if name and kind == "cookie":
        return lambda head, client: next(cookie_values(head, name), b"")
    if name and kind == "query":
        return lambda head, client: next(query_values(head.query, name), b"")
    raise ValueError(f"{spec!r} is not a key; write ip, path, header:NAME, cookie:NAME or query:NAME")
