"""`python -m bench`: holdfast and the other proxies of this machine, side by side, in one table."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench import report
from bench.children import BenchError, end_on_sigterm
from bench.peers import ROOT, Peer, Place, all_peers
from bench.stage import Stage, stage
from bench.trial import FULL, QUICK, Effort, trial

DOCUMENT = ROOT / "docs" / "benchmarks.md"
ORIGIN = "no proxy"
"""The column that talks to the origins directly: the most that this machine can show."""


class Series:
    """The values of all rounds. A proxy that fails once leaves the comparison, and the report says why."""

    def __init__(self, programs: dict[Peer, Path]) -> None:
        self._programs = dict(programs)
        self.results: dict[str, dict[str, list[float]]] = {}
        self.dropped: list[str] = []

    def round(self, ground: Stage, effort: Effort) -> Iterator[str]:
        """Tries every proxy once and then the origins alone; yields each name before its trial."""
        for peer, program in list(self._programs.items()):
            yield peer.name
            try:
                with ground.run(peer, program) as running:
                    self._add(peer.name, trial(running, effort))
            except (BenchError, OSError, TimeoutError) as error:
                del self._programs[peer]
                self.results.pop(peer.name, None)
                self.dropped.append(f"{peer.name} dropped out: {' '.join(str(error).split())}")
        yield ORIGIN
        self._add(ORIGIN, trial(ground.origin(), effort))

    def _add(self, name: str, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.results.setdefault(name, {}).setdefault(key, []).append(value)


def choose(only: Sequence[str] | None) -> tuple[dict[Peer, Path], list[str]]:
    """The proxies to run with their programs, and the names of those that are not on this machine.

    Raises `BenchError` for a name that is none of them.
    """
    peers = all_peers()
    if unknown := set(only or ()) - {peer.name for peer in peers}:
        known = ", ".join(peer.name for peer in peers)
        raise BenchError(f"no such proxy: {', '.join(sorted(unknown))}; there are {known}")
    wanted = [peer for peer in peers if not only or peer.name in only]
    programs = {peer: program for peer in wanted if (program := peer.find()) is not None}
    return programs, [peer.name for peer in wanted if peer not in programs]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds: about a minute, more noise")
    parser.add_argument("--rounds", type=int, metavar="N", help="how many interleaved rounds")
    parser.add_argument("--only", metavar="NAMES", help="these proxies, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value of every round there")
    parser.add_argument(
        "--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}"
    )
    given = parser.parse_args(argv)
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be at least 1")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(argv)
    effort = QUICK if given.quick else FULL
    if given.rounds is not None:
        effort = replace(effort, rounds=given.rounds)
    programs, missing = choose([name.strip() for name in given.only.split(",")] if given.only else None)
    if not programs:
        raise BenchError(f"none of them is on this machine: {', '.join(missing)} (try: make bench-tools)")
    versions = {peer.name: peer.version(program) for peer, program in programs.items()}
    series = Series(programs)
    with stage() as ground:
        for number in range(1, effort.rounds + 1):
            for name in series.round(ground, effort):
                print(f"\rround {number}/{effort.rounds}: {name:<20}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 50 + "\r", end="", file=sys.stderr)

    notes = series.dropped + report.doubts(series.results)
    notes += [f"Not on this machine: {', '.join(missing)}."] if missing else []
    told = "; ".join(f"{name} {version}".strip() for name, version in versions.items())
    body = [
        f"{datetime.date.today()}, {report.machine()}. {told}.",
        report.table(series.results),
        report.conditions(effort),
        *(["\n".join(f"- {note}" for note in notes)] if notes else []),
    ]
    print("\n\n".join(body))
    if given.json:
        record = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": report.machine(),
            "versions": versions,
            "effort": asdict(effort),
            "results": series.results,
            "notes": notes,
        }
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    if given.write and series.dropped:
        print(f"\n{DOCUMENT.name} is left as it was, since not every proxy got through.")
    elif given.write:
        example = Place(port=8080, admin=9900, http=9001, echo=9002, folder=Path("/var/lib/bench"))
        settings = "\n".join(f"- {peer.name}: {peer.settings}" for peer in programs)
        configurations = {peer.name: peer.files(example) for peer in programs}
        text = report.section([*body, f"Access log and metrics:\n\n{settings}"], configurations)
        DOCUMENT.write_text(report.replace_section(DOCUMENT.read_text(), text))
    return 1 if series.dropped else 0


if __name__ == "__main__":
    end_on_sigterm()
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
