"""Problems for people: where in the tree each one is, and what is wrong, in the words of this product."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from config.checks import Path, closest, written
from config.checks import Problem as Finding
from config.shape import ROOT, Kind, Shape, choices, tags_of
from config.tree import UNKNOWN, Node, Place, Problem


class _Spot:
    """What a location of a validation error means in the tree."""

    def __init__(self, root: Node, shape: Shape, location: Iterable[str | int]) -> None:
        self.node = root
        self.shape: Shape | None = shape
        self.parent: Shape | None = None
        self.parent_tag: str | None = None
        self.path = Path()
        self.is_key = False
        """The key itself is wrong, not what it stands for."""
        self.is_missing = False
        """The tree ends above; `node` is the nearest there is."""
        tag_seen = False
        for step in location:
            if step == "[key]":
                self.is_key = True
            elif not tag_seen and self._is_tag(step):
                tag_seen = True
            elif isinstance(step, str) or not self.node.children:
                self._descend(step)
                tag_seen = False

    def _is_tag(self, step: str | int) -> bool:
        shape = self.shape
        if shape is not None and shape.kind is Kind.LIST and self.node.children:
            shape = shape.entry
        return shape is not None and len(shape.models) > 1 and step == self.node.tag

    def _descend(self, step: str | int) -> None:
        self.parent, self.parent_tag = self.shape, self.node.tag
        self.shape = None if self.shape is None else self.shape.below(step, self.node.tag)
        children = self.node.children
        if isinstance(step, str) and step in children and not self.is_missing:
            self.node = children[step]
        elif isinstance(step, int) and step < len(self.node.items) and not self.is_missing:
            self.node = self.node.items[step]
        elif not self.is_missing and not isinstance(self.node.value, (dict, list)):
            # An address stands for a whole instance: what is wrong in it is wrong with the text.
            return
        else:
            self.is_missing = True
        self.path = (*self.path, step)

    @property
    def place(self) -> Place:
        if self.is_key and self.node.key is not None:
            return self.node.key
        return self.node.head

    @property
    def siblings(self) -> tuple[str, ...]:
        """The keys that may stand where this one does."""
        shape = self.parent
        if shape is not None and shape.kind is Kind.LIST:
            shape = shape.entry
        return () if shape is None else shape.keys(self.parent_tag)

    @property
    def shown(self) -> str:
        """The value as a message may show it: never a secret."""
        value = self.node.template if self.node.template is not None else self.node.value
        if self.shape is not None and self.shape.secret:
            return "this"
        match value:
            case None:
                return "nothing"
            case dict():
                return "a section"
            case list():
                return "a list"
        return repr(value)


class Finder:
    """Turns findings and validation errors into problems that have a place."""

    def __init__(self, root: Node, hide: Callable[[str], str] = str, shape: Shape = ROOT) -> None:
        """`shape` is what the tree should look like."""
        self._root = root
        self._hide = hide
        self._shape = shape

    def of_findings(self, findings: Iterable[Finding]) -> list[Problem]:
        """The problems that `config.checks` found."""
        spots = ((_Spot(self._root, self._shape, path), message) for path, message in findings)
        return [self._problem(spot, message) for spot, message in spots]

    def of_validation(self, error: ValidationError) -> list[Problem]:
        """The problems that the schema found; what is already known of a value is not said twice."""
        problems = []
        for detail in error.errors(include_url=False, include_input=False):
            spot = _Spot(self._root, self._shape, detail["loc"])
            if spot.node.value is UNKNOWN:
                continue
            spot.is_key |= detail["type"] == "extra_forbidden"
            message = _message(detail["type"], detail.get("ctx", {}), detail["msg"], spot)
            problems.append(self._problem(spot, message))
        return problems

    def _problem(self, spot: _Spot, message: str) -> Problem:
        """Shows what came out of a variable as it was written: it may be a secret."""
        if spot.node.template is not None:
            message = message.replace(repr(spot.node.value), repr(spot.node.template))
        return Problem(spot.place, written(spot.path), self._hide(message))


def _message(kind: str, context: Mapping[str, Any], original: str, spot: _Spot) -> str:
    if "problem" in context:
        return str(context["problem"])
    if kind == "extra_forbidden":
        return f"is not a known key{closest(str(spot.path[-1]), spot.siblings)}"
    if kind == "missing":
        return "is required"
    if spot.node.value is None and not spot.is_missing:
        return "needs a value"
    if "error" in context:
        return str(context["error"])
    if kind in ("enum", "literal_error", "union_tag_invalid", "union_tag_not_found"):
        return _one_of(kind, spot)
    wording = _WORDINGS.get(kind)
    return wording(spot.shown, context) if wording is not None else original


def _one_of(kind: str, spot: _Spot) -> str:
    shape = spot.shape
    if kind.startswith("union_tag"):
        if shape is not None and shape.kind is Kind.LIST:
            shape = shape.entry
        words = [tag for model in (shape.models if shape is not None else ()) for tag in tags_of(model)]
        if kind == "union_tag_not_found":
            return f"needs a kind, one of {', '.join(words)}"
        spot.path, spot.node, spot.shape = (*spot.path, "kind"), spot.node.children["kind"], None
    else:
        words = list(choices(shape)) if shape is not None else []
    value = spot.node.value
    hint = closest(value, words) if isinstance(value, str) else ""
    return f"{spot.shown} is not one of {', '.join(words)}{hint}"


def _expected(what: str) -> Callable[[str, Mapping[str, Any]], str]:
    return lambda shown, context: f"must be {what}, not {shown}"


def _section(shown: str, context: Mapping[str, Any]) -> str:
    """Without the text that stands there: it may be a token, or a URL with one."""
    found = shown if shown in _NO_TEXT else "a single value"
    return f"must be a section (key: value), not {found}"


_LIST = _expected("a list")
_WHOLE = _expected("a whole number")
_TRUTH = _expected("true or false")
_TEXT = _expected("text")
_NO_TEXT = ("nothing", "a section", "a list")
_WORDINGS: Mapping[str, Callable[[str, Mapping[str, Any]], str]] = {
    "model_type": _section,
    "model_attributes_type": _section,
    "dict_type": _section,
    "tuple_type": _LIST,
    "list_type": _LIST,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "bool_type": _TRUTH,
    "bool_parsing": _TRUTH,
    "string_type": _TEXT,
    "too_short": lambda shown, context: "must not be empty",
    "greater_than": lambda shown, context: f"must be more than {context['gt']}, not {shown}",
    "greater_than_equal": lambda shown, context: f"must be at least {context['ge']}, not {shown}",
    "less_than_equal": lambda shown, context: f"must be at most {context['le']}, not {shown}",
}
