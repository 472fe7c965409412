"""`python -m bench.eviction`: how long after its deregistration an instance still gets new requests.

A few instances stand behind holdfast under a steady load. Again and again one of them is deregistered, in one
registry after the other, and comes back when it has been measured. The registries, and how they are told,
are those of the contract suite: real servers where this machine has them. Instances, load and registrar share
one process and so one clock. A delay is 0 when no request came after its beginning, and contains the way of
the last one; at 500 requests/s each of three instances is reached every 6 ms, so many evictions see none at
all and a higher `--rate` looks closer. It is measured

- from just before the registrar's call, which it contains, to the last request that reached the instance;
- from the event, as holdfast says in its event stream when it has taken the instance out (to a millisecond).

How long holdfast needed from the event's arrival until the instance was out is read from its own metric.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import aiohttp
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from bench.children import BenchError, await_answer, child, end_on_sigterm, free_ports
from bench.load import OpenLoop, Outcome
from bench.measure import percentile
from bench.peers import ROOT, Holdfast
from bench.registries import REGISTRIES, Registry, written
from bench.report import replace_section
from bench.stage import Stage, stage
from discovery.model import Instance
from tests.contract.backend import Missing

TARGET = 0.010
"""Seconds that the 99th percentile may take."""

DOCUMENT = ROOT / "docs" / "benchmarks.md"
MARKERS = "<!-- eviction: begin -->", "<!-- eviction: end -->"

_METRIC = "eviction_delay_seconds"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_BACK_WITHIN = _OUT_WITHIN = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Times in seconds."""

    evictions: int = 200
    instances: int = 3
    rate: float = 500.0
    service_time: float = 0.005
    """How long an instance takes to answer, so that requests are always in flight when it leaves."""
    watch: float = 0.05
    """How long after an eviction requests are still looked for. A delay near it reads: never stopped."""


@dataclass(slots=True)
class Server:
    """One instance: the times at which requests reached it, kept by its connections."""

    instance: Instance
    service_time: float
    starts: list[float] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        self.starts.append(time.monotonic())
        self.reached.set()


class _Serving(asyncio.Protocol):
    """Answers bodyless requests, each after the instance's service time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for _ in heads:
            self._server.start()
            asyncio.get_running_loop().call_later(self._server.service_time, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_ANSWER)


@dataclass(frozen=True, slots=True)
class Findings:
    """Delays in seconds, one per deregistration; what the load saw; holdfast's own metric, if it has it."""

    delays: list[float]
    """From the call."""
    after_event: list[float]
    load: Outcome
    metric: dict[float, float]
    """Upper bound of a bucket in seconds -> observations up to it."""


def delay(called: float, starts: Sequence[float]) -> float:
    """From the call to the last start after it; 0 when there was none."""
    return max(0.0, max(starts, default=called) - called)


