"""Writing the heads that go on: what is added, what ends at this hop. Pure; one `bytes` per head.

Order, case, duplicates and values of all other fields are kept byte for byte.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from proxy.head import CHUNKED, Field, RequestHead, ResponseHead

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


def is_trusted(address: str, networks: Networks) -> bool:
    """Whether `address` lies in one of `networks`; a unix socket's peer (empty) never does."""
    if not networks or not address:
        return False
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(ip in network for network in networks)


def client_address(peer: str, forwarded_for: Sequence[bytes], networks: Networks) -> str:
    """The client's address: the rightmost of X-Forwarded-For that no trusted proxy wrote for itself.

    `forwarded_for` are the values of that field in order; `peer` is who connected to us, already trusted.
    """
    hops = [hop.strip() for value in forwarded_for for hop in value.decode("latin-1").split(",")]
    client = peer
    for hop in reversed(hops):
        try:
            client = str(ipaddress.ip_address(hop))
        except ValueError:
            break
        if not is_trusted(client, networks):
            break
    return client


class Peer:
    """What is the same for all requests of one client connection.

    `address` is the client's IP address as text (empty for a unix socket), `scheme` `http` or `https`, `via`
    the line by which the proxy says that it was there, empty for none.
    """

    __slots__ = ("added", "address", "key", "scheme", "trusted", "via")

    def __init__(self, address: str, scheme: str, trusted: bool, via: bytes = b"") -> None:
        self.address = address
        self.scheme = scheme
        self.trusted = trusted
        self.key = address.encode()
        """The client as a hash key."""
        self.via = via
        self.added = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n%b" % (
            self.key or b"unknown",
            scheme.encode(),
            via,
        )


def forward_request(head: RequestHead, peer: Peer, request_id: bytes, trace: bytes) -> bytes:
    """The request head for an instance. `trace` is a new traceparent, empty when the client sent one."""
    if peer.trusted and head.forwarded:
        block, added = _forwarded_on(head, peer)
    else:
        dropped = head.dropped + head.forwarded if head.forwarded else head.dropped
        block, added = _kept(head.fields, head.block, dropped), peer.added
        if head.authority:
            added += b"X-Forwarded-Host: %b\r\n" % head.authority
    if trace:
        added += b"traceparent: %b\r\n" % trace
    if not head.authority and head.get(b"host") is None:
        added += b"Host: \r\n"
    if head.body == CHUNKED:
        added += b"Transfer-Encoding: chunked\r\n"
    if head.upgrade:
        added += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade
    elif head.te_trailers:
        added += b"TE: trailers\r\nConnection: TE\r\n"
    return b"%b %b HTTP/1.1\r\n%bX-Request-Id: %b\r\n%b\r\n" % (
        head.method,
        head.target,
        block,
        request_id,
        added,
    )


def prepare_to_move(head: RequestHead) -> None:
    """Make a WebSocket handshake fit for a tunnel that may be moved to another instance later.

    No extensions are offered: their state would be lost with the instance. And the instance is told, so that
    it can say where a next one would have to go on (see `proxy.checkpoint`).
    """
    for index, (name, _) in enumerate(head.fields):
        if name.lower() in (b"sec-websocket-extensions", b"holdfast-migrate") and index not in head.dropped:
            head.dropped.append(index)
    head.fields.append((b"Holdfast-Migrate", b"1"))
    head.block += b"Holdfast-Migrate: 1\r\n"


def _forwarded_on(head: RequestHead, peer: Peer) -> tuple[bytes, bytes]:
    """What a trusted peer said of the client, with the peer itself added to the chain: field lines to keep,
    and to add.

    The chain becomes one field: many applications look at the first or the last of several only.
    """
    names = {head.fields[index][0].lower() for index in head.forwarded}
    chain = b", ".join([*filter(None, head.get_all(b"x-forwarded-for")), peer.key])
    links = [index for index in head.forwarded if head.fields[index][0].lower() == b"x-forwarded-for"]
    added = b"X-Forwarded-For: %b\r\n%b" % (chain, peer.via)
    if b"x-forwarded-proto" not in names:
        added += b"X-Forwarded-Proto: %b\r\n" % peer.scheme.encode()
    if b"x-forwarded-host" not in names and head.authority:
        added += b"X-Forwarded-Host: %b\r\n" % head.authority
    return _kept(head.fields, head.block, head.dropped + links), added


def forward_response(
    head: ResponseHead,
    client_minor: int,
    *,
    chunked: bool = False,
    keep_alive: bool = True,
    date: bytes = b"",
    extra: bytes = b"",
) -> bytes:
    """The response head for a client that speaks HTTP/1.`client_minor`.

    `chunked` says that the body goes on in chunks, `date` is an IMF-fixdate for a response that has none
    (RFC 9110 6.6.1), `extra` are complete field lines to add.
    """
    added = extra if head.dated or head.status < 200 else extra + b"Date: %b\r\n" % date
    if chunked:
        added += b"Transfer-Encoding: chunked\r\n"
    if head.status >= 200:
        if not keep_alive:
            added += b"Connection: close\r\n"
        elif client_minor == 0:
            added += b"Connection: keep-alive\r\n"
    elif head.status == 101:
        added += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade
    return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (
        head.status,
        head.reason,
        _kept(head.fields, head.block, head.dropped),
        added,
    )


def _kept(fields: list[Field], block: bytes, dropped: list[int]) -> bytes:
    if not dropped:
        return block
    out = set(dropped)
    return b"".join([b"%b: %b\r\n" % field for index, field in enumerate(fields) if index not in out])
