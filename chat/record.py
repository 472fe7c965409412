"""What is kept: messages and sessions, as immutable records. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from chat.state import State


class Origin(StrEnum):
    """Who wrote a message."""

    USER = "user"
    BOT = "bot"
    AGENT = "agent"


class Desk(StrEnum):
    """Who serves a session; independent of its state."""

    BOT = "bot"
    """The answer engine."""
    WAITING = "waiting"
    """The engine still, but the user has asked for a human."""
    AGENT = "agent"
    """A human has joined; the engine is silent."""


@dataclass(frozen=True, slots=True)
class Message:
    """One stored message. `seq` counts from 1 in its session, without gaps; `at` is seconds since the epoch.

    `client_id` is the sender's id, unique among the session's messages of the same origin. `reply_to` is the
    `seq` that an automatic answer answers; at most one message answers it.
    """

    session: str
    seq: int
    origin: Origin
    text: str
    at: float
    client_id: str | None = None
    reply_to: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One session as it is stored. Times are seconds since the epoch.

    `seq` is that of its last message; `rev` grows with every change, so that of two copies the newer one is
    known. `waiting_since` is when the user began to wait for a human. `lease_owner` is the process that
    answers now; it counts only until `lease_until`.
    """

    id: str
    state: State = State.INIT
    desk: Desk = Desk.BOT
    seq: int = 0
    rev: int = 0
    created: float = 0.0
    active: float = 0.0
    waiting_since: float | None = None
    lease_owner: str | None = None
    lease_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the agents' list: a session and the last thing said in it."""

    session: Session
    last: Message | None


@dataclass(frozen=True, slots=True)
class Change:
    """What one operation did: the session after it, and the messages it added, in order of `seq`."""

    session: Session
    messages: tuple[Message, ...] = ()
