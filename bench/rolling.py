"""`python -m bench.rolling`: the same rolling restart behind each proxy, and what its users saw of it.

Three instances serve requests and numbered WebSocket conversations. Each is restarted in turn, announced to
the proxy beforehand as its manual says (`bench.operators`), and one is killed without a word. Load, instances
and moments are the same for everybody.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvloop

from bench import report
from bench.children import BenchError, Cores, await_answer, child, end_on_sigterm, free_ports, tail
from bench.conversation import (
    LAST_WORDS,
    PATIENCE,
    Books,
    Client,
    noting_reuse,
    request_on,
    summary,
    watch_time,
)
from bench.operators import Ground, Operator, all_operators
from bench.peers import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- rolling: begin -->", "<!-- rolling: end -->"
INSTANCES = 3
_LATE = 0.25
"""Seconds of lateness of the load itself beyond which pauses say little."""
_SLOW = 10.0
"""Seconds in which an instance must have ended, or begun to answer."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked, and when what is done to the instances. Times in seconds."""

    rate: int = 300
    """Requests a second."""
    clients: int = 100
    """WebSockets."""
    warm: float = 3.0
    """Before the first restart."""
    lead: float = 3.0
    """From the announcement to SIGTERM."""
    down: float = 1.5
    """From the signal to the start of the next process."""
    up: float = 2.0
    """From there to the operator's second step."""
    settle: float = 1.5
    """From there to the next restart."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is done to an instance, and when, in seconds from the beginning."""

    at: float
    what: str
    """`leave`, `terminate`, `kill`, `start` or `back`."""
    instance: int


def schedule(load: Load, instances: int = INSTANCES) -> tuple[list[Step], float]:
    """Every instance announced and restarted in turn, then the first one killed; and when it is over."""
    steps, now = [], load.warm
    for instance in range(instances):
        steps.append(Step(now, "leave", instance))
        steps.append(Step(now := now + load.lead, "terminate", instance))
        steps.append(Step(now := now + load.down, "start", instance))
        steps.append(Step(now := now + load.up, "back", instance))
        now += load.settle
    steps.append(Step(now, "kill", 0))
    steps.append(Step(now := now + load.down, "start", 0))
    return steps, now + load.up + load.settle


class Fleet:
    """The instances, each of which always ends."""

    def __init__(self, ports: Sequence[int], folder: Path, cores: frozenset[int]) -> None:
        self._ports = ports
        self._folder = folder
        self._cores = cores
        self._lives = [ExitStack() for _ in ports]
        self._processes: list[subprocess.Popen[bytes] | None] = [None for _ in ports]

    def __enter__(self) -> Fleet:
        for instance in range(len(self._ports)):
            self.start(instance)
        return self

    def __exit__(self, *exc: object) -> None:
        with ExitStack() as all_of_them:
            for life in self._lives:
                all_of_them.enter_context(life)

    def _log(self, instance: int) -> Path:
        return self._folder / f"instance-{instance}.log"

    def start(self, instance: int) -> None:
        """Starts a new process in its place; the former one has ended."""
        command = (sys.executable, "-m", "bench.instance", str(self._ports[instance]))
        self._lives[instance].close()
        self._processes[instance] = self._lives[instance].enter_context(
            child(command, cores=self._cores, log=self._log(instance), cwd=ROOT)
        )

    def signal(self, instance: int, number: signal.Signals) -> None:
        process = self._processes[instance]
        assert process is not None
        process.send_signal(number)

    async def ended(self, instance: int) -> None:
        """Raises `BenchError` if it does not end, or not as a well-made server does."""
        process = self._processes[instance]
        assert process is not None
        try:
            code = await asyncio.to_thread(process.wait, _SLOW)
        except subprocess.TimeoutExpired:
            raise BenchError(f"instance {instance} does not end: {tail(self._log(instance))}") from None
        if code not in (0, -signal.SIGKILL):
            raise BenchError(f"instance {instance} ended with {code}: {tail(self._log(instance))}")

    async def ready(self, instance: int) -> None:
        """Raises `BenchError` if it does not come to answer."""
        process = self._processes[instance]
        assert process is not None
        await asyncio.to_thread(
            await_answer, process, self._ports[instance],
            log=self._log(instance), path="/readyz", limit=_SLOW,
        )  # fmt: skip


