"""Who the client is: PROXY headers, chains of forwarders, and the heads that go on."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.head import Limits, parse_request
from proxy.headers import Peer, client_address, forward_request, is_trusted
from proxy.proxy_protocol import HeaderError, missing, parse_header

LIMITS = Limits(4096, 16384, 100)
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
v4 = st.ip_addresses(v=4)
v6 = st.ip_addresses(v=6)
port = st.integers(0, 65535)


@st.composite
def proxy_headers(draw):
    """A valid header of either version, and the address that it tells."""
    kind = draw(st.sampled_from(("v1", "v2", "local", "unknown")))
    if kind == "unknown":
        return b"PROXY UNKNOWN" + draw(st.sampled_from((b"", b" ::1 ::1 1 2"))) + b"\r\n", None
    if kind == "local":
        return SIGNATURE + b"\x20\x00" + (3).to_bytes(2, "big") + b"tlv", None
    addresses = draw(st.one_of(st.tuples(v4, v4), st.tuples(v6, v6)))
    source, target = addresses
    ports = draw(st.tuples(port, port))
    if kind == "v1":
        line = f"PROXY TCP{source.version} {source} {target} {ports[0]} {ports[1]}\r\n"
        return line.encode(), str(source)
    tlv = draw(st.binary(max_size=30))
    block = source.packed + target.packed + ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big") + tlv
    family = 0x11 if source.version == 4 else 0x21
    return SIGNATURE + bytes((0x21, family)) + len(block).to_bytes(2, "big") + block, str(source)


@given(proxy_headers(), st.binary(max_size=20))
def test_a_proxy_header_tells_the_address_and_ends_where_it_ends(header, behind):
    wire, address = header
    assert parse_header(wire + behind) == (address, len(wire))


@given(proxy_headers())
def test_reading_no_more_than_what_is_missing_takes_the_header_and_nothing_else(header):
    wire, address = header
    stream, buffer = wire + b"\x16\x03\x01 the client hello", b""
    while (parsed := parse_header(buffer)) is None:
        count = missing(buffer)
        assert count > 0
        buffer += stream[len(buffer) : len(buffer) + count]
    assert (parsed, buffer) == ((address, len(wire)), wire)


@given(st.binary(max_size=150))
def test_garbage_is_incomplete_or_an_error(data):
    for wire in (data, b"PROXY " + data, SIGNATURE + data):
        try:
            parsed = parse_header(wire)
        except HeaderError:
            continue
        if parsed is not None and parsed[0] is not None:
            ipaddress.ip_address(parsed[0])


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 ::1 ::2 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n" + b"x" * 100,
        b"PROXY " + b"x" * 110,
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(12),
        SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_what_is_no_proxy_header_is_refused(wire):
    with pytest.raises(HeaderError):
        parse_header(wire)


NETWORKS = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("fd00::1", True),
        ("fe80::1%eth0", False),
        ("", False),
        ("x", False),
    ],
)
def test_trust_is_a_matter_of_networks(address, trusted):
    assert is_trusted(address, NETWORKS) is trusted
    assert is_trusted(address, ()) is False


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([], "10.0.0.1"),
        ([b"203.0.113.1"], "203.0.113.1"),
        ([b"203.0.113.1, 10.0.0.2"], "203.0.113.1"),
        ([b"203.0.113.1", b"10.0.0.2"], "203.0.113.1"),
        ([b"6.6.6.6, 203.0.113.1"], "203.0.113.1"),
        ([b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ([b"nonsense, 10.0.0.2"], "10.0.0.2"),
        ([b"2001:db8::1,fd00::2"], "2001:db8::1"),
        ([b""], "10.0.0.1"),
        ([b"203.0.113.1, \xff"], "10.0.0.1"),
    ],
)
def test_the_client_is_the_last_hop_that_no_trusted_proxy_is(forwarded, client):
    assert client_address("10.0.0.1", forwarded, NETWORKS) == client


@given(st.lists(st.one_of(v4.map(str), v6.map(str), st.text("1.,: x", max_size=8)), max_size=5))
def test_a_client_cannot_choose_its_address_behind_a_trusted_proxy(words):
    """Whatever a client writes into the field, what the trusted proxy adds behind it decides."""
    forwarded = [", ".join(words).encode(), b"203.0.113.9"]
    assert client_address("10.0.0.1", forwarded, NETWORKS) == "203.0.113.9"


field = st.tuples(
    st.sampled_from((b"A", b"x-b", b"Cookie", b"Accept", b"X-C")), st.sampled_from((b"1", b"a, b", b""))
)


@given(st.lists(field, max_size=8), st.booleans(), st.booleans())
def test_other_fields_go_on_in_their_order_and_number_as_one_valid_head(fields, trusted, forwarded):
    lines = b"".join(b"%b: %b\r\n" % pair for pair in fields)
    more = b"X-Forwarded-For: 1.2.3.4\r\n" if forwarded else b""
    parsed = parse_request(
        b"PUT /x HTTP/1.1\r\nHost: h\r\n" + more + lines + b"Connection: x-b\r\n\r\n", LIMITS
    )
    assert parsed is not None
    wire = forward_request(parsed[0], Peer("10.0.0.1", "http", trusted), b"id", b"00-trace")
    again = parse_request(wire, LIMITS)
    assert again is not None and again[1] == len(wire)
    kept = [(n, v) for n, v in again[0].fields if n in {b"A", b"x-b", b"Cookie", b"Accept", b"X-C"}]
    assert kept == [pair for pair in fields if pair[0] != b"x-b"]
    chain = again[0].get_all(b"x-forwarded-for")
    assert chain == ([b"1.2.3.4, 10.0.0.1"] if trusted and forwarded else [b"10.0.0.1"])
    assert again[0].get_all(b"x-request-id") == [b"id"]
