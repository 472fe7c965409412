"""Following the bodies of HTTP/1 messages (RFC 9112 section 7): bytes in, payload out, and where it ends.

Pure. A decoder is fed whatever arrives; it never holds payload back, so what is kept is bounded by one line.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Protocol

from proxy.fields import Kind, kind_of
from proxy.head import CHUNKED, NO_BODY, UNTIL_CLOSE

_SIZE_LINE = re.compile(
    # Extensions may be there and mean nothing; control characters in them may not (RFC 9112 7.1.1).
    rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?)\r\n"
)
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
_LONGEST_SIZE_LINE = 256
_MOST_EXTENSIONS = 16 << 10
"""Bytes of chunk extensions in one message: more is nobody's honest use."""
_MOST_TRAILERS = 16 << 10
_CHUNKS_AT_ONCE = 400
"""Chunks that are decoded in one turn of the loop: one read may bring 43,000 of one byte, and those would
take a quarter of a second from everybody else."""


_NEVER_TRAILS = frozenset(
    (
        b"age authorization cache-control content-encoding content-range content-type cookie date "
        b"location max-forwards origin pragma range referer retry-after set-cookie trailer vary "
        b"warning www-authenticate"
    ).split()
)
"""What frames, routes, controls, authenticates or describes a message cannot trail it (RFC 9110 6.5.1)."""


def _may_trail(name: bytes) -> bool:
    lowered = name.lower()
    return kind_of(name) is Kind.OTHER and lowered not in _NEVER_TRAILS and not lowered.startswith(b"if-")


class BodyError(ValueError):
    """The framing of a body is broken. The message says how."""


class Decoder(Protocol):
    """Follows one body."""

    done: bool
    more: bool
    """There may be more payload in what was fed: to be fed nothing, in another turn of the loop."""
    rest: bytes
    """What came behind the end of the body."""
    trailers: bytes
    """Trailer field lines, each with its CRLF."""

    def feed(self, data: bytes) -> bytes:
        """Take what arrived, give the payload in it. Raises `BodyError`."""
        ...


class LengthDecoder:
    """A body of known length."""

    __slots__ = ("_left", "done", "rest")
    more = False
    trailers = b""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """See `Decoder.feed`; never raises."""
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data
        payload = data
        if left < 0:
            self.rest = data[self._left :]
            payload = data[: self._left]
        self._left = 0
        self.done = True
        return payload


class CloseDecoder:
    """A body that ends with its connection."""

    __slots__ = ()
    done = False
    more = False
    rest = b""
    trailers = b""

    def feed(self, data: bytes) -> bytes:
        """See `Decoder.feed`; never raises."""
        return data


class _Part(Enum):
    SIZE = 1
    DATA = 2
    DATA_END = 3
    TRAILERS = 4


class ChunkedDecoder:
    """A chunked body, strict: only CR LF ends a line, sizes are hexadecimal digits and nothing else."""

    __slots__ = ("_buffer", "_extensions", "_left", "_part", "_trailing", "done", "more", "rest", "trailers")

    def __init__(self) -> None:
        self._part = _Part.SIZE
        self._left = 0
        self._buffer = b""
        self._extensions = 0
        self._trailing = 0
        self.done = False
        self.more = False
        self.rest = b""
        self.trailers = b""

    def feed(self, data: bytes) -> bytes:
        """See `Decoder.feed`."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        pieces: list[bytes] = []
        position, size = 0, len(data)
        self.more = False
        while not self.done:
            if self._part is _Part.DATA:
                if len(pieces) >= _CHUNKS_AT_ONCE:
                    self.more = True
                    self._buffer = data[position:]
                    break
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._part = _Part.DATA_END
            elif self._part is _Part.DATA_END:
                if size - position < 2:
                    if data[position:] not in (b"", b"\r"):
                        raise BodyError("a chunk does not end with CR LF")
                    self._buffer = data[position:]
                    break
                if data[position : position + 2] != b"\r\n":
                    raise BodyError("a chunk does not end with CR LF")
                position += 2
                self._part = _Part.SIZE
            elif self._part is _Part.SIZE:
                match = _SIZE_LINE.match(data, position)
                if match is None:
                    self._keep(data[position:], b"\n", _LONGEST_SIZE_LINE, "a chunk size line is malformed")
                    break
                self._extensions += match.end(2) - match.start(2)
                if match.end() - position > _LONGEST_SIZE_LINE or self._extensions > _MOST_EXTENSIONS:
                    raise BodyError("too many chunk extensions")
                position = match.end()
                self._left = int(match[1], 16)
                self._part = _Part.DATA if self._left else _Part.TRAILERS
            else:
                position = self._read_trailer(data, position)
                if position < 0:
                    break
        if self.done:
            self.rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_trailer(self, data: bytes, position: int) -> int:
        """One trailer line, or the end. Gives the offset behind it, or -1 when it is not complete."""
        if data.startswith(b"\r\n", position):
            self.done = True
            return position + 2
        match = _TRAILER.match(data, position)
        if match is None:
            if data[position:] not in (b"", b"\r"):
                self._keep(data[position:], b"\n", _MOST_TRAILERS, "a trailer field is malformed")
            else:
                self._buffer = data[position:]
            return -1
        if _may_trail(match[1]):
            self.trailers += match[0]
        self._trailing += match.end() - position
        if self._trailing > _MOST_TRAILERS:
            raise BodyError("the trailers are too large")
        return match.end()

    def _keep(self, partial: bytes, end: bytes, most: int, wrong: str) -> None:
        if end in partial or len(partial) > most:
            raise BodyError(wrong)
        self._buffer = partial


def make_decoder(body: int) -> Decoder:
    """The decoder for a head's `body` value."""
    if body == CHUNKED:
        return ChunkedDecoder()
    if body == UNTIL_CLOSE:
        return CloseDecoder()
    return LengthDecoder(body if body != NO_BODY else 0)


def encode_chunk(payload: bytes) -> bytes:
    """One chunk. `payload` must not be empty: an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def encode_last_chunk(trailers: bytes = b"") -> bytes:
    """The end of a chunked body, with trailer lines that each carry their CRLF."""
    return b"0\r\n" + trailers + b"\r\n"
