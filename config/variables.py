"""`${NAME}` and `${NAME:-default}` inside values; `$${` stands for `${` itself.

As in a POSIX shell the default holds when the variable is unset or empty, and may contain variables itself
(POSIX.1-2017, Shell Command Language, section 2.6.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Nothing is matched in two ways, and nothing is given back: a default that does not end costs no time.
_INNER = r"""(?:[^{}"'\\\n$]|\$(?!\{))*+"""
_NESTED = rf"\$\{{[A-Za-z_]\w*+(?::-{_INNER})?\}}"
_REFERENCE = re.compile(rf"\$\{{[A-Za-z_]\w*+(?::-{_INNER}(?:{_NESTED}{_INNER})*+)?\}}", re.ASCII)
# Private use area of Unicode: characters that a configuration has no other use for, and YAML no meaning.
_HIDDEN = {code: 0xE000 + code for code in range(0x20, 0x7F)}
_SHOWN = {hidden: code for code, hidden in _HIDDEN.items()}
_MOST_NESTED = 16
_USED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)")
_SHORTEST_SECRET = 4


def protect(text: str) -> str:
    """YAML text in which the braces and colons of references mean nothing to YAML, character for character.

    So `{token: ${TOKEN}}` works without quotes, and lines and columns stay as they are.
    """
    if "${" not in text or any(chr(hidden) in text for hidden in _SHOWN):
        return text
    return _REFERENCE.sub(lambda match: match[0].translate(_HIDDEN), text)


def restore(text: str) -> str:
    """Undoes `protect` in a part of its result."""
    return text if text.isascii() else text.translate(_SHOWN)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """`text` with every reference replaced.

    Raises `ValueError` for a variable that is not set and has no default, and for a reference that does not
    end or is not one.
    """
    value, end = _expand(text, 0, environ, depth=0)
    assert end == len(text)
    return value


class Variables:
    """Fills in values, and knows what it filled in, so that no message shows it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._used: dict[str, str] = {}

    def fill(self, text: str) -> str:
        """As `expand`."""
        for name in _USED.findall(text):
            if name in self._environ:
                self._used[name] = self._environ[name]
        return expand(text, self._environ)

    def hide(self, message: str) -> str:
        """`message` with `${NAME}` for what came out of one, unless that is too short to be a secret."""
        for name, value in sorted(self._used.items(), key=lambda item: -len(item[1])):
            if len(value) >= _SHORTEST_SECRET:
                message = message.replace(value, f"${{{name}}}")
        return message


def _expand(text: str, start: int, environ: Mapping[str, str] | None, depth: int) -> tuple[str, int]:
    """Replaces from `start` to the end, or, inside a default, to the brace that closes it."""
    done: list[str] = []
    at = start
    while at < len(text):
        if text.startswith("$${", at):
            done.append("${")
            at += 3
        elif text.startswith("${", at):
            value, at = _reference(text, at, environ, depth)
            done.append(value)
        elif depth and text[at] == "}":
            return "".join(done), at
        else:
            done.append(text[at])
            at += 1
    return "".join(done), at


def _reference(text: str, start: int, environ: Mapping[str, str] | None, depth: int) -> tuple[str, int]:
    name = _NAME.match(text, start + 2)
    if name is None or depth > _MOST_NESTED:
        raise ValueError("'${' must be followed by the name of a variable; write $${ for the characters")
    value = "" if environ is None else environ.get(name[0])
    if text.startswith("}", name.end()):
        if value is None:
            raise ValueError(
                f"the environment variable {name[0]} is not set; ${{{name[0]}:-…}} has a default"
            )
        return value, name.end() + 1
    if not text.startswith(":-", name.end()):
        raise ValueError(f"'${{{name[0]}' does not end in }} or :-default}}; write $${{ for the characters")
    # A default that is not used may refer to what is not set.
    default, end = _expand(text, name.end() + 2, environ if not value else None, depth + 1)
    if not text.startswith("}", end):
        raise ValueError(f"'${{{name[0]}:-' has no closing brace")
    return value or default, end + 1
