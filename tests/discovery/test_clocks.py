"""No decision goes by the wall clock: it jumps, by hand, by NTP and with a machine that was suspended."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

DISCOVERY = Path(__file__).parents[2] / "discovery"
FILES = sorted(DISCOVERY.rglob("*.py"))
WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.localtime", "time.gmtime"}
ALLOWED = {"embedded/server.py": {"time.time_ns"}}
"""Where an index begins: it only has to be above that of an earlier process, and is compared with no time."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DISCOVERY)))
def test_only_the_monotonic_clock_is_read(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    read = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert read & WALL <= ALLOWED.get(str(path.relative_to(DISCOVERY)), set())
