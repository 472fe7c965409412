"""How many requests may be under way, found by how answers slow down.

Pure: time is an argument. After the gradient algorithm of Netflix's concurrency-limits ("Gradient2"): while
answers take as long as they usually do, the limit grows by a little; when they take longer, it shrinks in
proportion.
"""

from __future__ import annotations

import math

from config.schema import Adaptive

_SMOOTHING = 0.2
"""Weight of a new limit against the one before."""
_USUAL = 0.05
"""Weight of one window in the usual latency, so that it follows changes of the work but not an overload."""
_LEAST_SAMPLES = 10
"""A window with fewer answers is made longer: a few say nothing."""
_STEEPEST = 0.5
"""One window never does more than halve the limit, before smoothing."""


class Gradient:
    """One service's limit. `observe` every answer, then read `limit`."""

    __slots__ = ("_config", "_count", "_inflight", "_since", "_sum", "_usual", "_value")

    def __init__(self, config: Adaptive) -> None:
        self._config = config
        self._value = float(min(config.max, max(config.min, 20)))
        self._usual = 0.0
        """Seconds that an answer usually takes; 0 before the first window."""
        self._since = -math.inf
        self._sum = 0.0
        self._count = 0
        self._inflight = 0
        """Most requests under way in this window."""

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return int(self._value)

    def observe(self, latency: float, inflight: int, now: float) -> None:
        """Take one answer: its seconds to the head, and how many requests were under way with it."""
        if self._since == -math.inf:
            self._since = now
        self._sum += latency
        self._count += 1
        self._inflight = max(self._inflight, inflight)
        if now - self._since >= self._config.window and self._count >= _LEAST_SAMPLES:
            self._judge(self._sum / self._count)
            self._since, self._sum, self._count, self._inflight = now, 0.0, 0, 0

    def _judge(self, latency: float) -> None:
        config = self._config
        if not self._usual:
            self._usual = latency
        self._usual += (latency - self._usual) * _USUAL
        if self._usual > 2 * latency:
            self._usual *= 0.95  # an overload is over: it must not pass for usual for long
        if self._inflight * 2 < self._value and latency <= self._usual * config.tolerance:
            return  # far from the limit nothing is learnt of it
        gradient = max(_STEEPEST, min(1.0, config.tolerance * self._usual / max(latency, 1e-9)))
        wanted = self._value * gradient + math.sqrt(self._value)
        value = self._value + (wanted - self._value) * _SMOOTHING
        self._value = min(float(config.max), max(float(config.min), value))
