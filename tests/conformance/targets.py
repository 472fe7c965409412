"""Which resource a request is for: Host, the forms of a target, and paths that two readers see differently.

`/admin` is routed to an origin of its own, everything else to the public one. A path case passes when no
reading that an origin may have of what it gets leads elsewhere than the route did.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from tests.conformance.case import (
    Case,
    at_most,
    bodies,
    each,
    either,
    forwarded,
    has,
    has_target,
    lacks,
    nothing_forwarded,
    refused,
    request,
    status,
)
from tests.conformance.driver import Seen

Reading = Callable[[bytes], bytes]


def _resolved(path: bytes) -> bytes:
    """RFC 3986 6.2.2: unreserved octets decoded, dot segments removed; doubled slashes are one."""
    path = re.sub(
        rb"%([0-9A-Fa-f]{2})",
        lambda m: octet if re.match(rb"[\w.~-]", octet := bytes((int(m[1], 16),)), re.ASCII) else m[0],
        path,
    )
    kept: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del kept[-1:]
        elif part not in (b".", b""):
            kept.append(part)
    return b"/" + b"/".join(kept)


def _rfc(path: bytes) -> bytes:
    return _resolved(path)


def _decoding_slashes(path: bytes) -> bytes:
    return _resolved(unquote_to_bytes(path))


def _with_parameters(path: bytes) -> bytes:
    """As servlet containers read it: what follows a semicolon within a segment is cut off."""
    return _resolved(re.sub(rb";[^/]*", b"", path))


def _with_backslashes(path: bytes) -> bytes:
    return _resolved(unquote_to_bytes(path).replace(b"\\", b"/"))


def _literal(path: bytes) -> bytes:
    return path


def _consistent(*readings: Reading) -> Callable[[Seen], str]:
    """No request reached an origin that one of these readings takes for the other's."""

    def check(seen: Seen) -> str:
        for private, requests in ((False, seen.requests), (True, seen.private)):
            for message in requests:
                path = message.target.partition(b"?")[0]
                for reading in readings:
                    read = reading(path)
                    if re.match(rb"/admin(/|$)", read) and not private:
                        return f"the public origin got {message.target!r}, which can be read as {read!r}"
        return ""

    return check


def _path(name: str, path: bytes, clause: str, level: str, *readings: Reading) -> Case:
    return Case(
        f"target/path-{name}",
        clause,
        level,  # type: ignore[arg-type]
        "a path that an origin may read as /admin takes no other route, or is refused",
        [request(start=b"GET " + path + b" HTTP/1.1")],
        _consistent(*readings),
    )


_EQUIVALENT = "RFC 3986 6.2.2"
_CONSIDERED = "RFC 3986 7.3"

_INVALID_HOST = "RFC 9112 3.2"

