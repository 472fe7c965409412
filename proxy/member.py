"""What a balancer is, and what it sees of the instances it picks from.

Pure: time and randomness are arguments. Not thread-safe: one event loop owns a balancer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from random import Random
from typing import Generic, Protocol, TypeVar

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
        """The weight with slow start applied; above 0 when the weight is."""


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


def warmth(member: Member, now: float) -> float:
    """How warm a member is, from nearly 0 to 1."""
    if now >= member.warm_at:
        return 1.0
    return min(1.0, max(_COLDEST, member.weight_at(now) / member.weight))
