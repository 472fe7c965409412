"""One trial: everything that is measured of one started proxy, in the order that keeps it comparable."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass

import uvloop

from bench.children import BenchError
from bench.load import OpenLoop, Outcome, saturate
from bench.measure import percentile
from bench.stage import Running
from bench.tunnels import idle_cost, ping_pong


@dataclass(frozen=True, slots=True)
class Effort:
    """How long (seconds) and how hard each part of a trial is."""

    rounds: int
    saturate: int
    latency: float
    echo: float
    tunnels: int
    warm: int = 1
    connections: int = 64
    rate: float = 2000.0
    """Requests per second while latency is measured; below what the slowest proxy can do."""


FULL = Effort(rounds=5, saturate=3, latency=1.5, echo=1.5, tunnels=2000)
QUICK = Effort(rounds=2, saturate=1, latency=1.0, echo=0.8, tunnels=1000)


def trial(running: Running, effort: Effort) -> dict[str, float]:
    """Figures by name (see `report.METRICS`), in seconds and bytes. Raises `BenchError` when load fails.

    Memory comes before anything that could grow it; tunnels come last, on a heap that HTTP has filled.
    """
    values: dict[str, float] = {}
    if running.pid is not None:
        values |= {"start": running.started, "memory_idle": float(running.memory())}
    values |= _http(running, effort)
    values |= echo(running, effort)
    if running.pid is not None:
        values["tunnel"] = uvloop.run(idle_cost(running.echo, count=effort.tunnels, memory=running.memory))
    return values


def throughput(running: Running, effort: Effort) -> dict[str, float]:
    """Requests per second at saturation, and what each costs."""
    saturate(running.http, seconds=effort.warm, connections=effort.connections)
    cpu, began = running.cpu(), time.monotonic()
    result = saturate(running.http, seconds=effort.saturate, connections=effort.connections)
    used, took = running.cpu() - cpu, time.monotonic() - began
    if not result.requests:
        raise BenchError(f"no request was answered, {result.failed} failed")
    values = {
        "rate": result.rate,
        "wrk_p50": result.p50,
        "wrk_p99": result.p99,
        "failed": float(result.failed),
    }
    if running.pid is not None:
        values |= {"cpu_request": used / result.requests, "core": used / took}
    return values


def _http(running: Running, effort: Effort) -> dict[str, float]:
    values = throughput(running, effort)
    if running.pid is not None:
        values["memory_loaded"] = float(running.memory())
    outcome = uvloop.run(_latency(running, effort))
    if not outcome.latencies:
        raise BenchError(f"no request was answered: {outcome.failures[:1]}")
    values["p50"] = percentile(outcome.latencies, 0.50)
    values["p99"] = percentile(outcome.latencies, 0.99)
    values["failed"] += len(outcome.failures)
    return values


async def _latency(running: Running, effort: Effort) -> Outcome:
    # A collection in this process would show as latency of the proxy.
    gc.collect()
    gc.disable()
    try:
        async with OpenLoop(running.http, rate=effort.rate, connections=effort.connections) as load:
            await asyncio.sleep(effort.latency)
    finally:
        gc.enable()
    return load.outcome


def echo(running: Running, effort: Effort) -> dict[str, float]:
    """WebSocket messages echoed per second, and what each costs."""
    echoed = uvloop.run(
        ping_pong(running.echo, connections=effort.connections, seconds=effort.echo, cpu=running.cpu)
    )
    if not echoed.messages:
        raise BenchError("no WebSocket message came back")
    values = {"echo_rate": echoed.messages / echoed.seconds}
    if running.pid is not None:
        values |= {"echo_cpu": echoed.cpu / echoed.messages, "echo_core": echoed.cpu / echoed.seconds}
    return values
