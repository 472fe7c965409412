"""What the fields of a head are to a proxy, by their names (RFC 9110 section 7.6.1, and what people forge).

Pure.
"""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What a field is to a proxy; anything else is passed on unseen."""

    OTHER = 0
    HOST = 1
    CONNECTION = 2
    HOP = 3
    """Ends at this hop (RFC 9110 7.6.1) and carries nothing the proxy reads."""
    CONTENT_LENGTH = 4
    TRANSFER_ENCODING = 5
    UPGRADE = 6
    EXPECT = 7
    FORWARDED = 8
    """Says who the client is, or what it asked for at first, which only a trusted peer may."""
    REQUEST_ID = 9
    TRACE = 10
    TE = 11
    DATE = 12
    AGENT = 13


class _Kinds(dict[bytes, Kind]):
    """Field name, in whatever case it came, to its kind; remembers the spellings that occur."""

    def __missing__(self, name: bytes) -> Kind:
        lowered = name.lower()
        kind = _KNOWN.get(lowered, Kind.OTHER)
        if kind is Kind.OTHER:
            # Many applications read X_Real_IP as X-Real-IP, and some Transfer_Encoding as Transfer-Encoding:
            # a client must not get round us by that.
            dashed = lowered.replace(b"_", b"-")
            meant = _KNOWN.get(dashed, Kind.OTHER)
            if dashed.startswith(b"x-forwarded-") or meant is Kind.FORWARDED:
                kind = Kind.FORWARDED
            elif dashed != lowered and meant not in (Kind.OTHER, Kind.DATE, Kind.AGENT):
                kind = Kind.HOP
        if len(self) < 4096:  # names are the client's choice: the memory for them is not
            self[name] = kind
        return kind


_KNOWN: dict[bytes, Kind] = {
    b"host": Kind.HOST,
    b"connection": Kind.CONNECTION,
    b"keep-alive": Kind.HOP,
    b"proxy-connection": Kind.HOP,
    b"proxy-authorization": Kind.HOP,
    b"proxy-authenticate": Kind.HOP,
    b"http2-settings": Kind.HOP,
    b"te": Kind.TE,
    b"content-length": Kind.CONTENT_LENGTH,
    b"transfer-encoding": Kind.TRANSFER_ENCODING,
    b"upgrade": Kind.UPGRADE,
    b"expect": Kind.EXPECT,
    b"forwarded": Kind.FORWARDED,
    b"x-real-ip": Kind.FORWARDED,
    # By these some applications let a proxy in front of them choose another path than the request's.
    b"x-original-url": Kind.FORWARDED,
    b"x-rewrite-url": Kind.FORWARDED,
    b"holdfast-resume": Kind.FORWARDED,
    b"x-request-id": Kind.REQUEST_ID,
    b"traceparent": Kind.TRACE,
    b"date": Kind.DATE,
    b"user-agent": Kind.AGENT,
}
KINDS = _Kinds()
"""By name, in whatever case it came."""


def kind_of(name: bytes) -> Kind:
    """What a field of this name, in any case, is to a proxy."""
    return KINDS[name]
