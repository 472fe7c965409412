"""Reading cookies, query parameters and hash keys out of what clients send."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.head import RequestHead
from proxy.keys import cookie_values, key_reader, query_values

MakeHead = Callable[..., RequestHead]


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ((), []),
        (("Cookie: id=1",), [b"1"]),
        (("cookie: a=0; id=1; b=2",), [b"1"]),
        (("COOKIE: id=1;id=2",), [b"1", b"2"]),
        (("Cookie: id=1", "Cookie: id=2"), [b"1", b"2"]),
        (('Cookie: id="1"',), [b"1"]),
        (('Cookie: id="',), [b'"']),
        (("Cookie:  id = 1 ",), [b"1"]),
        (("Cookie: id=a=b",), [b"a=b"]),
        (("Cookie: id=",), [b""]),
        (("Cookie: id",), []),
        (("Cookie: myid=1; id2=2; xid=3",), []),
        (("Cookie: a=id=5",), []),
        (("Cookie: ;;=;id=1;",), [b"1"]),
        (("X-Cookie: id=1", "Cookie2: id=2"), []),
    ],
)
def test_cookies_are_read_as_they_come(
    request_head: MakeHead, fields: tuple[str, ...], values: list[bytes]
) -> None:
    assert list(cookie_values(request_head("/", *fields), b"id")) == values


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (b"", []),
        (b"id=1", [b"1"]),
        (b"a=0&id=1&id=2", [b"1", b"2"]),
        (b"id", [b""]),
        (b"id=", [b""]),
        (b"i%64=%41+b", [b"A b"]),
        (b"id=%zz%4", [b"%zz%4"]),
        (b"&&=&id=a=b", [b"a=b"]),
        (b"xid=1&ID=2", []),
    ],
)
def test_query_parameters_are_decoded(query: bytes, values: list[bytes]) -> None:
    assert list(query_values(query, b"id")) == values


def test_a_parameter_without_a_name_is_not_an_empty_query() -> None:
    assert list(query_values(b"&&", b"")) == []


def test_each_kind_of_key_is_read(request_head: MakeHead) -> None:
    head = request_head("/a/b?user=u%201", "Cookie: sid=c", "X-Tenant: t")
    client = b"192.0.2.1"
    assert key_reader("ip")(head, client) == client
    assert key_reader("path")(head, client) == b"/a/b"
    assert key_reader("header:X-Tenant")(head, client) == b"t"
    assert key_reader("cookie:sid")(head, client) == b"c"
    assert key_reader("query:user")(head, client) == b"u 1"


@pytest.mark.parametrize("spec", ["header:X-None", "cookie:none", "query:none"])
def test_a_key_that_is_not_sent_is_empty(request_head: MakeHead, spec: str) -> None:
    assert key_reader(spec)(request_head("/?a=1", "Cookie: b=2"), b"192.0.2.1") == b""


@pytest.mark.parametrize("spec", ["", "ips", "ip:x", "path:x", "header", "header:", "cookie:", "body:x"])
def test_an_unknown_key_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        key_reader(spec)
