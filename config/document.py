"""YAML or JSON text into a tree of nodes that know their line and column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from config.checks import Path, written
from config.tree import NULLS, UNKNOWN, Node, Place, Problem
from config.variables import protect, restore

_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset(
    _CORE + name for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)
# Aliases can make a short file describe an endless one.
_MOST_REPEATED = 100_000


Fill = Callable[[str], str]
"""Gives a scalar with its `${…}` replaced, or raises `ValueError`."""


def parse(
    text: str, place: Callable[[int, int], Place], fill: Fill = str
) -> tuple[Node | None, list[Problem]]:
    """The tree of one document, None when it is empty or broken, and what is wrong with it.

    `place` makes a `Place` out of a line and a column that count from 0; `fill` is applied to every value.
    """
    # Imported here: the parser is not needed by a process that is given no file.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False
    try:
        root = yaml.compose(protect(text))
    except MarkedYAMLError as error:
        return None, [_syntax(error, place)]
    except ReaderError as error:
        before = text[: error.position]
        where = place(before.count("\n"), len(before) - before.rfind("\n") - 1)
        return None, [Problem(where, "", f"the character U+{_codepoint(error):04X} is not allowed in YAML")]
    except RecursionError:
        return None, [Problem(place(0, 0), "", "is nested too deeply")]
    if root is None:
        return None, []
    builder = _Builder(place, fill)
    return builder.build(root, ()), builder.problems


def _codepoint(error: Any) -> int:
    return error.character if isinstance(error.character, int) else ord(error.character)


def _syntax(error: Any, place: Callable[[int, int], Place]) -> Problem:
    mark = error.problem_mark or error.context_mark
    # The mark's own snippet is left out: it would show the line, and whatever secret is in it.
    problem = "found an alias without anchor" if "undefined alias" in (error.problem or "") else error.problem
    context = f" ({error.context})" if error.context else ""
    return Problem(
        place(mark.line, mark.column), "", f"not valid YAML: {problem or 'cannot be read'}{context}"
    )


class _Builder:
    """Turns the parser's nodes into ours; collects duplicate keys, foreign tags and endless aliases."""

    def __init__(self, place: Callable[[int, int], Place], fill: Fill) -> None:
        self.problems: list[Problem] = []
        self._place = place
        self._fill = fill
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._repeated = 0

    def build(self, node: Any, path: Path, key: Place | None = None) -> Node:
        where = self._at(node)
        if id(node) in self._seen:
            self._repeated += 1
        self._seen.add(id(node))
        if self._repeated > _MOST_REPEATED:
            if self._repeated == _MOST_REPEATED + 1:
                self._problem(where, path, "its aliases make it too large")
                self._repeated += 1
            return Node(None, where, key)
        if id(node) in self._open:
            self._problem(where, path, "contains itself through an alias")
            return Node(None, where, key)
        if isinstance(node.value, str):
            return self._scalar(node, path, where, key)
        self._open.add(id(node))
        value: object
        if node.tag == _CORE + "seq":
            value = [self.build(item, (*path, number)) for number, item in enumerate(node.value)]
        elif node.tag == _CORE + "map":
            value = self._mapping(node, path)
        else:
            self._problem(where, path, "YAML tags are not supported")
            value = None
        self._open.discard(id(node))
        return Node(value, where, key)

    def _scalar(self, node: Any, path: Path, where: Place, key: Place | None) -> Node:
        if node.tag not in _TAGS:
            self._problem(where, path, "YAML tags are not supported")
            return Node(None, where, key)
        template = _whole(restore(node.value))
        try:
            text = self._fill(template)
        except ValueError as error:
            self._problem(where, path, str(error))
            return Node(UNKNOWN, where, key)
        null = node.style is None and text in NULLS
        return Node(None if null else text, where, key, template if text != template else None)

    def _mapping(self, node: Any, path: Path) -> dict[str, Node]:
        made: dict[str, Node] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            where = self._at(key_node)
            if not isinstance(key_node.value, str):
                self._problem(where, path, "a key must be plain text")
            elif key_node.tag == _CORE + "merge":
                merged += value_node.value if value_node.tag == _CORE + "seq" else [value_node]
            else:
                key = _whole(restore(key_node.value))
                child = self.build(value_node, (*path, key), where)
                if key in made:
                    first = made[key].key
                    self._problem(where, (*path, key), f"is given twice; the first is at {_short(first)}")
                else:
                    made[key] = child
        for source in merged:
            if getattr(source, "tag", None) != _CORE + "map":
                self._problem(self._at(source), path, "<< takes a mapping or a list of mappings")
                continue
            for key, child in self.build(source, path).children.items():
                made.setdefault(key, child)
        return made

    def _at(self, node: Any) -> Place:
        return self._place(node.start_mark.line, node.start_mark.column)

    def _problem(self, where: Place, path: Path, message: str) -> None:
        self.problems.append(Problem(where, written(path), message))


def _whole(text: str) -> str:
    """JSON writes characters beyond U+FFFF as two escaped surrogates (RFC 8259 section 7)."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _short(place: Place | None) -> str:
    return f"line {place.line}" if place is not None and place.line else "the beginning"
