"""How a route's traffic is shared between versions, so that people stay on their side.

Pure and immutable: a change of the shares is another `Split`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from zlib import crc32

from proxy.hashing import fraction, hash32, race


def position_of(key: bytes, route: bytes) -> float:
    """Where a client stands on a route, in [0, 1): the same on every worker and replica.

    Other routes give other positions, so that it is not always the same people who try what is new.
    """
    return fraction(hash32(key, crc32(route)))


class Split:
    """Version label -> share; the shares are relative to each other.

    By weighted rendezvous hashing: a share that grows beside others that do not takes from them and gives
    nothing back, so going from 5 % to 10 % moves 5 % of the people, all in that direction. Nothing is
    remembered: two proxies with the same shares agree, whatever shares they had before.
    """

    __slots__ = ("_ranked", "shares")

    def __init__(self, shares: Mapping[str, int]) -> None:
        """Raises `ValueError` for a negative share, or when none is above 0."""
        if any(share < 0 for share in shares.values()):
            raise ValueError("a share cannot be negative")
        if not any(shares.values()):
            raise ValueError("a split needs at least one share above 0")
        self.shares: Mapping[str, int] = dict(shares)
        self._ranked = [
            (version, hash32(version.encode()), share) for version, share in sorted(shares.items()) if share
        ]

    def choose(self, position: float, ready: Container[str]) -> str | None:
        """The version for a position in [0, 1), among those in `ready`.

        None when no version with a share is ready. People whose version is not ready are spread over the
        others in proportion; everybody else stays.
        """
        number = int(position * 4294967296.0)
        best: str | None = None
        least = 0.0
        for version, seed, share in self._ranked:
            if version in ready:
                arrival = race(number, seed, share)
                if best is None or arrival < least:
                    best, least = version, arrival
        return best

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Split) and self.shares == other.shares

    def __hash__(self) -> int:
        return hash(frozenset(self.shares.items()))

    def __repr__(self) -> str:
        return f"<Split {' '.join(f'{version}={share}' for version, share in self.shares.items())}>"
