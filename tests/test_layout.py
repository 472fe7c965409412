"""The layout that docs/architecture.md promises, by the source: who imports whom, and what stays pure."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("config", "discovery", "proxy", "chat")

PURE = {
    f"proxy.{name}"
    for name in (
        "balance",
        "body",
        "checkpoint",
        "errors",
        "fields",
        "frames",
        "gradient",
        "hashed",
        "hashing",
        "handshake",
        "head",
        "headers",
        "keys",
        "limit",
        "member",
        "outlier",
        "paths",
        "phases",
        "relay",
        "replay",
        "retry",
        "route",
        "sidecar.notice",
        "split",
        "sticky",
    )
} | {f"discovery.{name}" for name in ("belief", "damping", "entry", "labels", "model")}
"""Policies: bytes and numbers in, decisions out. Time and randomness are arguments."""

IMPURE = {
    "aiohttp",
    "asyncio",
    "concurrent",
    "datetime",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
    "uvloop",
}
"""Modules that do I/O, read a clock or draw at random."""

CHAT_MAY = {"discovery.consul_registrar", "discovery.model", "discovery.register"}
"""What the chat needs of discovery: how to enter itself."""

ENTERING = {"discovery.build", "discovery.labels", "discovery.register", "discovery.registrar"}
"""What the sidecar's duties need of discovery."""

IMPURE_CALLS = {"open", "print", "input", "exec", "eval"}


def sources() -> dict[str, str]:
    """Module name -> source, of all rooms."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
    return found


def packages(modules: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in modules} | set(ROOMS)


def imports(module: str, source: str, known: Mapping[str, str]) -> set[str]:
    """Every module that a source imports, at its top, inside a function or for the type checker only.

    Of ours the exact modules: `from proxy import route` is `proxy.route`.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if module in packages(known) else module.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in known else base)
    return found - {module}


def graph() -> dict[str, set[str]]:
    modules = sources()
    return {name: imports(name, source, modules) for name, source in modules.items()}


def room(module: str) -> str | None:
    top = module.partition(".")[0]
    return top if top in ROOMS else None


def below(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def may_import(importer: str, imported: str) -> bool:
    """Whether the direction of one import between our modules is right."""
    own, other = room(importer), room(imported)
    if other is None or other == own:
        return True
    if own == "config":
        return False
    if own == "discovery":
        return other == "config"
    if own == "chat":
        return other == "config" or imported in CHAT_MAY
    if below(importer, "proxy.sidecar") and imported in ENTERING:
        return True
    if below(importer, "proxy.app", "proxy.cli"):
        return other != "chat" or below(importer, "proxy.cli")
    return other == "config" or imported == "discovery.model"


def impurities(module: str, source: str, known: Mapping[str, str]) -> list[str]:
    """What a policy file does that it must not."""
    found = []
    for imported in sorted(imports(module, source, known)):
        top = imported.partition(".")[0]
        if top in IMPURE or (room(imported) == "proxy" and imported not in PURE):
            found.append(f"{module} imports {imported}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names):
            found.append(f"{module} imports the module random; take a random.Random as an argument")
        elif isinstance(node, ast.ImportFrom) and node.module == "random":
            found += [f"{module} imports random.{a.name}" for a in node.names if a.name != "Random"]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in IMPURE_CALLS:
                found.append(f"{module} calls {node.func.id}()")
            elif node.func.id == "Random":
                found.append(f"{module} makes a Random of its own")
    return found


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """One cycle for each place where a depth-first walk meets its own path."""
    found: list[list[str]] = []
    finished: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in finished:
            return
        for imported in sorted(edges.get(module, ())):
            if imported in edges:
                walk(imported, [*path, module])
        finished.add(module)

    for module in sorted(edges):
        walk(module, [])
    return found


def test_imports_go_in_one_direction() -> None:
    wrong = [
        f"{importer} imports {imported}"
        for importer, found in graph().items()
        for imported in sorted(found)
        if not may_import(importer, imported)
    ]
    assert wrong == []


def test_the_policies_are_pure() -> None:
    modules = sources()
    assert modules.keys() >= PURE
    assert [fault for name in sorted(PURE) for fault in impurities(name, modules[name], modules)] == []


def test_there_are_no_import_cycles() -> None:
    assert [" -> ".join(cycle) for cycle in cycles(graph())] == []


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("config.load", "config.schema", True),
        ("config.load", "discovery.model", False),
        ("discovery.watch", "config.schema", True),
        ("discovery.watch", "proxy.table", False),
        ("proxy.table", "discovery.model", True),
        ("proxy.table", "discovery.watch", False),
        ("proxy.table", "discovery", False),
        ("proxy.app", "discovery.watch", True),
        ("proxy.app", "chat.server", False),
        ("proxy.application", "discovery.watch", False),
        ("proxy.cli.run", "chat.server", True),
        ("chat.server", "discovery.register", True),
        ("chat.server", "discovery.watch", False),
        ("chat.server", "proxy.errors", False),
        ("chat.server", "asyncio", True),
    ],
)
def test_the_check_of_the_direction_can_fail(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from asyncio import sleep",
        "def f():\n    import socket",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import threading",
        "import random",
        "from random import choice",
        "from random import Random\nr = Random(1)",
        "open('x')",
        "from proxy.table import Table",
        "from .table import Table",
        "from . import table",
    ],
)
def test_the_check_of_purity_can_fail(source: str) -> None:
    assert impurities("proxy.route", source, sources()) != []


def test_the_check_of_purity_lets_policies_use_each_other() -> None:
    source = (
        "import re\nfrom random import Random\nfrom proxy.split import Split\nfrom config.schema import Match"
    )
    assert impurities("proxy.route", source, sources()) == []


def test_the_check_of_cycles_can_fail() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_read_in_all_their_forms() -> None:
    known = {"proxy": "", "proxy.admin": "", "proxy.admin.api": "", "proxy.route": "", "proxy.table": ""}
    source = "import proxy.route\nfrom proxy import table, other\nfrom . import api\nfrom .. import route"
    assert imports("proxy.admin", source, known) == {"proxy.route", "proxy.table", "proxy", "proxy.admin.api"}
    assert imports("proxy.admin.api", "from ..table import T", known) == {"proxy.table"}
