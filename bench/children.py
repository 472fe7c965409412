"""Child processes that always end, the ports they listen on and the cores they are pinned to."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """The benchmark cannot go on; the message is for the person who started it."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run: the proxy alone on one core, load and origin on all others."""

    proxy: frozenset[int]
    load: frozenset[int]

    @classmethod
    def of_machine(cls) -> Cores:
        """The last usable core for the proxy, the rest for load; a single core is shared by both."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(proxy=frozenset(usable[-1:]), load=frozenset(usable[:-1] or usable))


def free_ports(count: int) -> list[int]:
    """Different TCP ports of the loopback address that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def child(
    argv: Sequence[str | Path],
    *,
    cores: frozenset[int],
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    grace: float = GRACE,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program on `cores` for as long as the block lasts; its output goes to the file `log`.

    It leads a process group of its own, so that Ctrl-C reaches only us and its children end with it, and
    the kernel ends it should this process be killed. `env` is added to ours. Leaving the block sends
    SIGTERM, and after `grace` seconds SIGKILL to the whole group.
    """
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
        os.sched_setaffinity(0, cores)

    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            preexec_fn=prepare,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process, grace)


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    # The group outlives a leader that died without its children; ProcessLookupError: all are gone.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def await_answer(
    process: subprocess.Popen[bytes],
    port: int,
    *,
    log: Path,
    path: str = "/",
    status: int = 200,
    limit: float = 20.0,
) -> None:
    """Returns as soon as a GET of `path` on `port` is answered with `status`.

    Raises `BenchError`, with the end of the log, when the process ends first or `limit` seconds are over.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    wanted = f"HTTP/1.1 {status} ".encode()
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if (ended := process.poll()) is not None:
            raise BenchError(f"ended with status {ended} before it answered: {tail(log)}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
                connection.sendall(request)
                if connection.recv(4096).startswith(wanted):
                    return
        except OSError:
            pass
        time.sleep(0.001)
    raise BenchError(f"no answer within {limit:.0f} s: {tail(log)}")


def tail(log: Path, characters: int = 600) -> str:
    """The end of a log file, or a word that there is nothing in it."""
    text = log.read_text(errors="replace").strip() if log.exists() else ""
    return text[-characters:] or "(no output)"


def end_on_sigterm() -> None:
    """Makes SIGTERM unwind the stack as Ctrl-C does, so that children are ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
