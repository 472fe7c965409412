"""What ends at a hop, what an intermediary has to add, and what clients must not be able to claim."""

from __future__ import annotations

from tests.conformance.case import (
    GET,
    OK,
    Case,
    bodies,
    each,
    either,
    forwarded,
    has,
    has_body,
    has_target,
    in_answer,
    lacks,
    nothing_forwarded,
    post,
    refused,
    request,
    response,
    status,
    statuses,
)
from tests.conformance.driver import Answered, AtOrigin, Early, Pause, Seen, Until


def _ends_here(name: str, *fields: bytes, clause: str = "RFC 9110 7.6.1") -> Case:
    return Case(
        f"hop/request-{name.lower()}",
        clause,
        "MUST",
        f"{name} ends at this hop, or the request is refused",
        [request(*fields)],
        either(refused(), forwarded(lacks(name))),
    )


def _survives(name: str, *fields: bytes) -> Case:
    """Connection names what every recipient needs: the message must not change its meaning by that."""
    return Case(
        f"hop/connection-lists-{name.lower()}",
        "RFC 9110 7.6.1",
        "MUST",
        f"Connection: {name} takes nothing away that gives the message its meaning; or it is refused",
        [post(b"Connection: " + name.encode(), b"Content-Length: 5", *fields, body=b"hello")],
        either(refused(), forwarded(has("host", b"h.test"), has_body(b"hello"))),
    )


def _response_field(name: str, *fields: bytes, clause: str = "RFC 9110 7.6.1") -> Case:
    return Case(
        f"hop/response-{name.lower()}",
        clause,
        "MUST",
        f"{name} of a response ends at this hop",
        [GET],
        either(each(status(200), in_answer(name, None)), status(502)),
        answers=[(response(*fields, b"Content-Length: 2", body=b"ok"),)],
    )


def _spoofed(name: str, field: str, value: bytes, clause: str = "RFC 7239 8.1") -> Case:
    """A stranger says who the client is. The last of a list is what the proxy itself has added."""

    def check(message) -> str:
        found = message.all(field)
        if not found or value not in found[-1].split(b",")[-1]:
            return ""
        return f"{field} at the origin is {found!r}"

    return Case(
        f"hop/spoofed-{name}",
        clause,
        "SHOULD",
        f"what a stranger says in {field} is not passed on as the proxy's own word",
        [request(field.encode() + b": " + value)],
        either(refused(), forwarded(check)),
    )


def _one_via(message) -> str:
    found = message.get("via")
    return "" if found else "no Via at the origin"


def _via_appended(message) -> str:
    found = message.get("via") or b""
    return "" if found.startswith(b"1.0 first, ") and found != b"1.0 first" else f"Via is {found!r}"


def _begins_with_100(seen: Seen) -> str:
    first = seen.responses[0].status if seen.responses else 0
    return "" if first == 100 else f"the client got {first} first"


_CONTINUE = response(start=b"HTTP/1.1 100 Continue")
_EXPECT = b"Expect: 100-continue"

