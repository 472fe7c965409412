"""One registry as it is doing: what metrics, status and readiness read, and its `Supervisor` writes."""

from __future__ import annotations

from enum import Enum

from discovery.belief import Belief
from discovery.model import Watcher


class SourceState(Enum):
    """How one registry is doing."""

    CONNECTING = "connecting"
    """No answer in this attempt yet."""
    LIVE = "live"
    """It answered and its watch is open."""
    IDLE = "idle"
    """Nothing is asked of it: no service comes from a registry."""
    FAILED = "failed"
    """The last attempt failed; the next one waits."""


class Source:
    """One registry as it is doing now. Read by metrics and status; changed by its `Supervisor` only."""

    def __init__(self, rank: int, watcher: Watcher, started: float) -> None:
        self.rank = rank
        self.kind = watcher.kind
        self.name = f"{rank}-{watcher.kind}"
        """What tells two registries of one kind apart."""
        self.state = SourceState.CONNECTING
        self.failures = 0
        """In a row; 0 after an answer."""
        self.last_error: str | None = None
        """Of the last failure; kept after recovery."""
        self.watcher = watcher
        self.beliefs: dict[str, Belief] = {}
        self.answered = False
        """Whether it has answered at all since the start."""
        self.answered_at = started
        self.patient = True
        """Whether services that it has not told of yet are waited for."""
        self.failed_total = 0
        self.mass_losses = 0
        self.refused_total = 0
        """Failures, mass losses that were not believed at once, and entries left out, since the start."""
        self.behind: dict[str, tuple[float, float]] = {}
        """Of each service whose last answer was old by its own word: how old, and when it came."""
        self.refused: dict[str, frozenset[str]] = {}
        """Why entries were left out of the last answer for each service."""

    @property
    def held(self) -> int:
        """Instances that stay although the registry no longer lists them as alive (see `Guard`)."""
        return sum(belief.suspects for belief in self.beliefs.values())

    @property
    def flapping(self) -> int:
        """Instances that are used only as last choice because they come and go."""
        return sum(len(belief.flapping) for belief in self.beliefs.values())

    @property
    def remembered(self) -> int:
        """Services for which the last good set is in use, for want of an answer since the start."""
        return sum(belief.from_disk for belief in self.beliefs.values())

    def staleness(self, now: float) -> float:
        """Seconds since the registry was last known to be right: since its last answer, or since the start
        when there was none. 0 while nothing is asked of it, and while its watch is open, unless it says by
        itself that its answers are old."""
        if self.state is SourceState.IDLE:
            return 0.0
        if self.state is not SourceState.LIVE:
            return max(0.0, now - self.answered_at)
        return max((age + now - at for age, at in self.behind.values()), default=0.0)

    def has_told(self, service: str) -> bool:
        """Whether anything is believed of a service by this registry's word or by what is left of it."""
        return (belief := self.beliefs.get(service)) is not None and belief.has_begun

    def __repr__(self) -> str:
        error = f", {self.last_error}" if self.state is SourceState.FAILED else ""
        return f"<registry {self.rank} {self.kind}: {self.state.value}, {self.held} held{error}>"
