"""Memory that a crowd has left behind goes back to the system.

glibc keeps what is freed unless it lies at the end of its heap, where mostly something small is still in use:
the process would stay as large as it ever was. See malloc_trim(3).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress

_CROWD = 64
"""Connections that are worth a look at the heap when half of them have gone."""


def give_back() -> None:
    """Return free pages: 2 ms for 30 MiB. Where the C library cannot, nothing happens."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Tide:
    """Notices when a crowd has gone, and gives back what it has left; each time that half of it has gone."""

    __slots__ = ("_due", "_ebb", "_highest")

    def __init__(self, ebb: Callable[[], None] = give_back) -> None:
        self._ebb = ebb
        self._highest = 0
        self._due = False

    def look(self, connections: int) -> None:
        """Told now and then how many connections there are; what one look notices the next one does."""
        if self._due:
            self._due = False
            self._ebb()
        if self._highest >= _CROWD and connections * 2 <= self._highest:
            self._highest = connections
            self._due = True
        elif connections > self._highest:
            self._highest = connections
