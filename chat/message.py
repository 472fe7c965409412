"""The wire protocol: what clients send, parsed strictly, and what the server sends, encoded.

JSON text frames, one object each, with a `type`. Unknown keys are ignored, so that newer clients can talk to
older servers; everything that is read is checked. Pure.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson

from chat.record import Message, Origin, Session

MAX_FRAME = 64 << 10
"""Bytes of one WebSocket message; more closes the connection with 1009."""
MAX_TEXT = 4_000
"""Characters of one chat message."""
MAX_ID = 64
"""Characters of a client's message id."""

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MESSAGE_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID}}}")


class ErrorCode(StrEnum):
    """Why a frame was refused; part of the contract."""

    BAD_FRAME = "bad_frame"
    """Not a JSON object with a known type and well-formed fields."""
    TEXT_TOO_LONG = "text_too_long"
    RATE_LIMITED = "rate_limited"
    """Not stored; send it again later, with the same id."""
    ENDED = "ended"
    """The session has ended; open a new one."""
    NOT_JOINED = "not_joined"
    """An agent must join a session first."""
    FORBIDDEN = "forbidden"
    """Not for this role."""
    UNAVAILABLE = "unavailable"
    """The store failed; send it again, with the same id."""


class Invalid(ValueError):
    """A frame that is refused. `id` is the message's, when it could be read, so that clients can match it."""

    def __init__(self, code: ErrorCode, detail: str, id: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.id = id


class Role(StrEnum):
    """Who a connection speaks for."""

    USER = "user"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Say:
    """`{"type":"message","id":…,"text":…}`. The id is the client's; a second one with it is a duplicate."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Typing:
    """`{"type":"typing"}`: shown to the others in the session, never stored."""


@dataclass(frozen=True, slots=True)
class CallAgent:
    """`{"type":"agent"}`: the user asks for a human."""


@dataclass(frozen=True, slots=True)
class Join:
    """`{"type":"join","session":ID}`: an agent takes over a session and sees it from `last_seq` (or all)."""

    session: str
    last_seq: int = 0


@dataclass(frozen=True, slots=True)
class Bye:
    """`{"type":"bye"}`: a user ends the session; an agent hands it back to the answer engine."""


Frame = Say | Typing | CallAgent | Join | Bye


def parse(data: str) -> Frame:
    """The client frame in `data`. Raises `Invalid`, whose detail is for the client's developer."""
    try:
        fields = orjson.loads(data)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise Invalid(ErrorCode.BAD_FRAME, f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Invalid(ErrorCode.BAD_FRAME, "a frame is a JSON object")
    match fields.get("type"):
        case "message":
            return _say(fields)
        case "typing":
            return Typing()
        case "agent":
            return CallAgent()
        case "join":
            return _join(fields)
        case "bye":
            return Bye()
        case None:
            raise Invalid(ErrorCode.BAD_FRAME, "type is missing")
        case other:
            known = "message, typing, agent, join, bye"
            raise Invalid(ErrorCode.BAD_FRAME, f"type {str(other)[:40]!r} is not one of {known}")


def _say(fields: dict[str, Any]) -> Say:
    id, text = fields.get("id"), fields.get("text")
    if not isinstance(id, str) or not _MESSAGE_ID.fullmatch(id):
        raise Invalid(ErrorCode.BAD_FRAME, f"id must be 1 to {MAX_ID} visible ASCII characters")
    if not isinstance(text, str) or not text.strip():
        raise Invalid(ErrorCode.BAD_FRAME, "text must be a string that is not blank", id)
    if len(text) > MAX_TEXT:
        raise Invalid(ErrorCode.TEXT_TOO_LONG, f"text has {len(text)} characters; {MAX_TEXT} are allowed", id)
    # PostgreSQL cannot store it, and no person types it.
    if "\x00" in text:
        raise Invalid(ErrorCode.BAD_FRAME, "text must not contain U+0000", id)
    return Say(id, text)


def _join(fields: dict[str, Any]) -> Join:
    session, last_seq = fields.get("session"), fields.get("last_seq", 0)
    if not isinstance(session, str) or not is_session_id(session):
        raise Invalid(ErrorCode.BAD_FRAME, "session must be 1 to 64 of A-Z a-z 0-9 _ -")
    if not isinstance(last_seq, int) or isinstance(last_seq, bool) or not 0 <= last_seq < 2**53:
        raise Invalid(ErrorCode.BAD_FRAME, "last_seq must be an integer from 0")
    return Join(session, last_seq)


def is_session_id(text: str) -> bool:
    """Whether `text` may name a session."""
    return _SESSION.fullmatch(text) is not None


def new_session_id() -> str:
    """An id nobody can guess: who knows it may read and write the session."""
    return secrets.token_urlsafe(16)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a client has read a session. As a token it is the reason text of Close frames."""

    session: str
    seq: int

    def token(self) -> str:
        """What `Holdfast-Resume` carries to the next instance; at most 84 bytes (a reason may have 123)."""
        return f"{self.session}.{self.seq}"

    @classmethod
    def from_token(cls, token: str) -> Position | None:
        """None for anything that is not a token: a proxy hands on whatever reason text it got."""
        session, dot, seq = token.strip().rpartition(".")
        if not dot or not is_session_id(session) or not re.fullmatch(r"[0-9]{1,15}", seq):
            return None
        return cls(session, int(seq))


def checkpoint(position: Position | None, taken: int, *, ahead: bool) -> bytes:
    """The payload of a ping to a proxy that can move WebSockets; at most 117 bytes (a ping may have 125).

    Another instance would have to go on from `position`; `taken` messages of the client on this connection
    have been dealt with. `ahead`: that holds once the client has been given the next message.
    """
    token = position.token() if position is not None else ""
    return f"holdfast-resume{'+1' if ahead else ''}@{taken}:{token}".encode()


def welcome(session: Session | None, instance: str) -> str:
    """First frame of a connection, and after a join. Without a session: an agent who has joined none."""
    return _encode(
        {
            "type": "welcome",
            "session": session.id if session else None,
            "state": session.state if session else None,
            "desk": session.desk if session else None,
            "seq": session.seq if session else 0,
            "instance": instance,
        }
    )


def ack(id: str, seq: int) -> str:
    """The message `id` is stored as `seq`; the same for each of its duplicates."""
    return _encode({"type": "ack", "id": id, "seq": seq})


def message(stored: Message) -> str:
    """One stored message; `id` is the sender's own, when it has one."""
    return _encode({"type": "message", **message_fields(stored)})


def message_fields(stored: Message) -> dict[str, object]:
    """A stored message as JSON fields, on the wire and in the HTTP API."""
    fields: dict[str, object] = {
        "seq": stored.seq,
        "from": stored.origin,
        "text": stored.text,
        "at": iso(stored.at),
    }
    if stored.client_id is not None:
        fields["id"] = stored.client_id
    if stored.reply_to is not None:
        fields["reply_to"] = stored.reply_to
    return fields


def state(session: Session) -> str:
    """The session's state, and who is at the desk: bot, waiting (for an agent) or agent."""
    return _encode({"type": "state", "state": session.state, "desk": session.desk})


def typing(origin: Origin) -> str:
    """Somebody else in the session is writing."""
    return _encode({"type": "typing", "from": origin})


def error(code: ErrorCode, detail: str, id: str | None = None) -> str:
    """A frame was refused; the connection goes on."""
    fields = {"type": "error", "code": code, "detail": detail}
    return _encode(fields if id is None else {**fields, "id": id})


def iso(at: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _encode(fields: dict[str, Any]) -> str:
    return orjson.dumps(fields).decode()
