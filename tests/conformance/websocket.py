"""Changing protocols: handshakes that are none, tunnels nobody agreed on, and frames that are invalid."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from tests.conformance.case import (
    SMUGGLED,
    Case,
    Check,
    at_most,
    each,
    either,
    forwarded,
    lacks,
    nothing_forwarded,
    refused,
    request,
    response,
    status,
)
from tests.conformance.driver import Answered, AtOrigin, Close, Pause, Seen, Step, Until

_KEY = base64.b64encode(b"conformance-case")
_ACCEPT = b"Sec-WebSocket-Accept: " + base64.b64encode(
    hashlib.sha1(_KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
)
_UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket")
_WITH_KEY = b"Sec-WebSocket-Key: " + _KEY
_VERSION = b"Sec-WebSocket-Version: 13"
_MASK = b"\x01\x02\x03\x04"


def _handshake(
    *fields: bytes,
    start: bytes = b"GET /chat HTTP/1.1",
    upgrade: Sequence[bytes] = _UPGRADE,
    key: bytes | None = _WITH_KEY,
    version: bytes | None = _VERSION,
) -> bytes:
    given = [line for line in (key, version) if line is not None]
    return request(*upgrade, *given, *fields, start=start)


def _agreed(*fields: bytes, upgrade: Sequence[bytes] = _UPGRADE, accept: bytes = _ACCEPT) -> bytes:
    return response(*upgrade, accept, *fields, start=b"HTTP/1.1 101 Switching Protocols")


def _frame(first: int, payload: bytes = b"", *, masked: bool = True) -> bytes:
    if not masked:
        return bytes((first, len(payload))) + payload
    hidden = bytes(octet ^ _MASK[n % 4] for n, octet in enumerate(payload))
    return bytes((first, 0x80 | len(payload))) + _MASK + hidden


def _no_tunnel(seen: Seen) -> str:
    """The client was not told 101."""
    return "101 went on" if any(r.status == 101 for r in seen.responses) else ""


def _bad_handshake(name: str, handshake: bytes, expect: Check, clause: str = "RFC 6455 4.2.1") -> Case:
    """An origin that agrees to anything; what is sent behind must not be a request that it sees."""
    return Case(
        f"upgrade/{name}",
        clause,
        "MUST",
        "a handshake that is none is answered with an error, or the request goes on without an upgrade",
        [handshake],
        expect,
        answers=[(_agreed(),)],
    )


def _bad_agreement(name: str, answer: bytes, *asked: bytes, clause: str, level: str = "SHOULD") -> Case:
    return Case(
        f"upgrade/answer-{name}",
        clause,
        level,  # type: ignore[arg-type]
        "an origin's 101 that does not answer what was asked makes no tunnel",
        [_handshake(*asked)],
        _no_tunnel,
        answers=[(answer,)],
    )


def _bad_frame(name: str, clause: str, *frames: Step) -> Case:
    """Where the proxy itself is an end of the WebSocket (`on_drain: migrate`), it has to refuse these."""
    return Case(
        f"frame/{name}",
        clause,
        "MUST",
        "an invalid frame fails the connection with Close 1002 and does not go on",
        [_handshake(start=b"GET /moving HTTP/1.1"), Answered(), *frames, Until(b"\x88")],
        each(status(101), _failed_with(1002)),
        answers=[(_agreed(), AtOrigin(b"\x88"), _frame(0x88, b"\x03\xe8", masked=False), Close())],
        only="holdfast",
    )


def _failed_with(code: int) -> Check:
    def check(seen: Seen) -> str:
        rest = bytes(seen.clients[0].data).partition(b"\r\n\r\n")[2]
        close = b"\x88"
        at = rest.find(close)
        found = int.from_bytes(rest[at + 2 : at + 4], "big") if at >= 0 and len(rest) >= at + 4 else 0
        if found != code:
            return f"the client got {rest[:40]!r}"
        passed = [o for o in seen.origins if b"bad" in bytes(o.data).partition(b"\r\n\r\n")[2]]
        return "the frame went on" if passed else ""

    return check


def _talked(seen: Seen) -> str:
    """Both sides heard each other through the tunnel."""
    heard = any(b"from-client" in origin.data for origin in seen.origins)
    if not heard:
        return "the origin did not hear the client"
    return "" if b"from-origin" in seen.clients[0].data else "the client did not hear the origin"


def _no_http2(message) -> str:
    return "" if b"h2c" not in (message.get("upgrade") or b"").lower() else "h2c got to the origin"


_H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
_REFUSED = either(refused(), forwarded(lacks("upgrade")), nothing_forwarded)

CASES = [
    Case(
        "upgrade/websocket",
        "RFC 6455 4.2.2",
        "MUST",
        "a handshake that both sides agree on makes a tunnel for both directions",
        [_handshake(), Until(b"\r\n\r\n"), b"from-client", AtOrigin(b"from-client")],
        each(status(101), _talked),
        answers=[(_agreed(), b"from-origin")],
    ),
    Case(
        "upgrade/websocket-connection-list",
        "RFC 6455 4.2.1",
        "MUST",
        "Connection may list more than Upgrade, in any case",
        [
            _handshake(upgrade=(b"Connection: keep-alive, upgrade", b"Upgrade: WebSocket")),
            Until(b"\r\n\r\n"),
            b"from-client",
            AtOrigin(b"from-client"),
        ],
        each(status(101), _talked),
        answers=[(_agreed(), b"from-origin")],
    ),
    Case(
        "upgrade/refused-by-origin",
        "RFC 9110 7.8",
        "MUST",
        "an origin that does not switch makes no tunnel: what follows is a request again",
        [_handshake(), Answered(), request(start=b"GET /again HTTP/1.1")],
        each(
            status(403),
            lambda seen: (
                ""
                if (len(seen.requests) == 2 and seen.requests[1].target == b"/again") or seen.clients[0].over
                else "the second request did not go on"
            ),
        ),
        answers=[(response(b"Content-Length: 2", start=b"HTTP/1.1 403 Forbidden", body=b"no"),)],
        awaited=2,
    ),
    Case(
        "upgrade/refused-and-tunnelled",
        "RFC 9110 7.8",
        "MUST",
        "behind a refused handshake no bytes go on as a tunnel: no request hides from routing there",
        [
            _handshake(version=b"Sec-WebSocket-Version: 777"),
            Answered(),
            request(start=b"GET /admin/x HTTP/1.1"),
        ],
        lambda seen: (
            "" if all(r.target != b"/admin/x" for r in seen.requests) else "it went to the public origin"
        ),
        answers=[
            (
                response(
                    b"Sec-WebSocket-Version: 13", b"Content-Length: 0", start=b"HTTP/1.1 426 Upgrade Required"
                ),
            )
        ],
        awaited=2,
    ),
    Case(
        "upgrade/version",
        "RFC 6455 4.4",
        "MUST",
        "a version that is not spoken is answered with an error that names those that are",
        [_handshake(version=b"Sec-WebSocket-Version: 8")],
        each(
            status(426, 400),
            lambda seen: (
                "" if b"13" in (seen.final[0].get("sec-websocket-version") or b"") else "no version is named"
            ),
        ),
        answers=[(_agreed(),)],
    ),
    _bad_handshake("version-missing", _handshake(version=None), _REFUSED),
    _bad_handshake("key-missing", _handshake(key=None), _REFUSED),
    _bad_handshake("key-short", _handshake(key=b"Sec-WebSocket-Key: c2hvcnQ="), _REFUSED),
    _bad_handshake("key-no-base64", _handshake(key=b"Sec-WebSocket-Key: " + b"!" * 24), _REFUSED),
    _bad_handshake("key-twice", _handshake(_WITH_KEY), _REFUSED, clause="RFC 6455 11.3.1"),
    _bad_handshake("post", _handshake(b"Content-Length: 0", start=b"POST /chat HTTP/1.1"), _REFUSED),
    _bad_handshake(
        "http-1.0",
        _handshake(start=b"GET /chat HTTP/1.0"),
        either(refused(), forwarded(lacks("upgrade"))),
        clause="RFC 9110 7.8",
    ),
    Case(
        "upgrade/with-body",
        "RFC 6455 4.1",
        "MUST",
        "a handshake has no body: it is refused, or the body is never taken for what follows it",
        [
            _handshake(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
            Pause(0.05),
        ],
        either(refused(), forwarded(lacks("upgrade")), forwarded()),
        answers=[(_agreed(),)],
    ),
    _bad_agreement(
        "accept-wrong",
        _agreed(accept=b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        clause="RFC 6455 4.1",
    ),
    _bad_agreement("accept-missing", _agreed(accept=b"X: y"), clause="RFC 6455 4.1"),
    _bad_agreement(
        "protocol-unasked",
        _agreed(b"Sec-WebSocket-Protocol: evil"),
        b"Sec-WebSocket-Protocol: good",
        clause="RFC 6455 4.1",
    ),
    _bad_agreement("protocol-unoffered", _agreed(b"Sec-WebSocket-Protocol: evil"), clause="RFC 6455 4.1"),
    _bad_agreement(
        "extension-unasked",
        _agreed(b"Sec-WebSocket-Extensions: permessage-deflate"),
        clause="RFC 6455 4.1",
    ),
    _bad_agreement("no-upgrade", _agreed(upgrade=()), clause="RFC 9110 15.2.2", level="MUST"),
    _bad_agreement(
        "other-protocol",
        _agreed(upgrade=(b"Connection: Upgrade", b"Upgrade: h2c")),
        clause="RFC 9110 7.8",
        level="MUST",
    ),
    Case(
        "upgrade/h2c",
        "RFC 9113 3.1",
        "SHOULD",
        "h2c, by which HTTP/2 would pass every route by, does not get to an origin, and no tunnel is made",
        [request(*_H2C), Answered(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
        each(_no_tunnel, either(refused(), lambda seen: forwarded(_no_http2, lacks("http2-settings"))(seen))),
        answers=[
            (response(b"Connection: Upgrade", b"Upgrade: h2c", start=b"HTTP/1.1 101 Switching Protocols"),)
        ],
    ),
    Case(
        "upgrade/h2c-list",
        "RFC 9113 3.1",
        "SHOULD",
        "h2c next to websocket does not get to an origin either",
        [
            _handshake(
                upgrade=(
                    b"Connection: Upgrade, HTTP2-Settings",
                    b"Upgrade: websocket, H2C",
                    b"HTTP2-Settings: AA",
                )
            )
        ],
        either(refused(), forwarded(_no_http2, lacks("http2-settings"))),
        answers=[(_agreed(),)],
    ),
    Case(
        "upgrade/h2c-no-settings",
        "RFC 9113 3.1",
        "SHOULD",
        "nor does h2c without its settings, which some servers accept",
        [request(b"Connection: upgrade", b"Upgrade: h2c")],
        each(_no_tunnel, either(refused(), forwarded(_no_http2))),
        answers=[
            (response(b"Connection: Upgrade", b"Upgrade: h2c", start=b"HTTP/1.1 101 Switching Protocols"),)
        ],
    ),
    Case(
        "upgrade/101-without-asking",
        "RFC 9110 7.8",
        "MUST",
        "Upgrade without Connection: Upgrade is no wish: a 101 to it makes no tunnel",
        [request(b"Upgrade: websocket", _WITH_KEY, _VERSION)],
        each(_no_tunnel, at_most(2)),
        answers=[(_agreed(),)],
    ),
    _bad_frame("unmasked", "RFC 6455 5.1", _frame(0x81, b"bad", masked=False)),
    _bad_frame("reserved-bit", "RFC 6455 5.2", _frame(0xC1, b"bad")),
    _bad_frame("reserved-opcode", "RFC 6455 5.2", _frame(0x83, b"bad")),
    _bad_frame("reserved-control", "RFC 6455 5.2", _frame(0x8B, b"bad")),
    _bad_frame("control-fragmented", "RFC 6455 5.5", _frame(0x09, b"bad")),
    _bad_frame("control-long", "RFC 6455 5.5", bytes((0x89, 0xFE, 0, 200)) + _MASK + b"bad" * 70),
    _bad_frame("continuation-alone", "RFC 6455 5.4", _frame(0x80, b"bad")),
    _bad_frame("message-in-message", "RFC 6455 5.4", _frame(0x01, b"x"), _frame(0x81, b"bad")),
    _bad_frame("length-negative", "RFC 6455 5.2", b"\x81\xff" + b"\xff" * 8 + _MASK + b"bad"),
    _bad_frame("close-half-a-code", "RFC 6455 5.5.1", _frame(0x88, b"\x03")),
]
