"""`python -m bench.instances`: what very many instances cost: 10,000 in 200 services, by default.

One holdfast follows one registry after the other (those of the contract suite; real servers where the machine
has them). Nobody listens at the instances' addresses and nothing is sent: what is measured is discovery.

- **memory**: resident, with the 200 services and no instance yet, and with all of them;
- **arrival**: from the process's start, with everything registered, until it has every instance ready;
- **full update**: every instance gets another weight: from just before the first call to the registry until
  the table has the last one, and the CPU that holdfast used for it;
- **lag**: by how much its event loop was late at most meanwhile (the upper bound of a histogram's bucket);
- **an idle minute**: the CPU that it uses while nothing changes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from bench.children import BenchError, await_answer, child, end_on_sigterm
from bench.eviction import DOCUMENT
from bench.measure import cpu_seconds, memory
from bench.peers import ROOT, Holdfast
from bench.registries import REGISTRIES, Registry, written
from bench.report import replace_section
from bench.stage import Stage, stage
from discovery.model import Instance
from tests.contract.backend import Missing

MARKERS = "<!-- instances: begin -->", "<!-- instances: end -->"

_WITHIN = 300.0
"""Seconds in which everything must have arrived."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    services: int = 200
    instances: int = 10_000
    idle: float = 60.0
    """Seconds of rest whose CPU is measured."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found; times in seconds, memory in bytes."""

    empty: int
    full: int
    arrival: float
    arrival_cpu: float
    update: float
    update_cpu: float
    lag: float
    idle_cpu: float
    """Of the idle time, as a share."""


class Watched:
    """A running holdfast that follows a registry."""

    def __init__(self, pid: int, admin: str, session: aiohttp.ClientSession) -> None:
        self.pid = pid
        self._admin = admin
        self._session = session

    async def until(self, service: str, wanted: dict[str, int]) -> None:
        """Waits until exactly these instances are ready, with these weights. Raises `BenchError`."""
        deadline = time.monotonic() + _WITHIN
        while True:
            async with self._session.get(f"{self._admin}/v1/services/{service}") as answer:
                found = (await answer.json())["instances"]
            have = {i["address"]: i["registered_weight"] for i in found if i["state"] == "ready"}
            if have == wanted:
                return
            if time.monotonic() > deadline:
                raise BenchError(f"{service} has {len(have)} of {len(wanted)} instances as registered")
            await asyncio.sleep(0.02)

    async def lag(self) -> dict[float, float]:
        """The buckets of the event loop's lag: how often it was late by at most so many seconds."""
        async with self._session.get(f"{self._admin}/metrics") as answer:
            text = await answer.text()
        return {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "holdfast_event_loop_lag_seconds_bucket"
        }


@asynccontextmanager
async def _holdfast(ground: Stage, registry: Registry, services: Sequence[str]) -> AsyncIterator[Watched]:
    place = ground.place("instances")
    config, log = place.folder / "holdfast.yaml", place.folder / "output.log"
    document: dict[str, Any] = {
        "listen": [{"address": f"127.0.0.1:{place.port}"}],
        "admin": {"address": f"127.0.0.1:{place.admin}"},
        "registry": written(registry.section()),
        "access_log": {"path": str(place.folder / "access.log")},
        "services": {name: {} for name in services},
        "routes": [{"match": {"path": f"/{name}"}, "service": name} for name in services],
    }
    config.write_text(json.dumps(document))
    config.chmod(0o600)
    peer = Holdfast()
    program = peer.find()
    if program is None:
        raise BenchError("there is no holdfast in this tree")
    command = peer.command(program, config)
    cores = ground.cores.proxy
    async with aiohttp.ClientSession() as session:
        with child(command, cores=cores, log=log, cwd=place.folder, env=peer.environment()) as process:
            await asyncio.to_thread(await_answer, process, place.admin, log=log, path="/healthz")
            yield Watched(process.pid, f"http://127.0.0.1:{place.admin}", session)


def sets(plan: Plan) -> dict[str, list[Instance]]:
    """The instances by service, each at an address of its own to which nothing is ever sent (RFC 2544)."""
    found: dict[str, list[Instance]] = {f"s{number:03}": [] for number in range(plan.services)}
    names = list(found)
    for number in range(plan.instances):
        service = names[number % len(names)]
        host = f"198.{18 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"
        found[service].append(Instance(service, f"{service}-{number}", host, 7000))
    return found


async def _put(registry: Registry, wanted: dict[str, list[Instance]]) -> None:
    await registry.put_many([instance for instances in wanted.values() for instance in instances])


