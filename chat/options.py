"""How one chat instance is to run; what the command line fills in."""

from __future__ import annotations

from dataclasses import dataclass

from chat.session import CONTEXT_TTL


@dataclass(frozen=True, slots=True)
class Options:
    """How to run one instance. Times in seconds."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """0: any free one."""
    advertise: str = ""
    """Host that others reach it by; defaults to `host`, or this machine's name when that is a wildcard."""
    service: str = "chat"
    """Name to register under."""
    id: str = ""
    """Name of this instance; defaults to machine and port."""
    version: str = ""
    """Label that traffic splits go by."""
    weight: int = 100
    """Share of new sessions relative to the other instances."""
    registry: str | None = None
    """URL of the registry to register with; None: register nowhere."""
    store: str = "sqlite:///holdfast-chat.db"
    """URL of the database."""
    bus: str | None = None
    """How to tell other instances; None: whatever the store suggests."""
    agent_token: str | None = None
    """What agents must show; None: anybody may be an agent."""
    rate: float = 10.0
    """Messages a second that one session may send in the long run."""
    burst: int = 40
    """Messages that one session may send at once."""
    context_ttl: float = CONTEXT_TTL
    """A session in which nothing is said for so long times out."""
    deadline: float = 25.0
    """On SIGTERM, everything must be over within so long."""
    settle: float = 0.5
    """On SIGTERM, new connections are served for so long, until everybody has heard of the leaving."""
    spread: float = 1.0
    """On SIGTERM, the Close frames are spread over so long, so that clients do not come back all at once."""
