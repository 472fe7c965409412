"""What is fuzzed: everything that reads bytes which somebody else has made.

A target takes any bytes. It may refuse them with the one error that its module documents; whatever else it
raises is a finding, and so is a broken promise that it checks by `assert`.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from contextlib import suppress

import orjson
from pydantic import ValidationError

from chat.message import Invalid, Position, parse
from config.load import ConfigError, read
from discovery.embedded.definition import check_definition, service_definition
from discovery.endpointslices import Slices, service_refs
from discovery.entry import instances_of
from discovery.file import parse as parse_file
from discovery.lastgood import decode
from discovery.model import Instance, RegistryError
from proxy.admin.models import (
    CapacityOrder,
    DrainOrder,
    EjectOrder,
    LimitsOrder,
    PlanOrder,
    SplitOrder,
    WeightOrder,
)
from proxy.body import BodyError, ChunkedDecoder, encode_chunk, encode_last_chunk
from proxy.errors import ProxyError
from proxy.frames import FrameCutter, FrameError, FrameFollower
from proxy.head import Limits, parse_request, parse_response
from proxy.headers import Peer, forward_request, forward_response
from proxy.keys import cookie_values, query_values
from proxy.proxy_protocol import HeaderError, missing, parse_header

LIMITS = Limits(line=2048, head=8192, count=50)
PEER = Peer("192.0.2.1", "http", trusted=False)


def request_head(data: bytes) -> None:
    """A head is whole, incomplete or refused, however it is cut; what is sent on says the same once more."""
    try:
        parsed = parse_request(data, LIMITS)
    except ProxyError:
        return
    if parsed is None:
        assert len(data) <= LIMITS.head + 4
        return
    head, end = parsed
    assert data[:end].endswith(b"\r\n\r\n")
    shorter = parse_request(data[:end], LIMITS)
    assert shorter is not None
    assert shorter[1] == end
    list(cookie_values(head, b"hf"))
    list(query_values(head.query, b"a"))
    sent = forward_request(head, PEER, b"id", b"00-1-2-01")
    again = parse_request(sent, Limits(line=8192, head=65536, count=200))
    assert again is not None
    other, rest = again
    assert rest == len(sent)
    assert (other.method, other.target, other.body) == (head.method, head.target, head.body)
    assert other.path == head.path
    names = [name.lower() for name, _ in other.fields]
    assert names.count(b"x-forwarded-for") == names.count(b"x-request-id") == names.count(b"host") == 1


def response_head(data: bytes) -> None:
    """Likewise for what instances say."""
    for method in (b"GET", b"HEAD", b"CONNECT"):
        try:
            parsed = parse_response(data, method, LIMITS)
        except ProxyError:
            continue
        if parsed is None:
            assert len(data) <= LIMITS.head + 4
            continue
        head, end = parsed
        assert 100 <= head.status <= 599
        if head.status == 101:
            continue
        sent = forward_response(head, 1, chunked=head.body == -2, keep_alive=True, date=b"d", extra=b"")
        assert sent.endswith(b"\r\n\r\n")
        assert sent.count(b"\r\n\r\n") == 1
        again = parse_response(sent, method, Limits(line=8192, head=65536, count=200))
        assert again is not None
        assert again[0].status == head.status
        assert end <= len(data)


def chunked(data: bytes) -> None:
    """Payload and end are the same wherever the bytes are cut, and what is kept is bounded."""
    whole = ChunkedDecoder()
    try:
        payload = whole.feed(data)
    except BodyError:
        return
    cut = ChunkedDecoder()
    seen = b""
    for start in range(0, len(data), 3):
        seen += cut.feed(data[start : start + 3])
        if cut.done:
            break
        assert len(cut._buffer) <= 17 << 10
    assert (seen, cut.done, cut.trailers) == (payload, whole.done, whole.trailers)
    if whole.done:
        again = ChunkedDecoder()
        wire = (encode_chunk(payload) if payload else b"") + encode_last_chunk(whole.trailers)
        assert again.feed(wire) == payload
        assert again.done
        assert again.trailers == whole.trailers


def frames(data: bytes) -> None:
    """Followers and cutters agree about the frames wherever the bytes are cut; nothing is lost."""
    whole, cut = FrameFollower(), FrameFollower()
    try:
        whole.feed(data)
    except FrameError:
        with suppress(FrameError):
            for start in range(0, len(data), 5):
                cut.feed(data[start : start + 5])
    else:
        for start in range(0, len(data), 5):
            cut.feed(data[start : start + 5])
        assert cut.save() == whole.save()
    for masked in (True, False):
        cutter = FrameCutter(masked, 64)
        out, failed = b"", False
        for start in range(0, len(data), 7):
            try:
                found = cutter.feed(data[start : start + 7])
            except FrameError as error:
                found, failed = error.before, True
            for first, frame, _ in found:
                assert frame[0] == first
                out += frame
            if failed:
                break
        check = FrameFollower()
        check.feed(out)
        assert check.between_frames


def proxy_protocol(data: bytes) -> None:
    """A PROXY header gives an address or none, and is never read further than it goes."""
    try:
        parsed = parse_header(data)
    except HeaderError:
        return
    if parsed is None:
        assert missing(data) > 0
        return
    address, end = parsed
    assert 0 < end <= len(data)
    if address is not None:
        ipaddress.ip_address(address)


def configuration(data: bytes) -> None:
    """Any file is a configuration, or a list of problems with their places."""
    try:
        read(data, source="f", environ={"A": "1"})
    except ConfigError as error:
        assert error.problems
        assert str(error)


def consul_entries(data: bytes) -> None:
    """What a registry answers is instances that can be connected to, or an error of the registry."""
    with suppress(orjson.JSONDecodeError):
        entries = orjson.loads(data)
        if isinstance(entries, list):
            with suppress(RegistryError):
                _check_instances(instances_of("s", entries))


def kubernetes_slices(data: bytes) -> None:
    """The same of EndpointSlices, of which the bad ones are left out."""
    with suppress(orjson.JSONDecodeError):
        items = orjson.loads(data)
        if isinstance(items, list) and all(isinstance(item, dict) for item in items):
            slices = Slices({"s": service_refs("s", "default")}, "", "IPv4")
            with suppress(ValueError):
                slices.replace("default", items)
                for item in items:
                    slices.put("default", item)
                _check_instances(slices.told("s").instances or ())


def registration(data: bytes) -> None:
    """What somebody registers in the embedded registry is a definition, or refused with a reason."""
    with suppress(orjson.JSONDecodeError):
        body = orjson.loads(data)
        for reader in (service_definition, check_definition):
            with suppress(ValueError):
                reader(body)


def registry_file(data: bytes) -> None:
    """The file registry, and the sets that are kept on disk."""
    with suppress(RegistryError):
        for instances in parse_file(data).values():
            _check_instances(instances)
            assert len({instance.id for instance in instances}) == len(instances)
    with suppress(ValueError):
        for instances in decode(data).values():
            _check_instances(instances)


def _check_instances(instances: tuple[Instance, ...]) -> None:
    for instance in instances:
        assert instance.path or (instance.host and 0 < instance.port < 65536)
        assert 0 <= instance.weight <= 65535


ORDERS = (WeightOrder, DrainOrder, EjectOrder, SplitOrder, LimitsOrder, CapacityOrder, PlanOrder)


def admin_bodies(data: bytes) -> None:
    """A body of the admin API is an order, or every problem with it is said."""
    for order in ORDERS:
        with suppress(ValidationError):
            order.model_validate_json(data)


def chat_frames(data: bytes) -> None:
    """What a chat client sends is a message, or refused with a code."""
    text = data.decode(errors="replace")
    with suppress(Invalid):
        parse(text)
    position = Position.from_token(text)
    assert position is None or Position.from_token(position.token()) == position


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        request_head,
        response_head,
        chunked,
        frames,
        proxy_protocol,
        configuration,
        consul_entries,
        kubernetes_slices,
        registration,
        registry_file,
        admin_bodies,
        chat_frames,
    )
}

_PIECES = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b";", b",", b"0", b"ffffffffffffffff",
    b"-1",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Connection: close\r\n", b"Host: a\r\n",
    b"chunked", b"%2f", b"%00", b"/../", b"//", b"\xff", b"\xc3\x28", b"{", b"}", b"[", b"]", b'"', b"null",
    b"1e999", b"${A}", b"&a", b"*a", b"!!python/object", b"\x81\x80", b"\x88\x02", b"\x00\x7f", b"\xfe" * 8,
)  # fmt: skip
"""What readers of text and frames trip over."""


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """A seed with a few things changed: bytes flipped, dropped, doubled, or such pieces put in."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 6)):
        place = rng.randint(0, len(data))
        match rng.randint(0, 4):
            case 0 if data:
                data[place % len(data)] ^= 1 << rng.randint(0, 7)
            case 1:
                del data[place : place + rng.randint(1, 8)]
            case 2:
                data[place:place] = data[place : place + rng.randint(1, 64)]
            case 3:
                data[place:place] = rng.choice(_PIECES)
            case _:
                data[place:place] = rng.randbytes(rng.randint(1, 4))
    return bytes(data)
