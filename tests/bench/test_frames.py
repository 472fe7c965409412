from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameDecoder, FrameProtocol, Opcode

from bench import frames


@given(st.binary(max_size=70_000), st.booleans())
def test_an_independent_implementation_reads_what_is_encoded(payload: bytes, masked: bool) -> None:
    decoder = FrameDecoder(client=not masked)
    decoder.receive_bytes(frames.encode(frames.BINARY, payload, masked=masked))
    body, opcode = bytearray(), None
    while (part := decoder.process_buffer()) is not None:
        opcode = opcode or part.opcode
        body += part.payload
        if part.frame_finished:
            break
    assert opcode is Opcode.BINARY
    assert bytes(body) == payload


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.booleans(), st.integers(1, 50))
def test_frames_of_an_independent_implementation_are_read_however_they_are_cut(
    payloads: list[bytes], from_client: bool, size: int
) -> None:
    writer = FrameProtocol(client=from_client, extensions=[])
    stream = b"".join(writer.send_data(payload) for payload in payloads)
    buffer, found = bytearray(), []
    for start in range(0, len(stream), size):
        buffer += stream[start : start + size]
        found += [frame.payload for frame in frames.decode(buffer)]
    assert found == payloads
    assert not buffer


def test_a_fragment_is_refused() -> None:
    with pytest.raises(ValueError, match="fragments"):
        list(frames.decode(bytearray(b"\x01\x01a")))


def test_accept_is_that_of_the_example_in_rfc_6455() -> None:
    assert frames.accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
