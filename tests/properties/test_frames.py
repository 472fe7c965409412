"""Following and cutting WebSocket frames, compared with an independent implementation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong

from proxy.frames import (
    FrameCutter,
    FrameError,
    FrameFollower,
    Opcode,
    apply_mask,
    encode_close,
    encode_frame,
    payload_of,
)

PAYLOADS = st.one_of(
    st.binary(max_size=40), st.integers(0, 70_000).map(lambda size: b"%d" % size * (size // 5))
)
EVENTS = st.one_of(
    st.builds(BytesMessage, PAYLOADS, message_finished=st.booleans()),
    st.builds(Ping, st.binary(max_size=125)),
    st.builds(Pong, st.binary(max_size=125)),
)
PIECES = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 5000)), min_size=1)
SIDES = st.sampled_from([ConnectionType.CLIENT, ConnectionType.SERVER])
OTHER = {ConnectionType.CLIENT: ConnectionType.SERVER, ConnectionType.SERVER: ConnectionType.CLIENT}


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, over and over."""
    found, position, turn = [], 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        found.append(data[position : position + size])
        position += size
        turn += 1
    return found


def heard(side: ConnectionType, stream: bytes) -> list[tuple[str, bytes]]:
    """What wsproto on that side makes of a stream: whole messages and control frames."""
    connection = Connection(side)
    connection.receive_data(stream)
    found, part = [], b""
    for event in connection.events():
        if isinstance(event, BytesMessage):
            part += event.data
            if event.message_finished:
                found.append(("message", part))
                part = b""
        elif isinstance(event, Ping | Pong):
            found.append((type(event).__name__, bytes(event.payload)))
        else:
            assert isinstance(event, CloseConnection)
            found.append(("close", b"%d %b" % (event.code, (event.reason or "").encode())))
    return [*found, ("unfinished", part)]


@given(
    side=SIDES,
    events=st.lists(EVENTS, max_size=8),
    sizes=PIECES,
    most=st.integers(1, 2000),
    close=st.booleans(),
)
def test_what_is_cut_says_the_same_as_what_came(
    side: ConnectionType, events: list[Event], sizes: list[int], most: int, close: bool
) -> None:
    sender = Connection(side)
    stream = b"".join(sender.send(event) for event in events)
    if close:
        stream += sender.send(CloseConnection(1001, "leaving"))
    cutter = FrameCutter(masked=side is ConnectionType.CLIENT, most=most)
    reader = Connection(OTHER[side])
    cuts, ends = [], 0
    for piece in pieces(stream, sizes):
        for first, frame, last in cutter.feed(piece):
            assert first == frame[0]
            cuts.append(frame)
            ends += last
            reader.receive_data(frame)
            list(reader.events())
            # Each cut is a whole frame: an independent parser waits for nothing more.
            assert reader._proto._frame_decoder.header is None and not reader._proto._frame_decoder.buffer
    assert heard(OTHER[side], b"".join(cuts)) == heard(OTHER[side], stream)
    assert ends == sum(kind == "message" for kind, _ in heard(OTHER[side], stream))


@given(side=SIDES, events=st.lists(EVENTS, max_size=8), sizes=PIECES, most=st.integers(200_000, 300_000))
def test_frames_below_the_bound_are_not_changed(
    side: ConnectionType, events: list[Event], sizes: list[int], most: int
) -> None:
    sender = Connection(side)
    frames = [sender.send(event) for event in events]
    cutter = FrameCutter(masked=side is ConnectionType.CLIENT, most=most)
    cuts = [cut[1] for piece in pieces(b"".join(frames), sizes) for cut in cutter.feed(piece)]
    assert b"".join(cuts) == b"".join(frames)


@given(side=SIDES, size=st.integers(0, 400_000), sizes=PIECES, most=st.integers(1, 70_000))
def test_a_cutter_holds_no_more_than_its_bound_and_what_just_came(
    side: ConnectionType, size: int, sizes: list[int], most: int
) -> None:
    stream = Connection(side).send(BytesMessage(b"x" * size))
    cutter = FrameCutter(masked=side is ConnectionType.CLIENT, most=most)
    for piece in pieces(stream, sizes if size < 5000 else [s + 997 for s in sizes]):
        cutter.feed(piece)
        assert len(cutter._buffer) <= max(most, 14)


@given(side=SIDES, events=st.lists(EVENTS, max_size=8), sizes=PIECES, at=st.integers(0, 200_000))
def test_a_saved_cutter_goes_on_in_another_process(
    side: ConnectionType, events: list[Event], sizes: list[int], at: int
) -> None:
    sender = Connection(side)
    stream = b"".join(sender.send(event) for event in events)
    first, second = (FrameCutter(masked=side is ConnectionType.CLIENT, most=500) for _ in range(2))
    cuts = [cut for piece in pieces(stream[:at], sizes) for cut in first.feed(piece)]
    second.load(first.save())
    cuts += [cut for piece in pieces(stream[at:], sizes) for cut in second.feed(piece)]
    assert heard(OTHER[side], b"".join(cut[1] for cut in cuts)) == heard(OTHER[side], stream)


