"""Hashes that every worker, replica and version of Python computes alike, and the tables built on them.

None of them is meant to resist an adversary (the sticky cookie, which must, is signed in `sticky`). Members
are named by bytes; order in which they are given never matters, so that all replicas agree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import count
from math import log
from zlib import crc32

_MASK = 0xFFFFFFFF
_SPAN = 1.0 / (1 << 32)

_VIRTUAL_NODES = 256
"""Points of the heaviest member at most, half of it at least: spread of about 1/sqrt(256) = 6%."""

_TABLE_SIZES = ((160, 8191), (1 << 62, 32749))
"""(most members, slots), primes. The paper takes 65537 or more; these keep shares within 2% up to 160 members
(50 slots for each) and are built in milliseconds, which matters because building blocks the event loop.
Passing from one size to the other moves most keys, so there are two only."""


def mix32(x: int) -> int:
    """A bijection of 32-bit numbers whose output bits each depend on all input bits (MurmurHash3's)."""
    x ^= x >> 16
    x = x * 0x85EBCA6B & _MASK
    x ^= x >> 13
    x = x * 0xC2B2AE35 & _MASK
    return x ^ (x >> 16)


def hash32(key: bytes, seed: int = 0) -> int:
    """A number from 0 to 2**32 - 1; different seeds give independent numbers."""
    return mix32(crc32(key, seed))


def fraction(number: int) -> float:
    """A 32-bit number as a position in [0, 1)."""
    return number * _SPAN


def race(number: int, seed: int, weight: float) -> float:
    """Arrival time of one runner in a race that each wins with a chance proportional to its weight.

    This is weighted rendezvous hashing (Mosharaf, Schindelhauer 2005, logarithmic method): the least value
    wins, and a runner that leaves or changes its weight moves only what it won or wins. `weight` above 0.
    """
    # mix32 by hand: this runs once for each member, and a call costs as much as the arithmetic.
    x = number ^ seed
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _MASK
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _MASK
    return -log(((x ^ (x >> 16)) + 1) * _SPAN) / weight


class Ring:
    """Consistent hashing (Karger et al. 1997) with points in proportion to the weights.

    A member's points depend on its own weight and on the power of two above the greatest weight, so a change
    of one member leaves the points of the others alone unless that power changes; and then points are only
    added or taken away, never moved. Weights below 1/256 of the greatest get one point all the same.
    """

    __slots__ = ("_of", "_points", "owners")

    def __init__(self, weights: Mapping[bytes, int], previous: Ring | None = None) -> None:
        known = previous._of if previous is not None else {}
        scale = _VIRTUAL_NODES / (1 << (max(weights.values(), default=1) - 1).bit_length())
        self._of: dict[bytes, list[int]] = {}
        for name, weight in weights.items():
            wanted = max(1, round(weight * scale))
            points = known.get(name, [])
            self._of[name] = points if len(points) == wanted else _points(name, wanted)
        # By name, so that replicas agree even where two points are the same.
        placed = {point: name for name in sorted(self._of) for point in self._of[name]}
        self._points = sorted(placed)
        self.owners = [placed[point] for point in self._points]
        """Names in the order of their points: from any index on, whom to ask next."""

    def index(self, number: int) -> int:
        """Index in `owners` of the first point after a 32-bit number; the ring must not be empty."""
        found = bisect_right(self._points, number << 32)
        return found if found < len(self._points) else 0


def _points(name: bytes, count: int) -> list[int]:
    points: list[int] = []
    for block in range((count + 7) // 8):
        digest = blake2b(name, digest_size=64, salt=block.to_bytes(4, "big")).digest()
        points += [int.from_bytes(digest[at : at + 8], "big") for at in range(0, 64, 8)]
    return sorted(points[:count])  # sorted runs are quick to merge


def maglev_table(weights: Mapping[bytes, int]) -> list[bytes]:
    """Slot -> name, by Eisenbud et al., Maglev (NSDI 2016), section 3.4; the length is prime.

    Weights as in Envoy: each round a member's claim grows by its weight and it takes a slot for each whole
    greatest weight. `weights` must be above 0; an empty mapping gives an empty list. A member whose share is
    far below one slot may get none.
    """
    if not weights:
        return []
    names = sorted(weights)
    size = next(slots for most, slots in _TABLE_SIZES if len(names) <= most)
    if len(names) == 1:
        return names * size
    turns = [(_permutation(name, size), name) for name in names]
    return _fill(turns, [weights[name] for name in names], size)


def _permutation(name: bytes, size: int) -> Iterator[int]:
    """All slots in the member's own order: an offset, and steps that the prime size makes visit them all."""
    digest = blake2b(name, digest_size=16, person=b"maglev").digest()
    offset = int.from_bytes(digest[:8], "big") % size
    skip = int.from_bytes(digest[8:], "big") % (size - 1) + 1
    return (at % size for at in count(offset, skip))


def _fill(turns: Sequence[tuple[Iterator[int], bytes]], weights: Sequence[int], size: int) -> list[bytes]:
    greatest = max(weights)
    claims = [0] * len(turns)
    table: dict[int, bytes] = {}
    while True:
        for index, (slots, name) in enumerate(turns):
            claims[index] += weights[index]
            if claims[index] < greatest:
                continue
            claims[index] -= greatest
            for slot in slots:
                if slot not in table:
                    table[slot] = name
                    break
            if len(table) == size:
                return [table[slot] for slot in range(size)]
