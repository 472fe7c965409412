"""Chunked bodies: however they are cut, and whoever else reads them."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.body import BodyError, ChunkedDecoder, LengthDecoder, encode_chunk, encode_last_chunk, make_decoder
from proxy.head import CHUNKED, NO_BODY, UNTIL_CLOSE

token = st.text("abcXYZ-_!~9", min_size=1, max_size=8).map(str.encode)
value = st.text('abc :;,\t"=', max_size=12).map(lambda text: text.strip().encode())


@st.composite
def chunked(draw, spaces=(b"", b" ", b"\t")):
    """A valid chunked body: what is on the wire, its payload, its trailer lines."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=300), max_size=5))
    wire = b""
    for piece in pieces:
        size = draw(st.sampled_from((b"%x", b"%X", b"000%x"))) % len(piece)
        extension = draw(st.sampled_from((b"", b";a", b";a=b", b';q="x y"', b";z;y=1")))
        extension = draw(st.sampled_from(spaces)) + extension if extension else b""
        wire += size + extension + b"\r\n" + piece + b"\r\n"
    trailers = b"".join(
        b"X-%b:%b%b\r\n" % (name, draw(st.sampled_from((b"", b" ", b"\t"))), draw(value))
        for name in draw(st.lists(token, max_size=3))
    )
    return wire + b"0\r\n" + trailers + b"\r\n", b"".join(pieces), trailers


def feed(decoder, data: bytes, cuts: list[int]) -> bytes:
    payload, start = b"", 0
    for cut in [*sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]:
        payload += decoder.feed(data[start:cut])
        start = cut
        if decoder.done:
            decoder.rest += data[start:]
            break
    return payload


cuts = st.lists(st.integers(0, 10_000), max_size=12)


@given(chunked(), cuts, st.binary(max_size=20))
def test_any_split_gives_the_same_payload_trailers_and_rest(body, cuts, behind):
    wire, payload, trailers = body
    decoder = ChunkedDecoder()
    assert feed(decoder, wire + behind, cuts) == payload
    assert (decoder.done, decoder.trailers, decoder.rest) == (True, trailers, behind)


@given(chunked())
def test_byte_by_byte_is_a_split_too(body):
    wire, payload, _ = body
    decoder = ChunkedDecoder()
    assert b"".join(decoder.feed(wire[n : n + 1]) for n in range(len(wire))) == payload
    assert decoder.done


@given(chunked())
def test_a_body_that_is_cut_short_is_never_done(body):
    wire, _, _ = body
    decoder = ChunkedDecoder()
    decoder.feed(wire[:-1])
    assert not decoder.done


def by_h11(wire: bytes) -> bytes | None:
    """The payload as h11 reads it; None when it refuses or wants more."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    payload = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                payload += event.data
            elif isinstance(event, h11.EndOfMessage):
                return payload
            elif event in (h11.NEED_DATA, h11.PAUSED):
                return None
    except h11.RemoteProtocolError:
        return None


# h11 does not know the white space that RFC 9112 7.1.1 allows before an extension.
plain = chunked(spaces=(b"",))


@given(plain)
def test_h11_reads_the_same_payload(body):
    wire, payload, _ = body
    assert by_h11(wire) == payload


@given(plain, st.integers(0, 10_000), st.binary(min_size=1, max_size=2))
def test_what_is_accepted_after_damage_means_the_same_to_h11(body, where, damage):
    wire, _, _ = body
    where %= len(wire)
    wire = wire[:where] + damage + wire[where + 1 :]
    decoder = ChunkedDecoder()
    try:
        payload = decoder.feed(wire)
    except BodyError:
        return
    consumed = wire[: len(wire) - len(decoder.rest)]
    if decoder.done and b" ;" not in consumed and b"\t;" not in consumed:
        assert by_h11(consumed) == payload


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), cuts)
def test_what_is_encoded_is_decoded(pieces, cuts):
    wire = b"".join(map(encode_chunk, pieces)) + encode_last_chunk(b"X-T: 1\r\n")
    decoder = ChunkedDecoder()
    assert feed(decoder, wire, cuts) == b"".join(pieces)
    assert decoder.trailers == b"X-T: 1\r\n"


@given(st.binary(max_size=100), st.binary(max_size=20), cuts)
def test_a_body_of_known_length_ends_there(body, behind, cuts):
    decoder = LengthDecoder(len(body))
    assert feed(decoder, body + behind, cuts) == body
    assert (decoder.done, decoder.rest) == (True, behind)


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"1_0\r\n",
        b"1\n",
        b"1\r\r\n",
        b"1;a\rb\r\n",
        b"1;a\nb\r\n",
        b"1;\x00\r\n",
        b"1" * 16 + b"\r\n",
        b"1;" + b"x" * 300,
        b"1;" + b"x" * 300 + b"\r\n",
        b"1\r\nab",
        b"1\r\na\n",
        b"1\r\na\rb",
        b"0\r\nno colon\r\n",
        b"0\r\nname : x\r\n",
        b"0\r\n folded: x\r\n",
        b"0\r\nX: a\nY: b\r\n",
        b"0\r\nX: \x00\r\n",
        b"0\r\nX: " + b"y" * 17_000,
        b"0\r\n" + b"X: y\r\n" * 4000,
        b"0\r\n" + b"Content-Length: y\r\n" * 4000,
        (b"1;" + b"x" * 200 + b"\r\na\r\n") * 200,
    ],
)
def test_broken_chunks_are_refused(wire):
    with pytest.raises(BodyError):
        ChunkedDecoder().feed(wire)
    decoder = ChunkedDecoder()
    with pytest.raises(BodyError):
        step = len(wire) // 300 + 1
        for n in range(0, len(wire), step):
            decoder.feed(wire[n : n + step])


@pytest.mark.parametrize(
    "name",
    [b"Content-Length", b"transfer-encoding", b"Host", b"Connection", b"Upgrade", b"X-Forwarded-For", b"TE"],
)
def test_trailers_that_would_frame_or_route_are_taken_out(name):
    decoder = ChunkedDecoder()
    decoder.feed(b"0\r\nA: 1\r\n" + name + b": 2\r\nB: 3\r\n\r\n")
    assert decoder.trailers == b"A: 1\r\nB: 3\r\n"


def test_the_decoder_fits_the_heads_word():
    assert isinstance(make_decoder(CHUNKED), ChunkedDecoder)
    assert make_decoder(NO_BODY).done
    assert not make_decoder(5).done
    closing = make_decoder(UNTIL_CLOSE)
    assert closing.feed(b"abc") == b"abc"
    assert not closing.done
