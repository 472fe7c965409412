"""Request lines and fields: what is no HTTP, what is too large, and what must get through unharmed."""

from __future__ import annotations

from tests.conformance.case import (
    GET,
    HOST,
    SMUGGLED,
    Case,
    at_most,
    bodies,
    closed,
    each,
    either,
    forwarded,
    harmless,
    has,
    has_target,
    lacks,
    nothing_forwarded,
    refused,
    request,
)
from tests.conformance.driver import Endless

_SHUT_OUT = either(refused(), each(nothing_forwarded, closed))


def _line(name: str, line: bytes, *, clause: str = "RFC 9112 3", level: str = "SHOULD") -> Case:
    return Case(
        f"head/line-{name}",
        clause,
        level,  # type: ignore[arg-type]
        "an invalid request line is refused, and not repaired on its way",
        [line + b"\r\n" + HOST + b"\r\n"],
        _SHUT_OUT,
    )


def _field(name: str, line: bytes, clause: str, requirement: str, level: str = "MUST", **others) -> Case:
    return Case(
        f"head/field-{name}",
        clause,
        level,  # type: ignore[arg-type]
        requirement,
        [request(line)],
        others.get("expect", _SHUT_OUT),
    )


def _kept(value: bytes):
    def check(message) -> str:
        return "" if message.get("x-data") == value else f"the value became {message.get('x-data')!r}"

    return check


def _without(*octets: bytes):
    def check(message) -> str:
        found = [octet for octet in octets if octet in message.raw.replace(b"\r\n", b"")]
        return f"{found[0]!r} got to the origin" if found else ""

    return check


