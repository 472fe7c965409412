"""The arrangement of one measurement: origins and load on some cores, one proxy on its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.children import BenchError, Cores, await_answer, child, free_ports, tail
from bench.measure import cpu_seconds, memory
from bench.origin import nginx_config
from bench.peers import ROOT, Peer, Place


@dataclass(frozen=True, slots=True)
class Running:
    """A started proxy, or the bare origins when `pid` is None."""

    http: int
    echo: int
    pid: int | None = None
    started: float = 0.0
    """Seconds from exec to the first forwarded answer."""

    def cpu(self) -> float:
        return cpu_seconds(self.pid) if self.pid is not None else 0.0

    def memory(self) -> int:
        return memory(self.pid) if self.pid is not None else 0


@dataclass(frozen=True, slots=True)
class Stage:
    """The origins, running, and where everything else goes."""

    cores: Cores
    http: int
    echo: int
    folder: Path

    def origin(self) -> Running:
        return Running(http=self.http, echo=self.echo)

    def place(self, name: str) -> Place:
        """Fresh ports and a fresh folder for one start of a proxy."""
        port, admin = free_ports(2)
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return Place(port=port, admin=admin, http=self.http, echo=self.echo, folder=folder)

    @contextmanager
    def run(self, peer: Peer, program: Path) -> Iterator[Running]:
        """Starts a proxy on its core. Raises `BenchError` if it does not forward or ends early."""
        place = self.place(peer.name)
        texts = peer.files(place)
        for name, text in texts.items():
            (place.folder / name).write_text(text)
        command = peer.command(program, place.folder / next(iter(texts)))
        log = place.folder / "output.log"
        began = time.perf_counter()
        with child(
            command, cores=self.cores.proxy, log=log, cwd=place.folder, env=peer.environment()
        ) as process:
            await_answer(process, place.port, log=log)
            started = time.perf_counter() - began
            try:
                yield Running(http=place.port, echo=place.port, pid=process.pid, started=started)
            except (BenchError, OSError) as error:
                if (ended := process.poll()) is None:
                    raise
                raise BenchError(f"ended with status {ended} under load: {tail(log)}") from error


@contextmanager
def stage() -> Iterator[Stage]:
    """Starts the origins and moves this process, which makes the load, off the proxy's core."""
    cores = Cores.of_machine()
    before = os.sched_getaffinity(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, cores.load)
        http, echo = free_ports(2)
        log = folder / "origin.log"
        nginx = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
        if nginx is not None:
            (folder / "origin.conf").write_text(nginx_config(http, folder))
            command: list[str | Path] = [nginx, "-e", "stderr", "-p", folder, "-c", folder / "origin.conf"]
        else:
            command = [sys.executable, "-m", "bench.origin", "http", str(http)]
        echo_log = folder / "echo.log"
        echo_command = [sys.executable, "-m", "bench.origin", "echo", str(echo)]
        origin = stack.enter_context(child(command, cores=cores.load, log=log, cwd=ROOT))
        echoes = stack.enter_context(child(echo_command, cores=cores.load, log=echo_log, cwd=ROOT))
        await_answer(origin, http, log=log)
        await_answer(echoes, echo, log=echo_log, status=400)  # a plain GET is no handshake
        yield Stage(cores=cores, http=http, echo=echo, folder=folder)