async def _arrived(holdfast: Watched, wanted: dict[str, list[Instance]]) -> None:
    for service, instances in wanted.items():
        await holdfast.until(service, {i.address: i.weight for i in instances})


async def measure(ground: Stage, plan: Plan, registry: Registry) -> Findings:
    """Runs the plan. Raises `BenchError` when something does not arrive."""
    wanted = sets(plan)
    changed = {name: [replace(i, weight=7) for i in instances] for name, instances in wanted.items()}
    try:
        await registry.start()
        async with _holdfast(ground, registry, list(wanted)) as holdfast:
            await asyncio.sleep(2.0)
            empty = memory(holdfast.pid)
        await _put(registry, wanted)
        began = time.monotonic()
        async with _holdfast(ground, registry, list(wanted)) as holdfast:
            await _arrived(holdfast, wanted)
            arrival, arrival_cpu = time.monotonic() - began, cpu_seconds(holdfast.pid)
            before, used = await holdfast.lag(), cpu_seconds(holdfast.pid)
            began = time.monotonic()
            await _put(registry, changed)
            await _arrived(holdfast, changed)
            update, update_cpu = time.monotonic() - began, cpu_seconds(holdfast.pid) - used
            await asyncio.sleep(1.0)
            late = _latest(before, await holdfast.lag())
            full = memory(holdfast.pid)
            await asyncio.sleep(5.0)
            used = cpu_seconds(holdfast.pid)
            await asyncio.sleep(plan.idle)
            idle = (cpu_seconds(holdfast.pid) - used) / plan.idle
        return Findings(empty, full, arrival, arrival_cpu, update, update_cpu, late, idle)
    finally:
        await registry.stop()


def _latest(before: dict[float, float], after: dict[float, float]) -> float:
    """The bound of the highest bucket that something fell into in between."""
    grown = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    total = max(grown.values(), default=0.0)
    return min((bound for bound, count in grown.items() if count == total), default=0.0)


def table(found: dict[str, Findings], plan: Plan) -> str:
    """All registries, for the document."""
    rows = [
        "| registry | memory, MB | arrival, s (CPU) | full update, s (CPU) | lag, ms | idle CPU |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in found.items():
        rows.append(
            f"| {name} | {f.empty / 1e6:.0f} → {f.full / 1e6:.0f} | {f.arrival:.1f} ({f.arrival_cpu:.1f}) | "
            f"{f.update:.1f} ({f.update_cpu:.1f}) | ≤ {f.lag * 1e3:g} | {f.idle_cpu:.1%} |"
        )
    load = " / ".join(f"{value:.1f}" for value in os.getloadavg())
    rows += ["", f"{plan.instances:,} instances in {plan.services} services; load of the machine {load}."]
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when everything arrived everywhere."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m bench.instances", description=__doc__)
    parser.add_argument("registries", nargs="*", metavar="REGISTRY", help=f"of {', '.join(REGISTRIES)}")
    parser.add_argument("--instances", type=int, default=plan.instances, metavar="N")
    parser.add_argument("--services", type=int, default=plan.services, metavar="N")
    parser.add_argument("--idle", type=float, default=plan.idle, metavar="SECONDS")
    parser.add_argument(
        "--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}"
    )
    given = parser.parse_args(argv)
    if unknown := sorted(set(given.registries) - REGISTRIES.keys()):
        parser.error(f"no such registry: {', '.join(unknown)}")
    if min(given.instances, given.services, given.idle) <= 0:
        parser.error("numbers must be positive")
    plan = replace(plan, instances=given.instances, services=given.services, idle=given.idle)
    found: dict[str, Findings] = {}
    failed = False
    with stage() as ground:
        os.sched_setaffinity(0, ground.cores.load)
        for name in given.registries or ("consul", "etcd", "file"):
            folder: Path = ground.folder / f"registry-{name}"
            folder.mkdir()
            try:
                found[name] = uvloop.run(measure(ground, plan, REGISTRIES[name](folder)))
            except Missing as missing:
                print(f"{name}: skipped: {missing}", flush=True)
            except (AssertionError, BenchError, OSError) as error:
                print(f"{name}: failed: {type(error).__name__}: {str(error)[:500]}", flush=True)
                failed = True
            else:
                print(f"{name}: {found[name]}", flush=True)
    if found:
        print(table(found, plan))
    if given.write and found:
        DOCUMENT.write_text(replace_section(DOCUMENT.read_text(), table(found, plan), *MARKERS))
    return 1 if failed else 0


if __name__ == "__main__":
    end_on_sigterm()
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench.instances: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
