"""When real traffic takes an instance out, and for how long. Decisions only; `proxy.table` acts on them."""

from __future__ import annotations

from config.schema import Outlier

_LONGEST = 10
"""An ejection never gets longer than this many times the first one."""


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
