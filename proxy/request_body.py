"""A request's body on its way to an instance: decoded, framed anew, kept while it may be sent again. Pure."""

from __future__ import annotations

from proxy.body import encode_chunk, encode_last_chunk, make_decoder
from proxy.head import CHUNKED

_KEPT_MOST = 64 << 10
"""Bytes of a body that are kept so that the request can be sent again."""


class RequestBody:
    """One request's body. `framing` is the head's `body` value, and the framing that goes on is the same."""

    __slots__ = ("_chunked", "_decoder", "_kept", "_unsent", "received")

    def __init__(self, framing: int) -> None:
        self._chunked = framing == CHUNKED
        self._decoder = make_decoder(framing)
        self._unsent = b""
        self._kept: bytes | None = b""
        self.received = 0
        """Bytes of payload so far."""

    def take(self, data: bytes) -> bool:
        """Take what arrived; whether the body is complete with it. Raises `proxy.body.BodyError`."""
        decoder = self._decoder
        wire = payload = decoder.feed(data)
        self.received += len(payload)
        if self._chunked:
            wire = encode_chunk(payload) if payload else b""
            if decoder.done:
                wire += encode_last_chunk(decoder.trailers)
        self._unsent = self._unsent + wire if self._unsent else wire
        kept = self._kept
        if kept is not None:
            self._kept = kept + wire if len(kept) + len(wire) <= _KEPT_MOST else None
        return decoder.done

    @property
    def more(self) -> bool:
        """See `proxy.body.Decoder.more`."""
        return self._decoder.more

    @property
    def rest(self) -> bytes:
        """What came behind the body."""
        return self._decoder.rest

    @property
    def has_trailers(self) -> bool:
        """Whether fields came behind the body."""
        return bool(self._decoder.trailers)

    def unsent(self) -> bytes:
        """What is to be written now, in the framing of the wire; it counts as written then."""
        wire, self._unsent = self._unsent, b""
        return wire

    @property
    def repeatable(self) -> bool:
        """Whether everything that was written is still kept."""
        return self._kept is not None

    def rewind(self) -> None:
        """Begin anew with another instance. Only while `repeatable`."""
        assert self._kept is not None
        self._unsent = self._kept
