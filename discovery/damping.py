"""Instances that come and go: who did so too often to be relied on, pure and synchronous.

Leaving is always believed at once; what is damped is coming back. An instance that has gone unannounced
`flaps` times, each time back for less than `calm` seconds, is flapping until it has stayed for that long.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(slots=True)
class _Record:
    """One instance that has gone at least once."""

    times: int
    left_at: float
    back_at: float | None = None
    """None while it is away."""

    @property
    def since(self) -> float:
        """When it came back, or went if it is away."""
        return self.left_at if self.back_at is None else self.back_at


class Damping:
    """The instances of one service in one registry, by id. Knows only those that went lately."""

    def __init__(self, flaps: int, calm: float) -> None:
        """`flaps`: 0 damps nobody. `calm`: seconds."""
        self._flaps = flaps
        self._calm = calm
        self._records: dict[str, _Record] = {}

    @property
    def flapping(self) -> frozenset[str]:
        """Ids of those that are back and not relied on yet."""
        return frozenset(id for id, r in self._records.items() if self._is_flapping(r))

    @property
    def deadline(self) -> float | None:
        """When the next of them has stayed for long enough."""
        records = [r for r in self._records.values() if self._is_flapping(r)]
        return min((r.back_at + self._calm for r in records if r.back_at is not None), default=None)

    def note(self, lost: Collection[str], present: Collection[str], at: float) -> None:
        """What an answer has changed: who went without having announced it, and who is there now."""
        if not self._flaps:
            return
        self.expire(at)
        for id in lost:
            record = self._records.setdefault(id, _Record(0, at))
            record.times, record.left_at, record.back_at = record.times + 1, at, None
        for id, record in self._records.items():
            if record.back_at is None and id in present and id not in lost:
                record.back_at = at

    def expire(self, now: float) -> bool:
        """Forgets who has stayed, or stayed away, for long enough. Returns whether one of them flapped."""
        over = [id for id, r in self._records.items() if r.since + self._calm <= now]
        calmed = any(self._is_flapping(self._records[id]) for id in over)
        for id in over:
            del self._records[id]
        return calmed

    def renew(self, now: float) -> None:
        """This process was stopped: nobody has shown in that time that it stays."""
        for record in self._records.values():
            if record.back_at is None:
                record.left_at = now
            else:
                record.back_at = now

    def _is_flapping(self, record: _Record) -> bool:
        return record.back_at is not None and record.times >= self._flaps
