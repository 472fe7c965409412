"""The transition table of a session."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.state import TRANSITIONS, Event, IllegalEvent, State, step, takes


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_pair_is_either_in_the_table_or_refused(state: State, event: Event) -> None:
    if takes(state, event):
        assert step(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalEvent, match=f"{state} cannot take {event}"):
            step(state, event)


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([Event.USER_MSG], State.AWAIT_NLP),
        ([Event.USER_MSG, Event.NLP_OK], State.REPLY_OK),
        ([Event.USER_MSG, Event.NLP_FAIL], State.AWAIT_INPUT),
        ([Event.USER_MSG, Event.NLP_OK, Event.USER_MSG], State.AWAIT_NLP),
        ([Event.USER_MSG, Event.AGENT_JOIN], State.AWAIT_NLP),
        ([Event.AGENT_JOIN, Event.USER_MSG, Event.NLP_OK], State.REPLY_OK),
        ([Event.USER_MSG, Event.NLP_OK, Event.TIME_OUT], State.TIMEOUT),
        ([Event.TIME_OUT, Event.USER_MSG], State.AWAIT_NLP),
        ([Event.USER_MSG, Event.BYE, Event.NLP_OK], State.END),
    ],
)
def test_a_conversation_goes_through_the_states(events: list[Event], end: State) -> None:
    state = State.INIT
    for event in events:
        state = step(state, event)
    assert state is end


@given(st.lists(st.sampled_from(list(Event))))
def test_nothing_leads_out_of_the_end(events: list[Event]) -> None:
    state = State.END
    for event in events:
        if takes(state, event):
            state = step(state, event)
    assert state is State.END


def test_every_state_but_the_end_takes_a_user_message_and_a_goodbye() -> None:
    for state in State:
        assert takes(state, Event.USER_MSG) is (state is not State.END)
        assert takes(state, Event.BYE) is (state is not State.END)


def test_every_state_can_be_reached() -> None:
    reached = {State.INIT}
    while more := {to for (state, _), to in TRANSITIONS.items() if state in reached} - reached:
        reached |= more
    assert reached == set(State)
