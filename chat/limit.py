"""Token buckets: how fast one session may talk. Pure but for the table's memory of who was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache

_REMEMBERED = 20_000


@dataclass(slots=True)
class TokenBucket:
    """`rate` tokens a second, at most `burst` at once. Owned and changed by `RateLimit` alone."""

    rate: float
    burst: float
    tokens: float
    at: float

    def take(self, now: float) -> float:
        """Takes a token and returns 0, or returns the seconds until there will be one. `now` in seconds."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate


class RateLimit:
    """One bucket per key. A bucket is forgotten when it would be full again, or when too many are kept."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: TTLCache[str, TokenBucket] = TTLCache(_REMEMBERED, burst / rate + 1, timer=clock)

    def take(self, key: str) -> float:
        """0 when `key` may go on, otherwise the seconds it should wait."""
        now = self._clock()
        bucket = self._buckets.get(key) or TokenBucket(self._rate, self._burst, self._burst, now)
        wait = bucket.take(now)
        # Set again, because the time to live counts from the last setting.
        self._buckets[key] = bucket
        return wait
