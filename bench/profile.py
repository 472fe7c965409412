"""`python -m bench.profile`: which functions of holdfast a request, or a WebSocket echo, spends its time in.

holdfast runs under cProfile while load runs against it. What happens inside uvloop and httptools counts for
the function that called them: cProfile does not see into Cython. It also makes every call dearer, small ones
most: read it for what is called how often, and let `bench.compare` say what a change is worth.
"""

from __future__ import annotations

import argparse
import os
import pstats
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import uvloop

from bench.children import BenchError, end_on_sigterm
from bench.load import saturate
from bench.peers import ROOT, Holdfast
from bench.stage import Running, stage
from bench.tunnels import ping_pong

Location = tuple[str, int, str]
"""File, line, function, as pstats names them."""


class Row(NamedTuple):
    """One function: calls and own microseconds per request, and its share of all own time."""

    function: str
    calls: float
    own: float
    share: float


class Profiled(Holdfast):
    """holdfast with a profiler in it; the profile is written when it ends on SIGTERM."""

    def __init__(self, dump: Path) -> None:
        super().__init__()
        self._dump = dump

    def command(self, program: Path, config: Path) -> list[str | Path]:
        return [program, "-c", _PROFILED, self._dump, "run", "-c", config]


# Each SIGPROF switches the profiler on or off, so that start and end are not in the profile.
_PROFILED = """
import cProfile, signal, sys
from proxy.cli import main
dump = sys.argv.pop(1)
profile = cProfile.Profile()
switches = iter((profile.enable, profile.disable))
signal.signal(signal.SIGPROF, lambda *_: next(switches)())
try:
    main()
finally:
    profile.dump_stats(dump)
"""


def rows(stats: Mapping[Location, tuple[int, int, float, float, object]], units: int) -> list[Row]:
    """The functions by own time, largest first, per unit of work. `units` must be at least 1."""
    total = sum(entry[2] for entry in stats.values()) or 1.0
    found = [
        Row(_name(place), entry[1] / units, entry[2] / units * 1e6, entry[2] / total)
        for place, entry in stats.items()
    ]
    return sorted(found, key=lambda row: row.own, reverse=True)


def _name(place: Location) -> str:
    file, line, function = place
    if file == "~":
        return function
    path = Path(file)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(path.parent.name) / path.name
    return f"{shown}:{line} {function}"


def measure(seconds: int, websocket: bool, dump: Path) -> int:
    """Loads a warm holdfast with the profiler on; returns how many requests or echoes there were."""
    peer = Profiled(dump)
    program = peer.find()
    if program is None:
        raise BenchError("there is no holdfast in this tree")
    with stage() as ground, ground.run(peer, program) as running:
        assert running.pid is not None
        _load(running, 1, websocket)
        os.kill(running.pid, signal.SIGPROF)
        units = _load(running, seconds, websocket)
        os.kill(running.pid, signal.SIGPROF)
    return units


def _load(running: Running, seconds: int, websocket: bool) -> int:
    if not websocket:
        return saturate(running.http, seconds=seconds).requests
    echoed = uvloop.run(ping_pong(running.echo, connections=64, seconds=seconds, cpu=running.cpu, warm=0))
    return echoed.messages


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, metavar="N", help="how long; default: 5")
    parser.add_argument("--ws", action="store_true", help="WebSocket echoes instead of requests")
    parser.add_argument("--top", type=int, default=40, metavar="N", help="how many functions; default: 40")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the profile, for pstats or a viewer")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="holdfast-profile-") as folder:
        dump = given.out.resolve() if given.out else Path(folder) / "holdfast.pstats"
        units = measure(given.seconds, given.ws, dump)
        if not units or not dump.exists():
            raise BenchError("holdfast left no profile: it was killed, or nothing reached it")
        stats = pstats.Stats(str(dump)).stats  # type: ignore[attr-defined]
    unit = "echo" if given.ws else "request"
    print(f"{units:,} × {unit}, profiled\n\n{'µs/' + unit:>12} {'share':>7} {'calls/' + unit:>14}  function")
    for row in rows(stats, units)[: given.top]:
        print(f"{row.own:12.2f} {row.share:7.1%} {row.calls:14.2f}  {row.function}")
    return 0


if __name__ == "__main__":
    end_on_sigterm()
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench.profile: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
