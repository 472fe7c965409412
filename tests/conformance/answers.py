"""Responses that lie, break off, or carry more than they should: what of them may reach a client."""

from __future__ import annotations

from tests.conformance.case import (
    GET,
    OK,
    Case,
    Check,
    bodies,
    each,
    either,
    in_answer,
    not_whole,
    request,
    response,
    status,
    statuses,
)
from tests.conformance.driver import (
    Another,
    Answered,
    Close,
    Endless,
    Pause,
    Reset,
    Seen,
    Step,
)

_CHUNKED = b"Transfer-Encoding: chunked"
_EVIL = response(b"Content-Length: 4", b"X-Evil: yes", body=b"evil")
_HEAD = request(start=b"HEAD / HTTP/1.1")


def _no_evil(seen: Seen) -> str:
    """What came behind a response reached no client as an answer."""
    for client in seen.clients:
        if b"X-Evil" in client.data:
            return "a client got what belonged to no answer"
    return ""


def _answer(
    name: str,
    clause: str,
    requirement: str,
    *answer: Step,
    expect: Check,
    level: str = "MUST",
    client=None,
    **others,
) -> Case:
    return Case(
        f"answer/{name}",
        clause,
        level,  # type: ignore[arg-type]
        requirement,
        client or [GET],
        expect,
        answers=[answer],
        **others,
    )


def _broken(name: str, clause: str, *answer: Step, level: str = "MUST") -> Case:
    return _answer(
        name,
        clause,
        "a response whose framing is broken is answered 502, or cannot be taken for a whole one",
        *answer,
        expect=not_whole,
        level=level,
    )


def _injected(seen: Seen) -> str:
    """No field that the origin hid in another one stands on its own at the client."""
    return "a field was injected" if any(r.get("x-injected") is not None for r in seen.responses) else ""


def _poison(name: str, *answer: Step, first: bytes = GET, methods: tuple[str, ...] = ()) -> Case:
    """More than the response: it may reach neither this client's next request nor anybody else's."""
    return _answer(
        f"extra-{name}",
        "RFC 9112 6.3, 11.1",
        "what an origin sends behind a response is no answer to anybody",
        *answer,
        expect=_no_evil,
        client=[first, Answered(), Pause(0.03), GET, Answered(2), Another(), GET, Answered(), GET],
        methods=methods,
        awaited=2,
    )


