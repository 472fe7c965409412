"""docs/security.md names tests that there are, and shows every defence tried."""

from __future__ import annotations

import ast
import re

from tests.docs.conftest import ROOT

PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")


def existing_tests() -> set[str]:
    """The names of all test functions."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"\btest_\w+", PAGE))
    assert len(named) > 40
    assert named - existing_tests() == set()


def test_every_threat_has_a_defence_and_was_tried() -> None:
    tables = re.findall(r"^\| threat \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.M)
    assert len(tables) == 5
    for row in "".join(tables).splitlines():
        _, threat, defence, tried, _ = re.split(r" ?\| ?", row)
        assert threat
        assert defence
        assert re.search(r"`test_\w+`", tried), threat


def test_the_folders_and_commands_that_the_page_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)`", PAGE)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for folder in set(re.findall(r"`(tests/[\w/]+)`", PAGE)):
        assert (ROOT / folder).is_dir(), folder
