"""Reading the heads of HTTP/1 messages, strictly (RFC 9112), and what their framing means.

Pure: bytes in, a head or a `ProxyError` out. Whatever two parsers could read differently is refused here, so
that no request means one thing to this proxy and another to an instance behind it (request smuggling).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from proxy.errors import ProxyError, Reason
from proxy.fields import KINDS, Kind
from proxy.paths import read_path

NO_BODY: Final = 0
CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2
"""Values of `body` in a head; positive ones are a Content-Length."""

Field = tuple[bytes, bytes]

# Members as globals: looking one up on its class costs ten times as much, and these are on the hot path.
(
    _OTHER,
    _HOST,
    _CONNECTION,
    _HOP,
    _CONTENT_LENGTH,
    _TRANSFER_ENCODING,
    _UPGRADE,
    _EXPECT,
    _FORWARDED,
    _REQUEST_ID,
    _TRACE,
    _TE,
    _DATE,
    _AGENT,
) = Kind

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# '#' has no place in a request target, and bytes above ASCII none in a URI (RFC 9112 3.2, RFC 3986).
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21\x22\x24-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
# A line that is not exactly this is not found, and then the count of lines does not fit: see _fields.
_FIELD = re.compile(rb"(?m)^(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
_BARE_LF = re.compile(rb"(?:^|[^\r])\n")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::([0-9]{0,5}))?")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)(.*)")


# Naming these in Connection would take away what gives the message its meaning or its framing.
_SPECIAL_METHODS = frozenset({b"CONNECT", b"OPTIONS", b"TRACE"})
"""Those that RFC 9110 gives intermediaries a part in."""

_NEVER_DROPPED = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"close", b"keep-alive", b"upgrade"}
)


class Limits:
    """Sizes of a head, in bytes, and the number of its fields."""

    __slots__ = ("count", "head", "line")

    def __init__(self, line: int, head: int, count: int) -> None:
        self.line = line
        self.head = head
        self.count = count


class RequestHead:
    """One request's head. `fields` are as received; `dropped` are the indices that must not go further."""

    __slots__ = (
        "agent",
        "authority",
        "block",
        "body",
        "dropped",
        "fields",
        "forwarded",
        "host",
        "keep_alive",
        "method",
        "minor",
        "path",
        "query",
        "readings",
        "request_id",
        "target",
        "te_trailers",
        "trace",
        "upgrade",
    )

    agent: bytes
    """Value of User-Agent, for the log."""
    method: bytes
    target: bytes
    """As received; in origin-form when the client sent absolute-form."""
    path: bytes
    """What routes are matched against: `normal_path` of the target's path."""
    readings: tuple[bytes, ...]
    """Other paths that an instance may take the target for: see `read_path`."""
    query: bytes
    """Without `?`."""
    minor: int
    """1 for HTTP/1.1, 0 for HTTP/1.0."""
    authority: bytes
    """Host and port as received; empty when HTTP/1.0 gave none."""
    host: bytes
    """Lower-case, without port."""
    fields: list[Field]
    block: bytes
    """The field lines as they came, each with its CRLF."""
    dropped: list[int]
    forwarded: list[int]
    """Indices of X-Forwarded-* and their like."""
    body: int
    """`NO_BODY`, `CHUNKED`, or the length."""
    keep_alive: bool
    upgrade: bytes
    """Lower-case protocols asked for by Connection: Upgrade, joined by a comma and a space; empty when none.

    Never HTTP/2: inside a tunnel it would pass every route by, and RFC 9113 3.1 has given h2c up.
    """
    te_trailers: bool
    request_id: bytes
    trace: bytes

    def get(self, name: bytes) -> bytes | None:
        """First value of a field, by lower-case name."""
        for field, value in self.fields:
            if len(field) == len(name) and field.lower() == name:
                return value.rstrip(b" \t")
        return None

    def get_all(self, name: bytes) -> list[bytes]:
        """All values of a field, by lower-case name."""
        return [v.rstrip(b" \t") for f, v in self.fields if len(f) == len(name) and f.lower() == name]


class ResponseHead:
    """One response's head."""

    __slots__ = (
        "block",
        "body",
        "dated",
        "dropped",
        "fields",
        "keep_alive",
        "minor",
        "reason",
        "status",
        "upgrade",
    )

    status: int
    reason: bytes
    dated: bool
    """Whether it has a Date field."""
    minor: int
    fields: list[Field]
    block: bytes
    dropped: list[int]
    body: int
    keep_alive: bool
    upgrade: bytes


def _bad(detail: str) -> ProxyError:
    return ProxyError(Reason.BAD_REQUEST, detail)


