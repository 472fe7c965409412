"""What an instance says of itself, so that nothing has to be guessed once it is gone.

A *checkpoint* is a Ping of the instance (RFC 6455 section 5.5.2) with the payload

    holdfast-resume[+1][@READ]:TOKEN

`TOKEN` is what `Holdfast-Resume` is to bring to the next instance; empty: nothing. `READ` is how many
messages of the client the instance has dealt with on this connection: they are never sent again, all others
are. With `+1` both hold only once the client has been given the whole of the instance's next message, so that
there is no byte of the stream at which the instance could die and be resumed from the wrong place. Until then
the former one holds; another that comes meanwhile takes the place of the one that waits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PAYLOAD = re.compile(rb"holdfast-resume(\+1)?(?:@([0-9]{1,15}))?:(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one of them says."""

    token: bytes
    read: int | None
    """Messages of the client that have been dealt with; None: the instance does not count them."""
    ahead: bool
    """Whether it holds only once the next message has been passed on."""


def checkpoint_in(ping: bytes) -> Checkpoint | None:
    """The checkpoint that a Ping's payload is; None for any other Ping."""
    found = _PAYLOAD.fullmatch(ping)
    if found is None:
        return None
    return Checkpoint(found[3], None if found[2] is None else int(found[2]), found[1] is not None)
