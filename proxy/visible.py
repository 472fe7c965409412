"""Text of others, made fit for terminals and logs: what cannot be seen is written out.

Ids, versions, errors and answers come from instances and registries. On a terminal an escape sequence could
hide or forge lines, or set the title; a direction mark turns a line around; a line break begins a line of its
own. They are written as JSON does, so that JSON stays what it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

_SUSPECT = re.compile(r"[^\x20-\x7e]")


def visible(text: str, keep: str = "") -> str:
    """`text` with every character that cannot be printed, but those in `keep`, as `\\u001b`."""
    return _SUSPECT.sub(lambda found: _written_out(found[0], keep), text)


def visible_in(value: Any) -> Any:
    """A decoded JSON value with all its texts `visible`."""
    match value:
        case str():
            return visible(value)
        case list():
            return [visible_in(entry) for entry in value]
        case dict():
            return {visible(name): visible_in(entry) for name, entry in value.items()}
    return value


def _written_out(character: str, keep: str) -> str:
    return character if character.isprintable() or character in keep else json.dumps(character)[1:-1]