def _fields(block: bytes, count: int) -> list[Field]:
    """The field lines of a head. Raises `ValueError` when any line is not strictly `name: value CRLF`.

    Every match takes one line from its start to its end, so as many matches as line feeds mean that every
    line matched: no folded line, bare CR or LF, NUL, space before the colon or empty name got through.
    """
    fields: list[Field] = _FIELD.findall(block)
    if len(fields) != block.count(b"\n"):
        raise ValueError("a header field is malformed")
    if len(fields) > count:
        raise OverflowError
    return fields


def parse_request(buffer: bytes, limits: Limits) -> tuple[RequestHead, int] | None:
    """The head at the start of `buffer` and the offset behind it; None when it is not complete yet.

    Raises `ProxyError` for what RFC 9112 forbids, what is ambiguous, and what is over the limits.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        _check_incomplete(buffer, limits)
        return None
    match = _REQUEST_LINE.match(buffer)
    if match is None:
        raise _request_line_error(buffer, limits)
    after_line = match.end()
    if after_line > limits.line + 2:
        raise ProxyError(Reason.REQUEST_LINE_TOO_LONG, f"the request line is longer than {limits.line} bytes")
    if end + 4 > limits.head:
        raise ProxyError(Reason.HEAD_TOO_LARGE, f"the head is larger than {limits.head} bytes")
    head = RequestHead()
    head.method, target, major, minor = match.groups()
    if major != b"1":
        raise ProxyError(Reason.UNSUPPORTED_VERSION)
    head.minor = 0 if minor == b"0" else 1
    block = head.block = buffer[after_line : end + 2] if end >= after_line else b""
    try:
        head.fields = _fields(block, limits.count)
    except ValueError as error:
        raise _bad(str(error)) from None
    except OverflowError:
        raise ProxyError(Reason.HEAD_TOO_LARGE, f"more than {limits.count} header fields") from None
    _classify_request(head)
    _read_target(head, target)
    return head, end + 4


def _check_incomplete(buffer: bytes, limits: Limits) -> None:
    """Refuse early what can no longer become a valid head."""
    if _BARE_LF.search(buffer):
        raise _bad("a line ends without CR LF")
    line = buffer.find(b"\r\n")
    if line < 0 and len(buffer) > limits.line:
        raise ProxyError(Reason.REQUEST_LINE_TOO_LONG, f"the request line is longer than {limits.line} bytes")
    if line >= 0 and _REQUEST_LINE.match(buffer) is None:
        raise _request_line_error(buffer, limits)
    if len(buffer) > limits.head:
        raise ProxyError(Reason.HEAD_TOO_LARGE, f"the head is larger than {limits.head} bytes")
    if buffer.count(b"\n") > limits.count + 1:
        # Now rather than at the end: each line that comes alone has the whole head looked at again.
        raise ProxyError(Reason.HEAD_TOO_LARGE, f"more than {limits.count} header fields")
    if line < 0 and not re.match(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z\r]", buffer):
        raise _bad("this is not HTTP")


def _request_line_error(buffer: bytes, limits: Limits) -> ProxyError:
    line = buffer.find(b"\r\n")
    if line > limits.line:
        return ProxyError(
            Reason.REQUEST_LINE_TOO_LONG, f"the request line is longer than {limits.line} bytes"
        )
    return _bad("the request line is malformed")


def _classify_request(head: RequestHead) -> None:
    """Find the fields a proxy must act on, and what they say together."""
    host: bytes | None = None
    length: bytes | None = None
    coding: bytes | None = None
    upgrade = head.upgrade = head.request_id = head.trace = head.agent = b""
    options: bytes | None = None
    head.te_trailers = False
    dropped: list[int] = []
    forwarded: list[int] = []
    kinds = KINDS
    for index, (name, value) in enumerate(head.fields):
        kind = kinds[name]
        if not kind:
            continue
        if kind is _HOST:
            if host is not None:
                raise _bad("more than one Host field")
            host = value.rstrip(b" \t")
        elif kind is _AGENT:
            head.agent = value
        elif kind is _CONNECTION:
            options = value if options is None else options + b"," + value
            dropped.append(index)
        elif kind is _CONTENT_LENGTH:
            if length is not None:
                raise _bad("more than one Content-Length field")
            length = value.rstrip(b" \t")
        elif kind is _TRANSFER_ENCODING:
            if coding is not None:
                raise _bad("more than one Transfer-Encoding field")
            coding = value.rstrip(b" \t")
            dropped.append(index)
        elif kind is _FORWARDED:
            forwarded.append(index)
        elif kind is _REQUEST_ID:
            head.request_id = value.rstrip(b" \t")
            dropped.append(index)
        elif kind is _TRACE:
            if _TRACEPARENT.fullmatch(value) and not head.trace:
                head.trace = value
            else:  # W3C Trace Context 3.2.2.4: what cannot be parsed is restarted
                dropped.append(index)
        elif kind is _DATE:
            pass
        elif kind is _EXPECT:
            if value.rstrip(b" \t").lower() != b"100-continue":
                raise ProxyError(Reason.EXPECTATION_FAILED)
        else:
            dropped.append(index)
            if kind is _UPGRADE:
                upgrade = upgrade + b"," + value if upgrade else value
            elif kind is _TE:
                head.te_trailers = b"trailers" in value.lower()
    head.dropped, head.forwarded = dropped, forwarded
    head.keep_alive = head.minor == 1
    if options is not None:
        listed = _options(options, head.fields, dropped)
        head.keep_alive = b"close" not in listed and (head.minor == 1 or b"keep-alive" in listed)
        if upgrade and b"upgrade" in listed and head.minor == 1:
            protocols = [protocol.strip(b" \t").lower() for protocol in upgrade.split(b",")]
            head.upgrade = b", ".join([p for p in protocols if p and not p.startswith((b"h2", b"http/"))])
    head.body = _request_framing(head, length, coding)
    _read_host(head, host)


_USUAL_OPTIONS: dict[bytes, Collection[bytes]] = {
    b"keep-alive": (b"keep-alive",),
    b"Keep-Alive": (b"keep-alive",),
    b"close": (b"close",),
    b"Close": (b"close",),
}
"""What nearly every Connection field says: nothing beyond the connection itself is listed."""


def _options(value: bytes, fields: list[Field], dropped: list[int]) -> Collection[bytes]:
    """The options of a Connection field; the fields it lists join `dropped` (RFC 9110 7.6.1)."""
    usual = _USUAL_OPTIONS.get(value)
    if usual is not None:
        return usual
    listed = {option.strip(b" \t").lower() for option in value.split(b",")}
    extra = listed - _NEVER_DROPPED
    if extra:
        for index, (name, _) in enumerate(fields):
            if name.lower() in extra and index not in dropped:
                dropped.append(index)
    return listed


def _request_framing(head: RequestHead, length: bytes | None, coding: bytes | None) -> int:
    if coding is not None:
        if length is not None:
            raise _bad("Transfer-Encoding and Content-Length together")
        if head.minor == 0:
            raise _bad("Transfer-Encoding in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise ProxyError(Reason.UNSUPPORTED_CODING)
        return CHUNKED
    if length is not None:
        if not length.isdigit() or len(length) > 18:
            raise _bad("Content-Length is not a number")
        return int(length)
    return NO_BODY


def _read_host(head: RequestHead, host: bytes | None) -> None:
    if host is None:
        if head.minor == 1:
            raise _bad("no Host field")
        head.authority = head.host = b""
        return
    match = _AUTHORITY.fullmatch(host)
    if match is None:
        raise _bad("the Host field is malformed")
    head.authority = host
    head.host = match[1].lower()


def _read_target(head: RequestHead, target: bytes) -> None:
    """Split the request target (RFC 9112 3.2) and work out the path that routes are matched against."""
    head.readings = ()
    if head.method != b"GET" and head.method in _SPECIAL_METHODS:
        _act_on_method(head)
    if target[0] != 0x2F:
        if target == b"*":
            if head.method != b"OPTIONS":
                raise _bad("only OPTIONS may have the target *")
            head.target, head.path, head.query = target, target, b""
            return
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or b"@" in absolute[1]:
            raise _bad("the request target is malformed")
        _read_host(head, absolute[1])
        if not head.host:
            raise _bad("the request target names no host")
        _replace_host(head, absolute[1])
        if not absolute[2] and head.method == b"OPTIONS":  # RFC 9112 3.2.4
            head.target, head.path, head.query = b"*", b"*", b""
            return
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    head.target = target
    path, _, head.query = target.partition(b"?")
    head.path = path
    # Percent, semicolon, backslash: as numbers, because `in` with bytes costs ten times as much.
    if 0x25 in path or 0x3B in path or 0x5C in path or path.find(b"//") >= 0 or path.find(b"/.") >= 0:
        head.path, head.readings = read_path(path)


def _act_on_method(head: RequestHead) -> None:
    """Refuse CONNECT, and count a hop where Max-Forwards limits them (RFC 9110 section 7.6.2)."""
    if head.method == b"CONNECT":
        raise ProxyError(Reason.METHOD_NOT_ALLOWED, "CONNECT is not served here")
    for index, (name, value) in enumerate(head.fields):
        if name.lower() == b"max-forwards" and value.strip(b" \t").isdigit():
            left = int(value[:9])
            if not left:
                last = Reason.LAST_HOP if head.method == b"OPTIONS" else Reason.METHOD_NOT_ALLOWED
                raise ProxyError(last, Reason.LAST_HOP.detail)
            head.fields[index] = (name, b"%d" % (left - 1))
            head.block = b"".join([b"%b: %b\r\n" % field for field in head.fields])


def _replace_host(head: RequestHead, authority: bytes) -> None:
    """The authority of an absolute-form target replaces the Host field (RFC 9112 3.2.2)."""
    if head.get(b"host") is None:
        head.fields.append((b"Host", authority))
    head.fields = [(n, authority if KINDS[n] is _HOST else v) for n, v in head.fields]
    head.block = b"".join([b"%b: %b\r\n" % field for field in head.fields])


def parse_response(buffer: bytes, request_method: bytes, limits: Limits) -> tuple[ResponseHead, int] | None:
    """The response head at the start of `buffer` and the offset behind it; None when it is not complete yet.

    Raises `ProxyError` (`UPSTREAM_INVALID`) for what must not reach a client.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if (
            len(buffer) > limits.head
            or _BARE_LF.search(buffer)
            or not b"HTTP/1."[: len(buffer)] == buffer[:7]
        ):
            raise ProxyError(Reason.UPSTREAM_INVALID, "the response head is malformed or too large")
        return None
    match = _STATUS_LINE.match(buffer)
    if match is None:
        raise ProxyError(Reason.UPSTREAM_INVALID, "the status line is malformed")
    head = ResponseHead()
    head.minor = 0 if match[1] == b"0" else 1
    head.status = int(match[2])
    head.reason = match[3] or b""
    head.block = buffer[match.end() : end + 2] if end >= match.end() else b""
    try:
        head.fields = _fields(head.block, limits.count)
    except (ValueError, OverflowError):
        raise ProxyError(Reason.UPSTREAM_INVALID, "a header field of the response is malformed") from None
    _classify_response(head, request_method)
    return head, end + 4


