"""From what the operator wrote to one `Config`, or to everything that is wrong with it.

The command line wins over the environment, the environment over the file, the file over the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import TypeVar

from pydantic import ValidationError

from config.checks import Problem as Finding
from config.checks import integrity, sections, workable
from config.document import Fill, parse
from config.environment import overlay_environment, overlay_overrides
from config.messages import Finder
from config.schema import Config, Model
from config.shape import shape_of
from config.tree import ConfigError as ConfigError
from config.tree import Node, Place
from config.tree import Problem as Problem
from config.variables import Variables

M = TypeVar("M", bound=Model)


def load(
    path: str | os.PathLike[str] | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """The configuration in the file at `path` (None: no file), under `environ` and `overrides`.

    `overrides` is shaped as the file is: `{"admin": {"address": ":9900"}}`. Raises `ConfigError`, which has
    every mistake that could be found, also when the file cannot be read.
    """
    if path is None:
        return read(b"", source="defaults", environ=environ, overrides=overrides)
    try:
        data = FilePath(path).read_bytes()
    except OSError as error:
        wrong = f"cannot be read: {error.strerror or error}"
        raise ConfigError([Problem(Place(0, os.fspath(path)), "", wrong)]) from None
    return read(data, source=os.fspath(path), environ=environ, overrides=overrides)


def read(
    data: bytes,
    *,
    source: str,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """As `load`, from the content of a file; messages call it `source`. Raises `ConfigError`."""
    variables = Variables(environ)
    root, problems = _tree(data, source, variables.fill)
    problems += overlay_environment(root, environ)
    overlay_overrides(root, overrides or {})
    plain = root.plain()
    finder = Finder(root, variables.hide)
    problems += finder.of_findings([*integrity(plain), *sections(plain), *workable(plain)])
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        problems += finder.of_validation(error)
    if problems:
        raise ConfigError(problems)
    return config


def located(
    path: str | os.PathLike[str], findings: Iterable[Finding], *, environ: Mapping[str, str]
) -> list[Problem]:
    """What was found out about a configuration after it was loaded, at its places in the file."""
    source = os.fspath(path)
    variables = Variables(environ)
    root, _ = _tree(FilePath(path).read_bytes(), source, variables.fill)
    overlay_environment(root, environ)
    return sorted(Finder(root, variables.hide).of_findings(findings))


def read_as(model: type[M], data: bytes, *, source: str) -> M:
    """A file of another kind than the configuration, with the same forms and messages but without variables.

    Raises `ConfigError`.
    """
    root, problems = _tree(data, source, str)
    try:
        found = model.model_validate(root.plain())
    except ValidationError as error:
        problems += Finder(root, shape=shape_of(model)).of_validation(error)
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return found


def _tree(data: bytes, source: str, fill: Fill) -> tuple[Node, list[Problem]]:
    """Raises `ConfigError` when there is no text or no YAML to look further into."""

    def place(line: int, column: int) -> Place:
        return Place(0, source, line + 1, column + 1)

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        where = place(before.count(b"\n"), error.start - before.rfind(b"\n") - 1)
        raise ConfigError([Problem(where, "", "is not UTF-8 text")]) from None
    root, problems = parse(text, place, fill)
    if root is None and problems:
        raise ConfigError(problems)
    if root is None or root.value is None:
        return Node({}, place(0, 0)), problems
    if not isinstance(root.value, dict):
        raise ConfigError([Problem(root.place, "", "must be sections: `key: value`"), *problems])
    return root, problems
