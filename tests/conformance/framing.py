"""Where a request ends: smuggling by Content-Length, Transfer-Encoding, chunk sizes and trailers."""

from __future__ import annotations

from tests.conformance.case import (
    GET,
    SMUGGLED,
    Case,
    at_most,
    closed,
    each,
    either,
    forwarded,
    harmless,
    has,
    has_body,
    lacks,
    nothing_forwarded,
    post,
    refused,
    request,
    response,
    status,
)
from tests.conformance.driver import Another, Answered, AtOrigin, Close, Early, Pause

_CHUNKED = b"Transfer-Encoding: chunked"
_END = b"0\r\n\r\n"
_HELLO = b"5\r\nhello\r\n" + _END


def _both(name: str, *fields: bytes) -> Case:
    return Case(
        f"framing/{name}",
        "RFC 9112 6.1",
        "MUST",
        "Content-Length with Transfer-Encoding: refused, or only the latter counts and goes on; then closed",
        [post(*fields, body=_END + SMUGGLED)],
        either(each(refused(), closed), each(forwarded(lacks("content-length")), closed)),
    )


def _coding(name: str, *fields: bytes) -> Case:
    """A coding that one reader takes for chunked and another does not; the length says otherwise."""
    body = _END + SMUGGLED
    return Case(
        f"framing/te-{name}",
        "RFC 9112 6.1, 6.3",
        "MUST",
        "a Transfer-Encoding that is not plainly chunked never reaches an origin next to a length",
        [post(b"Content-Length: %d" % len(body), *fields, body=body)],
        harmless,
    )


def _last(name: str, coding: bytes) -> Case:
    return Case(
        f"framing/te-last-{name}",
        "RFC 9112 6.3",
        "MUST",
        "a coding of a request that does not end in chunked is refused and the connection closed",
        [post(b"Transfer-Encoding: " + coding, body=_HELLO)],
        each(refused(400, 501), closed),
    )


def _length(name: str, *values: bytes, body: bytes = b"hello" + SMUGGLED) -> Case:
    return Case(
        f"framing/cl-{name}",
        "RFC 9112 6.3",
        "MUST",
        "an invalid Content-Length of a request is refused with 400 and the connection closed",
        [post(*[b"Content-Length:" + value for value in values], body=body)],
        each(refused(400), closed),
    )


def _chunks(name: str, body: bytes, clause: str = "RFC 9112 7.1") -> Case:
    """What is no chunked body by the grammar. A reader may refuse it, or read it in one harmless way."""
    return Case(
        f"framing/chunk-{name}",
        clause,
        "MUST",
        "a malformed chunked body is refused, or goes on as one well-formed request",
        [post(_CHUNKED, body=body), Pause(0.05)],
        either(
            each(nothing_forwarded, closed),
            each(status(400, 413, 502), nothing_forwarded),
            # Answered by the origin, and what came behind it was refused or waited for.
            forwarded(),
        ),
    )


def _trailer(name: str, line: bytes) -> Case:
    return Case(
        f"framing/trailer-{name}",
        "RFC 9110 6.5.1",
        "MUST",
        "a trailer field is never merged into the header section where its definition does not allow it",
        [post(_CHUNKED, body=b"5\r\nhello\r\n0\r\n" + line + b"\r\n\r\n")],
        either(refused(), forwarded(_header_lacks(line))),
    )


def _header_lacks(line: bytes):
    name, _, value = line.partition(b": ")

    def check(message) -> str:
        if any(own.lower() == name.lower() and held == value for own, held in message.fields):
            return f"the trailer {name!r} became a header"
        return ""

    return check


