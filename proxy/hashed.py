"""The balancers that hash a key: the same member for the same key, on every worker and replica."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random

from proxy.hashing import Ring, fraction, hash32, maglev_table, mix32, race
from proxy.member import Balancer, M, Member, warmth

_BOUND = 1.25
"""Load over the average at which a ring member is full: Mirrokni, Thorup, Zadimoghaddam, Consistent Hashing
with Bounded Loads (2016), with epsilon 0.25."""

_REMEMBERED = 16_384
"""Results that IpHash keeps; when there are more it starts over, which costs only time."""


def rendezvous(number: int, members: Sequence[M], seeds: Sequence[int], now: float) -> M | None:
    """Weighted rendezvous hashing: the member that a 32-bit number goes to, or None without members.

    `seeds` are `hash32(identity)` of the members. A member that comes or goes, warms or changes its weight
    moves only what it gains or loses. O(n). Two members with one seed share its fate by order of identity.
    """
    best: M | None = None
    least = 0.0
    for member, seed in zip(members, seeds, strict=True):
        weight = member.weight if now >= member.warm_at else member.weight * warmth(member, now)
        arrival = race(number, seed, weight)
        if best is None or arrival < least or (arrival == least and member.identity < best.identity):
            best, least = member, arrival
    return best


class IpHash(Balancer[M]):
    """The same member for the same key, in proportion to the weights: rendezvous hashing.

    Remembers what it found, for as long as the snapshot lives: clients come back, and the search is O(n).
    """

    __slots__ = ("_found", "_seeds")

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        super().__init__(members)
        self._seeds = [hash32(member.identity) for member in self.members]
        self._found: dict[int, M] = {}

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        if tried:
            return self._rest(tried).pick(key, now, random)
        number = _number(key, random)
        member = self._found.get(number)
        if member is None:
            member = rendezvous(number, self.members, self._seeds, now)
            if member is not None and now >= self._warm_at:
                if len(self._found) >= _REMEMBERED:
                    self._found.clear()
                self._found[number] = member
        return member


class RingHash(Balancer[M]):
    """Consistent hashing with bounded load: nobody is given more than 1.25 times its fair share.

    When the key's own member is full, the next one on the ring that is not gets it.
    """

    __slots__ = ("_by_name", "_ring", "_total")

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        super().__init__(members)
        weights = {member.identity: member.weight for member in self.members}
        self._by_name = {member.identity: member for member in self.members}
        self._total = sum(weights.values())
        self._ring: Ring = Ring(weights, previous._ring if isinstance(previous, RingHash) else None)

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        if not self.members:
            return None
        number = _number(key, random)
        owners = self._ring.owners
        start = self._ring.index(number)
        # Everybody may have one request: an idle, warm owner needs no look at the others.
        owner = self._by_name[owners[start]]
        if owner.inflight == 0 and owner not in tried and now >= owner.warm_at:
            return owner
        bound = _BOUND * (sum([member.inflight for member in self.members]) + 1)
        passed: list[M] = []
        seen: set[bytes] = set()
        for index in range(start - len(owners), start):
            name = owners[index]
            if name in seen:
                continue
            seen.add(name)
            member = self._by_name[name]
            if member not in tried:
                # inflight < ceil(bound * share of the weights), in whole numbers: a quotient would round.
                room = member.inflight * self._total < bound * member.weight
                if room and _admits(member, number, now):
                    return member
                passed.append(member)
            if len(seen) == len(self.members):
                break
        return min(passed, key=lambda member: member.inflight / member.weight, default=None)


class Maglev(Balancer[M]):
    """A lookup table of keys: the fastest hash, and nearly as gentle to changes as the ring."""

    __slots__ = ("_by_name", "_table", "_weights")

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        super().__init__(members)
        self._weights = {member.identity: member.weight for member in self.members}
        self._by_name = {member.identity: member for member in self.members}
        self._table: list[bytes]
        if isinstance(previous, Maglev) and previous._weights == self._weights:
            self._table = previous._table
        else:
            self._table = maglev_table(self._weights)

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        table = self._table
        if not table:
            return None
        number = _number(key, random)
        slot = number % len(table)
        member = self._by_name[table[slot]]
        if (now >= member.warm_at or _admits(member, number, now)) and member not in tried:
            return member
        rest = [member for member in self.members if member not in tried]
        return rendezvous(number, rest, [hash32(member.identity) for member in rest], now)


def _number(key: bytes, random: Random) -> int:
    return hash32(key) if key else random.getrandbits(32)


def _admits(member: Member, number: int, now: float) -> bool:
    """Whether a key's place is in the part of a member's keys that it is warm enough to have.

    The part only grows, so that each key moves to the new member once and stays.
    """
    return now >= member.warm_at or fraction(mix32(number ^ hash32(member.identity))) < warmth(member, now)
