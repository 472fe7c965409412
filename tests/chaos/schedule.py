"""What goes wrong when: a list made from a seed, so that a bad run can be had again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What can happen to an instance or to the registry."""

    KILL = "kill"
    """SIGKILL; started again at the end of the fault."""
    STOP = "stop"
    """SIGSTOP until the end of the fault."""
    RESTART = "restart"
    """SIGTERM, and started again at once."""
    RESET = "reset"
    """All its connections are reset, once."""
    SLOW = "slow"
    HOLE = "hole"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """`kind` happens to `target` from `start` to `end`, in seconds of the run."""

    start: float
    end: float
    target: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.start:6.1f}-{self.end:5.1f} {self.target} {self.kind.value}"


LONGEST = 6.0
CALM = 5.0
"""Seconds at the end in which nothing new goes wrong."""


def schedule(
    rng: random.Random, seconds: float, instances: Sequence[str], registry: str
) -> tuple[Fault, ...]:
    """Faults one to three seconds apart. One thing has one fault at a time; one instance is always well."""
    faults: list[Fault] = []
    busy: dict[str, float] = {}
    now = 2.0
    while now < seconds - LONGEST - CALM:
        well = [name for name in instances if busy.get(name, 0.0) <= now]
        choices = ([registry] if busy.get(registry, 0.0) <= now else []) + (well if len(well) > 1 else [])
        if choices:
            target = rng.choice(choices)
            fault = Fault(now, now + rng.uniform(0.5, LONGEST), target, rng.choice(tuple(Kind)))
            faults.append(fault)
            busy[target] = fault.end + 1.5  # it has to be found well again before the next may fall ill
        now += rng.uniform(1.0, 3.0)
    return tuple(faults)
