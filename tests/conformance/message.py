"""A reader of HTTP/1 of the suite's own, which shares nothing with the product: what was on a wire, judged.

Strict about what RFC 9112 gives one meaning only, so that whatever another reader could take in two ways is
found as an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.[01]")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00\r\n]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


class WireError(ValueError):
    """The bytes are not HTTP/1, or have more than one meaning. The message says how."""


@dataclass
class Message:
    """A request or a response as far as it has come."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    raw: bytes = b""
    """The head as it was on the wire."""
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    complete: bool = False
    framing: str = "none"
    """`none`, `length`, `chunked` or `close`."""

    def all(self, name: str) -> list[bytes]:
        """Every value of a field, in order."""
        wanted = name.lower().encode()
        return [value for own, value in self.fields if own.lower() == wanted]

    def get(self, name: str) -> bytes | None:
        """The values of a field as one list; None when there is none."""
        values = self.all(name)
        return b", ".join(values) if values else None

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def status(self) -> int:
        return int(self.line.split(b" ")[1])


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    found = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise WireError(f"the field line {line[:60]!r} is malformed")
        found.append((match[1], match[2].rstrip(b" \t")))
    return found


def _head(data: bytes, start: re.Pattern[bytes]) -> tuple[Message, bytes] | None:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    line, *lines = data[:end].split(b"\r\n")
    if start.fullmatch(line) is None:
        raise WireError(f"the start line {line[:60]!r} is malformed")
    return Message(line, _fields(lines), data[: end + 4]), data[end + 4 :]


def _chunked(message: Message, data: bytes) -> bytes:
    """Read a chunked body into `message`; what is behind it."""
    message.framing = "chunked"
    while True:
        line, mark, rest = data.partition(b"\r\n")
        if not mark:
            return b""
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise WireError(f"the chunk size {line[:60]!r} is malformed")
        size = int(match[1], 16)
        if not size:
            data = rest
            break
        message.body += rest[:size]
        if len(rest) < size + 2:
            return b""
        if rest[size : size + 2] != b"\r\n":
            raise WireError("a chunk does not end with CR LF")
        data = rest[size + 2 :]
    while True:
        line, mark, rest = data.partition(b"\r\n")
        if not mark:
            return b""
        data = rest
        if not line:
            message.complete = True
            return data
        message.trailers += _fields([line])


def _framed(message: Message, data: bytes) -> bytes | None:
    """Read a body framed by fields, if there is one; what is behind it."""
    codings, lengths = message.all("transfer-encoding"), message.all("content-length")
    if codings and lengths:
        raise WireError("Transfer-Encoding and Content-Length together")
    if codings:
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise WireError(f"Transfer-Encoding is {codings!r}")
        return _chunked(message, data)
    if lengths:
        if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
            raise WireError(f"Content-Length is {lengths!r}")
        size = int(lengths[0])
        message.framing = "length"
        message.body = data[:size]
        message.complete = len(data) >= size
        return data[size:]
    return None


def read_requests(data: bytes) -> tuple[list[Message], str]:
    """The requests on one connection, the last one perhaps incomplete, and what is wrong with the bytes."""
    found: list[Message] = []
    try:
        while data:
            parsed = _head(data, _REQUEST)
            if parsed is None:
                break
            message, data = parsed
            found.append(message)
            rest = _framed(message, data)
            if rest is None:
                message.complete = True
            else:
                data = rest
    except WireError as error:
        return found, str(error)
    return found, ""


def read_responses(data: bytes, methods: list[str], ended: bool) -> tuple[list[Message], str]:
    """The responses on one connection to requests with these methods (then GET), and what is wrong.

    `ended`: the connection was closed in order, which completes a body that nothing else delimits. What
    follows a 101 is not looked at.
    """
    found: list[Message] = []
    left = list(methods)
    try:
        while data:
            parsed = _head(data, _STATUS)
            if parsed is None:
                break
            message, data = parsed
            found.append(message)
            if message.status == 101:
                message.complete, message.body = True, data
                break
            if message.status < 200:
                message.complete = True
                continue
            method = left.pop(0) if left else "GET"
            if method == "HEAD" or message.status in (204, 304):
                message.complete = True
                continue
            rest = _framed(message, data)
            if rest is None:
                message.framing, message.body, message.complete = "close", data, ended
                break
            data = rest
    except WireError as error:
        return found, str(error)
    if found and found[-1].complete and data and found[-1].status != 101 and found[-1].framing != "close":
        return found, f"bytes that belong to no response: {data[:60]!r}"
    return found, ""
