"""Cookies that name instances, and keys that are remembered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

import proxy.sticky
from config.schema import Sticky
from discovery.model import Instance
from proxy.endpoint import Endpoint
from proxy.head import RequestHead
from proxy.sticky import Stickiness

MakeHead = Callable[..., RequestHead]
CLIENT = b"192.0.2.1"


def by_cookie(key: bytes = b"secret", service: str = "chat", ttl: float = 3600.0) -> Stickiness:
    return Stickiness(Sticky.model_validate({"by": "cookie", "name": "hf_chat", "ttl": ttl}), service, key)


def by_header(ttl: float = 60.0) -> Stickiness:
    return Stickiness(
        Sticky.model_validate({"by": "header", "name": "X-User", "ttl": ttl}), "chat", b"secret"
    )


def endpoints(stickiness: Stickiness, count: int) -> list[Endpoint]:
    names = [f"i{index}" for index in range(count)]
    return [Endpoint(Instance("chat", name), 100, 0.0, stickiness.token(name)) for name in names]


def tokens(members: list[Endpoint]) -> dict[bytes, Endpoint]:
    return {member.token: member for member in members}


def test_a_token_is_opaque_and_the_same_for_the_same_key() -> None:
    token = by_cookie().token("i1")
    assert re.fullmatch(rb"[A-Za-z0-9_-]{22}", token)
    assert token == by_cookie().token("i1")
    others = {by_cookie().token("i2"), by_cookie(b"other").token("i1"), by_cookie(service="shop").token("i1")}
    assert token not in others and len(others) == 3


def test_a_key_may_be_of_any_length() -> None:
    assert len({by_cookie(key).token("i1") for key in (b"", b"k", b"k" * 64, b"k" * 65, b"k" * 1000)}) == 5


def test_the_cookie_leads_back_to_the_instance(request_head: MakeHead) -> None:
    stickiness = by_cookie()
    members = endpoints(stickiness, 3)
    for member in members:
        pair = stickiness.set_cookie(member.token, secure=False).split(b";")[0].decode()
        for sent in (pair, f"a=b; {pair}; c=d", pair.replace("=", '="') + '"', f"hf_chat=stale; {pair}"):
            head = request_head("/", f"Cookie: {sent}")
            assert stickiness.find(head, CLIENT, tokens(members), 0.0) is member
        two = request_head("/", "Cookie: hf_chat=old", f"Cookie: {pair}")
        assert stickiness.find(two, CLIENT, tokens(members), 0.0) is member


def test_the_first_cookie_that_resolves_counts(request_head: MakeHead) -> None:
    stickiness = by_cookie()
    one, two = endpoints(stickiness, 2)
    head = request_head("/", f"Cookie: hf_chat={two.token.decode()}; hf_chat={one.token.decode()}")
    assert stickiness.find(head, CLIENT, tokens([one, two]), 0.0) is two
    assert stickiness.find(head, CLIENT, tokens([one]), 0.0) is one


@pytest.mark.parametrize("value", ["", "i0", "chat/i0", "AAAAAAAAAAAAAAAAAAAAAA", "' or 1=1", "\xff\xfe"])
def test_a_forged_token_leads_nowhere(request_head: MakeHead, value: str) -> None:
    stickiness = by_cookie()
    known = tokens(endpoints(stickiness, 2))
    assert stickiness.find(request_head("/", f"Cookie: hf_chat={value}"), CLIENT, known, 0.0) is None


def test_a_token_of_another_key_or_changed_by_a_letter_leads_nowhere(request_head: MakeHead) -> None:
    stickiness = by_cookie()
    members = endpoints(stickiness, 1)
    token = members[0].token.decode()
    swapped = ("A" if token[0] != "A" else "B") + token[1:]
    for forged in (by_cookie(b"guessed").token("i0").decode(), swapped, token[:-1], token + "A"):
        head = request_head("/", f"Cookie: hf_chat={forged}")
        assert stickiness.find(head, CLIENT, tokens(members), 0.0) is None


def test_by_cookie_the_balancer_chooses(request_head: MakeHead) -> None:
    stickiness = by_cookie()
    assert stickiness.bind(request_head(), CLIENT, endpoints(stickiness, 2), 0.0) is None


def test_the_set_cookie_value() -> None:
    assert by_cookie(ttl=90.0).set_cookie(b"T", secure=False) == (
        b"hf_chat=T; Path=/; Max-Age=90; HttpOnly; SameSite=Lax"
    )
    assert by_cookie(ttl=0.0).set_cookie(b"T", secure=True) == (
        b"hf_chat=T; Path=/; HttpOnly; SameSite=Lax; Secure"
    )
    # Max-Age=0 would delete the cookie at once.
    assert b"Max-Age=1;" in by_cookie(ttl=0.2).set_cookie(b"T", secure=False)


@pytest.mark.parametrize(
    ("sticky", "target", "fields"),
    [
        ({"by": "header", "name": "X-User"}, "/", ("x-user: u1",)),
        ({"by": "query", "name": "user"}, "/?user=u1", ()),
        ({"by": "path"}, "/rooms/u1", ()),
        ({"by": "path", "name": "ignored"}, "/rooms/u1", ()),
        ({"by": "ip"}, "/", ()),
    ],
)
def test_a_key_is_bound_and_found_again(
    request_head: MakeHead, sticky: dict[str, str], target: str, fields: tuple[str, ...]
) -> None:
    stickiness = Stickiness(Sticky.model_validate(sticky), "chat", b"secret")
    members = endpoints(stickiness, 4)
    head = request_head(target, *fields)
    assert stickiness.find(head, CLIENT, tokens(members), 0.0) is None
    bound = stickiness.bind(head, CLIENT, members, 0.0)
    assert bound in members
    assert stickiness.find(head, CLIENT, tokens(members), 1.0) is bound


def test_adding_instances_moves_nobody_who_is_bound(request_head: MakeHead) -> None:
    stickiness = by_header()
    few = endpoints(stickiness, 3)
    heads = [request_head("/", f"X-User: u{number}") for number in range(300)]
    bound = [stickiness.bind(head, CLIENT, few, 0.0) for head in heads]
    many = endpoints(stickiness, 10)
    again = [stickiness.find(head, CLIENT, tokens(many), 1.0) for head in heads]
    assert [m and m.identity for m in again] == [m and m.identity for m in bound]


def test_first_sight_spreads_evenly_and_alike_in_every_process(request_head: MakeHead) -> None:
    one, other = by_header(), by_header()
    heads = [request_head("/", f"X-User: u{number}") for number in range(900)]
    found = [one.bind(head, CLIENT, endpoints(one, 3), 0.0) for head in heads]
    again = [other.bind(head, CLIENT, endpoints(other, 3)[::-1], 0.0) for head in heads]
    assert [m and m.identity for m in found] == [m and m.identity for m in again]
    assert min(Counter(m.identity for m in found if m).values()) > 240


def test_an_instance_that_left_binds_nobody_until_the_client_is_bound_anew(request_head: MakeHead) -> None:
    stickiness = by_header()
    members = endpoints(stickiness, 3)
    head = request_head("/", "X-User: u1")
    first = stickiness.bind(head, CLIENT, members, 0.0)
    left = [member for member in members if member is not first]
    assert stickiness.find(head, CLIENT, tokens(left), 1.0) is None
    second = stickiness.bind(head, CLIENT, left, 1.0)
    assert second in left
    # The one who came back does not take the client back.
    assert stickiness.find(head, CLIENT, tokens(members), 2.0) is second


def test_a_binding_lasts_as_long_as_it_is_used(request_head: MakeHead) -> None:
    stickiness = by_header(ttl=60.0)
    members = endpoints(stickiness, 3)
    head = request_head("/", "X-User: u1")
    bound = stickiness.bind(head, CLIENT, members, 0.0)
    for now in (50.0, 100.0, 150.0):
        assert stickiness.find(head, CLIENT, tokens(members), now) is bound
    assert stickiness.find(head, CLIENT, tokens(members), 210.0) is None


def test_a_binding_without_ttl_does_not_end(request_head: MakeHead) -> None:
    stickiness = by_header(ttl=0.0)
    members = endpoints(stickiness, 3)
    head = request_head("/", "X-User: u1")
    bound = stickiness.bind(head, CLIENT, members, 0.0)
    assert stickiness.find(head, CLIENT, tokens(members), 1e9) is bound


def test_a_request_without_a_key_is_bound_to_nobody(request_head: MakeHead) -> None:
    stickiness = by_header()
    members = endpoints(stickiness, 3)
    assert stickiness.bind(request_head(), CLIENT, members, 0.0) is None
    assert stickiness.find(request_head(), CLIENT, tokens(members), 0.0) is None


def test_nobody_is_bound_to_weight_zero(request_head: MakeHead) -> None:
    stickiness = by_header()
    members = endpoints(stickiness, 2)
    members[0].weight = 0
    heads = [request_head("/", f"X-User: u{number}") for number in range(50)]
    assert {stickiness.bind(head, CLIENT, members, 0.0) for head in heads} == {members[1]}
    assert stickiness.bind(heads[0], CLIENT, members[:1], 0.0) is None


def test_the_binding_unused_for_longest_makes_room(
    request_head: MakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy.sticky, "_REMEMBERED", 2)
    stickiness = by_header()
    members = endpoints(stickiness, 2)
    one, two, three = (request_head("/", f"X-User: u{number}") for number in range(3))
    stickiness.bind(one, CLIENT, members, 0.0)
    stickiness.bind(two, CLIENT, members, 1.0)
    assert stickiness.find(one, CLIENT, tokens(members), 2.0) is not None
    stickiness.bind(three, CLIENT, members, 3.0)
    kept = [stickiness.find(head, CLIENT, tokens(members), 4.0) is not None for head in (one, two, three)]
    assert kept == [True, False, True]


def test_long_keys_are_told_apart(request_head: MakeHead) -> None:
    stickiness = by_header()
    members = endpoints(stickiness, 2)
    stickiness.bind(request_head("/", f"X-User: {'u' * 5000}1"), CLIENT, members, 0.0)
    assert stickiness.find(request_head("/", f"X-User: {'u' * 5000}2"), CLIENT, tokens(members), 0.0) is None
    assert (
        stickiness.find(request_head("/", f"X-User: {'u' * 5000}1"), CLIENT, tokens(members), 0.0) in members
    )
