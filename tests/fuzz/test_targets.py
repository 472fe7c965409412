"""A short run over every target: the corpus, what was once a finding, and seeded mutations of both.

`make fuzz` runs for as long as one likes, guided by coverage.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, mutated

CORPUS = Path(__file__).parent / "corpus"
MUTATIONS = 1500
SLOW = {"configuration": 60, "registry_file": 120, "admin_bodies": 400}
"""Those that cost milliseconds each."""


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_the_documented_error_comes_of_any_bytes(name: str) -> None:
    target = TARGETS[name]
    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert len(seeds) >= 4
    for seed in seeds:
        target(seed)
        for cut in (1, len(seed) // 2, len(seed) - 1):
            target(seed[:cut])
    rng = random.Random(name)
    for _ in range(SLOW.get(name, MUTATIONS)):
        data = mutated(rng.choice(seeds), rng)
        try:
            target(data)
        except Exception as error:
            error.add_note(f"{name} of {data!r}")
            raise


def test_every_folder_of_the_corpus_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
