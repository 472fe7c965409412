"""Every way in which a request can end without an instance's answer, and the answer the proxy gives then.

One `Reason` is the response's `error` code, the access log's `reason` and the metrics' label.
"""

from __future__ import annotations

import json
from enum import Enum


class Side(Enum):
    """Whose doing it was."""

    CLIENT = "client"
    PROXY = "proxy"
    UPSTREAM = "upstream"


class Reason(Enum):
    """Code, HTTP status, side, and the sentence used when nothing more exact is known."""

    BAD_REQUEST = ("bad_request", 400, Side.CLIENT, "the request is malformed")
    REQUEST_LINE_TOO_LONG = ("request_line_too_long", 414, Side.CLIENT, "the request line is too long")
    HEAD_TOO_LARGE = ("head_too_large", 431, Side.CLIENT, "the header fields are too large or too many")
    HEADER_TIMEOUT = ("header_timeout", 408, Side.CLIENT, "the request head took too long")
    BODY_TIMEOUT = ("body_timeout", 408, Side.CLIENT, "the request body stopped coming")
    EXPECTATION_FAILED = ("expectation_failed", 417, Side.CLIENT, "only 100-continue can be expected")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, Side.CLIENT, "this method is not served here")
    UNSUPPORTED_CODING = ("unsupported_coding", 501, Side.CLIENT, "only the chunked coding is understood")
    UPGRADE_REQUIRED = ("upgrade_required", 426, Side.CLIENT, "only version 13 of WebSocket is spoken")
    LAST_HOP = ("last_hop", 200, Side.CLIENT, "Max-Forwards lets this request go no further")
    UNSUPPORTED_VERSION = ("unsupported_version", 505, Side.CLIENT, "only HTTP/1.0 and HTTP/1.1 are spoken")
    CLIENT_GONE = ("client_gone", 499, Side.CLIENT, "the client closed the connection")
    CLIENT_STALLED = ("client_stalled", 499, Side.CLIENT, "the client stopped reading")
    RATE_LIMITED = ("rate_limited", 429, Side.CLIENT, "too many requests")
    OVERLOADED = ("overloaded", 503, Side.PROXY, "too much is under way for this service")
    QUEUE_TIMEOUT = ("queue_timeout", 503, Side.PROXY, "no place became free in time for this service")
    NO_ROUTE = ("no_route", 404, Side.CLIENT, "no route matches this request")
    TOO_MANY_CONNECTIONS = ("too_many_connections", 503, Side.PROXY, "the connection limit is reached")
    DRAINING = ("draining", 503, Side.PROXY, "the proxy is shutting down")
    NO_HEALTHY_INSTANCE = ("no_healthy_instance", 503, Side.UPSTREAM, "no instance is ready")
    CONNECT_FAILED = ("connect_failed", 502, Side.UPSTREAM, "no connection to an instance could be made")
    CONNECT_TIMEOUT = (
        "connect_timeout",
        504,
        Side.UPSTREAM,
        "an instance did not accept the connection in time",
    )
    UPSTREAM_RESET = ("upstream_reset", 502, Side.UPSTREAM, "the instance closed the connection early")
    UPSTREAM_INVALID = ("upstream_invalid", 502, Side.UPSTREAM, "the instance's answer is malformed")
    UPSTREAM_TIMEOUT = ("upstream_timeout", 504, Side.UPSTREAM, "the instance did not answer in time")
    DRAIN_DEADLINE = ("drain_deadline", 503, Side.UPSTREAM, "the instance left before it had answered")

    def __init__(self, code: str, status: int, side: Side, detail: str) -> None:
        self.code = code
        self.status = status
        self.side = side
        self.detail = detail


class ProxyError(Exception):
    """A request that cannot go on. `detail` is for the client: it holds nothing secret."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason.detail)
        self.reason = reason
        self.detail = detail or reason.detail


_PHRASES = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    426: b"Upgrade Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}


def error_response(
    error: ProxyError,
    *,
    close: bool,
    head_only: bool = False,
    retry_after: float | None = None,
    date: bytes = b"",
) -> bytes:
    """The proxy's own answer, as bytes for the wire.

    `retry_after` is in seconds; sent rounded up. `date` is an IMF-fixdate (RFC 9110 6.6.1).
    """
    reason = error.reason
    body = json.dumps({"error": reason.code, "detail": error.detail}).encode() + b"\n"
    lines = [
        b"HTTP/1.1 %d %b" % (reason.status, _PHRASES[reason.status]),
        b"Server: holdfast",
        b"Date: " + date,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    if reason is Reason.METHOD_NOT_ALLOWED or reason is Reason.LAST_HOP:  # RFC 9110 15.5.6, 9.3.7
        lines.append(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE")
    if reason is Reason.UPGRADE_REQUIRED:  # RFC 9110 15.5.22, RFC 6455 4.4
        lines += [b"Sec-WebSocket-Version: 13", b"Upgrade: websocket", b"Connection: Upgrade"]
    if retry_after is not None:
        lines.append(b"Retry-After: %d" % max(1, -int(-retry_after // 1)))
    if close:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head_only else body)