async def play(operator: Operator, ground: Ground, fleet: Fleet, load: Load) -> dict[str, float]:
    """One rolling restart under load: its figures."""
    books, stop = Books(), asyncio.Event()
    steps, over = schedule(load)
    url = f"http://127.0.0.1:{ground.port}"
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64), timeout=timeout, trace_configs=[noting_reuse()]
        ) as asking,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as chatting,
    ):
        clients = [Client(number, f"{url}/ws", chatting, books) for number in range(load.clients)]
        lives = [asyncio.ensure_future(client.live()) for client in clients]
        watching = asyncio.ensure_future(watch_time(books))
        try:
            async with asyncio.timeout(_SLOW):
                await asyncio.gather(*(client.connected.wait() for client in clients))
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(request_on(asking, f"{url}/", load.rate, stop, books))
                for client in clients:
                    group.create_task(client.talk(stop))
                for step in steps:
                    await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
                    await _take(step, operator, ground, fleet)
                await asyncio.sleep(max(0.0, began + over - time.monotonic()))
                stop.set()
            end = time.monotonic() + LAST_WORDS
            while any(client.conversation.lost for client in clients) and time.monotonic() < end:
                await asyncio.sleep(0.05)
            for client in clients:
                client.conversation.end(time.monotonic())
            await asyncio.gather(*(client.leave() for client in clients))
        finally:
            for task in (watching, *lives):
                task.cancel()
            await asyncio.gather(watching, *lives, return_exceptions=True)
    return summary(books, (client.conversation for client in clients))


async def _take(step: Step, operator: Operator, ground: Ground, fleet: Fleet) -> None:
    if step.what == "leave":
        await operator.leave(ground, step.instance)
    elif step.what in ("terminate", "kill"):
        fleet.signal(step.instance, signal.SIGTERM if step.what == "terminate" else signal.SIGKILL)
    elif step.what == "start":
        await fleet.ended(step.instance)
        fleet.start(step.instance)
    else:
        await fleet.ready(step.instance)
        await operator.back(ground, step.instance)


@contextmanager
def ground_for(operator: Operator, folder: Path, cores: Cores) -> Iterator[tuple[Ground, Fleet]]:
    """Fresh instances, and the proxy in front of them, started and forwarding."""
    port, admin, *instances = free_ports(2 + INSTANCES)
    place = folder / operator.name.replace(" ", "-")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    ground = Ground(port, admin, tuple(instances), place)
    program = operator.peer.find()
    assert program is not None
    log = place / "output.log"
    with Fleet(instances, place, cores.load) as fleet:
        for instance in range(INSTANCES):
            asyncio.run(fleet.ready(instance))
        command = operator.peer.command(program, operator.write(ground))
        environment = operator.peer.environment()
        with child(command, cores=cores.proxy, log=log, cwd=place, env=environment) as process:
            await_answer(process, port, log=log, path="/readyz")
            yield ground, fleet
            if (code := process.poll()) is not None:
                raise BenchError(f"ended with status {code} under load: {tail(log)}")


COLUMNS = (
    ("failed", "failed requests"),
    ("dropped", "dropped WebSockets"),
    ("lost", "lost messages"),
    ("pause", "longest pause, s"),
    ("slowest", "slowest request, s"),
)


def cell(key: str, values: Sequence[float]) -> str:
    """`12`, or `12 (9–15)`: the median of the rounds, and their range where they differ."""
    form = "{:,.2f}" if key in ("pause", "slowest") else "{:,.0f}"
    low, middle, high = (
        form.format(value) for value in (min(values), statistics.median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low}–{high})"


