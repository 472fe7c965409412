"""`python -m bench.compare A B`: whether revision B of holdfast is faster than revision A.

A and B are git revisions or directories; `.` is the working tree with what is not committed yet. Both run
with the dependencies of this interpreter, in turns (A B, B A, …) on the same core, so that what else the
machine does hits both. A ratio whose range includes 1 shows no difference.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.children import BenchError, end_on_sigterm
from bench.peers import ROOT, Holdfast
from bench.stage import stage
from bench.trial import FULL, echo, throughput

FIGURES = (
    ("rate", "requests/s", 1.0, 0),
    ("cpu_request", "CPU per request, µs", 1e6, 2),
    ("echo_cpu", "CPU per WebSocket echo, µs", 1e6, 2),
)
"""What is compared: figure, label, factor to its unit, decimals."""


@dataclass(frozen=True, slots=True)
class Change:
    """B ÷ A of one figure: the median of the rounds' ratios, and the lowest and highest of them."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> Change:
        """From one value per round each. Raises `ValueError` if their numbers differ or there are none."""
        ratios = [new / old for old, new in zip(before, after, strict=True)]
        if not ratios:
            raise ValueError("no rounds")
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    @property
    def certain(self) -> bool:
        """Whether every round went the same way."""
        return self.low > 1 or self.high < 1

    def __str__(self) -> str:
        verdict = "" if self.certain else "   no clear difference"
        return f"×{self.middle:.3f} ({self.low:.3f} to {self.high:.3f}){verdict}"


def checkout(revision: str, folder: Path) -> Path:
    """The source tree of a revision, unpacked into `folder`; a directory is used where it is.

    Raises `BenchError` when it is neither.
    """
    if Path(revision).is_dir():
        return Path(revision).resolve()
    done = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=tar", revision], capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise BenchError(f"{revision} is neither a directory nor a revision: {said}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def run(trees: Mapping[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    """The figures of each side, one value per round. Raises `BenchError` when a side does not run."""
    peers = [Holdfast(tree, name) for name, tree in trees.items()]
    results: dict[str, dict[str, list[float]]] = {name: {} for name in trees}
    with stage() as ground:
        for number in range(rounds):
            for peer in peers if number % 2 == 0 else reversed(peers):
                program = peer.find()
                if program is None:
                    raise BenchError(f"side {peer.name}: {peer.tree} holds no holdfast")
                print(f"\rround {number + 1}/{rounds}: {peer.name} ", end="", file=sys.stderr, flush=True)
                with ground.run(peer, program) as running:
                    values = throughput(running, FULL) | echo(running, FULL)
                if values["failed"]:
                    raise BenchError(f"side {peer.name}: {values['failed']:.0f} requests failed")
                for key, value in values.items():
                    results[peer.name].setdefault(key, []).append(value)
    print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("before", metavar="A")
    parser.add_argument("after", metavar="B", nargs="?", default=".", help="default: the working tree")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="default: 6, about 80 s")
    given = parser.parse_args(argv)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    with tempfile.TemporaryDirectory(prefix="holdfast-compare-") as name:
        sides = {"A": given.before, "B": given.after}
        trees = {}
        for side, revision in sides.items():
            folder = Path(name) / side
            folder.mkdir()
            trees[side] = checkout(revision, folder)
        results = run(trees, given.rounds)
    for key, label, factor, decimals in FIGURES:
        before, after = (results[side][key] for side in sides)
        middles = (f"{statistics.median(values) * factor:,.{decimals}f}" for values in (before, after))
        print(f"{label:<28} {' -> '.join(middles):<22} {Change.of(before, after)}")
    return 0


if __name__ == "__main__":
    end_on_sigterm()
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench.compare: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
