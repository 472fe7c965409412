"""Real servers as child processes of the tests: found where `make servers` put them, ended by process id."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.contract.backend import Missing

SERVERS = Path(__file__).resolve().parents[2] / ".servers" / "bin"
NEVER_SKIPPED = ("consul", "etcd")
"""In CI a test fails without these."""


def find(name: str) -> str:
    """The path of a server. Raises `Missing`; in CI `FileNotFoundError` for one that must be there."""
    found = shutil.which(name, path=str(SERVERS))
    if found is not None:
        return found
    reason = f"no {name} here; `make servers` gets one"
    if os.environ.get("CI") == "true" and name in NEVER_SKIPPED:
        raise FileNotFoundError(reason)
    raise Missing(reason)


def free_ports(count: int) -> list[int]:
    """Loopback ports below the range that the kernel gives to clients: a server that was killed finds its own
    free when it comes back."""
    found: list[int] = []
    start = 20000 + os.getpid() * 37 % 8000
    for port in range(start, start + 4000):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


class Server:
    """One process that can be killed, begun again, frozen and thawed. Its output is kept in `log`."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begins it; whether it answers yet is for whoever knows its language."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(self._environment or {})},
                # Ctrl-C in the terminal of the tests is for the tests.
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises `AssertionError` with the end of its output when it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"{self.command[0]} has ended:\n{self.log.read_text()[-4000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None