def table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A Markdown table with a row for each proxy, aligned so that it reads well in a terminal too."""
    rows = [["", *(label for _, label in COLUMNS)]]
    rows += [[name, *(cell(key, values[key]) for key, _ in COLUMNS)] for name, values in results.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def remarks(results: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """What the table does not say of a proxy, and what should keep a reader from believing it."""
    found = []
    for name, values in results.items():
        if doubled := max(values["doubled"]):
            found.append(f"{name}: up to {doubled:.0f} messages were answered twice.")
        if reordered := max(values["reordered"]):
            found.append(f"{name}: up to {reordered:.0f} answers came out of order.")
        if refused := max(values["refused"]):
            found.append(
                f"{name}: up to {refused:.0f} handshakes were refused before the client got back in."
            )
        if (late := max(values["late"])) > _LATE:
            found.append(f"{name}: the load itself was up to {late:.2f} s late, so its pauses say little.")
    return found


def conditions(load: Load, rounds: int, results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """What the figures stand on, for under the table."""
    asked = statistics.median(value for values in results.values() for value in values["requests"])
    said = statistics.median(value for values in results.values() for value in values["messages"])
    return (
        f"Median of {rounds} interleaved rounds, in parentheses their range. In each: {asked:,.0f} requests, "
        f"{load.rate} a second; {said:,.0f} messages of {load.clients} WebSocket clients; {INSTANCES} "
        f"instances restarted in turn by SIGTERM, {load.lead:g} s after the proxy was told, and one killed."
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.rolling", description=__doc__)
    parser.add_argument("--peers", metavar="NAMES", help="these proxies, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how many interleaved rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value of every round there")
    parser.add_argument(
        "--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}"
    )
    given = parser.parse_args(argv)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    return given


def choose(names: Sequence[str] | None) -> tuple[list[Operator], list[str]]:
    """The operators whose proxies are on this machine, and the names of those that are not.

    `holdfast` stands for both of its modes. Raises `BenchError` for a name that is none of them.
    """
    operators = all_operators()
    known = {operator.name for operator in operators} | {operator.peer.name for operator in operators}
    if unknown := set(names or ()) - known:
        raise BenchError(f"no such proxy: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    wanted = [each for each in operators if not names or {each.name, each.peer.name} & set(names)]
    found = [each for each in wanted if each.peer.find() is not None]
    return found, [each.name for each in wanted if each not in found]


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(argv)
    operators, missing = choose([name.strip() for name in given.peers.split(",")] if given.peers else None)
    if not operators:
        raise BenchError(f"none of them is on this machine: {', '.join(missing)} (try: make bench-tools)")
    load = Load()
    results: dict[str, dict[str, list[float]]] = {}
    cores, machine = Cores.of_machine(), report.machine()
    os.sched_setaffinity(0, cores.load)
    with tempfile.TemporaryDirectory(prefix="holdfast-rolling-") as folder:
        for number in range(1, given.rounds + 1):
            for operator in operators:
                print(
                    f"\rround {number}/{given.rounds}: {operator.name:<20}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
                with ground_for(operator, Path(folder), cores) as (ground, fleet):
                    found = uvloop.run(play(operator, ground, fleet, load))
                for key, value in found.items():
                    results.setdefault(operator.name, {}).setdefault(key, []).append(value)
    print("\r" + " " * 50 + "\r", end="", file=sys.stderr)

    versions = {
        each.peer.name: each.peer.version(program)
        for each in operators
        if (program := each.peer.find()) is not None
    }
    told = "; ".join(f"{name} {version}".strip() for name, version in versions.items())
    notes = remarks(results) + ([f"Not on this machine: {', '.join(missing)}."] if missing else [])
    body = [
        f"{datetime.date.today()}, {machine}. {told}.",
        table(results),
        conditions(load, given.rounds, results),
        *(["\n".join(f"- {note}" for note in notes)] if notes else []),
    ]
    print("\n\n".join(body))
    if given.json:
        given.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1) + "\n")
    if given.write:
        example = Ground(8080, 9900, (9001, 9002, 9003), Path("/var/lib/bench"))
        steps = "\n".join(f"- {each.name}: {each.how}" for each in operators)
        text = report.section(
            [*body, f"How a proxy is told that an instance leaves, and is back:\n\n{steps}"],
            {each.name: each.files(example) for each in operators},
        )
        DOCUMENT.write_text(report.replace_section(DOCUMENT.read_text(), text, BEGIN, END))
    return 0


if __name__ == "__main__":
    end_on_sigterm()
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