CASES = [
    _answer(
        "cl-and-te",
        "RFC 9112 6.3",
        "Content-Length with Transfer-Encoding: 502, or only the latter counts and goes on",
        response(b"Content-Length: 3", _CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"),
        expect=either(status(502), bodies(b"hello")),
    ),
    _answer(
        "cl-differs",
        "RFC 9112 6.3",
        "lengths that differ are answered 502",
        response(b"Content-Length: 3", b"Content-Length: 5", body=b"hello"),
        expect=either(status(502), not_whole),
    ),
    _answer(
        "cl-list-differs",
        "RFC 9112 6.3",
        "a list of lengths that differ is answered 502",
        response(b"Content-Length: 3, 5", body=b"hello"),
        expect=either(status(502), not_whole),
    ),
    _answer(
        "cl-same",
        "RFC 9110 8.6",
        "equal lengths are one, or 502",
        response(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
        expect=either(status(502), each(bodies(b"hello"), in_answer("content-length", b"5"))),
    ),
    *[
        _answer(
            f"cl-{name}",
            "RFC 9112 6.3",
            "an invalid length is answered 502",
            response(b"Content-Length: " + value, body=b"hello"),
            expect=either(status(502), not_whole),
        )
        for name, value in {
            "plus": b"+5",
            "minus": b"-5",
            "hex": b"0x5",
            "letters": b"five",
            "overflow": b"18446744073709551621",
        }.items()
    ],
    _broken("cl-early-end", "RFC 9112 8", response(b"Content-Length: 10", body=b"half"), Close()),
    _broken("cl-reset", "RFC 9112 8", response(b"Content-Length: 10", body=b"half"), Pause(0.03), Reset()),
    _broken("chunks-early-end", "RFC 9112 8", response(_CHUNKED, body=b"5\r\nhello\r\n"), Close()),
    _broken("chunks-cut", "RFC 9112 8", response(_CHUNKED, body=b"a\r\nhello"), Close()),
    _broken("chunks-reset", "RFC 9112 8", response(_CHUNKED, body=b"5\r\nhello\r\n"), Pause(0.03), Reset()),
    _broken("chunk-size", "RFC 9112 7.1", response(_CHUNKED, body=b"zz\r\nhello\r\n0\r\n\r\n"), Close()),
    _broken("chunk-minus", "RFC 9112 7.1", response(_CHUNKED, body=b"-5\r\nhello\r\n0\r\n\r\n"), Close()),
    _broken("chunk-end", "RFC 9112 7.1", response(_CHUNKED, body=b"5\r\nhelloXX0\r\n\r\n"), Close()),
    _broken(
        "chunk-overflow",
        "RFC 9112 7.1",
        response(_CHUNKED, body=b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
        Close(),
    ),
    _answer(
        "chunk-bare-lf",
        "RFC 9112 7.1",
        "chunks with bare line feeds are refused, or chunks as any other in what goes on",
        response(_CHUNKED, body=b"5\nhello\n0\n\n"),
        Close(),
        expect=either(not_whole, bodies(b"hello")),
    ),
    _answer(
        "te-unknown",
        "RFC 9112 6.1",
        "a coding that the client did not ask for is not handed to it as if it were the content",
        response(b"Transfer-Encoding: gzip, chunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        Close(),
        expect=either(status(502), not_whole),
        level="SHOULD",
    ),
    _answer(
        "te-http-1.0",
        "RFC 9112 6.1",
        "Transfer-Encoding in an HTTP/1.0 response is faulty framing",
        response(
            _CHUNKED, b"Connection: keep-alive", start=b"HTTP/1.0 200 OK", body=b"5\r\nhello\r\n0\r\n\r\n"
        ),
        Close(),
        expect=either(status(502), bodies(b"hello"), bodies(b"5\r\nhello\r\n0\r\n\r\n"), not_whole),
    ),
    _answer(
        "until-close",
        "RFC 9112 6.3",
        "a body that ends with its connection goes on whole",
        response(body=b"hello"),
        Pause(0.02),
        b" world",
        Close(),
        expect=bodies(b"hello world"),
    ),
    _answer(
        "until-close-1.0-client",
        "RFC 9112 6.3",
        "the same to a client of HTTP/1.0, without chunks",
        response(body=b"hello"),
        Close(),
        expect=each(bodies(b"hello"), in_answer("transfer-encoding", None)),
        client=[request(start=b"GET / HTTP/1.0")],
    ),
    _answer(
        "chunks-1.0-client",
        "RFC 9112 6.1",
        "no Transfer-Encoding is sent to a client of HTTP/1.0",
        response(_CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"),
        expect=each(bodies(b"hello"), in_answer("transfer-encoding", None)),
        client=[request(start=b"GET / HTTP/1.0")],
    ),
    _answer(
        "chunks-extension",
        "RFC 9112 7.1.1",
        "chunk extensions of a response are ignored",
        response(_CHUNKED, body=b"5;a=b\r\nhello\r\n0;c\r\n\r\n"),
        expect=bodies(b"hello"),
    ),
    _answer(
        "trailer-merged",
        "RFC 9110 6.5.1",
        "a trailer of a response never becomes a header",
        response(_CHUNKED, body=b"5\r\nhello\r\n0\r\nSet-Cookie: a=b\r\nX-Injected: 1\r\n\r\n"),
        expect=each(bodies(b"hello"), in_answer("set-cookie", None), _injected),
    ),
    # -- no body
    _answer(
        "head-length",
        "RFC 9110 9.3.2",
        "a response to HEAD has no body, whatever its Content-Length",
        response(b"Content-Length: 5"),
        expect=each(statuses(200, 200), in_answer("content-length", b"5")),
        client=[_HEAD, Answered(), GET],
        methods=("HEAD",),
        awaited=2,
    ),
    _answer(
        "head-chunked",
        "RFC 9112 6.1",
        "a response to HEAD has no body, also with Transfer-Encoding",
        response(_CHUNKED),
        expect=statuses(200, 200),
        client=[_HEAD, Answered(), GET],
        methods=("HEAD",),
        awaited=2,
    ),
    _answer(
        "204-length",
        "RFC 9110 8.6",
        "204 has no Content-Length",
        response(b"Content-Length: 5", start=b"HTTP/1.1 204 No Content"),
        expect=either(status(502), each(status(204), in_answer("content-length", None))),
    ),
    _answer(
        "204-chunked",
        "RFC 9112 6.1",
        "204 has no Transfer-Encoding",
        response(_CHUNKED, start=b"HTTP/1.1 204 No Content"),
        expect=either(status(502), each(status(204), in_answer("transfer-encoding", None))),
    ),
    _answer(
        "304-length",
        "RFC 9110 8.6",
        "304 may say the length that a 200 would have had",
        response(b"Content-Length: 5", start=b"HTTP/1.1 304 Not Modified"),
        expect=statuses(304, 200),
        client=[GET, Answered(), GET],
        awaited=2,
    ),
    _answer(
        "interim-length",
        "RFC 9110 8.6",
        "1xx has no Content-Length, and no body",
        response(b"Content-Length: 5", start=b"HTTP/1.1 103 Early Hints") + OK,
        expect=either(
            status(502),
            each(
                lambda seen: (
                    "" if not any(r.get("content-length") for r in seen.responses[:-1]) else "it has one"
                ),
                bodies(b"ok"),
            ),
        ),
    ),
    # -- more than a response
    _poison("response", OK + _EVIL),
    _poison("response-later", OK, Pause(0.01), _EVIL),
    _poison("bytes", OK + b"X-Evil: garbage"),
    _poison("behind-chunks", response(_CHUNKED, body=b"2\r\nok\r\n0\r\n\r\n") + _EVIL),
    _poison("behind-204", response(start=b"HTTP/1.1 204 No Content") + _EVIL),
    _poison("behind-304", response(start=b"HTTP/1.1 304 Not Modified") + _EVIL),
    _poison(
        "behind-head",
        response(b"Content-Length: %d" % len(_EVIL), body=_EVIL),
        first=_HEAD,
        methods=("HEAD",),
    ),
    _poison("behind-head-length-0", response(b"Content-Length: 0") + _EVIL, first=_HEAD, methods=("HEAD",)),
    # -- switching protocols
    _answer(
        "101-unasked",
        "RFC 9110 7.8",
        "101 to a client that did not ask for another protocol is never sent",
        response(b"Connection: Upgrade", b"Upgrade: websocket", start=b"HTTP/1.1 101 Switching Protocols")
        + _EVIL,
        expect=each(
            lambda seen: "" if all(r.status != 101 for r in seen.responses) else "101 went on", _no_evil
        ),
    ),
    # -- heads
    *[
        _answer(
            name,
            clause,
            requirement,
            b"HTTP/1.1 200 OK\r\n" + line + b"\r\nContent-Length: 2\r\n\r\nok",
            expect=expect,
            level=level,
        )
        for name, clause, requirement, line, expect, level in [
            (
                "folded",
                "RFC 9112 5.2",
                "a folded line of a response is answered 502, or its fold becomes spaces",
                b"X-Data: a\r\n b",
                either(status(502), bodies(b"ok")),
                "MUST",
            ),
            (
                "folded-injects",
                "RFC 9112 5.2",
                "a folded line of a response does not become a field",
                b"X-Data: a\r\n X-Injected: b",
                each(status(200, 502), _injected),
                "MUST",
            ),
            (
                "space-before-colon",
                "RFC 9112 5.1",
                "white space in front of a colon does not go on",
                b"X-Data : a",
                either(status(502), bodies(b"ok")),
                "MUST",
            ),
            (
                "nul",
                "RFC 9110 5.5",
                "NUL in a value of a response is replaced, or answered 502",
                b"X-Data: a\x00b",
                either(status(502), bodies(b"ok")),
                "MUST",
            ),
            (
                "bare-cr-injects",
                "RFC 9112 2.2",
                "a bare CR in a response is no end of a line: replaced, or answered 502",
                b"X-Data: a\rX-Injected: b",
                each(status(200, 502), _injected),
                "MUST",
            ),
            (
                "bare-lf-injects",
                "RFC 9112 2.2",
                "LF within a response's head is a line's end that is one in what goes on, or answered 502",
                b"X-Data: a\nX-Other: b",
                either(status(502), bodies(b"ok")),
                "MUST",
            ),
            (
                "name-invalid",
                "RFC 9110 5.1",
                "a name that is no token does not go on",
                b"X Data: a",
                either(status(502), bodies(b"ok")),
                "SHOULD",
            ),
            (
                "no-colon",
                "RFC 9112 5",
                "a line without a colon does not go on",
                b"X-Data",
                either(status(502), bodies(b"ok")),
                "SHOULD",
            ),
            (
                "obs-text",
                "RFC 9110 5.5",
                "octets above ASCII go on as they are",
                b"X-Data: caf\xe9\xff",
                in_answer("x-data", b"caf\xe9\xff"),
                "SHOULD",
            ),
        ]
    ],
    *[
        _answer(
            f"status-{name}",
            clause,
            "a status line that is none is answered 502",
            line + b"\r\nContent-Length: 2\r\n\r\nok",
            Close(),
            expect=either(status(502, 500), not_whole),
            level="SHOULD",
        )
        for name, line, clause in [
            ("garbage", b"SSH-2.0-OpenSSH_9", "RFC 9112 4"),
            ("letters", b"HTTP/1.1 abc OK", "RFC 9112 4"),
            ("two-digits", b"HTTP/1.1 20 OK", "RFC 9112 4"),
            ("four-digits", b"HTTP/1.1 2000 OK", "RFC 9112 4"),
            ("version-2", b"HTTP/2.0 200 OK", "RFC 9110 2.5"),
            ("0.9", b"ok", "RFC 9112 2.3"),
        ]
    ],
    _answer(
        "status-line-bare-cr",
        "RFC 9112 2.2",
        "a bare CR in a reason phrase is no end of a line",
        b"HTTP/1.1 200 OK\rX-Injected: yes\r\nContent-Length: 2\r\n\r\nok",
        expect=each(status(200, 502), _injected),
    ),
    _answer(
        "reason-empty",
        "RFC 9112 4",
        "a status line without a reason phrase is valid",
        b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
        expect=bodies(b"ok"),
    ),
    _answer(
        "closed-at-once",
        "RFC 9110 15.6.3",
        "no response at all is answered with a 5xx",
        Close(),
        expect=status(502, 503, 504),
        level="SHOULD",
    ),
    _answer(
        "head-cut",
        "RFC 9112 8",
        "a response whose head is cut is no response",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        Close(),
        expect=status(502, 503, 504),
    ),
    _answer(
        "head-endless",
        "RFC 9110 17.5",
        "an endless head of a response is answered with an error before it fills the memory",
        b"HTTP/1.1 200 OK\r\nX: ",
        Endless(b"a" * 65_536, 32 << 20),
        expect=status(502, 503, 500),
        level="SHOULD",
    ),
    _answer(
        "interim-flood",
        "RFC 9110 15.2",
        "any number of 1xx may come before the final response; or it is an error",
        response(start=b"HTTP/1.1 103 Early Hints") * 2_000 + OK,
        expect=either(status(502, 503), bodies(b"ok")),
    ),
    _answer(
        "trickled",
        "RFC 9112 2.2",
        "a response is read the same however it is cut into packets",
        *[bytes((byte,)) for byte in response(_CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n")],
        expect=bodies(b"abc"),
    ),
]
