"""The life of a chat session: one enum of states, one of events, one transition table. Pure.

NLP in the names stands for whoever owes the reply: the answer engine, or the human agent who has joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a session is."""

    INIT = "INIT"
    """Opened; nobody has said anything."""
    AWAIT_INPUT = "AWAIT_INPUT"
    """The user is asked to write (again): nothing fitted, or an agent has just joined."""
    AWAIT_NLP = "AWAIT_NLP"
    """The user has written and a reply is owed."""
    REPLY_OK = "REPLY_OK"
    """The last word was a reply."""
    TIMEOUT = "TIMEOUT"
    """Nothing happened for the context's time to live; the next message begins a new context."""
    END = "END"
    """The user has said goodbye. Final: nothing new is accepted."""


class Event(StrEnum):
    """What happens to a session."""

    USER_MSG = "USER_MSG"
    NLP_OK = "NLP_OK"
    """A reply was stored."""
    NLP_FAIL = "NLP_FAIL"
    """Nothing fitted or the engine failed; a default reply was stored."""
    TIME_OUT = "TIME_OUT"
    AGENT_JOIN = "AGENT_JOIN"
    BYE = "BYE"
    """The user ends the session; without it END could not be reached."""


class IllegalEvent(Exception):
    """The event does not exist for the state the session is in."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"a session in {state} cannot take {event}")
        self.state = state
        self.event = event


_S, _E = State, Event

TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        (_S.INIT, _E.USER_MSG): _S.AWAIT_NLP,
        (_S.INIT, _E.TIME_OUT): _S.TIMEOUT,
        (_S.INIT, _E.AGENT_JOIN): _S.AWAIT_INPUT,
        (_S.INIT, _E.BYE): _S.END,
        (_S.AWAIT_INPUT, _E.USER_MSG): _S.AWAIT_NLP,
        # An agent may speak without having been asked.
        (_S.AWAIT_INPUT, _E.NLP_OK): _S.REPLY_OK,
        (_S.AWAIT_INPUT, _E.TIME_OUT): _S.TIMEOUT,
        (_S.AWAIT_INPUT, _E.AGENT_JOIN): _S.AWAIT_INPUT,
        (_S.AWAIT_INPUT, _E.BYE): _S.END,
        (_S.AWAIT_NLP, _E.USER_MSG): _S.AWAIT_NLP,
        (_S.AWAIT_NLP, _E.NLP_OK): _S.REPLY_OK,
        (_S.AWAIT_NLP, _E.NLP_FAIL): _S.AWAIT_INPUT,
        (_S.AWAIT_NLP, _E.TIME_OUT): _S.TIMEOUT,
        # The reply stays owed; from now on by the human.
        (_S.AWAIT_NLP, _E.AGENT_JOIN): _S.AWAIT_NLP,
        (_S.AWAIT_NLP, _E.BYE): _S.END,
        (_S.REPLY_OK, _E.USER_MSG): _S.AWAIT_NLP,
        (_S.REPLY_OK, _E.NLP_OK): _S.REPLY_OK,
        (_S.REPLY_OK, _E.TIME_OUT): _S.TIMEOUT,
        (_S.REPLY_OK, _E.AGENT_JOIN): _S.AWAIT_INPUT,
        (_S.REPLY_OK, _E.BYE): _S.END,
        (_S.TIMEOUT, _E.USER_MSG): _S.AWAIT_NLP,
        # A reply that comes late is still given.
        (_S.TIMEOUT, _E.NLP_OK): _S.REPLY_OK,
        (_S.TIMEOUT, _E.NLP_FAIL): _S.AWAIT_INPUT,
        (_S.TIMEOUT, _E.AGENT_JOIN): _S.AWAIT_INPUT,
        (_S.TIMEOUT, _E.BYE): _S.END,
        # What was asked before the goodbye is answered into the history; the session stays ended.
        (_S.END, _E.NLP_OK): _S.END,
        (_S.END, _E.NLP_FAIL): _S.END,
    }
)
"""Every transition there is. A pair that is missing is refused."""


def step(state: State, event: Event) -> State:
    """The state after `event`. Raises `IllegalEvent` when the table has no such transition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalEvent(state, event) from None


def takes(state: State, event: Event) -> bool:
    """Whether `event` exists for `state`."""
    return (state, event) in TRANSITIONS