def _classify_response(head: ResponseHead, request_method: bytes) -> None:
    length: bytes | None = None
    coding: bytes | None = None
    options: bytes | None = None
    upgrade = b""
    head.dated = False
    dropped: list[int] = []
    kinds = KINDS
    for index, (name, value) in enumerate(head.fields):
        kind = kinds[name]
        if not kind:
            continue
        if kind is _CONTENT_LENGTH:
            value = value.rstrip(b" \t")
            if not value.isdigit() or len(value) > 18 or (length is not None and length != value):
                raise ProxyError(Reason.UPSTREAM_INVALID, "Content-Length of the response is malformed")
            if length is not None:
                dropped.append(index)
            length = value
            if head.status < 200 or head.status == 204:  # RFC 9110 8.6: must not be there
                dropped.append(index)
        elif kind is _DATE:
            head.dated = True
        elif kind is _TRANSFER_ENCODING:
            coding = value.rstrip(b" \t") if coding is None else coding + b", " + value.rstrip(b" \t")
            dropped.append(index)
        elif kind is _CONNECTION:
            options = value if options is None else options + b"," + value
            dropped.append(index)
        elif kind is _UPGRADE:
            upgrade = value.strip(b" \t").lower()
            dropped.append(index)
        elif kind is _HOP:
            dropped.append(index)
    head.dropped = dropped
    head.keep_alive = head.minor == 1
    head.upgrade = b""
    if options is not None:
        listed = _options(options, head.fields, dropped)
        head.keep_alive = b"close" not in listed and (head.minor == 1 or b"keep-alive" in listed)
        if b"upgrade" in listed:
            head.upgrade = upgrade
            if head.status == 426:  # RFC 9110 15.5.22: it says what to
                head.fields += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
    head.body = _response_framing(head, request_method, length, coding)


def _response_framing(
    head: ResponseHead, request_method: bytes, length: bytes | None, coding: bytes | None
) -> int:
    """RFC 9112 6.3, in its order."""
    if head.status < 200 or head.status in (204, 304) or request_method == b"HEAD":
        return NO_BODY
    if coding is not None:
        if length is not None or head.minor == 0 or coding.lower() != b"chunked":
            raise ProxyError(Reason.UPSTREAM_INVALID, "the framing of the response is ambiguous")
        return CHUNKED
    if length is not None:
        return int(length)
    head.keep_alive = False
    return UNTIL_CLOSE
