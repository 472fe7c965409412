"""Who gets the next request: the nine balancers.

A balancer is a snapshot of the members that may be picked; when membership or a weight changes it is replaced
whole by `make_balancer`, which hands the turn order of the previous one on. Pure: time and randomness are
arguments. Not thread-safe: one event loop owns it.

Weight 0 means no new work, without exception: a snapshot whose members all weigh 0 picks nobody. Slow start
applies to every balancer, also to those that do not look at weights.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import accumulate
from math import exp
from random import Random

from config.schema import Balance
from proxy.hashed import IpHash, Maglev, RingHash
from proxy.member import Balancer, M, Member, warmth

__all__ = ["Balancer", "Member", "make_balancer"]

_LATENCY_DECAY = 10.0
"""Seconds in which the memory of a latency fades to 37%: an instance that was slow is tried again."""

_TURN = 0.999
"""What a whole turn to wait counts beside one request under way: a little less, or the two could be equal."""


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
            self._credit[index] += warmth(member, now)
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
        if tried or not self._uniform or now < self._warm_at:
            return self._pick_weighted(now, tried)
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

    def _pick_weighted(self, now: float, tried: Collection[M]) -> M | None:
        clock, dues = self._clock, self._due
        chosen, least, ahead, length = -1, 0.0, 0.0, 0.0
        for index, member in enumerate(self.members):
            if tried and member in tried:
                continue
            turn = 1.0 / (member.weight if now >= member.warm_at else member.weight * warmth(member, now))
            wait = dues[index] - clock
            if wait < 0.0:
                wait = 0.0
            elif wait > turn:  # it was colder when its last turn was reckoned
                wait = turn
                dues[index] = clock + turn
            cost = member.inflight * turn + wait * _TURN
            if chosen < 0 or cost < least:
                chosen, least, ahead, length = index, cost, wait, turn
        if chosen < 0:
            return None
        self._clock = clock + ahead
        dues[chosen] = self._clock + length
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
            if now >= self._warm_at or random.random() < warmth(members[index], now):
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
        if not load or (self._uniform and load <= second.inflight):
            return False
        if self._uniform and now >= self._warm_at:
            return True
        return (second.inflight + 1) / second.weight_at(now) <= load / first.weight_at(now)


class PeakEwma(TwoChoices[M]):
    """Two choices by expected time: peak EWMA latency * (inflight + 1) (Finagle's measure).

    A latency not renewed fades, but never below that of the other: silence makes nobody look quick. While
    one of the two has never answered, their loads decide.

    Between equal weights the quicker wins. Where weights differ, the first, drawn by weight, is left in
    proportion to how much quicker the second is (the Metropolis rule), because a plain comparison would let
    noise in the latencies decide instead of the weights.
    """

    __slots__ = ()

    def _better(self, first: M, second: M, now: float, random: Random) -> bool:
        floor = min(first.latency, second.latency)
        if floor == 0.0:
            return super()._better(first, second, now, random)
        one = max(floor, first.latency * exp((first.latency_at - now) / _LATENCY_DECAY))
        two = max(floor, second.latency * exp((second.latency_at - now) / _LATENCY_DECAY))
        if self._uniform and now >= self._warm_at:
            return two * (second.inflight + 1) < one * (first.inflight + 1)
        ratio = second.weight_at(now) / first.weight_at(now)
        return two * (second.inflight / ratio + 1) < one * (first.inflight + 1) * random.random()


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