CASES = [
    _both("cl-te", b"Content-Length: 6", _CHUNKED),
    _both("te-cl", _CHUNKED, b"Content-Length: 6"),
    _both("cl-te-zero", b"Content-Length: 0", _CHUNKED),
    _both("cl-te-case", b"content-length: 6", b"TRANSFER-encoding: CHUNKED"),
    _coding("x-prefix", b"Transfer-Encoding: xchunked"),
    _coding("space-before-colon", b"Transfer-Encoding : chunked"),
    _coding("tab-before-colon", b"Transfer-Encoding\t: chunked"),
    _coding("vertical-tab", b"Transfer-Encoding:\x0bchunked"),
    _coding("form-feed", b"Transfer-Encoding:\x0cchunked"),
    _coding("vertical-tab-behind", b"Transfer-Encoding: chunked\x0b"),
    _coding("nul", b"Transfer-Encoding: chunked\x00"),
    _coding("nul-in-front", b"Transfer-Encoding: \x00chunked"),
    _coding("bare-cr", b"Transfer-Encoding: chun\rked"),
    _coding("behind-bare-lf", b"X: y\nTransfer-Encoding: chunked"),
    _coding("behind-bare-cr", b"X: y\rTransfer-Encoding: chunked"),
    _coding("folded", b"Transfer-Encoding:\r\n chunked"),
    _coding("folded-name", b"Transfer-Encoding\r\n: chunked"),
    _coding("leading-space", b" Transfer-Encoding: chunked"),
    _coding("quoted", b'Transfer-Encoding: "chunked"'),
    _coding("comma-in-front", b"Transfer-Encoding: ,chunked"),
    _coding("comma-behind", b"Transfer-Encoding: chunked,"),
    _coding("parameter", b"Transfer-Encoding: chunked;a=b"),
    _coding("twice", b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    _coding("twice-reversed", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"),
    _coding("list", b"Transfer-Encoding: identity, chunked"),
    _coding("empty", b"Transfer-Encoding:"),
    _coding("underscore", b"Transfer_Encoding: chunked"),
    _coding("non-ascii", b"Transfer-Encoding: \xe7hunked"),
    _coding("non-ascii-space", b"Transfer-Encoding: \xa0chunked"),
    _coding("listed-by-connection", b"Connection: Content-Length", b"Transfer-Encoding: x"),
    Case(
        "framing/te-underscore-alone",
        "RFC 9112 11.2",
        "SHOULD",
        "a Transfer_Encoding, which some servers read as Transfer-Encoding, is refused or does not go on",
        [request(b"Transfer_Encoding: chunked")],
        either(refused(), forwarded(lacks("transfer_encoding"))),
    ),
    Case(
        "framing/cl-underscore-alone",
        "RFC 9112 11.2",
        "SHOULD",
        "a Content_Length, which some servers read as Content-Length, is refused or does not go on",
        [request(b"Content_Length: 5")],
        either(refused(), forwarded(lacks("content_length"))),
    ),
    _last("gzip", b"gzip"),
    _last("identity", b"identity"),
    _last("chunked-in-front", b"chunked, gzip"),
    _last("chunked-twice", b"chunked, chunked"),
    Case(
        "framing/te-unknown",
        "RFC 9112 6.1",
        "SHOULD",
        "a transfer coding that is not understood is answered 501",
        [post(b"Transfer-Encoding: nonsense, chunked", body=_HELLO)],
        either(refused(501), refused(400)),
    ),
    Case(
        "framing/te-http-1.0",
        "RFC 9112 6.1",
        "MUST",
        "Transfer-Encoding in HTTP/1.0 is faulty framing: what is behind it is not read",
        [
            request(b"Connection: keep-alive", _CHUNKED, start=b"POST /post HTTP/1.0")
            + b"5\r\nhello\r\n0\r\n\r\n"
            + SMUGGLED
        ],
        each(closed, at_most(1)),
    ),
    Case(
        "framing/te-case",
        "RFC 9112 7",
        "MUST",
        "transfer coding names are compared without regard to case",
        [post(b"Transfer-Encoding: cHuNkEd", body=_HELLO)],
        forwarded(has_body(b"hello")),
    ),
    Case(
        "framing/te-tab",
        "RFC 9112 5",
        "MUST",
        "a tab in front of a field value is white space",
        [post(b"Transfer-Encoding:\tchunked", body=_HELLO)],
        forwarded(has_body(b"hello")),
    ),
    _length("plus", b" +5"),
    _length("minus", b" -5"),
    _length("hex", b" 0x5"),
    _length("float", b" 5.0"),
    _length("exponent", b" 5e0"),
    _length("underscore", b" 5_0"),
    _length("two-numbers", b" 5 5"),
    _length("list-differs", b" 5, 6"),
    _length("differs", b" 5", b" 6"),
    _length("differs-reversed", b" 47", b" 5"),
    _length("empty", b""),
    _length("letters", b" five"),
    _length("overflow-64", b" 18446744073709551621"),
    _length("overflow-far", b" " + b"9" * 60),
    _length("full-width", b" \xef\xbc\x95"),
    _length("superscript", b" \xb5"),
    _length("semicolon", b" 5;"),
    _length("nul", b" 5\x00"),
    _length("folded", b" 5\r\n 5"),
    Case(
        "framing/cl-same-twice",
        "RFC 9110 8.6",
        "MUST",
        "equal Content-Length fields are refused or go on as one",
        [post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello")],
        either(refused(400), forwarded(has("content-length", b"5"), has_body(b"hello"))),
    ),
    Case(
        "framing/cl-same-list",
        "RFC 9110 8.6",
        "MUST",
        "a list of equal lengths is refused or goes on as one",
        [post(b"Content-Length: 5, 5", body=b"hello")],
        either(refused(400), forwarded(has("content-length", b"5"), has_body(b"hello"))),
    ),
    Case(
        "framing/cl-white-space",
        "RFC 9112 5",
        "MUST",
        "white space around a field value is no part of it",
        [post(b"Content-Length: \t 5 \t", body=b"hello")],
        forwarded(has_body(b"hello")),
    ),
    Case(
        "framing/cl-leading-zeros",
        "RFC 9110 8.6",
        "MUST",
        "digits are a length, whatever they begin with; or refused",
        [post(b"Content-Length: 005", body=b"hello")],
        either(refused(400), forwarded(has_body(b"hello"))),
    ),
    *[
        Case(
            f"framing/cl-of-{method.decode().lower()}",
            "RFC 9112 6.3",
            "MUST",
            "a body is a body, whatever the method: it is not read as the next request",
            [
                request(b"Content-Length: %d" % len(SMUGGLED), start=method + b" /x HTTP/1.1") + SMUGGLED,
                Answered(),
                GET,
            ],
            either(forwarded(has_body(SMUGGLED), count=2), refused(), each(at_most(1), closed)),
            methods=(method.decode(),),
            awaited=2,
        )
        for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE")
    ],
    Case(
        "framing/cl-cut",
        "RFC 9112 8",
        "MUST",
        "a request that was cut within its Content-Length is incomplete and never made whole",
        [post(b"Content-Length: 10", body=b"half"), AtOrigin(b"half", 0.3), Close()],
        nothing_forwarded,
    ),
    Case(
        "framing/chunks-cut",
        "RFC 9112 8",
        "MUST",
        "a chunked request that was cut is incomplete and never made whole",
        [post(_CHUNKED, body=b"5\r\nhello\r\n"), AtOrigin(b"hello", 0.3), Close()],
        nothing_forwarded,
    ),
    Case(
        "framing/answered-early",
        "RFC 9112 9.3",
        "MUST",
        "what is left of a body that was answered early is not read as a request, by anybody",
        [
            post(b"Content-Length: %d" % (len(SMUGGLED) + 5), body=b"hello"),
            Answered(),
            SMUGGLED,
            Pause(0.05),
            Another(),
            GET,
            Answered(),
        ],
        at_most(2),
        answers=[(Early(), response(b"Content-Length: 2", body=b"ok"))],
    ),
    # -- chunks
    Case(
        "framing/chunk-upper-case",
        "RFC 9112 7.1",
        "MUST",
        "chunk sizes are hexadecimal in either case, with leading zeros",
        [post(_CHUNKED, body=b"00A\r\n0123456789\r\n0a\r\n0123456789\r\n000\r\n\r\n")],
        forwarded(has_body(b"01234567890123456789")),
    ),
    Case(
        "framing/chunk-extension",
        "RFC 9112 7.1.1",
        "MUST",
        "chunk extensions that are not known are ignored",
        [post(_CHUNKED, body=b'5;a=b;c="d;e"\r\nhello\r\n0;z\r\n\r\n')],
        forwarded(has_body(b"hello")),
    ),
    Case(
        "framing/chunk-bytewise",
        "RFC 9112 7.1",
        "MUST",
        "a chunked body is read the same however it is cut into packets",
        [part for byte in post(_CHUNKED, body=b"3\r\nabc\r\n" + _END) for part in (bytes((byte,)),)],
        forwarded(has_body(b"abc")),
    ),
    _chunks("0x", b"0x5\r\nhello\r\n" + _END),
    _chunks("plus", b"+5\r\nhello\r\n" + _END),
    _chunks("minus", b"-5\r\nhello\r\n" + _END),
    _chunks("minus-zero", b"-0\r\n\r\n" + SMUGGLED),
    _chunks("space-in-front", b" 5\r\nhello\r\n" + _END),
    _chunks("space-behind", b"5 \r\nhello\r\n" + _END),
    _chunks("underscore", b"1_0\r\n0123456789abcdef\r\n" + _END),
    _chunks("empty-size", b"\r\nhello\r\n" + _END),
    _chunks("not-hex", b"g\r\nhello\r\n" + _END),
    _chunks("nul", b"5\x00\r\nhello\r\n" + _END),
    _chunks("overflow-64", b"10000000000000005\r\nhello\r\n" + _END + SMUGGLED),
    _chunks("overflow-32", b"100000005\r\nhello\r\n" + _END + SMUGGLED),
    _chunks("overflow-sign", b"ffffffffffffffff\r\nhello\r\n" + _END),
    _chunks("overflow-far", b"f" * 300 + b"\r\nhello\r\n" + _END),
    _chunks("size-bare-lf", b"5\nhello\r\n" + _END, "RFC 9112 2.2, 7.1"),
    _chunks("size-bare-cr", b"5\rhello\r\n" + _END, "RFC 9112 2.2, 7.1"),
    _chunks("end-bare-lf", b"5\r\nhello\n" + _END, "RFC 9112 2.2, 7.1"),
    _chunks("end-missing", b"5\r\nhello" + _END),
    _chunks("end-other", b"5\r\nhelloXX" + _END),
    _chunks("longer-than-size", b"3\r\nhello\r\n" + _END),
    _chunks("last-bare-lf", b"5\r\nhello\r\n0\n\n", "RFC 9112 2.2, 7.1"),
    _chunks("last-lf-behind", b"5\r\nhello\r\n0\r\n\n", "RFC 9112 2.2, 7.1"),
    _chunks(
        "extension-bare-lf",
        b"5;a\nhello\r\n0\r\n\r\n",
        "RFC 9112 7.1.1",
    ),
    _chunks("extension-hides-lf", b"2;\nxx\r\n2c\r\nxx\r\n0\r\n\r\n" + SMUGGLED, "RFC 9112 7.1.1"),
    _chunks("extension-bare-cr", b"5;a\rb\r\nhello\r\n" + _END, "RFC 9112 7.1.1"),
    _chunks("extension-nul", b"5;a\x00b\r\nhello\r\n" + _END, "RFC 9112 7.1.1"),
    Case(
        "framing/chunk-extension-long",
        "RFC 9112 7.1.1",
        "SHOULD",
        "the length of chunk extensions is limited",
        [post(_CHUNKED, body=b"5;" + b"a" * 200_000 + b"\r\nhello\r\n" + _END)],
        either(refused(), each(nothing_forwarded, closed)),
    ),
    Case(
        "framing/chunk-extension-flood",
        "RFC 9112 7.1.1",
        "SHOULD",
        "the length of chunk extensions in a message is limited in total",
        [post(_CHUNKED, body=(b"1;" + b"a" * 200 + b"\r\nx\r\n") * 2_000 + _END)],
        either(refused(), each(nothing_forwarded, closed)),
    ),
    # -- trailers
    Case(
        "framing/trailer",
        "RFC 9110 6.5.1",
        "MUST",
        "a message with trailers goes on whole; the trailers may go on or be dropped",
        [post(_CHUNKED, b"Trailer: X-Sum", body=b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")],
        forwarded(has_body(b"hello"), lacks("x-sum")),
    ),
    _trailer("content-length", b"Content-Length: 100"),
    _trailer("transfer-encoding", b"Transfer-Encoding: identity"),
    _trailer("host", b"Host: evil.test"),
    _trailer("authorization", b"Authorization: Basic eA=="),
    _trailer("x-forwarded-for", b"X-Forwarded-For: 6.6.6.6"),
    _chunks("trailer-folded", b"5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n", "RFC 9112 7.1.2"),
    _chunks("trailer-nul", b"5\r\nhello\r\n0\r\nX: a\x00b\r\n\r\n", "RFC 9112 7.1.2"),
    _chunks("trailer-bare-lf", b"5\r\nhello\r\n0\r\nX: a\nY: b\r\n\r\n", "RFC 9112 7.1.2"),
    _chunks("trailer-no-colon", b"5\r\nhello\r\n0\r\nGET /smuggled HTTP/1.1\r\n\r\n", "RFC 9112 7.1.2"),
    Case(
        "framing/trailer-flood",
        "RFC 9110 17.5",
        "SHOULD",
        "the size of trailers is limited",
        [post(_CHUNKED, body=b"5\r\nhello\r\n0\r\n" + b"X: " + b"a" * 1000 + b"\r\n"), b"X: y\r\n" * 20_000],
        either(refused(), each(nothing_forwarded, closed)),
    ),
]
