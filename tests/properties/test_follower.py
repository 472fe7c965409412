"""Frame boundaries: the same however a stream is cut, and where wsproto sees them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import CloseReason, FrameProtocol
from wsproto.frame_protocol import Opcode as Wire

from proxy.frames import CloseCode, FrameError, FrameFollower, Opcode, apply_mask, encode_close, encode_frame

sizes = st.one_of(st.integers(0, 5), st.sampled_from((125, 126, 127, 65535, 65536)), st.integers(0, 400))


def frame(opcode: int, payload: bytes, fin: bool, mask: bytes) -> bytes:
    """Any frame, fragmented or not; independent of what is tested."""
    size = len(payload)
    bit = 0x80 if mask else 0
    if size < 126:
        header = bytes((fin << 7 | opcode, bit | size))
    elif size < 65536:
        header = bytes((fin << 7 | opcode, bit | 126)) + size.to_bytes(2, "big")
    else:
        header = bytes((fin << 7 | opcode, bit | 127)) + size.to_bytes(8, "big")
    masked = bytes(b ^ mask[n % 4] for n, b in enumerate(payload)) if mask and size < 1000 else payload
    return header + mask + masked


@st.composite
def streams(draw):
    """Whole messages, fragmented at will with pings in between: the bytes, and the message boundaries."""
    mask = draw(st.sampled_from((b"", b"\x01\x02\x03\x04", b"\x00\x00\x00\x00")))
    wire, boundaries, messages = b"", [0], 0
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            wire += frame(draw(st.sampled_from((9, 10))), b"p" * draw(st.integers(0, 125)), True, mask)
            boundaries.append(len(wire))
            continue
        opcode = draw(st.sampled_from((1, 2)))
        count = draw(st.integers(1, 3))
        for part in range(count):
            last = part == count - 1
            wire += frame(opcode if part == 0 else 0, b"x" * draw(sizes), last, mask)
            if not last and draw(st.booleans()):
                wire += frame(9, b"ping", True, mask)
        messages += 1
        boundaries.append(len(wire))
    return wire, boundaries, messages


cuts = st.lists(st.integers(0, 1 << 17), max_size=10)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@given(streams(), cuts)
def test_any_split_shows_the_same_boundaries_and_messages(stream, cuts):
    wire, boundaries, messages = stream
    follower, seen = FrameFollower(), 0
    assert follower.boundary
    for piece in pieces(wire, cuts):
        follower.feed(piece)
        follower = FrameFollower.load(follower.save())  # as when another process takes it over
        seen += len(piece)
        assert follower.boundary is (seen in boundaries), seen
    assert follower.messages == messages


@given(streams(), st.integers(0, 1 << 17), cuts)
def test_split_stops_exactly_at_the_first_boundary(stream, start, cuts):
    wire, boundaries, _ = stream
    start %= len(wire)
    follower = FrameFollower()
    follower.feed(wire[:start])
    if follower.boundary:
        return
    expected = min(b for b in boundaries if b > start)
    position = start
    for piece in pieces(wire[start:], cuts):
        end = follower.split(piece)
        if end >= 0:
            assert position + end == expected
            assert follower.boundary
            # From there on it can be used again.
            follower.feed(wire[expected:])
            assert follower.boundary
            return
        position += len(piece)
        assert position < expected
    raise AssertionError("no boundary was found")


@given(st.lists(st.tuples(st.sampled_from((1, 2, 9)), st.integers(0, 120)), min_size=1, max_size=6), cuts)
def test_wsproto_sees_as_many_messages_and_the_same_end(frames, cuts):
    writer = FrameProtocol(client=True, extensions=[])
    wire, messages = b"", 0
    for opcode, size in frames:
        if opcode == 9:
            wire += writer.ping(b"p" * size)
        else:
            wire += writer.send_data("x" * size if opcode == 1 else b"x" * size, fin=True)
            messages += 1
    wire += writer.close(CloseReason.SERVICE_RESTART, "bye")
    follower = FrameFollower()
    for piece in pieces(wire, cuts):
        follower.feed(piece)
    assert (follower.messages, follower.close_code, follower.boundary) == (messages, 1012, True)


@given(st.sampled_from(list(Opcode)[1:]), st.integers(0, 125), st.sampled_from((b"", b"\x05\x06\x07\x08")))
def test_wsproto_reads_what_is_encoded(opcode, size, mask):
    payload = b"\x03\xe8" + b"a" * (size - 2) if opcode is Opcode.CLOSE and size >= 2 else b"a" * size
    if opcode is Opcode.CLOSE and size == 1:
        return
    reader = FrameProtocol(client=not mask, extensions=[])
    reader.receive_bytes(encode_frame(opcode, payload, mask))
    (read,) = reader.received_frames()
    assert read.opcode is Wire(opcode)
    if opcode is not Opcode.CLOSE:
        content = read.payload.encode() if isinstance(read.payload, str) else bytes(read.payload)
        assert content == payload


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 70_000])
def test_every_length_has_its_header(size):
    wire = encode_frame(Opcode.BINARY, b"x" * size)
    assert wire == frame(2, b"x" * size, True, b"")
    follower = FrameFollower()
    assert follower.split(wire + b"\x81") == len(wire)


@given(st.binary(max_size=50), st.binary(min_size=4, max_size=4))
def test_masking_twice_is_nothing(payload, mask):
    masked = apply_mask(payload, mask)
    assert masked == bytes(b ^ mask[n % 4] for n, b in enumerate(payload))
    assert apply_mask(masked, mask) == payload


@pytest.mark.parametrize(
    "wire",
    [
        b"\x80\x00",  # continues nothing
        b"\x01\x00\x01\x00",  # begins within a message
        b"\x01\x00\x81\x00",
        b"\x83\x00",  # reserved
        b"\x09\x00",  # a fragmented ping
        b"\x89\x7e\x00\x80",  # a long ping
    ],
)
def test_streams_that_are_none_are_refused(wire):
    with pytest.raises(FrameError):
        FrameFollower().feed(wire)


@pytest.mark.parametrize("mask", [b"", b"\x11\x22\x33\x44"])
def test_close_codes_are_read_only_when_the_frame_is_whole(mask):
    wire = encode_close(1001, "x" * 200, mask)
    assert len(wire) == 2 + len(mask) + 125
    follower = FrameFollower()
    for n in range(len(wire)):
        assert follower.close_code == 0
        follower.feed(wire[n : n + 1])
    assert follower.close_code == 1001
    empty = FrameFollower()
    empty.feed(encode_frame(Opcode.CLOSE, b"", mask))
    assert empty.close_code == CloseCode.NO_STATUS


def test_a_close_reason_is_cut_between_characters():
    assert encode_close(1000, "é" * 100)[4:].decode() == "é" * 61
