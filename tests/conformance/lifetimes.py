"""Connections: pipelining, keeping alive and closing, and peers that are slow or never done."""

from __future__ import annotations

from tests.conformance.case import (
    GET,
    HOST,
    OK,
    SMUGGLED,
    Case,
    Check,
    at_most,
    bodies,
    closed,
    each,
    either,
    forwarded,
    in_answer,
    not_whole,
    nothing_forwarded,
    post,
    request,
    response,
    status,
    stays_open,
)
from tests.conformance.driver import (
    Answered,
    AtOrigin,
    Close,
    Early,
    Endless,
    Pause,
    Seen,
    Unread,
)


def _get(path: bytes, *fields: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return request(*fields, start=b"GET " + path + b" " + version)


def _bounded(most: int) -> Check:
    """No origin could send more than this to a client that does not read."""

    def check(seen: Seen) -> str:
        sent = max((origin.sent for origin in seen.origins), default=0)
        return "" if sent <= most else f"{sent >> 20} MiB were taken from the origin"

    return check


def _order(count: int) -> Case:
    return Case(
        f"life/pipelined-{count}",
        "RFC 9112 9.3.2",
        "MUST",
        "pipelined requests are answered in their order",
        [b"".join(_get(b"/%d" % n) for n in range(count))],
        bodies(*[b"/%d" % n for n in range(count)]),
        awaited=count,
    )


CASES = [
    _order(2),
    _order(10),
    _order(50),
    Case(
        "life/pipelined-slow-first",
        "RFC 9112 9.3.2",
        "MUST",
        "a slow answer is waited for, and the answers keep their order",
        [_get(b"/a") + _get(b"/b")],
        bodies(b"slow", b"/b"),
        answers=[(Pause(0.1), response(b"Content-Length: 4", body=b"slow"))],
        awaited=2,
    ),
    Case(
        "life/pipelined-bodies",
        "RFC 9112 9.3.2",
        "MUST",
        "bodies of pipelined requests are read as bodies",
        [
            post(b"Content-Length: 5", body=b"hello")
            + post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n")
            + GET
        ],
        bodies(b"/post", b"/post", b"/"),
        awaited=3,
    ),
    Case(
        "life/pipelined-behind-close",
        "RFC 9112 9.6",
        "MUST",
        "behind Connection: close nothing is processed",
        [_get(b"/a", b"Connection: close") + SMUGGLED],
        each(bodies(b"/a"), closed),
    ),
    Case(
        "life/pipelined-behind-close-list",
        "RFC 9112 9.6",
        "MUST",
        "close counts wherever it is listed, whatever its case",
        [_get(b"/a", b"Connection: x-y, CLOSE") + SMUGGLED],
        each(bodies(b"/a"), closed),
    ),
    Case(
        "life/pipelined-behind-error",
        "RFC 9112 9.3",
        "SHOULD",
        "behind a request that was refused for its framing nothing is processed",
        [_get(b"/a") + post(b"Content-Length: x") + SMUGGLED],
        each(closed, at_most(1)),
        awaited=2,
    ),
    Case(
        "life/pipelined-behind-1.0",
        "RFC 9112 9.3",
        "MUST",
        "HTTP/1.0 without keep-alive is over after one answer",
        [_get(b"/a", version=b"HTTP/1.0") + SMUGGLED],
        each(bodies(b"/a"), closed),
    ),
    Case(
        "life/close-said",
        "RFC 9112 9.6",
        "MUST",
        "who is asked to close says so in the answer, and closes",
        [_get(b"/", b"Connection: close")],
        each(in_answer("connection", b"close"), closed),
    ),
    Case(
        "life/kept-alive",
        "RFC 9112 9.3",
        "SHOULD",
        "an HTTP/1.1 connection is kept",
        [_get(b"/a"), Answered(), _get(b"/b")],
        each(bodies(b"/a", b"/b"), stays_open),
        awaited=2,
    ),
    Case(
        "life/kept-alive-1.0",
        "RFC 9112 9.3",
        "MUST",
        "HTTP/1.0 with keep-alive is kept and told so, or closed",
        [_get(b"/a", b"Connection: keep-alive", version=b"HTTP/1.0")],
        either(
            closed,
            lambda seen: (
                "" if b"keep-alive" in (seen.final[0].get("connection") or b"").lower() else "not told"
            ),
        ),
    ),
    Case(
        "life/kept-alive-after-404",
        "RFC 9112 9.3",
        "SHOULD",
        "an error of the origin's leaves the connection as it is",
        [GET, Answered(), _get(b"/b")],
        bodies(b"no", b"/b"),
        answers=[(response(b"Content-Length: 2", start=b"HTTP/1.1 404 Not Found", body=b"no"),)],
        awaited=2,
    ),
    Case(
        "life/half-closed",
        "RFC 9112 9.6",
        "SHOULD",
        "a client that has finished sending still gets its answer",
        [GET, AtOrigin(b"\r\n\r\n"), Close()],
        bodies(b"ok"),
        answers=[(Pause(0.05), OK)],
    ),
    Case(
        "life/head-cut",
        "RFC 9112 8",
        "MUST",
        "a head that was cut is no request",
        [b"GET /cut HTTP/1.1\r\n" + HOST, Pause(0.02), Close()],
        nothing_forwarded,
    ),
    Case(
        "life/slow-head",
        "RFC 9110 15.5.9",
        "SHOULD",
        "a head that does not come to its end is given up in time",
        [b"GET / HTTP/1.1\r\n" + HOST, Pause(0.4), b"X: y\r\n", Pause(0.4), b"X: y\r\n", Pause(3.5)],
        each(nothing_forwarded, closed),
    ),
    Case(
        "life/slow-head-trickled",
        "RFC 9110 15.5.9",
        "SHOULD",
        "a head that comes byte by byte is given up in time, however lively",
        [b"GET / HTTP/1.1\r\n" + HOST + b"X: ", *[part for _ in range(35) for part in (b"a", Pause(0.1))]],
        each(nothing_forwarded, closed),
    ),
    Case(
        "life/slow-body",
        "RFC 9110 15.5.9",
        "SHOULD",
        "a body that stops coming is given up in time",
        [post(b"Content-Length: 100", body=b"some"), Pause(3.5)],
        each(nothing_forwarded, closed),
    ),
    Case(
        "life/slow-chunks",
        "RFC 9110 15.5.9",
        "SHOULD",
        "a chunked body that stops coming is given up in time",
        [post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"), Pause(3.5)],
        each(nothing_forwarded, closed),
    ),
    Case(
        "life/slow-reader",
        "RFC 9110 17.5",
        "SHOULD",
        "an answer to a client that does not read is not gathered in memory",
        [GET, Unread(), Pause(0.7)],
        _bounded(24 << 20),
        answers=[(response(b"Content-Length: 1000000000"), Endless(b"a" * (1 << 18), 200 << 20))],
        awaited=0,
    ),
    Case(
        "life/pipelined-unread",
        "RFC 9112 9.3.2",
        "SHOULD",
        "who sends requests without reading answers is not read for ever",
        [Unread(), Endless(_get(b"/flood") * 1000, 64 << 20)],
        lambda seen: "" if seen.clients[0].sent < 32 << 20 else "everything was read",
        awaited=0,
    ),
    Case(
        "life/origin-silent",
        "RFC 9110 15.6.5",
        "SHOULD",
        "an origin that does not answer is given up in time, with 504",
        [GET],
        each(status(504, 502, 503)),
        answers=[()],
    ),
    Case(
        "life/origin-stalls",
        "RFC 9112 8",
        "SHOULD",
        "an origin that stops in the middle of its answer does not hold the client for ever",
        [GET],
        each(not_whole),
        answers=[(response(b"Content-Length: 10", body=b"half"), Pause(60))],
    ),
    Case(
        "life/origin-stalls-in-head",
        "RFC 9110 15.6.5",
        "SHOULD",
        "an origin that stops in the middle of a head is given up in time",
        [GET],
        each(status(504, 502, 503)),
        answers=[(b"HTTP/1.1 200 OK\r\nContent-", Pause(60))],
    ),
    Case(
        "life/origin-interim-for-ever",
        "RFC 9110 15.6.5",
        "SHOULD",
        "an origin that sends nothing but 1xx is given up in time",
        [GET],
        each(
            lambda seen: (
                "" if any(r.status >= 500 for r in seen.final) or seen.clients[0].over else "it goes on"
            ),
        ),
        answers=[
            tuple(
                part for _ in range(60) for part in (response(start=b"HTTP/1.1 102 Processing"), Pause(0.1))
            )
        ],
    ),
    Case(
        "life/reused-and-closed",
        "RFC 9112 9.3.1",
        "SHOULD",
        "an idempotent request that met a closing connection of the pool is sent again",
        [GET, Answered(), Pause(0.1), GET],
        bodies(b"ok", b"/"),
        answers=[(OK, Pause(0.02), Close())],
        awaited=2,
    ),
    Case(
        "life/not-repeated",
        "RFC 9110 9.2.2",
        "MUST",
        "a request that is not idempotent and may have been acted upon is not repeated by itself",
        [post(b"Content-Length: 5", body=b"hello")],
        each(status(502, 503, 504), forwarded()),
        answers=[(Pause(0.02), Close())],
    ),
    Case(
        "life/early-hang-up",
        "RFC 9112 9.5",
        "SHOULD",
        "an answer that comes before the body is over reaches the client",
        [post(b"Content-Length: 100000", body=b"a" * 1000), Answered()],
        status(413, 100, 502),
        answers=[
            (
                Early(),
                b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
                Close(),
            )
        ],
    ),
]
