"""Somebody else: `python -m tests.overload.probe PORT SECONDS` asks and talks, and says how long it took.

One line of JSON: for each way how often, and the median, 99th percentile and longest of the times in seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from tests.overload.wire import ask, dial, say, talk


def figures(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    last = len(ordered) - 1
    return {
        "count": len(ordered),
        "median": ordered[last // 2],
        "p99": ordered[last * 99 // 100],
        "longest": ordered[last],
    }


def probe(port: int, seconds: float) -> dict[str, dict[str, float]]:
    asking, talking, moving = dial(port), talk(port, "/echo"), talk(port, "/echo", "moving")
    ways: dict[str, Callable[[], object]] = {
        "request": lambda: ask(asking),
        "message": lambda: say(talking, b"hello"),
        "moving": lambda: say(moving, b"hello"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.perf_counter
    end = clock() + seconds
    while clock() < end:
        for name, do in ways.items():
            begun = clock()
            do()
            times[name].append(clock() - begun)
    return {name: figures(found) for name, found in times.items()}


if __name__ == "__main__":
    print(json.dumps(probe(int(sys.argv[1]), float(sys.argv[2]))), flush=True)
