"""Values as they were written, each with the place it was written at; and the problems found in them."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = object()
"""Stands for a value that could not be made out; its problem is known, whatever else is wrong with it."""

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
"""Plain scalars that stand for null: YAML 1.2.2 section 10.3.2."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written: a file with line and column from 1, or a source that has no lines.

    `rank` orders sources: file 0, environment 1, command line 2.
    """

    rank: int
    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


COMMAND_LINE = Place(2, "command line")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake: where it is, the path of the key (empty for the file as a whole), what is wrong."""

    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), self.path, self.message) if part)


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has every mistake, sorted by place; `str` one a line."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(slots=True)
class Node:
    """A value: text, None, or a dict or list of nodes (from the command line also numbers and booleans).

    Scalars stay text, whatever they look like: the schema knows better than YAML whether `1.10` is a version.
    """

    value: object
    place: Place
    key: Place | None = None
    """Where the key is that it belongs to, when it has one."""
    template: str | None = None
    """The text before `${…}` was filled in; shown instead of the value, which may be secret."""

    @property
    def children(self) -> dict[str, Node]:
        """The entries of a mapping; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The entries of a sequence; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    @property
    def head(self) -> Place:
        """What a person should look at: a scalar itself, or the key of what is longer than a line."""
        return self.key if self.key is not None and isinstance(self.value, (dict, list)) else self.place

    @property
    def tag(self) -> str | None:
        """The text at `kind`, which chooses between sections."""
        kind = self.children.get("kind")
        return kind.value if kind is not None and isinstance(kind.value, str) else None

    def plain(self) -> object:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value
