"""Tokens: every instance is found by its own, and by nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from config.schema import Sticky
from proxy.head import Limits, RequestHead, parse_request
from proxy.sticky import Stickiness

COOKIE = Sticky.model_validate({"by": "cookie", "name": "hf"})
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60)
IDS = st.sets(st.text(min_size=1, max_size=20), min_size=1, max_size=8)


def head_with(*cookies: str) -> RequestHead:
    fields = "".join(f"Cookie: {cookie}\r\n" for cookie in cookies)
    parsed = parse_request(
        f"GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode("latin-1"), Limits(16384, 65536, 100)
    )
    assert parsed is not None
    return parsed[0]


@given(ids=IDS, before=VALUE, after=VALUE)
def test_a_token_survives_whatever_else_is_in_the_field(ids: set[str], before: str, after: str) -> None:
    stickiness = Stickiness(COOKIE, "chat", b"secret")
    known = {stickiness.token(name): name for name in ids}
    assert len(known) == len(ids)
    for token, name in known.items():
        head = head_with(f"{before};hf={token.decode()};{after}")
        assert stickiness.find(head, b"", known, 0.0) == name


@given(ids=IDS, value=VALUE)
def test_whatever_is_sent_resolves_to_an_instance_only_if_it_is_its_token(ids: set[str], value: str) -> None:
    stickiness = Stickiness(COOKIE, "chat", b"secret")
    known = {stickiness.token(name): name for name in ids}
    # Drawing 128 bits by chance does not happen.
    assert stickiness.find(head_with(f"hf={value}", value), b"", known, 0.0) is None


@given(one=st.binary(max_size=100), other=st.binary(max_size=100), name=st.text(max_size=10))
def test_another_key_makes_another_token(one: bytes, other: bytes, name: str) -> None:
    same = Stickiness(COOKIE, "chat", one).token(name) == Stickiness(COOKIE, "chat", other).token(name)
    assert same is (one == other)
