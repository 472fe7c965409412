"""The wire protocol: parsing is total and strict, encoding is what the contract says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat import message as wire
from chat.message import Bye, CallAgent, ErrorCode, Invalid, Join, Position, Say, Typing, parse
from chat.record import Desk, Message, Origin, Session
from chat.state import State

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
ids = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4000)
sessions = st.text("ABCxyz019_-", min_size=1, max_size=64)


@given(st.text())
def test_text_that_is_no_frame_is_refused(data: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse(data)
    assert refused.value.code is ErrorCode.BAD_FRAME
    assert refused.value.detail


@given(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["message", "typing", "agent", "join", "bye", "x"]) | json_values},
        optional={"id": json_values | ids, "text": json_values, "session": json_values | sessions},
    )
)
def test_any_object_is_a_frame_or_refused_with_a_code(fields: dict[str, object]) -> None:
    try:
        frame = parse(json.dumps(fields))
    except Invalid as error:
        assert error.code in (ErrorCode.BAD_FRAME, ErrorCode.TEXT_TOO_LONG)
        assert error.id is None or error.id == fields["id"]
    else:
        assert isinstance(frame, Say | Typing | CallAgent | Join | Bye)


@given(ids, texts.filter(str.strip))
def test_a_message_is_taken_as_it_was_written(id: str, text: str) -> None:
    assert parse(json.dumps({"type": "message", "id": id, "text": text, "new": 1})) == Say(id, text)


@pytest.mark.parametrize(
    ("data", "code", "detail"),
    [
        ("", "bad_frame", "not JSON"),
        ("nonsense", "bad_frame", "not JSON"),
        ("[]", "bad_frame", "JSON object"),
        ("{}", "bad_frame", "type is missing"),
        ('{"type":"shout"}', "bad_frame", "'shout' is not one of message, typing"),
        ('{"type":["message"]}', "bad_frame", "is not one of"),
        ('{"type":"message","text":"x"}', "bad_frame", "id must be"),
        ('{"type":"message","id":"","text":"x"}', "bad_frame", "id must be"),
        ('{"type":"message","id":"a b","text":"x"}', "bad_frame", "id must be"),
        ('{"type":"message","id":7,"text":"x"}', "bad_frame", "id must be"),
        ('{"type":"message","id":"%s","text":"x"}' % ("i" * 65), "bad_frame", "1 to 64"),
        ('{"type":"message","id":"a"}', "bad_frame", "text must be"),
        ('{"type":"message","id":"a","text":" \\n"}', "bad_frame", "not blank"),
        ('{"type":"message","id":"a","text":"x\\u0000"}', "bad_frame", "U+0000"),
        ('{"type":"message","id":"a","text":"\\ud800"}', "bad_frame", "not JSON"),
        ('{"type":"message","id":"a","text":"%s"}' % ("x" * 4001), "text_too_long", "4001 characters"),
        ('{"type":"join"}', "bad_frame", "session must be"),
        ('{"type":"join","session":"a/b"}', "bad_frame", "session must be"),
        ('{"type":"join","session":"a","last_seq":-1}', "bad_frame", "last_seq"),
        ('{"type":"join","session":"a","last_seq":true}', "bad_frame", "last_seq"),
    ],
)
def test_what_is_wrong_is_said(data: str, code: str, detail: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse(data)
    assert refused.value.code == code
    assert detail in refused.value.detail


def test_the_longest_text_is_counted_in_characters() -> None:
    assert parse(json.dumps({"type": "message", "id": "a", "text": "客" * 4000})) == Say("a", "客" * 4000)


@given(sessions, st.integers(0, 10**15 - 1))
def test_a_position_survives_the_reason_of_a_close_frame(session: str, seq: int) -> None:
    token = Position(session, seq).token()
    assert len(token.encode()) <= 123
    assert Position.from_token(token) == Position(session, seq)


@given(st.text())
def test_a_foreign_reason_is_no_position(reason: str) -> None:
    position = Position.from_token(reason)
    assert position is None or wire.is_session_id(position.session)


@pytest.mark.parametrize(
    "reason", ["", "going away", ".5", "s.", "s.-1", "s.1e5", "s.٣", "a.b.1", "x" * 65 + ".1"]
)
def test_these_are_no_positions(reason: str) -> None:
    assert Position.from_token(reason) is None


def test_new_session_ids_are_valid_and_differ() -> None:
    made = {wire.new_session_id() for _ in range(50)}
    assert len(made) == 50
    assert all(map(wire.is_session_id, made))


def test_frames_are_those_of_the_contract() -> None:
    session = Session("S", State.REPLY_OK, Desk.BOT, seq=3)
    stored = Message("S", 3, Origin.BOT, "你好", 1_700_000_000.25, reply_to=2)
    assert json.loads(wire.welcome(session, "i-1")) == {
        "type": "welcome", "session": "S", "state": "REPLY_OK", "desk": "bot", "seq": 3, "instance": "i-1",
    }  # fmt: skip
    assert json.loads(wire.ack("c-1", 2)) == {"type": "ack", "id": "c-1", "seq": 2}
    assert json.loads(wire.message(stored)) == {
        "type": "message", "seq": 3, "from": "bot", "text": "你好", "at": "2023-11-14T22:13:20.250Z",
        "reply_to": 2,
    }  # fmt: skip
    assert json.loads(wire.state(session)) == {"type": "state", "state": "REPLY_OK", "desk": "bot"}
    assert json.loads(wire.error(ErrorCode.ENDED, "over", "c-1")) == {
        "type": "error", "code": "ended", "detail": "over", "id": "c-1",
    }  # fmt: skip
