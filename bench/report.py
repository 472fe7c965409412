"""The table: medians with their spread and their ratio to nginx, for the terminal and for the docs."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.children import BenchError
from bench.measure import ratio, spread
from bench.trial import Effort

Results = Mapping[str, Mapping[str, Sequence[float]]]
"""Proxy -> figure -> one value per round, in seconds and bytes."""

BASE = "nginx"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

_FULL_CORE = 0.9


@dataclass(frozen=True, slots=True)
class Metric:
    """One row: which figure, how it is called, the factor to its unit, and how many decimals are worth it."""

    key: str
    label: str
    factor: float = 1.0
    decimals: int = 1


METRICS = (
    Metric("rate", "requests/s, more is better", decimals=0),
    Metric("cpu_request", "CPU per request, µs", 1e6),
    Metric("p50", "latency p50, ms", 1e3, 3),
    Metric("p99", "latency p99, ms", 1e3, 3),
    Metric("memory_idle", "memory after start, MiB", 1 / (1 << 20)),
    Metric("memory_loaded", "memory after load, MiB", 1 / (1 << 20)),
    Metric("start", "exec to first answer, ms", 1e3, 0),
    Metric("echo_cpu", "CPU per WebSocket echo, µs", 1e6),
    Metric("tunnel", "memory per idle tunnel, KiB", 1 / (1 << 10)),
)


def cell(values: Sequence[float], metric: Metric, base: Sequence[float] | None) -> str:
    """`36,100 ±3% ×0.64`: median, half the range, median ratio to the base; a dash without values."""
    if not values:
        return "–"
    text = f"{statistics.median(values) * metric.factor:,.{metric.decimals}f}"
    if len(values) > 1:
        text += f" ±{spread(values):.0%}"
    if base and (against := ratio(values, base)) is not None:
        text += f" ×{against:.2f}"
    return text


def table(results: Results, metrics: Sequence[Metric] = METRICS, base: str = BASE) -> str:
    """A Markdown table, aligned so that it reads well in a terminal too: a row per metric."""
    rows = [["", *results]]
    for metric in metrics:
        against = results.get(base, {}).get(metric.key)
        row = [metric.label]
        for name, values in results.items():
            row.append(cell(values.get(metric.key, ()), metric, None if name == base else against))
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[rows[0][0].ljust(widths[0]), *map(str.rjust, rows[0][1:], widths[1:])], rule]
    lines += [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def doubts(results: Results) -> list[str]:
    """What should keep a reader from believing a figure: failures, and cores that were not used up."""
    found = []
    for name, values in results.items():
        if failed := sum(values.get("failed", ())):
            found.append(f"{name}: {failed:.0f} requests failed.")
        shares = values.get("core", ())
        if shares and (share := statistics.median(shares)) < _FULL_CORE:
            found.append(
                f"{name}: used {share:.0%} of its core at saturation, so load or neighbours were the limit: "
                f"its requests/s are a lower bound, its CPU per request is the better guide."
            )
    return found


def machine() -> str:
    """Processor, cores, kernel and Python of this machine, in one line."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model[1] if model else platform.machine()}, {cores} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def conditions(effort: Effort) -> str:
    """What the figures stand on, in one sentence for under the table."""
    return (
        f"Median of {effort.rounds} interleaved rounds, ± half the range, × the median ratio to {BASE} in "
        f"the same round. Throughput: {effort.connections} connections for {effort.saturate} s; latency: "
        f"{effort.rate:,.0f} requests/s for {effort.latency:g} s; echo: {effort.connections} WebSockets for "
        f"{effort.echo:g} s; tunnels: {effort.tunnels:,}."
    )


def section(body: Sequence[str], configurations: Mapping[str, Mapping[str, str]]) -> str:
    """The generated part of docs/benchmarks.md: the paragraphs, then every configuration that was used."""
    parts = list(body)
    for name, files in configurations.items():
        texts = "\n".join(f"`{file}`:\n\n```\n{text.rstrip()}\n```\n" for file, text in files.items())
        parts.append(f"<details><summary>Configuration of {name}</summary>\n\n{texts}\n</details>")
    return "\n\n".join(parts)


def replace_section(document: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The document with `text` between two markers. Raises `BenchError` if it has not both of them."""
    head, found, rest = document.partition(begin)
    _, closed, foot = rest.partition(end)
    if not found or not closed:
        raise BenchError(f"the document has no {begin} … {end}")
    return f"{head}{begin}\n\n{text}\n\n{end}{foot}"