CASES = [
    _line("two-spaces", b"GET  / HTTP/1.1"),
    _line("space-in-target", b"GET /a b HTTP/1.1"),
    _line("tab", b"GET\t/ HTTP/1.1"),
    _line("space-in-front", b" GET / HTTP/1.1"),
    _line("no-version", b"GET /", clause="RFC 9112 3, 2.3"),
    _line("no-target", b"GET HTTP/1.1"),
    _line("lower-case-version", b"GET / http/1.1", clause="RFC 9112 2.3"),
    _line("version-garbage", b"GET / HTTP/1.1x", clause="RFC 9112 2.3"),
    _line("version-digits", b"GET / HTTP/1.10", clause="RFC 9112 2.3"),
    _line("version-other", b"GET / HTTQ/1.1", clause="RFC 9112 2.3"),
    _line("version-comma", b"GET / HTTP/1,1", clause="RFC 9112 2.3"),
    _line("hidden-request", b"GET / HTTP/1.1\r\nX: y\r\n\r\n".replace(b"\r\n", b"\r") + b" HTTP/1.1"),
    _line("method-invalid", b"G(T / HTTP/1.1", clause="RFC 9110 9.1"),
    _line("method-empty", b" / HTTP/1.1"),
    _line("nul", b"GET /\x00 HTTP/1.1", clause="RFC 9112 3.2"),
    _line("control", b"GET /\x01 HTTP/1.1", clause="RFC 9112 3.2"),
    _line("delete", b"GET /\x7f HTTP/1.1", clause="RFC 9112 3.2"),
    _line("non-ascii", b"GET /\xc3\xa9 HTTP/1.1", clause="RFC 9112 3.2"),
    _line("invalid-utf-8", b"GET /\xff\xfe HTTP/1.1", clause="RFC 9112 3.2"),
    _line("bare-cr", b"GET /\rx HTTP/1.1", clause="RFC 9112 2.2", level="MUST"),
    Case(
        "head/version-0.9",
        "RFC 9112 2.3",
        "SHOULD",
        "a request without a version is refused: HTTP/0.9 is no more",
        [b"GET /\r\n\r\n"],
        _SHUT_OUT,
    ),
    Case(
        "head/version-2-preface",
        "RFC 9113 3.4",
        "SHOULD",
        "the preface of HTTP/2 is refused where HTTP/2 is not spoken, and nothing behind it is read",
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + SMUGGLED],
        nothing_forwarded,
    ),
    Case(
        "head/version-3",
        "RFC 9110 15.6.6",
        "SHOULD",
        "a major version that is not supported is answered 505",
        [b"GET / HTTP/3.0\r\n" + HOST + b"\r\n"],
        either(refused(505), refused(400)),
    ),
    Case(
        "head/version-1.2",
        "RFC 9110 2.5",
        "SHOULD",
        "a higher minor version is answered as the highest that is known",
        [b"GET / HTTP/1.2\r\n" + HOST + b"\r\n"],
        either(forwarded(), refused(505), refused(400)),
    ),
    Case(
        "head/version-own",
        "RFC 9110 2.5",
        "MUST",
        "an intermediary says its own version in what it forwards",
        [request(start=b"GET / HTTP/1.0")],
        forwarded(lambda m: "" if m.line in (b"GET / HTTP/1.1", b"GET / HTTP/1.0") else f"{m.line!r}"),
    ),
    Case(
        "head/method-unknown",
        "RFC 9110 9.1",
        "SHOULD",
        "a method that is not known goes on as it is, or is answered 501 or 405",
        [request(start=b"BREW /pot HTTP/1.1")],
        either(forwarded(lambda m: "" if m.method == b"BREW" else f"{m.line!r}"), refused(501, 405, 400)),
    ),
    Case(
        "head/method-case",
        "RFC 9110 9.1",
        "MUST",
        "methods are case-sensitive: get is not GET",
        [request(start=b"get / HTTP/1.1")],
        either(refused(), forwarded(lambda m: "" if m.method == b"get" else f"{m.line!r}")),
    ),
    Case(
        "head/empty-line-in-front",
        "RFC 9112 2.2",
        "SHOULD",
        "an empty line in front of a request line is ignored",
        [b"\r\n" + GET],
        forwarded(),
    ),
    Case(
        "head/bare-lf-lines",
        "RFC 9112 2.2",
        "MUST",
        "bare line feeds: refused, or lines as any other in what goes on",
        [GET.replace(b"\r\n", b"\n")],
        either(_SHUT_OUT, forwarded()),
    ),
    Case(
        "head/line-long",
        "RFC 9112 3",
        "MUST",
        "a request line longer than what is allowed is answered 414, or goes on",
        [request(start=b"GET /" + b"a" * 60_000 + b" HTTP/1.1")],
        either(refused(414, 400, 431), forwarded()),
    ),
    Case(
        "head/line-8000",
        "RFC 9112 3",
        "SHOULD",
        "request lines of 8,000 octets are supported",
        [request(start=b"GET /" + b"a" * 7_950 + b" HTTP/1.1")],
        forwarded(),
    ),
    Case(
        "head/line-endless",
        "RFC 9110 17.5",
        "SHOULD",
        "an endless request line is refused before it fills the memory",
        [b"GET /", Endless(b"a" * 65_536, 16 << 20)],
        _SHUT_OUT,
    ),
    Case(
        "head/field-endless",
        "RFC 9110 17.5",
        "SHOULD",
        "an endless field is refused before it fills the memory",
        [b"GET / HTTP/1.1\r\n" + HOST + b"X: ", Endless(b"a" * 65_536, 16 << 20)],
        _SHUT_OUT,
    ),
    Case(
        "head/fields-endless",
        "RFC 9110 17.5",
        "SHOULD",
        "endless fields are refused before they fill the memory",
        [b"GET / HTTP/1.1\r\n" + HOST, Endless(b"X: y\r\n" * 10_000, 16 << 20)],
        _SHUT_OUT,
    ),
    Case(
        "head/fields-large",
        "RFC 9110 5.4",
        "MUST",
        "fields larger than what is willingly processed are answered with a 4xx, or go on",
        [request(*[b"X-%d: %b" % (n, b"a" * 1000) for n in range(300)])],
        either(refused(400, 413, 431), forwarded()),
    ),
    _field(
        "space-before-colon",
        b"X-Data : y",
        "RFC 9112 5.1",
        "white space between field name and colon is answered 400",
        expect=refused(400),
    ),
    _field(
        "tab-before-colon",
        b"X-Data\t: y",
        "RFC 9112 5.1",
        "white space between field name and colon is answered 400",
        expect=refused(400),
    ),
    _field(
        "folded",
        b"X-Data: a\r\n b",
        "RFC 9112 5.2",
        "a folded line is answered 400, or each fold becomes spaces",
        expect=either(refused(400), forwarded(_without(b"\r", b"\n"))),
    ),
    Case(
        "head/field-folded-first",
        "RFC 9112 2.2",
        "MUST",
        "white space between the request line and the first field: refused, or those lines are not processed",
        [b"GET / HTTP/1.1\r\n X-Data: y\r\n" + HOST + b"\r\n"],
        either(refused(), forwarded(lacks("x-data"))),
    ),
    Case(
        "head/field-folded-host",
        "RFC 9112 5.2",
        "MUST",
        "a folded line is no way to hide a Host",
        [b"GET / HTTP/1.1\r\nX: y\r\n Host: evil.test\r\n" + HOST + b"\r\n"],
        either(refused(400), forwarded(has("host", b"h.test"))),
    ),
    _field(
        "nul",
        b"X-Data: a\x00b",
        "RFC 9110 5.5",
        "NUL in a field value: refused, or replaced by a space",
        expect=either(_SHUT_OUT, forwarded(_without(b"\x00"))),
    ),
    _field(
        "bare-cr",
        b"X-Data: a\rb",
        "RFC 9110 5.5",
        "CR in a field value: refused, or replaced by a space",
        expect=either(_SHUT_OUT, forwarded(_without(b"\r"))),
    ),
    _field(
        "bare-cr-injects",
        b"X-Data: a\rTransfer-Encoding: chunked",
        "RFC 9112 2.2",
        "a bare CR is invalid, or a space: never the end of a line",
        expect=either(_SHUT_OUT, forwarded(_without(b"\r"), lacks("transfer-encoding"))),
    ),
    _field(
        "bare-lf-injects",
        b"X-Data: a\nX-Injected: yes",
        "RFC 9110 5.5",
        "LF in a field value: refused, or a line's end that is one in what goes on",
        expect=harmless,
    ),
    _field(
        "control",
        b"X-Data: a\x01b\x1f",
        "RFC 9110 5.5",
        "other controls are invalid: refused, replaced, or kept within the value",
        "SHOULD",
        expect=harmless,
    ),
    _field("name-empty", b": y", "RFC 9112 5", "a field without a name is refused", "SHOULD"),
    _field(
        "no-colon",
        b"X-Data",
        "RFC 9112 5",
        "a line without a colon is refused, or is not processed",
        "SHOULD",
        expect=either(_SHUT_OUT, forwarded(_without(b"X-Data"))),
    ),
    _field(
        "name-space",
        b"X Data: y",
        "RFC 9110 5.1",
        "a name that is no token is refused, or does not go on",
        "SHOULD",
        expect=either(_SHUT_OUT, forwarded(_without(b"X Data"))),
    ),
    _field(
        "name-non-ascii",
        b"X-D\xc3\xa4ta: y",
        "RFC 9110 5.1",
        "a name that is no token is refused, or does not go on",
        "SHOULD",
        expect=either(_SHUT_OUT, forwarded(_without(b"\xc3"))),
    ),
    _field(
        "name-nul",
        b"X-\x00Data: y",
        "RFC 9110 5.1",
        "a name with NUL is refused, or does not go on",
        "SHOULD",
        expect=either(_SHUT_OUT, forwarded(_without(b"\x00"))),
    ),
    _field(
        "name-brackets",
        b"X[Data]: y",
        "RFC 9110 5.1",
        "a name that is no token is refused, or does not go on",
        "SHOULD",
        expect=either(_SHUT_OUT, forwarded(_without(b"[Data]"))),
    ),
    _field(
        "obs-text",
        b"X-Data: caf\xe9 \x80",
        "RFC 9110 5.5",
        "octets above ASCII in a value are opaque data: they go on as they are",
        "SHOULD",
        expect=forwarded(_kept(b"caf\xe9 \x80")),
    ),
    _field(
        "invalid-utf-8",
        b"X-Data: \xff\xfe\xc3\x28",
        "RFC 9110 5.5",
        "octets that are no UTF-8 go on as they are",
        "SHOULD",
        expect=forwarded(_kept(b"\xff\xfe\xc3\x28")),
    ),
    _field(
        "empty-value",
        b"X-Data:",
        "RFC 9110 5.5",
        "an empty value is a value",
        "SHOULD",
        expect=forwarded(_kept(b"")),
    ),
    Case(
        "head/fields-order",
        "RFC 9110 5.3",
        "MUST",
        "the order of fields with the same name is kept",
        [request(b"X-Data: 1", b"X-Other: x", b"x-data: 2", b"X-DATA: 3")],
        forwarded(_kept(b"1, 2, 3")),
    ),
    Case(
        "head/field-unknown",
        "RFC 9110 5.1",
        "MUST",
        "fields that are not recognised go on",
        [request(b"Totally-Unknown: yes; really")],
        forwarded(has("totally-unknown", b"yes; really")),
    ),
    Case(
        "head/query-untouched",
        "RFC 9110 7.7",
        "MUST",
        "the query is not modified",
        [request(start=b"GET /q?a=%2F%2e&b=+//../;x=%ff&&c HTTP/1.1")],
        forwarded(has_target(b"/q?a=%2F%2e&b=+//../;x=%ff&&c")),
    ),
    Case(
        "head/cut-bytewise",
        "RFC 9112 2.2",
        "MUST",
        "a head is read the same however it is cut into packets",
        [bytes((byte,)) for byte in request(b"X-Data: z", start=b"GET /bytes HTTP/1.1")],
        each(forwarded(_kept(b"z")), bodies(b"/bytes")),
    ),
    Case(
        "head/refused-is-last",
        "RFC 9112 2.2",
        "SHOULD",
        "after a malformed request the connection is closed and what follows is not read",
        [b"GET / HTTP/1.1\r\n" + HOST + b"Bad Name: x\r\n\r\n" + SMUGGLED],
        each(closed, at_most(1)),
    ),
]