def buckets(exposition: str) -> dict[float, float]:
    """The cumulative buckets of the eviction metric, summed over its labels; empty without it."""
    found: dict[float, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name.endswith(_METRIC + "_bucket"):
                bound = float(sample.labels["le"])
                found[bound] = found.get(bound, 0.0) + sample.value
    return dict(sorted(found.items()))


def bound(cumulative: dict[float, float], share: float) -> float:
    """The smallest bucket bound that holds at least `share` of all observations; infinite if none does."""
    total = max(cumulative.values(), default=0.0)
    return next(
        (edge for edge, count in cumulative.items() if total and count >= share * total), float("inf")
    )


def configuration(port: int, admin: int, registry: dict[str, Any], log: Path) -> dict[str, Any]:
    return {
        "listen": [{"address": f"127.0.0.1:{port}"}],
        "admin": {"address": f"127.0.0.1:{admin}"},
        "registry": registry,
        "access_log": {"path": str(log)},
        # An instance that goes and comes back every other moment is what is measured here.
        "guard": {"flaps": 0},
        "services": {"app": {}},
        "routes": [{"match": {"path": "/"}, "service": "app"}],
    }


class Evictions:
    """When holdfast took an instance out, by its event stream: wall clock, as it says it."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        """The id that holdfast knows an address by; not every registry keeps ours."""
        self._gone: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    async def follow(self, session: aiohttp.ClientSession, url: str) -> None:
        """Reads the stream until cancelled."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with session.get(f"{url}/v1/events", params={"since": "0"}, timeout=timeout) as answer:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    self._note(json.loads(line[6:]))

    def _note(self, event: dict[str, Any]) -> None:
        if event["kind"] == "instance_added":
            self._ids[event["instance"]] = event["address"]
        elif event["kind"] == "state_changed" and event["after"] == "gone":
            at = datetime.fromisoformat(event["at"]).timestamp()
            self._gone.put_nowait((self._ids[event["instance"]], at))

    async def of(self, instance: Instance) -> float:
        """When this one, deregistered just now, was taken out. Raises `BenchError`."""
        try:
            async with asyncio.timeout(_OUT_WITHIN):
                while True:
                    address, at = await self._gone.get()
                    if address == instance.address:
                        return at
        except TimeoutError:
            raise BenchError(f"{instance.id} was deregistered but not taken out") from None


async def _serve(stack: AsyncExitStack, plan: Plan) -> list[Server]:
    """On addresses of their own and one port, as pods have it."""
    loop = asyncio.get_running_loop()
    (port,) = free_ports(1)
    servers = []
    for number in range(plan.instances):
        instance = Instance("app", f"app-{number}", f"127.0.0.{2 + number}", port)
        server = Server(instance, plan.service_time)
        listener = await loop.create_server(partial(_Serving, server), instance.host, port)
        stack.push_async_callback(listener.wait_closed)
        stack.callback(listener.close)
        servers.append(server)
    return servers


async def _reached(server: Server) -> None:
    server.reached.clear()
    try:
        await asyncio.wait_for(server.reached.wait(), _BACK_WITHIN)
    except TimeoutError:
        raise BenchError(f"{server.instance.id} is registered but gets no requests") from None


async def _evict_all(
    plan: Plan, servers: list[Server], registry: Registry, evictions: Evictions
) -> tuple[list[float], list[float]]:
    from_call, from_event = [], []
    for number in range(plan.evictions):
        server = servers[number % len(servers)]
        server.starts.clear()
        called = time.monotonic()
        await registry.remove(server.instance)
        at = await evictions.of(server.instance)
        await asyncio.sleep(plan.watch)
        from_call.append(delay(called, server.starts))
        from_event.append(delay(at - time.time() + time.monotonic(), server.starts))
        await registry.put(server.instance)
        await _reached(server)
    return from_call, from_event


@asynccontextmanager
async def _holdfast(ground: Stage, registry: Registry) -> AsyncIterator[tuple[int, str]]:
    """A proxy that follows the registry: its port, and the URL of its admin API."""
    place = ground.place("eviction")
    config, log = place.folder / "holdfast.yaml", place.folder / "output.log"
    document = configuration(
        place.port, place.admin, written(registry.section()), place.folder / "access.log"
    )
    config.write_text(json.dumps(document))
    config.chmod(0o600)
    peer = Holdfast()
    program = peer.find()
    if program is None:
        raise BenchError("there is no holdfast in this tree")
    command = peer.command(program, config)
    cores = ground.cores.proxy
    with child(command, cores=cores, log=log, cwd=place.folder, env=peer.environment()) as process:
        await asyncio.to_thread(await_answer, process, place.admin, log=log, path="/healthz")
        yield place.port, f"http://127.0.0.1:{place.admin}"


async def measure(ground: Stage, plan: Plan, registry: Registry) -> Findings:
    """Runs the plan. Raises `BenchError` when holdfast does not start or does not follow the registry."""
    async with AsyncExitStack() as stack:
        servers = await _serve(stack, plan)
        stack.push_async_callback(registry.stop)
        await registry.start()
        port, admin = await stack.enter_async_context(_holdfast(ground, registry))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        evictions = Evictions()
        follower = asyncio.create_task(evictions.follow(session, admin))
        stack.callback(follower.cancel)
        for server in servers:
            await registry.put(server.instance)
        await _ready(session, admin, len(servers))
        async with OpenLoop(port, rate=plan.rate) as load:
            for server in servers:
                await _reached(server)
            from_call, from_event = await _evict_all(plan, servers, registry, evictions)
        async with session.get(f"{admin}/metrics") as answer:
            metric = buckets(await answer.text())
        return Findings(from_call, from_event, load.outcome, metric)


async def _ready(session: aiohttp.ClientSession, admin: str, count: int) -> None:
    for _ in range(500):
        async with session.get(f"{admin}/v1/services/app") as answer:
            found = await answer.json()
        if found["states"]["ready"] == count:
            return
        await asyncio.sleep(0.02)
    raise BenchError(f"the instances are registered but holdfast has {found}")


def lines(findings: Findings) -> Iterator[str]:
    """The report."""
    none = sum(delay == 0 for delay in findings.delays)
    yield f"deregistrations                {len(findings.delays)}, {none} followed by no request at all"
    for name, delays in (("call", findings.delays), ("event", findings.after_event)):
        ms = [delay * 1e3 for delay in delays]
        p50, p99 = percentile(ms, 0.5), percentile(ms, 0.99)
        spread = f"p50 {p50:.2f}   p99 {p99:.2f}   max {max(ms):.2f}   mean {statistics.fmean(ms):.2f}"
        yield f"{name + ' to last start, ms':<31}{spread}"
    if findings.metric:
        p50, p99 = (bound(findings.metric, share) * 1e3 for share in (0.5, 0.99))
        count = max(findings.metric.values())
        yield f"event to swap, ms (metric)     p50 ≤ {p50:g}   p99 ≤ {p99:g}   of {count:.0f} events"
    else:
        yield f"event to swap                  no {_METRIC} on the metrics page"
    load = findings.load
    yield f"requests                       {load.sent:,}, failed {len(load.failures)}"
    for reason, times in Counter(load.failures).most_common(5):
        yield f"    {times} × {reason}"


def table(found: dict[str, Findings], rate: float) -> str:
    """All registries, for the document."""
    rows = [
        "| registry | deregistrations | call to last start, ms | event to last start, ms | "
        "event to swap, ms | requests | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, findings in found.items():
        spreads = [
            " / ".join(f"{value * 1e3:.1f}" for value in (percentile(d, 0.5), percentile(d, 0.99), max(d)))
            for d in (findings.delays, findings.after_event)
        ]
        swap = " / ".join(f"≤ {bound(findings.metric, share) * 1e3:g}" for share in (0.5, 0.99, 1.0))
        rows.append(
            f"| {name} | {len(findings.delays)} | {spreads[0]} | {spreads[1]} | {swap} | "
            f"{findings.load.sent:,} | {len(findings.load.failures)} |"
        )
    load = " / ".join(f"{value:.1f}" for value in os.getloadavg())
    rows += ["", f"Median / 99th percentile / maximum, at {rate:g} requests/s; load of the machine {load}."]
    return "\n".join(rows)


def missed(findings: Findings) -> bool:
    """Whether a request failed, or holdfast itself took too long."""
    return bool(findings.load.failures) or bound(findings.metric, 0.99) > TARGET


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no request failed and the 99th percentile from the event to the swap is within the target."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m bench.eviction", description=__doc__)
    parser.add_argument(
        "registries", nargs="*", metavar="REGISTRY", help=f"of {', '.join(REGISTRIES)}; default all"
    )
    parser.add_argument("--evictions", type=int, default=plan.evictions, metavar="N")
    parser.add_argument("--rate", type=float, default=plan.rate, metavar="N", help="requests per second")
    parser.add_argument(
        "--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}"
    )
    given = parser.parse_args(argv)
    if given.evictions < 1 or given.rate <= 0:
        parser.error("both must be positive")
    if unknown := sorted(set(given.registries) - REGISTRIES.keys()):
        parser.error(f"no such registry: {', '.join(unknown)}")
    plan = replace(plan, evictions=given.evictions, rate=given.rate)
    found: dict[str, Findings] = {}
    broken = False
    with stage() as ground:
        # Servers of registries are children of this process, and stay off the proxy's core with it.
        os.sched_setaffinity(0, ground.cores.load)
        for name in given.registries or REGISTRIES:
            print(f"{name}:", flush=True)
            folder = ground.folder / f"registry-{name}"
            folder.mkdir()
            try:
                found[name] = uvloop.run(measure(ground, plan, REGISTRIES[name](folder)))
            except Missing as missing:
                print(f"  skipped: {missing}")
            except (AssertionError, BenchError, OSError) as error:
                print(f"  failed: {type(error).__name__}: {str(error)[:500]}")
                broken = True
            else:
                print("  " + "\n  ".join(lines(found[name])), flush=True)
    if given.write and found:
        text = replace_section(DOCUMENT.read_text(), table(found, plan.rate), *MARKERS)
        DOCUMENT.write_text(text)
    return 1 if broken or any(map(missed, found.values())) else 0


if __name__ == "__main__":
    end_on_sigterm()
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench.eviction: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
