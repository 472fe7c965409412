"""What keeps a client on its instance: a signed cookie, or a key that is remembered.

Pure: time is an argument. One `Stickiness` belongs to one service of one process.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import blake2b
from typing import Protocol, TypeVar

from config.schema import Sticky, StickyBy
from proxy.hashed import rendezvous
from proxy.hashing import hash32
from proxy.keys import Head, KeyOf, cookie_values, key_reader
from proxy.member import Member

_REMEMBERED = 100_000
"""Bindings kept; the one unused for longest makes room."""

_LONGEST_KEY = 32
"""Bytes of a key that are kept as they are; of a longer one its digest, so that memory stays bounded."""


class Pinned(Member, Protocol):
    """A member that a client can be bound to."""

    @property
    def token(self) -> bytes:
        """`Stickiness.token` of the instance."""


P = TypeVar("P", bound=Pinned)
T = TypeVar("T")


class Stickiness:
    """Finds the instance that a client is bound to, and binds clients.

    By cookie, the client carries the instance's token: nothing is remembered, and whoever has the same key
    resolves it. By header, query, path or address, the instance is chosen by rendezvous hashing when the key
    is first seen and remembered for as long as the key is used, so an instance that is added moves nobody;
    workers and replicas that have seen the same instances agree.
    """

    __slots__ = ("_bindings", "_key_of", "_keyed", "_prefix", "_suffix", "_ttl", "by")

    def __init__(self, sticky: Sticky, service: str, key: bytes) -> None:
        """`key` signs the tokens; any length."""
        self.by = sticky.by
        self._ttl = sticky.ttl
        name = sticky.name or ""
        self._key_of: KeyOf | None = None
        if sticky.by is not StickyBy.COOKIE:
            named = sticky.by in (StickyBy.HEADER, StickyBy.QUERY)
            self._key_of = key_reader(f"{sticky.by}:{name}" if named else str(sticky.by))
        self._keyed = blake2b(key=blake2b(key, digest_size=32).digest(), digest_size=16)
        self._keyed.update(service.encode() + b"/")
        self._prefix = name.encode()
        age = b"; Max-Age=%d" % max(1, round(sticky.ttl)) if sticky.ttl else b""
        self._suffix = b"; Path=/" + age + b"; HttpOnly; SameSite=Lax"
        self._bindings: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def token(self, instance_id: str) -> bytes:
        """The opaque name of an instance: 22 characters that nobody without the key can make or read."""
        signed = self._keyed.copy()
        signed.update(instance_id.encode())
        return urlsafe_b64encode(signed.digest())[:22]

    def find(self, head: Head, client: bytes, by_token: Mapping[bytes, T], now: float) -> T | None:
        """Whom a request's client (its address) is bound to, when that one is in `by_token`."""
        if self._key_of is None:
            for value in cookie_values(head, self._prefix):
                found = by_token.get(value)
                if found is not None:
                    return found
            return None
        key = _short(self._key_of(head, client))
        binding = self._bindings.get(key)
        if binding is None:
            return None
        token, expires = binding
        if self._ttl and now >= expires:
            del self._bindings[key]
            return None
        found = by_token.get(token)
        if found is not None:
            self._remember(key, token, now)
        return found

    def bind(self, head: Head, client: bytes, members: Sequence[P], now: float) -> P | None:
        """Bind a client that `find` has not found, to one of `members`.

        None when the balancer is to choose: by cookie always (the answer then carries `set_cookie`), else
        when the request has no key or `members` is empty.
        """
        if self._key_of is None:
            return None
        key = self._key_of(head, client)
        usable = [member for member in members if member.weight > 0]
        if not key or not usable:
            return None
        chosen = rendezvous(hash32(key), usable, [hash32(member.identity) for member in usable], now)
        if chosen is not None:
            self._remember(_short(key), chosen.token, now)
        return chosen

    def rehearsal(self, head: Head, client: bytes) -> Stickiness:
        """A copy that knows this client only, to be asked what would happen without its happening."""
        twin = copy(self)
        twin._bindings = OrderedDict()
        if self._key_of is not None:
            key = _short(self._key_of(head, client))
            binding = self._bindings.get(key)
            if binding is not None:
                twin._bindings[key] = binding
        return twin

    def set_cookie(self, token: bytes, secure: bool) -> bytes:
        """Value of the Set-Cookie field that binds a client to an instance. `secure`: it came by TLS."""
        return b"%b=%b%b%b" % (self._prefix, token, self._suffix, b"; Secure" if secure else b"")

    def save(self) -> list[tuple[bytes, bytes, float]]:
        """The remembered bindings, oldest first, for `load` in another process."""
        return [(key, token, expires) for key, (token, expires) in self._bindings.items()]

    def load(self, saved: list[tuple[bytes, bytes, float]]) -> None:
        """Go on from what `save` gave."""
        self._bindings.update((key, (token, expires)) for key, token, expires in saved)

    def _remember(self, key: bytes, token: bytes, now: float) -> None:
        bindings = self._bindings
        bindings[key] = (token, now + self._ttl)
        bindings.move_to_end(key)
        if len(bindings) > _REMEMBERED:
            bindings.popitem(last=False)


def _short(key: bytes) -> bytes:
    return key if len(key) <= _LONGEST_KEY else blake2b(key, digest_size=_LONGEST_KEY + 1).digest()
