"""What a case is, and the words in which cases say what must be seen.

A check looks at what was `Seen` and gives a sentence about what is wrong, or an empty text. A requirement
that may be met in several ways is written as `either(...)`: refusing a message and making it harmless count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.conformance.driver import Seen, Step
from tests.conformance.message import Message

Check = Callable[[Seen], str]
Answer = Sequence[Step] | None

HOST = b"Host: h.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h.test\r\n\r\n"
"""What is hidden in other messages. No origin may ever see it as a request."""


@dataclass(frozen=True)
class Case:
    """One requirement, and how it is provoked.

    `level` is the word of the clause; what a clause of security considerations leaves open is a SHOULD.
    `only` names a proxy whose own feature this is; the others are not asked.
    """

    id: str
    clause: str
    level: Literal["MUST", "SHOULD"]
    requirement: str
    client: Sequence[Step]
    expect: Check
    answers: Sequence[Answer] = ()
    methods: tuple[str, ...] = ()
    """Methods of the requests on the first connection, where they are not GET or the like."""
    awaited: int = 1
    """Final responses on the last connection after which the case is over."""
    only: str = ""

    def judge(self, seen: Seen) -> str:
        """What is wrong, or an empty text."""
        hidden = [r for r in seen.requests + seen.private if b"smuggled" in r.target]
        if hidden:
            return f"an origin saw the hidden request {hidden[0].line!r}"
        if seen.broken:
            return "; ".join(seen.broken)
        return self.expect(seen)


def request(*fields: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes | None = b"h.test") -> bytes:
    """A request head."""
    hosts = [] if host is None else [b"Host: " + host]
    return b"\r\n".join([start, *hosts, *fields, b"", b""])


def post(*fields: bytes, body: bytes = b"") -> bytes:
    """A POST with these fields and what follows its head."""
    return request(*fields, start=b"POST /post HTTP/1.1") + body


def response(*fields: bytes, start: bytes = b"HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    """A response."""
    return b"\r\n".join([start, *fields, b"", b""]) + body


OK = response(b"Content-Length: 2", body=b"ok")


# -- how checks are put together -----------------------------------------------------------------------------


def either(*checks: Check) -> Check:
    """One of these."""

    def check(seen: Seen) -> str:
        found = [one(seen) for one in checks]
        return "" if "" in found else ", and ".join(found)

    return check


def each(*checks: Check) -> Check:
    """All of these."""

    def check(seen: Seen) -> str:
        return next((wrong for wrong in (one(seen) for one in checks) if wrong), "")

    return check


# -- what the client sees ------------------------------------------------------------------------------------


def _described(seen: Seen) -> str:
    statuses = ", ".join(str(r.status) + ("" if r.complete else " unfinished") for r in seen.responses)
    over = f"; connection {seen.clients[0].over}" if seen.clients[0].over else ""
    return f"{statuses or 'nothing'}{over}"


def status(*codes: int) -> Check:
    """The first final response has one of these statuses."""

    def check(seen: Seen) -> str:
        if seen.final and seen.final[0].status in codes:
            return ""
        return f"wanted {' or '.join(map(str, codes))}, the client got {_described(seen)}"

    return check


def statuses(*codes: int) -> Check:
    """All responses, 1xx included, have these statuses in this order."""

    def check(seen: Seen) -> str:
        if [r.status for r in seen.responses] == list(codes):
            return ""
        return f"wanted {codes}, the client got {_described(seen)}"

    return check


def closed(seen: Seen) -> str:
    """The proxy ended the first client connection."""
    return "" if seen.clients[0].over else "the connection stays open"


def stays_open(seen: Seen) -> str:
    """The proxy kept the first client connection."""
    return "the connection was ended" if seen.clients[0].over else ""


def bodies(*wanted: bytes) -> Check:
    """The final responses are these, each of them whole."""

    def check(seen: Seen) -> str:
        found = [r.body if r.complete else b"(unfinished)" for r in seen.final]
        return "" if found == list(wanted) else f"the bodies are {found!r:.200}"

    return check


def in_answer(name: str, value: bytes | None) -> Check:
    """The first final response has this field with this value; None: it has no such field."""

    def check(seen: Seen) -> str:
        if not seen.final:
            return f"the client got {_described(seen)}"
        found = seen.final[0].get(name)
        return "" if found == value else f"{name} of the response is {found!r}"

    return check


def not_whole(seen: Seen) -> str:
    """The answer cannot be taken for a whole one: an error of the proxy's, or visibly broken off."""
    if not seen.final:
        return "" if seen.clients[0].over in ("closed", "reset") else f"the client got {_described(seen)}"
    first = seen.final[0]
    if first.status in (500, 502, 503, 504):
        return ""
    if seen.clients[0].over == "reset":
        return ""
    if not first.complete and seen.clients[0].over == "closed" and first.framing != "close":
        return ""
    return f"the client could take {_described(seen)} for a whole answer"


# -- what the origin sees ------------------------------------------------------------------------------------


def refused(*codes: int) -> Check:
    """The proxy answered with one of these (or any error) and no whole request got to an origin."""

    def check(seen: Seen) -> str:
        wanted = codes or range(400, 600)
        if not seen.final or seen.final[0].status not in wanted:
            return f"wanted a refusal, the client got {_described(seen)}"
        return f"an origin saw {seen.complete[0].line!r}" if seen.complete else ""

    return check


def nothing_forwarded(seen: Seen) -> str:
    """No whole request got to an origin, whatever the client was told."""
    return f"an origin saw {seen.complete[0].line!r}" if seen.complete else ""


def forwarded(*checks: Callable[[Message], str], count: int = 1) -> Check:
    """So many requests got to origins, all of them whole, and the first one passes these checks."""

    def check(seen: Seen) -> str:
        found = seen.requests + seen.private
        if len(found) != count or len(seen.complete) != count:
            return f"origins saw {[r.line for r in found]!r:.200}; the client got {_described(seen)}"
        return next((wrong for wrong in (one(found[0]) for one in checks) if wrong), "")

    return check


def at_most(count: int) -> Check:
    """No more requests than this got to origins."""

    def check(seen: Seen) -> str:
        found = seen.requests + seen.private
        return "" if len(found) <= count else f"origins saw {[r.line for r in found]!r:.200}"

    return check


def has(name: str, value: bytes) -> Callable[[Message], str]:
    """The request has this field, with this value in all."""

    def check(message: Message) -> str:
        found = message.get(name)
        return "" if found == value else f"{name} at the origin is {found!r}"

    return check


def lacks(*names: str) -> Callable[[Message], str]:
    """The request has none of these fields."""

    def check(message: Message) -> str:
        found = [name for name in names if message.get(name) is not None]
        return f"{found[0]} got to the origin: {message.get(found[0])!r}" if found else ""

    return check


def has_body(body: bytes) -> Callable[[Message], str]:
    """The request's body, decoded."""
    return lambda message: "" if message.body == body else f"the body at the origin is {message.body!r:.100}"


def has_target(*targets: bytes) -> Callable[[Message], str]:
    """The request's target is one of these."""
    return lambda message: "" if message.target in targets else f"the target is {message.target!r}"


harmless = either(refused(), forwarded())
"""Refused, or one well-formed request got through (the reader of the origin is strict) and nothing else."""
