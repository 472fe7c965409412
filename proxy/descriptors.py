"""File descriptors: as many as the system grants, and never so many clients that none is left for instances.

A process without descriptors cannot say why it refuses; one that stops a little earlier can. See
getrlimit(2).
"""

from __future__ import annotations

import errno
import resource

_RESERVE = 64
"""For listeners, registries, the admin API, files and health checks."""
_PER_CLIENT = 2
"""A connection to the client, and one to an instance."""

EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE))
"""What opening something fails with when there are no descriptors left, in the process or in the system."""


def raise_limit() -> int:
    """Lift the soft limit to the hard one, as servers do; the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard


def most_connections(wanted: int) -> int:
    """How many client connections there may be at once: `wanted`, or what the descriptors suffice for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - _RESERVE) // _PER_CLIENT))
