"""The servers of one Nacos cluster, and which of them is asked."""

from __future__ import annotations

from dataclasses import dataclass

from yarl import URL


@dataclass(frozen=True, slots=True)
class Server:
    """One server. `base` is the URL of its HTTP API, context path included, without a slash at the end."""

    base: str
    host: str
    port: int
    secure: bool

    @classmethod
    def at(cls, address: str) -> Server:
        """The one with this base URL."""
        url = URL(address)
        return cls(address.rstrip("/"), url.host or "", url.port or 0, url.scheme == "https")

    def target(self, offset: int) -> str:
        """Where its gRPC listens, `offset` above the HTTP port; for messages and connections."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port + offset}"


class Servers:
    """All of them. One is used until it fails, or sends us away."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._servers = tuple(Server.at(address) for address in addresses)
        self._turn = 0

    @property
    def current(self) -> Server:
        """The one to ask."""
        return self._servers[self._turn]

    def failed(self, server: Server, instead: tuple[str, str] | None = None) -> None:
        """Makes it another one's turn, if it is still this one's: the one with the host and port `instead`
        when we know it, else the next. A port that nobody has counts as not said: it may be another than
        ours of the same server."""
        if server is not self.current:
            return
        self._turn = (self._turn + 1) % len(self._servers)
        if instead is None:
            return
        there = [n for n, known in enumerate(self._servers) if known.host == instead[0]]
        exact = [n for n in there if str(self._servers[n].port) == instead[1]]
        if there:
            self._turn = (exact or there)[0]
