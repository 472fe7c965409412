"""Heads: valid ones mean what h11 and httptools say, and nothing that both refuse gets through."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProxyError, Reason, error_response
from proxy.head import CHUNKED, NO_BODY, UNTIL_CLOSE, Limits, parse_request, parse_response
from proxy.paths import normal_path, read_path

LIMITS = Limits(line=4096, head=16384, count=50)

method = st.sampled_from((b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"PATCH"))
target = st.text("abcXYZ019-._~/?&=+,;:@!$'()*[]", max_size=30).map(lambda t: b"/" + t.encode())
name = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=12).map(lambda t: b"x" + t.encode())
value = st.text('abc XYZ\t019:;,"()<>@?={}é', max_size=20).map(lambda t: t.strip(" \t").encode("latin-1"))


@st.composite
def requests(draw):
    fields = draw(st.lists(st.tuples(name, value), max_size=6))
    fields.insert(draw(st.integers(0, len(fields))), (b"Host", b"example.com"))
    framing = draw(st.sampled_from((b"", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n")))
    space = draw(st.sampled_from((b"", b" ", b"\t ")))
    lines = b"".join(n + b":" + space + v + b"\r\n" for n, v in fields)
    start = draw(method) + b" " + draw(target) + b" HTTP/1.1\r\n"
    return start + lines + framing + b"\r\n"


@given(requests())
def test_a_valid_head_means_what_h11_says(raw):
    parsed = parse_request(raw, LIMITS)
    assert parsed is not None
    head, end = parsed
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert end == len(raw)
    assert (head.method, head.target) == (event.method, event.target)
    assert [(n.lower(), v.rstrip(b" \t")) for n, v in head.fields] == list(event.headers)
    framing = dict(event.headers)
    if b"transfer-encoding" in framing:
        assert head.body == CHUNKED
    else:
        assert head.body == int(framing.get(b"content-length", 0))


@given(requests(), st.integers(0, 10_000))
def test_a_part_of_a_valid_head_is_incomplete_and_nothing_else(raw, cut):
    assert parse_request(raw[: max(1, cut % len(raw))], LIMITS) is None


def refused_by_h11(raw: bytes) -> bool:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    try:
        return connection.next_event() is h11.NEED_DATA
    except h11.RemoteProtocolError:
        return True


class Completed:
    done = False

    def on_headers_complete(self) -> None:
        self.done = True


def refused_by_llhttp(raw: bytes) -> bool:
    seen = Completed()
    try:
        httptools.HttpRequestParser(seen).feed_data(raw)
    except httptools.HttpParserUpgrade:
        return False
    except httptools.HttpParserError:
        return not seen.done
    return not seen.done


@given(
    requests(),
    st.lists(
        st.tuples(
            st.integers(0, 10_000),
            st.sampled_from(
                [bytes((n,)) for n in (0, 9, 10, 13, 32, 34, 44, 58, 127, 128, 255)]
                + [b"", b"\r\n", b"\n ", b" :", b"Content-Length: 3\r\n", b"Transfer-Encoding: x\r\n"]
            ),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_what_both_witnesses_refuse_is_never_accepted(raw, mutations):
    for where, damage, instead in mutations:
        where %= len(raw)
        raw = raw[:where] + damage + raw[where + instead :]
    try:
        parsed = parse_request(raw, LIMITS)
    except ProxyError:
        return
    if parsed is not None:
        assert not (refused_by_h11(raw) and refused_by_llhttp(raw)), raw


@given(st.binary(max_size=200))
def test_nothing_but_a_proxy_error_comes_out_of_garbage(raw):
    for data in (raw, raw + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + raw + b"\r\n\r\n"):
        try:
            parse_request(data, LIMITS)
        except ProxyError as error:
            assert error.reason.status >= 400
        try:
            parse_response(data, b"GET", LIMITS)
        except ProxyError as error:
            assert error.reason is Reason.UPSTREAM_INVALID


def parse(raw: bytes):
    parsed = parse_request(raw, LIMITS)
    assert parsed is not None
    return parsed[0]


def request(*lines: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([start, *lines, b"", b""])


@pytest.mark.parametrize(
    "raw",
    [
        request(),
        request(b"Host: a", b"Host: a"),
        request(b"Host: a b"),
        request(b"Host: a/b"),
        request(b"Host: user@a"),
        request(b"Host: a:port"),
        request(b"Host : a"),
        request(b" Host: a"),
        request(b"Host: a", b" folded"),
        request(b"Host: a", b"\tfolded: x"),
        request(b"Host: a", b"X: a\rb"),
        request(b"Host: a", b"X: a\nb: c"),
        request(b"Host: a", b"X: a\x00b"),
        request(b"Host: a", b": nameless"),
        request(b"Host: a", b"no colon"),
        request(b"Host: a", b"N\xc3me: x"),
        request(b"Host: a", b"Content-Length: 1", b"Content-Length: 1"),
        request(b"Host: a", b"Content-Length: 1, 1"),
        request(b"Host: a", b"Content-Length: +1"),
        request(b"Host: a", b"Content-Length: -1"),
        request(b"Host: a", b"Content-Length: 1_0"),
        request(b"Host: a", b"Content-Length: 0x1"),
        request(b"Host: a", b"Content-Length:"),
        request(b"Host: a", b"Content-Length: \xb2"),
        request(b"Host: a", b"Content-Length: " + b"9" * 19),
        request(b"Host: a", b"Content-Length: 1", b"Transfer-Encoding: chunked"),
        request(b"Host: a", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        request(b"Host: a", b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"),
        request(b"Host: a", start=b"GET  / HTTP/1.1"),
        request(b"Host: a", start=b"GET / HTTP/1.1 "),
        request(b"Host: a", start=b"GET /\tx HTTP/1.1"),
        request(b"Host: a", start=b"GET /a b HTTP/1.1"),
        request(b"Host: a", start=b"GET / http/1.1"),
        request(b"Host: a", start=b"GET /#x HTTP/1.1"),
        request(b"Host: a", start=b"GET /\xff HTTP/1.1"),
        request(b"Host: a", start=b"GET x HTTP/1.1"),
        request(b"Host: a", start=b"GET * HTTP/1.1"),
        request(b"Host: a", start=b"GET ftp://a/ HTTP/1.1"),
        request(b"Host: a", start=b"GET http:/// HTTP/1.1"),
        request(b"Host: a", start=b"GET http://u@a/ HTTP/1.1"),
        request(b"Host: a", start=b"G@T / HTTP/1.1"),
        request(b"Host: a", start=b"GET /%zz HTTP/1.1"),
        request(b"Host: a", start=b"GET /%00 HTTP/1.1"),
        request(b"Host: a", start=b"GET /../x HTTP/1.1"),
        request(b"Host: a", start=b"GET /%2e%2e/x HTTP/1.1"),
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
    ],
)
def test_what_can_be_read_in_two_ways_is_400(raw):
    with pytest.raises(ProxyError) as caught:
        parse_request(raw, LIMITS)
    assert caught.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize(
    "coding", [b"gzip", b"chunked, chunked", b"gzip, chunked", b"identity", b"chunkedx", b""]
)
def test_other_codings_are_501(coding):
    with pytest.raises(ProxyError) as caught:
        parse_request(request(b"Host: a", b"Transfer-Encoding: " + coding), LIMITS)
    assert caught.value.reason is Reason.UNSUPPORTED_CODING


def test_what_is_allowed_is_not_refused():
    assert parse(request(b"Host:")).authority == b""
    assert parse(request(b"Host: [::1]:80")).host == b"[::1]"
    assert parse(request(b"Host: EXAMPLE.com:80 \t")).host == b"example.com"
    assert parse(request(start=b"GET / HTTP/1.0")).keep_alive is False
    assert parse(request(b"Connection: keep-alive", start=b"GET / HTTP/1.0")).keep_alive is True
    assert parse(request(b"Host: a", b"Connection: Close")).keep_alive is False
    assert parse(request(b"Host: a", b"Content-Length: 0")).body == NO_BODY
    assert parse(request(b"Host: a", b"Transfer-Encoding: CHUNKED")).body == CHUNKED
    assert parse(request(b"Host: a", b"X: \xe9\x80")).fields[1] == (b"X", b"\xe9\x80")
    assert parse(request(b"Host: a", start=b"GET / HTTP/1.9")).minor == 1


def test_limits_hold_on_both_sides_of_the_border():
    line = b"GET /" + b"x" * (LIMITS.line - 14) + b" HTTP/1.1"
    assert len(line) == LIMITS.line
    assert parse(request(b"Host: a", start=line))
    with pytest.raises(ProxyError) as caught:
        parse(request(b"Host: a", start=line.replace(b"/x", b"/xx")))
    assert caught.value.reason is Reason.REQUEST_LINE_TOO_LONG
    fields = [b"Host: a", *[b"X: 1"] * (LIMITS.count - 1)]
    assert parse(request(*fields))
    with pytest.raises(ProxyError) as caught:
        parse(request(*fields, b"X: 1"))
    assert caught.value.reason is Reason.HEAD_TOO_LARGE
    filler = LIMITS.head - len(request(b"Host: a", b"X: "))
    assert parse(request(b"Host: a", b"X: " + b"x" * filler))
    with pytest.raises(ProxyError) as caught:
        parse(request(b"Host: a", b"X: " + b"x" * (filler + 1)))
    assert caught.value.reason is Reason.HEAD_TOO_LARGE


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        (b"/", b"/"),
        (b"//a///b", b"/a/b"),
        (b"/a/./b/../c", b"/a/c"),
        (b"/a/..", b"/"),
        (b"/a/b/..", b"/a/"),
        (b"/a/.", b"/a/"),
        (b"/a/", b"/a/"),
        (b"/%61dmin", b"/admin"),
        (b"/a%2Fb%2fc", b"/a%2Fb%2Fc"),
        (b"/a/%2e%2E/b", b"/b"),
        (b"/%25", b"/%"),
        (b"/a.b/..c", b"/a.b/..c"),
    ],
)
def test_paths_have_one_form(path, normal):
    assert normal_path(path) == normal
    assert parse(request(b"Host: a", start=b"GET %b?../q HTTP/1.1" % path)).path == normal


@given(st.text("ab./%2eEfF", max_size=20).map(lambda t: b"/" + t.encode()))
def test_a_normal_path_has_nothing_left_to_be_resolved(path):
    try:
        normal = normal_path(path)
    except ProxyError:
        return
    assert normal.startswith(b"/")
    assert b"//" not in normal
    assert not {b".", b".."} & set(normal.split(b"/"))
    # What decoding has made is not decoded again by us, so it may look like an escape.
    if b"%" not in normal:
        assert normal_path(normal) == normal


@pytest.mark.parametrize(
    ("path", "normal", "others"),
    [
        (b"/a%61", b"/aa", ()),
        (b"//a///b", b"/a/b", ()),
        (b"/.well-known/x", b"/.well-known/x", ()),
        (b"/a/../b", b"/b", (b"/a/../b",)),
        (b"/%2e/b", b"/b", (b"/./b",)),
        (b"/a%2Fb", b"/a%2Fb", (b"/a/b",)),
        (b"/a%2fb/", b"/a%2Fb/", (b"/a/b/",)),
        (b"/a\\b", b"/a\\b", (b"/a/b",)),
        (b"/a%5Cb", b"/a\\b", (b"/a/b",)),
        (b"/a;v=1/b;w", b"/a;v=1/b;w", (b"/a/b",)),
        (b"/a%3Bv/b", b"/a;v/b", (b"/a/b",)),
        (b"/100%25", b"/100%", ()),
        (b"/%2561", b"/%61", (b"/a",)),
        (b"/a/../b;c", b"/b;c", (b"/b", b"/a/../b;c")),
    ],
)
def test_a_path_has_other_readings_where_instances_differ(path, normal, others):
    assert read_path(path) == (normal, others)


@pytest.mark.parametrize(
    "path",
    [
        b"/a/..%2Fb",
        b"/a%2F..%2Fb",
        b"/a/..\\b",
        b"/a/..%5cb",
        b"/a/..;/b",
        b"/a/..;x=y/b",
        b"/a/.;/b",
        b"/a/%252e%252e/b",
        b"/a/..%252fb",
        b"/a%2500b",
        b"/a%2Fb/../c",
        b"/a\\b/../c",
        b"/../a",
    ],
)
def test_a_dot_segment_that_only_some_see_is_400(path):
    for refuse in (read_path, lambda path: parse(request(b"Host: a", start=b"GET %b HTTP/1.1" % path))):
        with pytest.raises(ProxyError) as caught:
            refuse(path)
        assert caught.value.reason is Reason.BAD_REQUEST


@given(st.text("ab./\\;%2eEfF5cC3b", max_size=24).map(lambda t: b"/" + t.encode()))
def test_a_path_of_which_no_other_reading_is_told_means_one_thing(path):
    try:
        normal, others = read_path(path)
    except ProxyError:
        return
    assert normal == normal_path(path)
    for reading in (normal, *others):
        assert reading.startswith(b"/") and b"//" not in reading
    if not others:
        assert not {b".", b".."} & set(unquote_to_bytes(path).split(b"/"))
        assert not set(b"\\;") & set(unquote_to_bytes(unquote_to_bytes(path)))
        assert b"%2f" not in path.lower()


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE"])
def test_max_forwards_is_counted_down_where_it_counts(method):
    head = parse(request(b"Host: a", b"X: 1", b"max-Forwards: 10 ", b"Y: 2", start=method + b" /x HTTP/1.1"))
    assert head.fields[2] == (b"max-Forwards", b"9")
    assert head.block == b"Host: a\r\nX: 1\r\nmax-Forwards: 9\r\nY: 2\r\n"
    assert parse(request(b"Host: a", b"Max-Forwards: 0")).get(b"max-forwards") == b"0"
    assert parse(request(b"Host: a", b"Max-Forwards: x", start=method + b" / HTTP/1.1"))


@pytest.mark.parametrize(
    ("method", "reason"), [(b"OPTIONS", Reason.LAST_HOP), (b"TRACE", Reason.METHOD_NOT_ALLOWED)]
)
def test_max_forwards_0_goes_no_further(method, reason):
    with pytest.raises(ProxyError) as caught:
        parse(request(b"Host: a", b"Max-Forwards: 0", start=method + b" /x HTTP/1.1"))
    assert caught.value.reason is reason
    assert b"\r\nAllow: " in error_response(caught.value, close=True)


@pytest.mark.parametrize(
    "line", [b"Transfer_Encoding: chunked", b"Content_Length: 5", b"X_Request-ID: x", b"Proxy_Connection: x"]
)
def test_a_field_that_the_proxy_acts_on_does_not_go_on_in_another_spelling(line):
    head = parse(request(b"Host: a", line))
    assert (head.dropped, head.body, head.request_id) == ([1], NO_BODY, b"")


def test_other_fields_may_have_underscores():
    assert parse(request(b"Host: a", b"X_Data: 1", b"User_Agent: 2")).dropped == []


def answer(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK", method: bytes = b"GET"):
    parsed = parse_response(b"\r\n".join([start, *lines, b"", b""]), method, LIMITS)
    assert parsed is not None
    return parsed[0]


def test_the_framing_of_a_response_follows_the_rfc():
    assert answer().body == UNTIL_CLOSE
    assert answer().keep_alive is False
    assert answer(b"Content-Length: 5").body == 5
    assert answer(b"Content-Length: 5", b"Content-Length: 5").body == 5
    assert answer(b"Transfer-Encoding: Chunked").body == CHUNKED
    assert answer(b"Content-Length: 5", method=b"HEAD").body == NO_BODY
    for status in (b"204", b"304", b"100", b"101"):
        assert answer(b"Content-Length: 5", start=b"HTTP/1.1 " + status).body == NO_BODY
    assert answer(b"Content-Length: 5", start=b"HTTP/1.0 200 OK").keep_alive is False
    assert answer(b"Content-Length: 5", b"Connection: keep-alive", start=b"HTTP/1.0 200 OK").keep_alive


@given(st.binary(max_size=60), st.integers(0, 100))
def test_a_part_of_a_response_head_is_incomplete(reason, cut):
    reason = bytes(b for b in reason if b in b"abc \t\xe9")
    raw = b"HTTP/1.1 200 " + reason + b"\r\nA: b\r\nContent-Length: 3\r\n\r\n"
    assert parse_response(raw[: cut % len(raw)], b"GET", LIMITS) is None
    parsed = parse_response(raw, b"GET", LIMITS)
    assert parsed is not None and parsed[0].reason == reason
