"""What the kernel says of a process and its descendants, and the statistics made of it."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat in use here (proc(5)): parent, and user plus system time in seconds."""

    parent: int
    cpu: float

    @classmethod
    def parse(cls, text: str) -> Stat:
        """The name in the second field may hold spaces and parentheses; what counts begins after the last."""
        fields = text[text.rindex(")") + 2 :].split()
        return cls(parent=int(fields[1]), cpu=(int(fields[11]) + int(fields[12])) * _TICK)


def family(root: int, parents: Iterable[tuple[int, int]]) -> list[int]:
    """`root` and all its descendants, given the (pid, parent) pairs of all processes."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, parent in parents:
        children[parent].append(pid)
    found = [root]
    for pid in found:
        found.extend(children[pid])
    return found


def _stats() -> dict[int, Stat]:
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stats[int(entry.name)] = Stat.parse((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended while we looked
    return stats


def cpu_seconds(root: int) -> float:
    """CPU time used so far by a process and its living descendants."""
    stats = _stats()
    pids = family(root, ((pid, stat.parent) for pid, stat in stats.items()))
    return sum(stats[pid].cpu for pid in pids if pid in stats)


def memory(root: int) -> int:
    """Proportional set size of a process and its descendants, in bytes.

    Pages shared between them count once; where the kernel has no smaps_rollup, it is the resident size.
    """
    pids = family(root, ((pid, stat.parent) for pid, stat in _stats().items()))
    return sum(_memory_of(pid) for pid in pids)


def _memory_of(pid: int) -> int:
    for file, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            text = Path(f"/proc/{pid}/{file}").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of unsorted values: the smallest that at least `share` of them do not exceed.

    Raises `ValueError` when there are none.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)
    return ordered[max(0, int(rank) - 1)]


def spread(values: Sequence[float]) -> float:
    """Half the range as a fraction of the median: 0.05 reads ±5%. 0 for a single value or a median of 0."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / 2 / abs(middle) if middle else 0.0


def ratio(values: Sequence[float], base: Sequence[float]) -> float | None:
    """Median over the rounds of value ÷ base of the same round, which cancels what changed between rounds.

    None where no round has a base other than 0.
    """
    ratios = [value / against for value, against in zip(values, base, strict=True) if against]
    return statistics.median(ratios) if ratios else None
