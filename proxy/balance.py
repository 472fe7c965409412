"""Who gets the next request: the nine balancers.

A balancer is a snapshot of the members that may be picked; when membership or a weight changes it is replaced
whole by `make_balancer`, which hands the turn order of the previous one on. Pure: time and randomness are
arguments. Not thread-safe: one event loop owns it.

Weight 0 means no new work, without exception: a snapshot whose members all weigh 0 picks nobody. Slow start
applies to every balancer, also to those that do not look at weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import accumulate
from math import ceil, exp
from random import Random
from typing import Generic, Protocol, TypeVar

from config.schema import Balance
from proxy.hashing import Ring, fraction, hash32, maglev_table, mix32, race

LATENCY_DECAY = 10.0
"""Seconds in which the memory of a latency fades to 37%: an instance that was slow is tried again."""

_UNKNOWN_LATENCY = 1.0
"""Seconds assumed of a member that has never answered while it has a request to answer (Finagle does the same):
a new member gets one request to show what it can do, not all of them."""

_BOUND = 1.25
"""Load over the average at which a ring member is full: Mirrokni, Thorup, Zadimoghaddam, Consistent Hashing
with Bounded Loads (2016), with epsilon 0.25."""

_COLDEST = 0.01
"""Least share of its weight that a warming member counts with, so that turns always end."""


class Member(Protocol):
    """What a balancer sees of an instance. Weight and `warm_at` are read when the snapshot is made."""

    @property
    def identity(self) -> bytes:
        """Stable name, `service/id`."""

    @property
    def weight(self) -> int:
        """Share relative to the other members; 0: none."""

    @property
    def warm_at(self) -> float:
        """Clock reading at which slow start is over."""

    @property
    def inflight(self) -> int:
        """Requests and tunnels under way."""

    @property
    def latency(self) -> float:
        """Peak EWMA of response times in seconds; 0 when nothing was measured yet."""

    @property
    def latency_at(self) -> float:
        """Clock reading at which `latency` was last moved."""

    def weight_at(self, now: float) -> float:
        """The weight with slow start applied."""


M = TypeVar("M", bound=Member)


class Balancer(ABC, Generic[M]):
    """Picks one of `members`: those of the given ones whose weight is above 0."""

    __slots__ = ("_uniform", "_warm_at", "members")

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        self.members = tuple([member for member in members if member.weight > 0])
        self._uniform = len({member.weight for member in self.members}) <= 1
        self._warm_at = max([member.warm_at for member in self.members], default=0.0)

    @abstractmethod
    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        """The member for one request, or None when nobody is left.

        `key` is what the hashing balancers hash; when it is empty they pick by chance. `tried` are members
        that have failed this request already: they are not picked.
        """

    def _rest(self, tried: Collection[M]) -> Balancer[M]:
        """A throw-away balancer without those tried: retries are rare, the first pick must be fast."""
        return type(self)([member for member in self.members if member not in tried])


def _share(member: Member, now: float) -> float:
    """How warm a member is, from nearly 0 to 1."""
    if now >= member.warm_at:
        return 1.0
    return min(1.0, max(_COLDEST, member.weight_at(now) / member.weight))


class Weighted(Balancer[M]):
    """Smooth weighted turns, by earliest deadline: a member's turns lie W/weight picks apart.

    W is the sum of weights. Over any W picks everybody gets exactly its weight, and the light ones' turns
    are spread by their first deadlines. O(log n). Warming members let a part of their turns pass.
    """

    __slots__ = ("_clock", "_credit", "_due", "_stride")

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        super().__init__(members)
        weights = self._weights()
        total = sum(weights)
        waits = previous._waits() if isinstance(previous, Weighted) else {}
        count = len(self.members)
        self._stride = [total / weight for weight in weights]
        self._due = [
            (waits.get(member.identity, (index + 0.5) / count) * self._stride[index], index)
            for index, member in enumerate(self.members)
        ]
        heapify(self._due)
        self._clock = 0.0
        self._credit = [(index + 0.5) / count for index in range(count)]

    def _weights(self) -> list[int]:
        return [member.weight for member in self.members]

    def _waits(self) -> dict[bytes, float]:
        """Identity -> the part of its stride until its next turn: what a new snapshot goes on from."""
        return {
            self.members[index].identity: min(1.0, max(0.0, (due - self._clock) / self._stride[index]))
            for due, index in self._due
        }

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        heap = self._due
        if tried or now < self._warm_at or not heap:
            return self._pick_slowly(now, tried)
        due, index = heap[0]
        self._clock = due
        heapreplace(heap, (due + self._stride[index], index))
        return self.members[index]

    def _pick_slowly(self, now: float, tried: Collection[M]) -> M | None:
        # Those passed over because they were tried keep their turn: it was this request's fault, not theirs.
        passed: list[tuple[float, int]] = []
        chosen: M | None = None
        while self._due and chosen is None:
            due, index = heappop(self._due)
            member = self.members[index]
            if member in tried:
                passed.append((due, index))
                continue
            heappush(self._due, (due + self._stride[index], index))
            self._credit[index] += _share(member, now)
            if self._credit[index] >= 1.0:
                self._credit[index] -= 1.0
                self._clock = max(self._clock, due)
                chosen = member
        for entry in passed:
            heappush(self._due, entry)
        return chosen


class RoundRobin(Weighted[M]):
    """Everybody in turn, whatever they weigh."""

    __slots__ = ()

    def _weights(self) -> list[int]:
        return [1] * len(self.members)


class LeastConn(Balancer[M]):
    """The member with the fewest requests under way in proportion to its weight; ties go in turn. O(n).

    Where weights differ, a comparison of (inflight + 1) / weight would give a lighter member nothing at all
    while nobody is busy. So the 1 is replaced by the part of a smooth weighted turn that the member has yet
    to wait, from 1 just after its turn to 0: alone that is weighted round robin, and it never outweighs one
    whole request between members of the same weight.
    """

    __slots__ = ("_clock", "_due", "_next", "_twice")

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        super().__init__(members)
        former = previous if isinstance(previous, LeastConn) else None
        waits = former._waits() if former is not None else {}
        count = len(self.members)
        self._twice = self.members * 2
        self._next = self._resume(former) if former is not None else 0
        self._clock = 0.0
        self._due = [
            waits.get(member.identity, (index + 0.5) / count) / member.weight
            for index, member in enumerate(self.members)
        ]

    def _resume(self, former: LeastConn[M]) -> int:
        """Index of the first surviving member from where the former turn stood."""
        now = {member.identity: index for index, member in enumerate(self.members)}
        turn = former._twice[former._next : former._next + len(former.members)]
        return next((now[member.identity] for member in turn if member.identity in now), 0)

    def _waits(self) -> dict[bytes, float]:
        return {
            member.identity: min(1.0, max(0.0, (due - self._clock) * member.weight))
            for member, due in zip(self.members, self._due, strict=True)
        }

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        if tried:
            return self._rest(tried).pick(key, now, random)
        if not self._uniform or now < self._warm_at:
            return self._pick_weighted(now)
        members = self._twice
        start = self._next
        chosen, least = start, 1 << 62
        for index in range(start, start + len(self.members)):
            load = members[index].inflight
            if load < least:
                chosen, least = index, load
                if load == 0:
                    break
        else:
            if not members:
                return None
        self._next = (chosen + 1) % len(self.members)
        return members[chosen]

    def _pick_weighted(self, now: float) -> M | None:
        clock, dues = self._clock, self._due
        chosen, least, weight = -1, 0.0, 1.0
        for index, member in enumerate(self.members):
            own = member.weight if now >= member.warm_at else member.weight * _share(member, now)
            wait = dues[index] - clock
            cost = member.inflight / own + (wait if wait > 0.0 else 0.0)
            if chosen < 0 or cost < least:
                chosen, least, weight = index, cost, own
        if chosen < 0:
            return None
        due = max(clock, dues[chosen])
        self._clock = due
        dues[chosen] = due + 1.0 / weight
        return self.members[chosen]


class Chance(Balancer[M]):
    """By chance, in proportion to the weights."""

    __slots__ = ("_sums",)

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        super().__init__(members)
        self._sums = list(accumulate(member.weight for member in self.members))

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        if tried:
            return self._rest(tried).pick(key, now, random)
        return self.members[self._draw(now, random)] if self.members else None

    def _draw(self, now: float, random: Random) -> int:
        members = self.members
        while True:
            if self._uniform:
                index = int(random.random() * len(members))
            else:
                sums = self._sums
                index = bisect_right(sums, random.random() * sums[-1], 0, len(sums) - 1)
            if now >= self._warm_at or random.random() < _share(members[index], now):
                return index


class TwoChoices(Chance[M]):
    """Two members by chance, and the less loaded of them (Mitzenmacher 2001). O(1), or O(log n) with weights.

    The first is drawn by weight, the second evenly from the others. The second is taken when, with this
    request, its load in proportion to its weight is no more than the first's is without: between equal
    weights that is the plain comparison, and while nobody is busy the weights alone decide.
    """

    __slots__ = ()

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        if tried:
            return self._rest(tried).pick(key, now, random)
        members = self.members
        count = len(members)
        if count < 2:
            return members[0] if members else None
        one = self._draw(now, random)
        two = int(random.random() * (count - 1))
        first, second = members[one], members[two + (two >= one)]
        return second if self._better(first, second, now, random) else first

    def _better(self, first: M, second: M, now: float, random: Random) -> bool:
        """Whether the request should go to the second."""
        load = first.inflight
        if not load or load <= second.inflight and self._uniform:
            return False
        if self._uniform and now >= self._warm_at:
            return True
        return (second.inflight + 1) / second.weight_at(now) <= load / first.weight_at(now)


class PeakEwma(TwoChoices[M]):
    """Two choices by expected time: peak EWMA latency * (inflight + 1) (Finagle's measure).

    Between equal weights the quicker wins. Where weights differ, the first, drawn by weight, is left in
    proportion to how much quicker the second is (the Metropolis rule), because a plain comparison would let
    noise in the latencies decide instead of the weights.
    """

    __slots__ = ()

    def _better(self, first: M, second: M, now: float, random: Random) -> bool:
        if self._uniform and now >= self._warm_at:
            return _expected(second, second.inflight, now) < _expected(first, first.inflight, now)
        one, two = first.weight_at(now), second.weight_at(now)
        mean = (one + two) / 2
        cost = _expected(first, first.inflight * mean / one, now)
        return _expected(second, second.inflight * mean / two, now) < cost * random.random()


def _expected(member: Member, queue: float, now: float) -> float:
    latency = member.latency
    if latency == 0.0:
        return queue * _UNKNOWN_LATENCY
    return latency * exp((member.latency_at - now) / LATENCY_DECAY) * (queue + 1.0)


def rendezvous(number: int, members: Sequence[M], seeds: Sequence[int], now: float) -> M | None:
    """Weighted rendezvous hashing: the member that a 32-bit number goes to, or None without members.

    `seeds` are `hash32(identity)` of the members. A member that comes or goes, warms or changes its weight
    moves only what it gains or loses. O(n). Two members with one seed share its fate by order of identity.
    """
    best: M | None = None
    least = 0.0
    for member, seed in zip(members, seeds, strict=True):
        arrival = race(number, seed, member.weight * _share(member, now))
        if best is None or arrival < least or (arrival == least and member.identity < best.identity):
            best, least = member, arrival
    return best


class IpHash(Balancer[M]):
    """The same member for the same key, in proportion to the weights: rendezvous hashing."""

    __slots__ = ("_seeds",)

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        super().__init__(members)
        self._seeds = [hash32(member.identity) for member in self.members]

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        if tried:
            return self._rest(tried).pick(key, now, random)
        return rendezvous(_number(key, random), self.members, self._seeds, now)


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
        self._ring = Ring(weights, previous._ring if isinstance(previous, RingHash) else None)

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        if not self.members:
            return None
        number = _number(key, random)
        owners = self._ring.owners
        start = self._ring.index(number)
        # ceil((1.25 * (load + 1)) * share) is at least 1: an idle, warm owner needs no look at the others.
        owner = self._by_name[owners[start]]
        if owner.inflight == 0 and owner not in tried and now >= owner.warm_at:
            return owner
        bound = _BOUND * (sum([member.inflight for member in self.members]) + 1) / self._total
        full: list[M] = []
        seen: set[bytes] = set()
        for name in owners[start:] + owners[:start]:
            if name in seen:
                continue
            seen.add(name)
            member = self._by_name[name]
            if member not in tried:
                if member.inflight < ceil(bound * member.weight) and _admits(member, number, now):
                    return member
                full.append(member)
            if len(seen) == len(self.members):
                break
        return min(full, key=lambda member: member.inflight / member.weight, default=None)


class Maglev(Balancer[M]):
    """A lookup table of keys: the fastest hash, and nearly as gentle to changes as the ring."""

    __slots__ = ("_by_name", "_table", "_weights")

    def __init__(self, members: Sequence[M], previous: Balancer[M] | None = None) -> None:
        super().__init__(members)
        self._weights = {member.identity: member.weight for member in self.members}
        self._by_name = {member.identity: member for member in self.members}
        same = isinstance(previous, Maglev) and previous._weights == self._weights
        self._table: list[bytes] = (
            previous._table if isinstance(previous, Maglev) and same else maglev_table(self._weights)
        )

    def pick(self, key: bytes, now: float, random: Random, tried: Collection[M] = ()) -> M | None:
        table = self._table
        if not table:
            return None
        number = _number(key, random)
        slot = number % len(table)
        member = self._by_name[table[slot]]
        if (now >= member.warm_at or _admits(member, number, now)) and member not in tried:
            return member
        rest = [member for member in self.members if member not in tried and _admits(member, number, now)]
        rest = rest or [member for member in self.members if member not in tried]
        return rendezvous(number, rest, [hash32(member.identity) for member in rest], now)


def _number(key: bytes, random: Random) -> int:
    return hash32(key) if key else random.getrandbits(32)


def _admits(member: Member, number: int, now: float) -> bool:
    """Whether a key's place is in the part of a member's keys that it is warm enough to have.

    The part only grows, so that each key moves to the new member once and stays.
    """
    return now >= member.warm_at or fraction(mix32(number ^ hash32(member.identity))) < _share(member, now)


_KINDS: dict[Balance, Callable[[Sequence[M], Balancer[M] | None], Balancer[M]]] = {
    Balance.ROUND_ROBIN: RoundRobin,
    Balance.WEIGHTED: Weighted,
    Balance.LEAST_CONN: LeastConn,
    Balance.P2C: TwoChoices,
    Balance.EWMA: PeakEwma,
    Balance.RING_HASH: RingHash,
    Balance.MAGLEV: Maglev,
    Balance.IP_HASH: IpHash,
    Balance.RANDOM: Chance,
}


def make_balancer(kind: Balance, members: Sequence[M], previous: Balancer[M] | None = None) -> Balancer[M]:
    """The balancer of a kind over `members`, going on where `previous` stood if that was of the same kind."""
    return _KINDS[kind](members, previous)
