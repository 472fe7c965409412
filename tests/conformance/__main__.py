"""`python -m tests.conformance`: every case against every proxy on this machine, as one table in Markdown.

`--only NAME` takes one proxy and tells of each failure; `--case TEXT` those cases whose name has the text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.peers import Peer
from tests.conformance.case import Case
from tests.conformance.driver import Driver
from tests.conformance.proxies import StartError, everybody, running
from tests.conformance.report import Outcome, Score, page
from tests.conformance.table import CASES


def play_all(peer: Peer, cases: Sequence[Case]) -> Score | None:
    """Every case against one proxy; None when it is not on this machine."""
    program = peer.find()
    if program is None:
        return None
    outcomes: dict[str, Outcome] = {}
    for case in cases:
        if case.only not in ("", peer.name):
            outcomes[case.id] = Outcome.NOT_ASKED
    todo = [case for case in cases if case.id not in outcomes]
    driver = Driver(quiet=0.02 if peer.name == "holdfast" else 0.06, patience=3.0)
    wrong: dict[str, str] = {}
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            running(peer, driver.public_port, driver.private_port, Path(folder)) as port,
        ):
            driver.port = port
            driver.wait_until_open()
            for case in todo:
                _, wrong[case.id] = driver.play(case)
                outcomes[case.id] = Outcome.FAILED if wrong[case.id] else Outcome.PASSED
    finally:
        driver.close()
    version = "" if peer.name == "holdfast" else peer.version(program)
    return Score(peer.name, version, outcomes, wrong)


def _score(peer: Peer, cases: Sequence[Case]) -> Score | None:
    try:
        score = play_all(peer, cases)
    except (StartError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return None
    if score is None:
        print(f"{peer.name} is not installed", file=sys.stderr)
    return score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--case", default="", metavar="TEXT")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="where the table goes instead of the screen"
    )
    options = parser.parse_args()
    cases = [case for case in CASES if options.case in case.id]
    asked = [peer for peer in everybody() if not options.only or peer.name in options.only]
    with ThreadPoolExecutor(max_workers=3) as pool:  # they wait for time-outs more than they work
        scores = [score for score in pool.map(lambda peer: _score(peer, cases), asked) if score is not None]
    for score in scores:
        print(score.summary(cases), file=sys.stderr)
        if options.only:
            for case in cases:
                if score.wrong.get(case.id):
                    print(f"  {case.level} {case.id}: {score.wrong[case.id]}", file=sys.stderr)
    text = page(cases, scores)
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")
    elif not options.only:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
