"""What the environment and the command line say, laid over the tree of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from config.checks import Path, written
from config.document import parse
from config.shape import ROOT, Kind, Shape
from config.tree import COMMAND_LINE, NULLS, Node, Place, Problem

PREFIX = "HOLDFAST_"
RESERVED = frozenset({"HOLDFAST_ADMIN", "HOLDFAST_ADMIN_TOKEN", "HOLDFAST_AGENT_TOKEN"})
"""Variables of the command-line client and of the chat; they set no key."""

# Kubernetes puts these into every pod beside a Service called holdfast or holdfast-…
_SERVICE_LINK = re.compile(
    r"HOLDFAST(_[A-Z0-9]+)*?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


def overlay_environment(root: Node, environ: Mapping[str, str]) -> list[Problem]:
    """Sets in `root` what `HOLDFAST_…` variables say; `__` separates keys, numbers are entries of lists.

    A key is found whatever its case, and `_` finds `-` and `.` in names that are in `root` already.
    """
    problems: list[Problem] = []
    for name in sorted(filter(_is_ours, environ), key=_order):
        place = Place(1, f"env {name}")
        try:
            problems += _set(root, name.removeprefix(PREFIX).split("__"), environ[name], place)
        except ValueError as error:
            problems.append(Problem(place, "", str(error)))
    return problems


def overlay_overrides(root: Node, overrides: Mapping[str, object]) -> None:
    """Sets in `root` what the command line says: nested mappings are merged, anything else replaces."""
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            overlay_overrides(_enter(root, key, COMMAND_LINE), value)
        else:
            _put(root, key, _node(value))


def _node(value: object) -> Node:
    if isinstance(value, Mapping):
        return Node({key: _node(item) for key, item in value.items()}, COMMAND_LINE)
    if isinstance(value, (list, tuple)):
        return Node([_node(item) for item in value], COMMAND_LINE)
    return Node(value, COMMAND_LINE)


def _is_ours(name: str) -> bool:
    linked = "__" not in name and _SERVICE_LINK.fullmatch(name)
    return name.startswith(PREFIX) and name not in RESERVED and not linked


def _order(name: str) -> list[tuple[int, int, str]]:
    # Entry 2 of a list is set before entry 10, and a section before its keys.
    return [(0, int(step), "") if step.isdecimal() else (1, 0, step) for step in name.split("__")]


def _set(root: Node, steps: list[str], text: str, place: Place) -> list[Problem]:
    """Raises `ValueError` before anything is set when the name leads nowhere."""
    node: Node | None = root
    shape: Shape | None = ROOT
    path = Path()
    for step in steps:
        key = _key(node, shape, step)
        shape = None if shape is None else shape.below(key, None if node is None else node.tag)
        path = (*path, key)
        node = None if node is None else _at(node, key)
    value, problems = _value(text, shape, place, path)
    holder = root
    for key in path[:-1]:
        holder = _enter(holder, key, place)
    _put(holder, path[-1], value)
    return problems


def _at(node: Node, key: str | int) -> Node | None:
    if isinstance(key, str):
        return node.children.get(key)
    if node.children:
        return node if key == 0 else None
    return node.items[key] if key < len(node.items) else None


def _key(node: Node | None, shape: Shape | None, step: str) -> str | int:
    """The key that a part of a variable's name means. Raises `ValueError` where there can be none."""
    if not step:
        raise ValueError("does not name a key; write it as HOLDFAST_SECTION__KEY")
    children = {} if node is None else node.children
    items = [] if node is None else node.items
    if shape is not None and shape.kind is Kind.LIST:
        if step.isdecimal():
            length = 1 if children else len(items)
            if int(step) > length:
                raise ValueError(f"there is no entry {length} yet, so there can be no entry {step}")
            return int(step)
        shape = shape.entry
        if items or shape.kind is not Kind.SECTION:
            raise ValueError(f"{step} must be a number: which entry of the list, from 0")
    if shape is not None and shape.kind is Kind.SCALAR:
        raise ValueError(f"there is no key {step} below a single value")
    known = [*children, *(shape.keys(None if node is None else node.tag) if shape is not None else ())]
    return next((key for key in known if _folded(key) == _folded(step)), step.lower())


def _folded(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _enter(node: Node, key: str | int, place: Place) -> Node:
    """The node at `key`, made there when nothing is or something that has no keys."""
    if isinstance(key, int):
        entries = _entries(node)
        if key == len(entries):
            entries.append(Node({}, place))
        return entries[key]
    if not isinstance(node.value, dict):
        # An instance may be written as nothing but its address.
        known = isinstance(node.value, str) and node.value != "none"
        node.value = {"address": Node(node.value, node.place)} if known else {}
    return node.children.setdefault(key, Node({}, place, place))


def _put(node: Node, key: str | int, value: Node) -> None:
    if isinstance(key, int):
        entries = _entries(node)
        entries[key:] = [value, *entries[key + 1 :]]
    else:
        _enter(node, key, value.place)
        value.key = value.place
        node.children[key] = value


def _entries(node: Node) -> list[Node]:
    if not isinstance(node.value, list):
        # A single registry may be written without its list.
        node.value = [Node(node.value, node.place, node.key)] if node.children else []
    return node.items


def _value(text: str, shape: Shape | None, place: Place, path: Path) -> tuple[Node, list[Problem]]:
    stripped = text.strip()
    kind = Kind.SCALAR if shape is None else shape.kind
    if kind is not Kind.SCALAR and stripped.startswith(("{", "[")) and not _is_address(stripped):
        node, problems = parse(stripped, lambda line, column: place)
        below = [Problem(place, _join(written(path), problem.path), problem.message) for problem in problems]
        return node or Node(None, place), below
    if stripped in NULLS:
        return Node(None, place), []
    if shape is not None and kind is Kind.LIST and shape.entry.kind is Kind.SCALAR and stripped != "none":
        return Node([Node(part.strip(), place) for part in stripped.split(",")], place), []
    return Node(stripped, place), []


def _is_address(text: str) -> bool:
    return re.fullmatch(r"\[[0-9a-fA-F:.]+\]:[0-9]+", text) is not None


def _join(path: str, below: str) -> str:
    return path + (below if below.startswith("[") or not below else f".{below}")
