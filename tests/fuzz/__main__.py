"""`make fuzz`: each target for a while, guided by coverage where atheris is installed.

    python -m tests.fuzz [--seconds 60] [TARGET…]

What makes a target fail is written to a file beside the corpus, whose name is said; put it into the corpus
together with the repair.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
import traceback
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
FINDINGS = FOLDER / "findings"
LEARNT = FOLDER / "learnt"
"""Inputs that reach something new; local, and a start for the next run."""


def main() -> int:
    """Returns the number of targets that failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--guided", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.guided:
        return _guided(options.guided, options.seconds)
    known = sorted(path.name for path in CORPUS.iterdir())
    for name in options.targets:
        if name not in known:
            parser.error(f"there is no target {name!r}; known: {', '.join(known)}")
    failed = 0
    for name in options.targets or known:
        if find_spec("atheris") is not None:
            command = [
                sys.executable,
                "-m",
                "tests.fuzz",
                "--guided",
                name,
                "--seconds",
                str(options.seconds),
            ]
            wrong = subprocess.run(command, check=False).returncode != 0
        else:
            wrong = not _blind(name, options.seconds)
        print(f"{name}: {'FAILED' if wrong else 'nothing found'}", flush=True)
        failed += wrong
    return failed


def _blind(name: str, seconds: int) -> bool:
    """Mutations of the corpus, without guidance."""
    from tests.fuzz.targets import TARGETS, mutated

    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    rng, end = random.Random(), time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng.choice(seeds), rng)
        try:
            TARGETS[name](data)
        except Exception:
            traceback.print_exc()
            FINDINGS.mkdir(exist_ok=True)
            path = FINDINGS / f"{name}-{sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            print(f"{name}: {path}")
            return False
    return True


def _guided(name: str, seconds: int) -> int:
    """In a process of its own, as the fuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["proxy", "config", "discovery", "chat"]):
        from tests.fuzz.targets import TARGETS
    for folder in (FINDINGS, LEARNT / name):
        folder.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-verbosity=0",
        "-print_final_stats=0",
        f"-artifact_prefix={FINDINGS}/{name}-",
        str(LEARNT / name),
        str(CORPUS / name),
    ]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
