"""What changes between two configurations, and what each change does to a running proxy. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from config.schema import Config, Model
from config.shape import ROOT, Kind, Shape, shape_of_field
from config.written import value_written

Steps = tuple[str, ...]


class Effect(StrEnum):
    """How a reload puts a change into force."""

    LIVE = "live"
    """At once, for the next request, also on connections that are open."""
    NEW_CONNECTIONS = "new connections"
    """For connections and WebSockets that begin afterwards."""
    DRAINS = "drains"
    """At once; what is in flight on the instances that go has the service's drain timeout to finish."""
    RESTART = "needs restart"
    """Not by a reload; `holdfast upgrade` puts it into force without dropping a connection."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `before` and `after` are as people write them, secrets masked; None is absent."""

    path: str
    before: object
    after: object
    effect: Effect

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.path}: {_line(self.after)} ({self.effect})"
        if self.after is None:
            return f"- {self.path}: {_line(self.before)} ({self.effect})"
        if self.before == self.after:
            # Only a secret has two values that are written alike.
            return f"~ {self.path}: changed ({self.effect})"
        return f"~ {self.path}: {_line(self.before)} -> {_line(self.after)} ({self.effect})"


# The first row that matches the beginning of a path decides; `*` stands for any one step.
_EFFECTS: tuple[tuple[Steps, Effect], ...] = (
    (("listen",), Effect.RESTART),
    (("admin", "address"), Effect.RESTART),
    (("registry",), Effect.RESTART),
    (("guard",), Effect.RESTART),
    (("state",), Effect.RESTART),
    (("limits", "connections"), Effect.LIVE),
    (("limits",), Effect.NEW_CONNECTIONS),
    (("timeout",), Effect.NEW_CONNECTIONS),
    (("trusted_proxies",), Effect.NEW_CONNECTIONS),
    (("via",), Effect.NEW_CONNECTIONS),
    (("services", "*", "websocket"), Effect.NEW_CONNECTIONS),
    (("services", "*", "timeout", "connect"), Effect.NEW_CONNECTIONS),
    (("services", "*", "instances", "*", "address"), Effect.DRAINS),
    ((), Effect.LIVE),
)
# What tells the entries of a list apart: the first of these that they have.
_IDENTITIES = ("name", "service", "id", "kind", "address", "form")
_LEAVING: tuple[Steps, ...] = (("services", "*"), ("services", "*", "instances", "*"))


def diff(old: Config, new: Config) -> list[Change]:
    """Every difference, in the order of the schema; empty when both are equal."""
    return list(_compare((), old, new, ROOT))


def effects() -> Iterator[tuple[str, str]]:
    """The rules for the documentation: a path, empty for all others, and what a change of it does."""
    for row in _LEAVING:
        yield _written(row), f"{Effect.DRAINS} when it is removed"
    for row, effect in _EFFECTS:
        yield _written(row), effect.value


def _compare(path: Steps, old: object, new: object, shape: Shape) -> Iterator[Change]:
    if old == new:
        return
    if isinstance(old, Model) and isinstance(new, Model) and type(old) is type(new):
        for name, field in type(old).model_fields.items():
            below = shape_of_field(field)
            yield from _compare((*path, name), getattr(old, name), getattr(new, name), below)
    elif isinstance(old, dict) and isinstance(new, dict):
        yield from _entries(path, old, new, shape)
    elif isinstance(old, tuple) and isinstance(new, tuple) and shape.entry.kind is Kind.SECTION:
        before, after = _named(old), _named(new)
        yield from _entries(path, before, after, shape)
        kept = [[name for name in names if name in before and name in after] for names in (before, after)]
        if kept[0] != kept[1]:
            yield Change(f"{_written(path)} (order)", kept[0], kept[1], _effect(path))
    else:
        yield _change(path, old, new, shape)


def _entries(
    path: Steps, old: Mapping[str, object], new: Mapping[str, object], shape: Shape
) -> Iterator[Change]:
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name), new.get(name)
        if before is None or after is None:
            yield _change((*path, name), before, after, shape.entry)
        else:
            yield from _compare((*path, name), before, after, shape.entry)


def _change(path: Steps, old: object, new: object, shape: Shape) -> Change:
    before, after = (value_written(value, shape, brief=True) for value in (old, new))
    drained = new is None and any(len(path) == len(row) and _begins(path, row) for row in _LEAVING)
    return Change(_written(path), before, after, Effect.DRAINS if drained else _effect(path))


def _named(sections: tuple[object, ...]) -> dict[str, object]:
    """Entries of a list by what identifies them; entries that are alike get a number."""
    named: dict[str, object] = {}
    for section in sections:
        name = base = _identity(section)
        number = 1
        while name in named:
            number += 1
            name = f"{base} {number}"
        named[name] = section
    return named


def _identity(section: object) -> str:
    fields = type(section).model_fields if isinstance(section, Model) else {}
    return str(getattr(section, next(key for key in _IDENTITIES if key in fields)))


def _begins(path: Steps, row: Steps) -> bool:
    return len(path) >= len(row) and all(want in ("*", step) for want, step in zip(row, path, strict=False))


def _effect(path: Steps) -> Effect:
    return next(effect for row, effect in _EFFECTS if _begins(path, row))


def _written(path: Steps) -> str:
    """`services.chat.instances[a].weight`: what tells list entries apart is in brackets."""
    text, shape = "", ROOT
    for step in path:
        text += f"[{step}]" if shape.kind is Kind.LIST else f".{step}" if text else step
        below = shape.below(step) if shape.kind is not Kind.LIST else shape.entry
        if below is None:
            raise KeyError(text)
        shape = below
    return text


def _line(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
