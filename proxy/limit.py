"""Rate limits: a token bucket for each key, in bounded memory.

Pure: time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from config.schema import Limit
from proxy.keys import Head, KeyOf, key_reader

_KEYS = 100_000
"""Buckets kept. A flood of keys pushes out the one unused for longest, which then starts full again: memory
matters more than the exactness of the limit for a client that has been quiet."""
_COLD = 3.0
"""A cold bucket's rate is its full one divided by this, as in Guava's SmoothWarmingUp."""
_DRIFT = 1e-6
"""Sums of steps drift by some nanoseconds; nobody is to be refused for that."""


class Limiter:
    """Token buckets in the form of GCRA: for each key only the time at which its bucket will be full again.

    A bucket holds `burst` tokens (one second's worth when the configuration names none, at least 1) and
    gains `rate` per second.
    """

    __slots__ = ("_depth", "_full_at", "_key_of", "_step", "_warmth", "limit")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        burst = limit.burst if limit.burst is not None else max(1.0, limit.rate)
        self._key_of = _reader(limit.per)
        self._step = 1.0 / limit.rate
        # The first token is free of wait, hence one less than the burst.
        self._depth = (burst - 1.0) * self._step
        self._full_at: OrderedDict[bytes, float] = OrderedDict()
        self._warmth: dict[bytes, tuple[float, float]] = {}
        """Of buckets that warm up: when one was last used, and how warm it was then (0 to 1)."""

    def key(self, head: Head, client: bytes) -> bytes:
        """Whose bucket a request of a client (its address) takes from."""
        return self._key_of(head, client)

    def wait(self, key: bytes, now: float) -> float:
        """Seconds until there is a token: 0.0 when there is one now."""
        full_at = self._full_at.get(key)
        if full_at is None:
            return 0.0
        self._full_at.move_to_end(key)  # who goes on knocking stays remembered
        wait = full_at - now - self._depth
        return wait if wait > _DRIFT else 0.0

    def take(self, key: bytes, now: float) -> None:
        """Take a token, also one that is there only after `wait`: those who wait have theirs in order."""
        full_at = self._full_at.get(key)
        if full_at is None:
            self._make_room(now)
            full_at = now
        step = self._step * self._cold_factor(key, full_at, now) if self.limit.warm_up else self._step
        self._full_at[key] = max(full_at, now) + step

    def _cold_factor(self, key: bytes, full_at: float, now: float) -> float:
        """How many times longer than at full rate a token takes. Use warms a bucket, idleness cools it."""
        last, warmth = self._warmth.get(key, (now, 0.0))
        used = min(max(full_at, last), now) - last
        idle = now - last - used
        warmth = min(1.0, max(0.0, warmth + (used - idle) / self.limit.warm_up))
        self._warmth[key] = now, warmth
        return 1.0 / (1.0 / _COLD + (1.0 - 1.0 / _COLD) * warmth)

    def __len__(self) -> int:
        """Buckets that are remembered."""
        return len(self._full_at)

    def _make_room(self, now: float) -> None:
        """Forget up to two buckets that are full again, so that their number falls when clients leave."""
        buckets = self._full_at
        for _ in range(2):
            if not buckets:
                return
            key, full_at = next(iter(buckets.items()))
            if full_at + self.limit.warm_up > now and len(buckets) < _KEYS:
                return
            del buckets[key]
            self._warmth.pop(key, None)


def _reader(per: str) -> KeyOf:
    if per == "client":
        return key_reader("ip")
    if per in ("route", "service"):
        return lambda head, client: b""
    return key_reader(per)


def admit(limiters: Sequence[Limiter], head: Head, client: bytes, now: float) -> tuple[bool, float]:
    """Whether a request is within all limits, and the seconds it has to wait for that.

    Takes a token of each when it is; otherwise of none, and the seconds are for Retry-After.
    """
    keys = [limiter.key(head, client) for limiter in limiters]
    refused = longest = 0.0
    for limiter, key in zip(limiters, keys, strict=True):
        wait = limiter.wait(key, now)
        longest = max(longest, wait)
        if wait > limiter.limit.wait:
            refused = max(refused, wait)
    if refused:
        return False, refused
    for limiter, key in zip(limiters, keys, strict=True):
        limiter.take(key, now)
    return True, longest
