"""When real traffic takes an instance out, and for how long. Decisions only; `proxy.table` acts on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from config.schema import Outlier, SuccessRate

Key = TypeVar("Key")

_LONGEST = 10
"""An ejection never gets longer than this many times the first one."""
_FORGIVEN = 6.0
"""One ejection is forgotten after so many times the first one's length."""


def may_eject(config: Outlier, ejected: int, total: int) -> bool:
    """Whether one more of `total` instances may be out, of which `ejected` already are.

    One instance of several may always go, whatever the share says; the only one never.
    """
    if total < 2:
        return False
    return ejected == 0 or (ejected + 1) / total <= config.max_ejected


def ejection_time(config: Outlier, earlier: int) -> float:
    """Seconds of the next ejection after `earlier` ones: each is longer than the last, up to a bound."""
    return config.base_ejection * min(earlier + 1, _LONGEST)


def remembered(config: Outlier, ejections: int, well_for: float) -> int:
    """How many of an instance's ejections still count after so many seconds of good behaviour."""
    if config.base_ejection <= 0:
        return ejections
    return max(0, ejections - int(well_for / (config.base_ejection * _FORGIVEN)))


def unlike_the_others(config: SuccessRate, counts: Mapping[Key, tuple[int, int]]) -> list[Key]:
    """Whose share of successes is far below their peers', worst first.

    `counts`: requests and failures of one interval. As in Envoy ("Outlier detection", success rate): the
    threshold is the mean less a number of standard deviations, over those with enough requests.
    """
    rates = {
        key: 1.0 - failed / requests
        for key, (requests, failed) in counts.items()
        if requests >= config.requests
    }
    if len(rates) < config.instances:
        return []
    mean = sum(rates.values()) / len(rates)
    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates.values()) / len(rates))
    threshold = mean - config.deviation * deviation
    return sorted((key for key, rate in rates.items() if rate < threshold), key=rates.__getitem__)
