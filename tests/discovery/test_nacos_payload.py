"""The framing of Nacos' gRPC, against bytes that protobuf itself would make."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.model import RegistryError
from discovery.nacos.payload import Payload, decode, encode

CHECK = bytes.fromhex("12141a12536572766572436865636b526571756573741a0412027b7d")
"""`ServerCheckRequest` without fields, as protobuf's own library writes it."""
FULL = b'\x12 \x1a\x01A:\x10\n\x0baccessToken\x12\x01tB\t127.0.0.1\x1a\t\x12\x07{"a":1}'
"""With a header and an address."""


def test_it_is_what_protobuf_makes() -> None:
    assert encode(Payload("ServerCheckRequest", {})) == CHECK
    assert encode(Payload("A", {"a": 1}, {"accessToken": "t"}, "127.0.0.1")) == FULL


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
name = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(text, st.dictionaries(name, text, max_size=4), st.dictionaries(text, text | st.integers(0, 9)), text)
def test_what_was_written_is_read(
    type: str, headers: dict[str, str], body: dict[str, str | int], ip: str
) -> None:
    payload = Payload(type, body, headers, ip)
    assert decode(encode(payload)) == payload


def test_fields_that_are_not_known_are_passed_over() -> None:
    unknown = b"\x08\x96\x01" + b"\x31" + bytes(8) + b"\x3d" + bytes(4) + b"\x22\x01x"
    assert decode(unknown + CHECK) == Payload("ServerCheckRequest", {})


@pytest.mark.parametrize(
    "data", [b"\x12", b"\x12\x05ab", b"\x0b", b"\xff" * 20, b"\x1a\x03\x12\x01[", b"\x1a\x04\x12\x02[]"]
)
def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(RegistryError, match="not Nacos' protocol"):
        decode(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_payload_or_an_error(data: bytes) -> None:
    with suppress(RegistryError):
        decode(data)