@given(side=SIDES, events=st.lists(EVENTS, max_size=8), sizes=PIECES, close=st.booleans())
def test_a_follower_knows_boundaries_messages_and_the_close(
    side: ConnectionType, events: list[Event], sizes: list[int], close: bool
) -> None:
    sender = Connection(side)
    follower = FrameFollower()
    ends, position, open_message = {0}, 0, False
    frame_ends = {0}
    stream = b""
    for event in events:
        stream += sender.send(event)
        if isinstance(event, BytesMessage):
            open_message = not event.message_finished
        frame_ends.add(len(stream))
        if not open_message:
            ends.add(len(stream))
    if close:
        stream += sender.send(CloseConnection(4321, "why"))
        frame_ends.add(len(stream))
        if not open_message:
            ends.add(len(stream))
    for piece in pieces(stream, sizes):
        follower.feed(piece)
        position += len(piece)
        assert follower.boundary is (position in ends)
        assert follower.between_frames is (position in frame_ends)
    assert follower.messages == sum(isinstance(e, BytesMessage) and e.message_finished for e in events)
    assert follower.close_code == (4321 if close else 0)


@given(side=SIDES, events=st.lists(EVENTS, max_size=6), at=st.integers(0, 200_000), sizes=PIECES)
def test_a_follower_splits_at_the_first_boundary(
    side: ConnectionType, events: list[Event], at: int, sizes: list[int]
) -> None:
    sender = Connection(side)
    ends, stream, open_message = [0], b"", False
    for event in events:
        stream += sender.send(event)
        if isinstance(event, BytesMessage):
            open_message = not event.message_finished
        if not open_message:
            ends.append(len(stream))
    at = min(at, len(stream))
    follower = FrameFollower()
    follower.feed(stream[:at])
    if follower.boundary:
        return
    found, position = -1, at
    for piece in pieces(stream[at:], sizes):
        found = follower.split(piece)
        if found >= 0:
            position += found
            break
        position += len(piece)
    later = [end for end in ends if end > at]
    assert (position if found >= 0 else -1) == (later[0] if later else -1)


@given(stream=st.binary(max_size=60), sizes=PIECES, masked=st.booleans(), most=st.integers(1, 50))
def test_noise_is_cut_the_same_however_it_arrives(
    stream: bytes, sizes: list[int], masked: bool, most: int
) -> None:
    def cut(sizes: list[int]) -> tuple[list[tuple[str, bytes]], bool]:
        cutter = FrameCutter(masked, most)
        out = b""
        for piece in pieces(stream, sizes):
            try:
                out += b"".join(frame for _, frame, _ in cutter.feed(piece))
            except FrameError as error:
                return unmasked(out + b"".join(frame for _, frame, _ in error.before)), True
        return unmasked(out), False

    def unmasked(frames: bytes) -> list[tuple[str, bytes]]:
        whole = FrameCutter(masked, 1 << 20)
        return [
            ("control" if f[0] & 8 else "data", payload_of(f)) for _, f, _ in whole.feed(frames) if f[0] & 8
        ]

    assert cut(sizes) == cut([1])


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\xc1\x01x", "reserved bit"),
        (b"\x83\x01x", "wrong place"),
        (b"\x80\x01x", "wrong place"),
        (b"\x01\x01x\x81\x01y", "wrong place"),
        (b"\x09\x01x", "fragmented"),
        (b"\x89\x7e\x00\x80", "long"),
        (b"\x8b\x00", "unknown"),
        (b"\x88\x01x", "half a status"),
        (b"\x81\x81\x00\x00\x00\x00x", "against its direction"),
        (b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "highest bit"),
    ],
)
def test_a_cutter_says_what_is_forbidden_and_gives_what_came_before(frame: bytes, why: str) -> None:
    before = encode_frame(Opcode.BINARY, b"before")
    with pytest.raises(FrameError, match=why) as caught:
        FrameCutter(masked=False, most=1000).feed(before + frame)
    assert caught.value.before[0] == (0x82, before, True)


@given(payload=PAYLOADS, mask=st.binary(min_size=4, max_size=4))
def test_an_encoded_frame_is_read_back_by_an_independent_parser(payload: bytes, mask: bytes) -> None:
    assert heard(ConnectionType.SERVER, encode_frame(Opcode.BINARY, payload, mask))[0] == ("message", payload)
    assert heard(ConnectionType.CLIENT, encode_frame(Opcode.BINARY, payload))[0] == ("message", payload)
    assert payload_of(encode_frame(Opcode.BINARY, payload, mask)) == payload
    assert apply_mask(apply_mask(payload, mask), mask) == payload


@given(reason=st.text(max_size=200))
def test_an_encoded_close_is_read_back_and_its_reason_cut_between_characters(reason: str) -> None:
    kind, said = heard(ConnectionType.CLIENT, encode_close(1012, reason))[0]
    assert kind == "close" and said.startswith(b"1012 ")
    assert reason.encode().startswith(said[5:]) and len(said) - 5 >= min(120, len(reason.encode()))