CASES = [
    Case(
        "target/host-missing",
        _INVALID_HOST,
        "MUST",
        "HTTP/1.1 without Host is answered 400",
        [request(host=None)],
        refused(400),
    ),
    Case(
        "target/host-missing-absolute",
        _INVALID_HOST,
        "MUST",
        "HTTP/1.1 without Host is answered 400, also when the target names one",
        [request(host=None, start=b"GET http://h.test/ HTTP/1.1")],
        refused(400),
    ),
    Case(
        "target/host-twice",
        _INVALID_HOST,
        "MUST",
        "more than one Host is answered 400",
        [request(b"Host: evil.test")],
        refused(400),
    ),
    Case(
        "target/host-twice-same",
        _INVALID_HOST,
        "MUST",
        "more than one Host is answered 400, even if they agree",
        [request(b"host: h.test")],
        refused(400),
    ),
    *[
        Case(
            f"target/host-{name}",
            _INVALID_HOST,
            "MUST",
            "a Host with an invalid value is answered 400",
            [request(host=value)],
            refused(400),
        )
        for name, value in {
            "space": b"h.test evil.test",
            "slash": b"h.test/evil",
            "userinfo": b"evil@h.test",
            "port-letters": b"h.test:abc",
            "two-ports": b"h.test:80:80",
            "query": b"h.test?x",
            "control": b"h\x01.test",
            "bracket-open": b"[::1",
            "non-ascii": b"h\xe9.test",
        }.items()
    ],
    Case(
        "target/host-empty",
        "RFC 9112 3.2",
        "MUST",
        "an empty Host is valid where the target has no authority; a proxy may also refuse it",
        [request(host=b"")],
        either(forwarded(), refused(400)),
    ),
    Case(
        "target/host-missing-1.0",
        "RFC 9112 3.2",
        "MUST",
        "HTTP/1.0 needs no Host",
        [request(host=None, start=b"GET / HTTP/1.0")],
        either(forwarded(), refused(400, 404, 421)),
    ),
    Case(
        "target/host-ipv6",
        "RFC 3986 3.2.2",
        "MUST",
        "an IPv6 literal with a port is a valid Host",
        [request(host=b"[2001:db8::1]:8080")],
        forwarded(),
    ),
    Case(
        "target/host-unchanged",
        "RFC 9110 7.2",
        "SHOULD",
        "Host goes on as it came",
        [request(host=b"h.test:8080")],
        forwarded(has("host", b"h.test:8080")),
    ),
    Case(
        "target/absolute",
        "RFC 9112 3.2.2",
        "MUST",
        "the absolute form is accepted",
        [request(start=b"GET http://h.test/abs?q=1 HTTP/1.1")],
        forwarded(has_target(b"/abs?q=1", b"http://h.test/abs?q=1")),
    ),
    Case(
        "target/absolute-host-differs",
        "RFC 9112 3.2.2",
        "MUST",
        "the authority of an absolute target replaces Host; or the request is refused",
        [request(start=b"GET http://right.test/ HTTP/1.1", host=b"evil.test")],
        either(refused(400, 421), forwarded(has("host", b"right.test"))),
    ),
    Case(
        "target/absolute-host-differs-port",
        "RFC 9112 3.2.2",
        "MUST",
        "the port of an absolute target belongs to the authority that replaces Host",
        [request(start=b"GET http://right.test:81/ HTTP/1.1", host=b"right.test:82")],
        either(refused(400, 421), forwarded(has("host", b"right.test:81"))),
    ),
    Case(
        "target/absolute-scheme-case",
        "RFC 3986 3.1",
        "SHOULD",
        "schemes are compared without regard to case",
        [request(start=b"GET HTTP://h.test/ HTTP/1.1")],
        forwarded(),
    ),
    Case(
        "target/absolute-no-path",
        "RFC 9112 3.2.1",
        "MUST",
        "a target without a path goes on as /",
        [request(start=b"GET http://h.test HTTP/1.1")],
        forwarded(has_target(b"/", b"http://h.test", b"http://h.test/")),
    ),
    Case(
        "target/absolute-query-without-path",
        "RFC 9112 3.2.1",
        "MUST",
        "a target with a query but no path goes on as /?query; or it is refused",
        [request(start=b"GET http://h.test?a=b HTTP/1.1")],
        either(refused(400), forwarded(has_target(b"/?a=b", b"http://h.test/?a=b"))),
    ),
    Case(
        "target/absolute-userinfo",
        "RFC 9110 4.2.4",
        "SHOULD",
        "userinfo in an absolute target is an error",
        [request(start=b"GET http://user:pw@h.test/ HTTP/1.1")],
        either(refused(), forwarded(lambda m: "" if b"@" not in m.raw else "userinfo got to the origin")),
    ),
    Case(
        "target/absolute-empty-host",
        "RFC 9110 4.2.1",
        "MUST",
        "an http URI with an empty host is rejected as invalid",
        [request(start=b"GET http:///x HTTP/1.1")],
        refused(),
    ),
    Case(
        "target/absolute-foreign-scheme",
        "RFC 9110 7.1",
        "SHOULD",
        "a scheme that is not served is refused",
        [request(start=b"GET ftp://h.test/ HTTP/1.1")],
        refused(),
    ),
    Case(
        "target/absolute-path-bypass",
        "RFC 9112 3.2.2",
        "MUST",
        "the path of an absolute target is routed as any other",
        [request(start=b"GET http://h.test/admin HTTP/1.1")],
        _consistent(_rfc, lambda path: re.sub(rb"^(?i:http)://[^/]*", b"", path)),
    ),
    Case(
        "target/authority-form",
        "RFC 9112 3.2.3",
        "SHOULD",
        "the authority form is for CONNECT alone",
        [request(start=b"GET h.test:80 HTTP/1.1")],
        refused(),
    ),
    Case(
        "target/relative",
        "RFC 9112 3.2",
        "SHOULD",
        "a target of no valid form is refused",
        [request(start=b"GET admin HTTP/1.1")],
        refused(),
    ),
    Case(
        "target/at-sign",
        "RFC 9112 3.2",
        "SHOULD",
        "a target that would change the authority when put behind it is refused",
        [request(start=b"GET @evil.test/ HTTP/1.1")],
        refused(),
    ),
    Case(
        "target/asterisk-get",
        "RFC 9112 3.2.4",
        "SHOULD",
        "the asterisk is for OPTIONS alone",
        [request(start=b"GET * HTTP/1.1")],
        refused(),
    ),
    Case(
        "target/asterisk-options",
        "RFC 9112 3.2.4",
        "MUST",
        "OPTIONS * goes on as *, or the proxy answers",
        [request(start=b"OPTIONS * HTTP/1.1")],
        either(forwarded(has_target(b"*")), nothing_forwarded),
        methods=("OPTIONS",),
    ),
    Case(
        "target/absolute-options",
        "RFC 9112 3.2.4",
        "MUST",
        "OPTIONS with an absolute target without a path goes on as *, or absolute, or the proxy answers",
        [request(start=b"OPTIONS http://h.test HTTP/1.1")],
        either(forwarded(has_target(b"*", b"http://h.test")), nothing_forwarded),
        methods=("OPTIONS",),
    ),
    Case(
        "target/connect",
        "RFC 9110 9.3.6",
        "SHOULD",
        "CONNECT, which is not served, is refused, and no tunnel is made",
        [
            b"CONNECT h.test:443 HTTP/1.1\r\nHost: h.test:443\r\n\r\n"
            + b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
        ],
        either(refused(), nothing_forwarded),
    ),
    Case(
        "target/connect-path",
        "RFC 9110 9.3.6",
        "SHOULD",
        "CONNECT with a path is refused",
        [b"CONNECT /admin HTTP/1.1\r\nHost: h.test\r\n\r\n"],
        either(refused(), nothing_forwarded),
    ),
    Case(
        "target/fragment",
        "RFC 9112 3.2",
        "SHOULD",
        "a fragment is no part of a target: refused, or it does not go on",
        [request(start=b"GET /public#/../admin HTTP/1.1")],
        either(refused(), forwarded(lambda m: "" if b"#" not in m.target else f"{m.target!r}")),
    ),
    Case(
        "target/percent-nul",
        _CONSIDERED,
        "SHOULD",
        "%00 in a path, where many readers end it, is refused, or goes where both readings go",
        [request(start=b"GET /admin%00/x HTTP/1.1")],
        _consistent(lambda path: unquote_to_bytes(path).partition(b"\x00")[0]),
    ),
    Case(
        "target/percent-malformed",
        "RFC 3986 2.1",
        "SHOULD",
        "an escape that is none is refused or goes on as it came",
        [request(start=b"GET /%zz%4 HTTP/1.1")],
        either(refused(), forwarded(has_target(b"/%zz%4"))),
    ),
    Case(
        "target/path-untouched",
        "RFC 9110 7.7",
        "SHOULD",
        "an escaped slash in a path that every reader routes alike is not modified",
        [request(start=b"GET /group%2Fproject/a+b,c HTTP/1.1")],
        either(
            forwarded(has_target(b"/group%2Fproject/a+b,c", b"/group%2fproject/a+b,c")),
            refused(400),
            status(307),
        ),
    ),
    _path("plain", b"/admin/x", "RFC 9110 7.6", "MUST", _rfc),
    _path("escaped-letter", b"/%61dmin", _EQUIVALENT, "SHOULD", _rfc),
    _path("escaped-letters", b"/%61%64%6D%69%6e/x", _EQUIVALENT, "SHOULD", _rfc),
    _path("dot", b"/./admin", _EQUIVALENT, "SHOULD", _rfc),
    _path("dot-dot", b"/public/../admin", _EQUIVALENT, "SHOULD", _rfc),
    _path("dot-dot-deep", b"/a/b/c/../../../admin/x", _EQUIVALENT, "SHOULD", _rfc),
    _path("dot-dot-above-root", b"/../admin", _EQUIVALENT, "SHOULD", _rfc),
    _path("escaped-dot", b"/%2e/admin", _EQUIVALENT, "SHOULD", _rfc),
    _path("escaped-dot-dot", b"/public/%2e%2e/admin", _EQUIVALENT, "SHOULD", _rfc),
    _path("half-escaped-dot-dot", b"/public/.%2E/admin", _EQUIVALENT, "SHOULD", _rfc),
    _path("double-slash", b"//admin", _CONSIDERED, "SHOULD", _rfc),
    _path("double-slash-dots", b"/public//../../admin", _EQUIVALENT, "SHOULD", _rfc),
    _path("many-slashes", b"////admin///x", _CONSIDERED, "SHOULD", _rfc),
    _path("escaped-slash", b"/admin%2Fx", _CONSIDERED, "SHOULD", _decoding_slashes),
    _path("escaped-slash-dots", b"/public%2f..%2fadmin", _CONSIDERED, "SHOULD", _decoding_slashes),
    _path("escaped-slash-all", b"/public/..%2fadmin", _CONSIDERED, "SHOULD", _decoding_slashes),
    _path("escaped-twice", b"/public/%252e%252e/admin", _CONSIDERED, "SHOULD", _rfc),
    _path("backslash", b"/public/..\\admin", _CONSIDERED, "SHOULD", _with_backslashes),
    _path("backslash-prefix", b"/admin\\x", _CONSIDERED, "SHOULD", _with_backslashes),
    _path("escaped-backslash", b"/public/..%5cadmin", _CONSIDERED, "SHOULD", _with_backslashes),
    _path("parameter", b"/admin;x=y/z", "RFC 3986 3.3", "SHOULD", _with_parameters),
    _path("parameter-dots", b"/public/..;/admin", "RFC 3986 3.3", "SHOULD", _with_parameters),
    _path("parameter-dots-named", b"/public/..;a=b/admin", "RFC 3986 3.3", "SHOULD", _with_parameters),
    _path("literal-admin", b"/admin/../public", _EQUIVALENT, "SHOULD", _literal),
    _path("literal-admin-escaped", b"/admin/%2e%2e/public", _EQUIVALENT, "SHOULD", _literal),
    Case(
        "target/path-case",
        "RFC 3986 6.2.2.1",
        "MUST",
        "paths are case-sensitive: /ADMIN is not /admin, and goes on as it came",
        [request(start=b"GET /ADMIN HTTP/1.1")],
        either(forwarded(has_target(b"/ADMIN")), refused()),
    ),
    Case(
        "target/path-neighbour",
        "RFC 3986 3.3",
        "SHOULD",
        "/administrator is not below /admin",
        [request(start=b"GET /administrator HTTP/1.1")],
        lambda seen: "" if not seen.private else "/administrator went to the origin of /admin",
    ),
    Case(
        "target/path-query-dots",
        "RFC 3986 3.4",
        "MUST",
        "dots and slashes in a query change nothing",
        [request(start=b"GET /public?x=/../admin&y=..;/%2e%2e HTTP/1.1")],
        each(
            forwarded(has_target(b"/public?x=/../admin&y=..;/%2e%2e")),
            bodies(b"/public?x=/../admin&y=..;/%2e%2e"),
        ),
    ),
    Case(
        "target/rewrite-fields",
        "RFC 9110 17.16.1",
        "SHOULD",
        "fields by which some applications let a client choose another path do not go on from strangers",
        [request(b"X-Original-URL: /admin", b"X-Rewrite-URL: /admin", start=b"GET /public HTTP/1.1")],
        either(refused(), forwarded(lacks("x-original-url", "x-rewrite-url"))),
    ),
    Case(
        "target/scheme-https-on-http",
        "RFC 9110 7.4",
        "SHOULD",
        "an https target over a plain connection is refused, or handled as any other and only once",
        [request(start=b"GET https://h.test/ HTTP/1.1")],
        at_most(1),
    ),
]
