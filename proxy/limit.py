"""Rate limits: a token bucket for each key, in bounded memory.

Pure: time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict

from config.schema import RouteLimit

_KEYS = 100_000
"""Buckets kept. A flood of keys pushes out the one unused for longest, which then starts full again: memory
matters more than the exactness of the limit for a client that has been quiet."""


class Limiter:
    """Token buckets in the form of GCRA: for each key only the time at which its bucket will be full again.

    A bucket holds `burst` tokens (one second's worth when the configuration names none, at least 1) and
    gains `rate` per second.
    """

    __slots__ = ("_depth", "_full_at", "_step", "per_client")

    def __init__(self, limit: RouteLimit) -> None:
        burst = limit.burst if limit.burst is not None else max(1.0, limit.rate)
        self.per_client = limit.per == "client"
        self._step = 1.0 / limit.rate
        # The first token is free of wait, hence one less than the burst.
        self._depth = (burst - 1.0) * self._step
        self._full_at: OrderedDict[bytes, float] = OrderedDict()

    def take(self, client: bytes, now: float) -> float:
        """Take a token for a client (its address): 0.0 when there was one, else seconds until there is."""
        key = client if self.per_client else b""
        full_at = self._full_at.get(key)
        if full_at is None:
            self._make_room(now)
            full_at = now
        else:
            self._full_at.move_to_end(key)
            full_at = max(full_at, now)
        wait = full_at - now - self._depth
        # Sums of steps drift by some nanoseconds; nobody is to be refused for that.
        if wait > 1e-6:
            return wait
        self._full_at[key] = full_at + self._step
        return 0.0

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
            if full_at > now and len(buckets) < _KEYS:
                return
            del buckets[key]
