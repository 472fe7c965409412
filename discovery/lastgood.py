"""The last good answers of one registry on disk, for a start while that registry cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from discovery.disk import write_atomic
from discovery.model import Instance

_SETS = TypeAdapter(dict[str, tuple[Instance, ...]])


def encode(sets: Mapping[str, tuple[Instance, ...]]) -> bytes:
    """Full sets by service name, as JSON."""
    return orjson.dumps(dict(sets), default=dict, option=orjson.OPT_INDENT_2)


def decode(data: bytes) -> dict[str, tuple[Instance, ...]]:
    """What `encode` wrote. Raises `ValueError` for anything else."""
    return _SETS.validate_json(data)


class LastGood:
    """One file. Reading never fails a start: what cannot be read is no memory, with the reason told."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, tuple[Instance, ...]], str | None]:
        """The remembered sets, and why there are none if the file is there but unusable."""
        try:
            return decode(self.path.read_bytes()), None
        except FileNotFoundError:
            return {}, None
        except (OSError, ValidationError) as error:
            return {}, f"{self.path}: {error}"

    def write(self, data: bytes) -> None:
        """Replaces the file atomically. Raises `OSError`."""
        write_atomic(self.path, data)
