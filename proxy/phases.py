"""The life of a relayed WebSocket: its phases, its rules, and what its relay can do in the world."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from proxy.replay import Keeping


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of one tunnel. Times in seconds, sizes in bytes."""

    quiet: float
    patience: float
    whole: int
    """Frames up to this size are passed on only whole."""
    keeping: Keeping


class Phase(Enum):
    """Where a tunnel is in its life."""

    RELAYING = "relaying"
    SETTLING = "settling"
    """Asked to leave; the client is in the middle of a message."""
    QUIETING = "quieting"
    """The client is held; the instance may still be answering."""
    CLOSING = "closing"
    """Close was sent to the instance."""
    DIALING = "dialing"
    """There is no instance; the next one is being connected."""
    CLIENT_CLOSING = "client_closing"
    """The client has sent Close; the instance's answer ends it."""
    ENDING = "ending"
    """Close was sent to the client; its answer ends it."""
    OVER = "over"


HELD = frozenset({Phase.QUIETING, Phase.CLOSING, Phase.DIALING})
"""Phases in which the client's messages wait."""
OPEN = frozenset({Phase.RELAYING, Phase.SETTLING})
"""Phases in which the client's messages are passed on."""
ATTACHED = frozenset({Phase.RELAYING, Phase.SETTLING, Phase.QUIETING})
"""Phases in which the instance has not been told Close, nor has told us."""


class Port(Protocol):
    """What a relay can do in the world."""

    def to_client(self, data: bytes) -> None:
        """Write to the client."""

    def to_server(self, data: bytes) -> None:
        """Write to the instance."""

    def read_client(self, wanted: bool) -> None:
        """Go on or stop reading from the client."""

    def dial(self, token: bytes) -> None:
        """Drop the instance's connection after flushing it, and connect to the next instance.

        Answered by `Relay.connected` or `Relay.gave_up`. `token` is for the Holdfast-Resume field.
        """

    def may_barrier(self, urgent: bool) -> bool:
        """Whether a barrier may be sent now, as far as the process as a whole is concerned."""

    def alarm(self, at: float) -> None:
        """Call `Relay.on_alarm` at that time; replaces what was asked for before. `NEVER`: no more."""

    def end(self, code: int, side: str) -> None:
        """Flush and close both connections: all is said. `side` is who closed."""