CASES = [
    _ends_here("X-Listed", b"Connection: X-Listed", b"X-Listed: 1"),
    Case(
        "hop/connection-list",
        "RFC 9110 7.6.1",
        "MUST",
        "every field that a Connection field lists is removed, whatever case, white space and empty elements",
        [
            request(
                b"Connection: ,x-ONE ,\t, X-Two",
                b"X-One: 1",
                b"X-TWO: 2",
                b"Connection: x-three",
                b"X-Three: 3",
            )
        ],
        either(refused(), forwarded(lacks("x-one", "x-two", "x-three"))),
    ),
    Case(
        "hop/connection-lists-cookie",
        "RFC 9110 7.6.1",
        "MUST",
        "a listed field is removed, also an end-to-end one that a client lists; or the request is refused",
        [request(b"Connection: close, Cookie, Authorization", b"Cookie: a=b", b"Authorization: Basic eA==")],
        either(refused(), forwarded(lacks("cookie", "authorization"))),
    ),
    _survives("Host"),
    _survives("Content-Length"),
    _survives("Content-Type", b"Content-Type: text/plain"),
    Case(
        "hop/connection-lists-transfer-encoding",
        "RFC 9110 7.6.1",
        "MUST",
        "Connection: Transfer-Encoding does not take the framing away",
        [
            post(
                b"Connection: Transfer-Encoding",
                b"Transfer-Encoding: chunked",
                body=b"5\r\nhello\r\n0\r\n\r\n",
            )
        ],
        either(refused(), forwarded(has_body(b"hello"))),
    ),
    Case(
        "hop/connection-lists-x-forwarded-for",
        "RFC 9110 7.6.1",
        "SHOULD",
        "what the proxy adds cannot be taken away by naming it in Connection",
        [request(b"Connection: close, X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto")],
        either(refused(), forwarded(has("x-forwarded-for", b"127.0.0.1"))),
    ),
    Case(
        "hop/connection-lists-upgrade-only",
        "RFC 9110 7.8",
        "MUST",
        "Upgrade without Connection: Upgrade is for nobody: it does not go on",
        [request(b"Upgrade: websocket")],
        either(refused(), forwarded(lacks("upgrade"))),
    ),
    Case(
        "hop/connection-close",
        "RFC 9110 7.6.1",
        "MUST",
        "the client's Connection is its own: it does not go on as it came",
        [request(b"Connection: close, x-mine")],
        forwarded(lambda m: "" if b"x-mine" not in (m.get("connection") or b"").lower() else "it went on"),
    ),
    _ends_here("Keep-Alive", b"Connection: keep-alive", b"Keep-Alive: timeout=5"),
    _ends_here("Proxy-Connection", b"Proxy-Connection: keep-alive", clause="RFC 9112 C.2.2"),
    Case(
        "hop/request-te",
        "RFC 9110 10.1.4",
        "MUST",
        "TE goes on only with Connection: TE of the proxy's own, and names nothing but trailers",
        [request(b"TE: gzip;q=0.5, trailers", b"Connection: TE")],
        either(
            refused(),
            forwarded(lacks("te")),
            forwarded(
                has("te", b"trailers"),
                lambda m: "" if b"te" in (m.get("connection") or b"").lower() else "no Connection: TE",
            ),
        ),
    ),
    Case(
        "hop/request-trailer",
        "RFC 9110 6.6.2",
        "SHOULD",
        "Trailer may go on or not; the message is whole either way",
        [post(b"Trailer: X-Sum", b"Transfer-Encoding: chunked", body=b"2\r\nhi\r\n0\r\nX-Sum: 9\r\n\r\n")],
        forwarded(has_body(b"hi")),
    ),
    _response_field("X-Listed", b"Connection: X-Listed", b"X-Listed: 1"),
    _response_field("Keep-Alive", b"Connection: keep-alive", b"Keep-Alive: timeout=5"),
    _response_field("Set-Cookie", b"Connection: close, Set-Cookie", b"Set-Cookie: a=b"),
    _response_field("Upgrade", b"Upgrade: foo/2", clause="RFC 9110 7.8"),
    Case(
        "hop/response-connection-close",
        "RFC 9112 9.6",
        "SHOULD",
        "an origin's Connection: close is between it and the proxy: the client's connection goes on",
        [GET, Answered(), GET],
        bodies(b"ok", b"/"),
        answers=[(response(b"Connection: close", b"Content-Length: 2", body=b"ok"),)],
        awaited=2,
    ),
    Case(
        "hop/response-cookies",
        "RFC 9110 5.3",
        "MUST",
        "Set-Cookie fields are not put together into one",
        [GET],
        lambda seen: (
            ""
            if seen.final and {b"a=1; Path=/", b"b=2"} <= set(seen.final[0].all("set-cookie"))
            else "the cookies were changed"
        ),
        answers=[
            (response(b"Set-Cookie: a=1; Path=/", b"Set-Cookie: b=2", b"Content-Length: 2", body=b"ok"),)
        ],
    ),
    Case(
        "hop/response-date",
        "RFC 9110 6.6.1",
        "MUST",
        "a response without Date gets one from the recipient that has a clock",
        [GET],
        each(status(200), lambda seen: "" if seen.final[0].get("date") else "no Date"),
        answers=[(OK,)],
    ),
    Case(
        "hop/response-date-kept",
        "RFC 9110 6.6.1",
        "SHOULD",
        "a Date that is there is kept",
        [GET],
        in_answer("date", b"Sat, 01 Jan 2000 00:00:00 GMT"),
        answers=[(response(b"Date: Sat, 01 Jan 2000 00:00:00 GMT", b"Content-Length: 2", body=b"ok"),)],
    ),
    Case(
        "hop/response-unknown-field",
        "RFC 9110 5.1",
        "MUST",
        "fields that are not recognised go on",
        [GET],
        in_answer("totally-unknown", b"yes"),
        answers=[(response(b"Totally-Unknown: yes", b"Content-Length: 2", body=b"ok"),)],
    ),
    Case(
        "hop/response-unknown-status",
        "RFC 9110 15",
        "MUST",
        "a status that is not known goes on",
        [GET],
        status(299),
        answers=[(response(b"Content-Length: 2", start=b"HTTP/1.1 299 Odd", body=b"ok"),)],
    ),
    Case(
        "hop/response-426",
        "RFC 9110 15.5.22",
        "MUST",
        "426 comes with Upgrade",
        [GET],
        each(status(426), in_answer("upgrade", b"foo/2")),
        answers=[
            (
                response(
                    b"Connection: Upgrade",
                    b"Upgrade: foo/2",
                    b"Content-Length: 2",
                    start=b"HTTP/1.1 426 Upgrade Required",
                    body=b"no",
                ),
            )
        ],
    ),
    Case(
        "hop/via",
        "RFC 9110 7.6.3",
        "MUST",
        "a gateway says in Via that a request came through it",
        [GET],
        forwarded(_one_via),
    ),
    Case(
        "hop/via-appended",
        "RFC 9110 7.6.3",
        "MUST",
        "Via of those before is kept, and the gateway's own comes behind it",
        [request(b"Via: 1.0 first")],
        forwarded(_via_appended),
    ),
    Case(
        "hop/max-forwards-options-0",
        "RFC 9110 7.6.2",
        "MUST",
        "OPTIONS with Max-Forwards: 0 goes no further: the proxy is the final recipient",
        [request(b"Max-Forwards: 0", start=b"OPTIONS /x HTTP/1.1")],
        each(nothing_forwarded, lambda seen: "" if seen.final else "no answer"),
        methods=("OPTIONS",),
    ),
    Case(
        "hop/max-forwards-trace-0",
        "RFC 9110 7.6.2",
        "MUST",
        "TRACE with Max-Forwards: 0 goes no further",
        [request(b"Max-Forwards: 0", start=b"TRACE /x HTTP/1.1")],
        each(nothing_forwarded, lambda seen: "" if seen.final else "no answer"),
        methods=("TRACE",),
    ),
    Case(
        "hop/max-forwards-options-5",
        "RFC 9110 7.6.2",
        "MUST",
        "Max-Forwards of OPTIONS is one less behind each intermediary",
        [request(b"Max-Forwards: 5", start=b"OPTIONS /x HTTP/1.1")],
        either(forwarded(has("max-forwards", b"4")), nothing_forwarded),
        methods=("OPTIONS",),
    ),
    Case(
        "hop/max-forwards-trace-5",
        "RFC 9110 7.6.2",
        "MUST",
        "Max-Forwards of TRACE is one less behind each intermediary; or TRACE is not served",
        [request(b"Max-Forwards: 5", start=b"TRACE /x HTTP/1.1")],
        either(forwarded(has("max-forwards", b"4")), nothing_forwarded),
        methods=("TRACE",),
    ),
    Case(
        "hop/max-forwards-get",
        "RFC 9110 7.6.2",
        "SHOULD",
        "Max-Forwards of other methods is ignored",
        [request(b"Max-Forwards: 0")],
        forwarded(),
    ),
    # -- who the client is
    _spoofed("x-forwarded-for", "X-Forwarded-For", b"6.6.6.6"),
    _spoofed("x-forwarded-for-underscore", "X_Forwarded_For", b"6.6.6.6"),
    _spoofed("x-forwarded-for-mixed", "X-Forwarded_For", b"6.6.6.6"),
    _spoofed("x-forwarded-proto", "X-Forwarded-Proto", b"gopher"),
    _spoofed("x-forwarded-host", "X-Forwarded-Host", b"evil.test"),
    _spoofed("x-forwarded-port", "X-Forwarded-Port", b"666"),
    _spoofed("x-forwarded-prefix", "X-Forwarded-Prefix", b"/evil"),
    _spoofed("x-real-ip", "X-Real-IP", b"6.6.6.6"),
    _spoofed("x-real-ip-underscore", "X_Real_IP", b"6.6.6.6"),
    _spoofed("forwarded", "Forwarded", b"for=6.6.6.6;host=evil.test"),
    Case(
        "hop/forwarded-for-told",
        "RFC 7239 4",
        "SHOULD",
        "the origin is told who the client is",
        [GET],
        forwarded(lambda m: "" if m.get("x-forwarded-for") or m.get("forwarded") else "it is not told"),
    ),
    # -- Expect
    Case(
        "hop/expect-waits",
        "RFC 9110 10.1.1",
        "MUST",
        "a client that waits for 100 gets one, of the origin or the proxy, and then its answer",
        [post(_EXPECT, b"Content-Length: 5"), Until(b"100 Continue"), b"hello"],
        each(status(200), _begins_with_100, forwarded(has_body(b"hello"))),
        answers=[(Early(), _CONTINUE, AtOrigin(b"hello"), OK)],
    ),
    Case(
        "hop/expect-does-not-wait",
        "RFC 9110 10.1.1",
        "MUST",
        "a client need not wait for 100: the body is read all the same",
        [post(_EXPECT, b"Content-Length: 5", body=b"hello")],
        each(status(200), forwarded(has_body(b"hello"))),
    ),
    Case(
        "hop/expect-refused",
        "RFC 9110 10.1.1",
        "MUST",
        "a final answer instead of 100 reaches the client, and what was not sent is not waited for",
        [post(_EXPECT, b"Content-Length: 5"), Answered()],
        either(status(403), _begins_with_100),
        answers=[(Early(), response(b"Content-Length: 2", start=b"HTTP/1.1 403 Forbidden", body=b"no"))],
    ),
    Case(
        "hop/expect-1.0",
        "RFC 9110 10.1.1",
        "MUST",
        "100-continue of HTTP/1.0 is ignored: no 1xx is sent to it",
        [request(_EXPECT, b"Content-Length: 5", start=b"POST / HTTP/1.0") + b"hello"],
        each(statuses(200), forwarded(has_body(b"hello"))),
    ),
    Case(
        "hop/expect-no-body",
        "RFC 9110 10.1.1",
        "MUST",
        "100-continue without content is answered all the same",
        [request(_EXPECT)],
        status(200, 400, 417),
    ),
    Case(
        "hop/expect-unknown",
        "RFC 9110 10.1.1",
        "SHOULD",
        "an expectation that is not known is answered 417, or goes on",
        [request(b"Expect: a-miracle")],
        either(refused(417, 400), forwarded()),
    ),
    Case(
        "hop/expect-obfuscated",
        "RFC 9110 10.1.1",
        "MUST",
        "what only looks like 100-continue is no way to hide a request in a body",
        [
            post(
                b"Expect: y 100-continue",
                b"Content-Length: 45",
                body=b"GET /smuggled HTTP/1.1\r\nHost: h.test\r\nX: yyy\r\n",
            ),
            Answered(),
            GET,
        ],
        status(200, 400, 417),
        awaited=2,
    ),
    # -- 1xx
    Case(
        "hop/interim-103",
        "RFC 9110 15.2",
        "MUST",
        "1xx responses go on",
        [GET],
        each(statuses(103, 200), lambda seen: "" if seen.responses[0].get("link") else "its fields are lost"),
        answers=[(response(b"Link: </a>; rel=preload", start=b"HTTP/1.1 103 Early Hints") + OK,)],
    ),
    Case(
        "hop/interim-unasked-100",
        "RFC 9110 15.2",
        "MUST",
        "1xx responses go on, also a 100 that nobody asked for",
        [GET],
        statuses(100, 200),
        answers=[(_CONTINUE + OK,)],
    ),
    Case(
        "hop/interim-several",
        "RFC 9110 15.2",
        "MUST",
        "several 1xx responses go on, in packets of their own too",
        [GET],
        statuses(102, 103, 200),
        answers=[
            (
                response(start=b"HTTP/1.1 102 Processing"),
                Pause(0.02),
                response(start=b"HTTP/1.1 103 Early Hints"),
                Pause(0.02),
                OK,
            )
        ],
    ),
    Case(
        "hop/interim-1.0",
        "RFC 9110 15.2",
        "MUST",
        "no 1xx is sent to HTTP/1.0",
        [request(start=b"GET / HTTP/1.0")],
        statuses(200),
        answers=[(response(start=b"HTTP/1.1 103 Early Hints") + OK,)],
    ),
    Case(
        "hop/trace",
        "RFC 9110 9.3.8",
        "SHOULD",
        "TRACE goes on, or is refused with an error that says so",
        [request(start=b"TRACE /t HTTP/1.1")],
        either(forwarded(has_target(b"/t")), refused(405, 501, 403, 400)),
        methods=("TRACE",),
    ),
    Case(
        "hop/http2-settings",
        "RFC 9113 3.1",
        "MUST",
        "HTTP2-Settings ends at this hop",
        [request(b"Connection: HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")],
        either(refused(), forwarded(lacks("http2-settings"))),
    ),
    Case(
        "hop/pooled-apart",
        "RFC 9112 9.3",
        "MUST",
        "requests of two clients over one connection to the origin stay apart",
        [GET, Answered(), AtOrigin(b"GET /"), request(start=b"GET /two HTTP/1.1")],
        bodies(b"/", b"/two"),
        awaited=2,
    ),
]
