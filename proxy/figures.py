"""What a process has counted, as plain values that can be sent, subtracted and added.

A process that is replaced says twice what it has counted: when the new one begins, and what has come to it
since when its last request is over. So nothing that was counted is lost, and nothing counts twice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from proxy.plane import Plane

Figures = dict[str, Any]


def figures_of(plane: Plane) -> Figures:
    """All counters of now."""
    return copy.deepcopy({"counters": plane.counters.save(), "traffic": plane.table.save_traffic()})


def set_figures(plane: Plane, figures: Figures) -> None:
    """Go on from what `figures_of` gave."""
    plane.counters.load(figures["counters"])
    plane.table.load_traffic(figures["traffic"])


def grown(now: Figures, then: Figures) -> Figures:
    """By how much figures have grown."""
    more: Figures = _combined(now, then, -1)
    return more


def add_figures(plane: Plane, more: Figures) -> None:
    """Count what another process has counted for this one."""
    set_figures(plane, _combined(figures_of(plane), more, 1))


def _combined(one: Any, other: Any, sign: int) -> Any:
    if isinstance(one, Mapping):
        return {
            name: _combined(one[name], other[name], sign)
            if name in one and name in other
            else one.get(name, other.get(name))
            for name in {**one, **other}
        }
    if isinstance(one, (list, tuple)):
        return type(one)(_combined(a, b, sign) for a, b in zip(one, other, strict=True))
    return one + sign * other
