"""One client takes all it can get; what another one asks and says goes on nearly as before."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.stage import Stage
from tests.overload.world import FULL, World

SECONDS = 10.0 if FULL else 0.4
SLOWEST = 0.15
"""Seconds that 99 of 100 answers take at most while a flood is on, where four processes have two cores. One
read of small pieces, taken to its end, would be some hundred milliseconds, and up to 32 follow each other."""
FLOODS = [
    ("frames", "web"),
    ("frames", "moving"),
    ("spray", "web"),
    ("spray", "moving"),
    ("download", "web"),
    ("upload", "web"),
    ("chunks", "web"),
    ("chunked", "web"),
    ("pipeline", "web"),
    ("connections", "web"),
]
Figures = dict[str, dict[str, float]]


async def probed(world: World) -> Figures:
    child = await world.stage.spawn("probe", "-m", "tests.overload.probe", str(world.port), str(SECONDS))
    found: Figures = json.loads((await child.said(r"^\{.*\}$"))[0])
    return found


async def during(world: World, kind: str, host: str, port: int) -> tuple[Figures, float]:
    """What others see while a flood is on, and how late the loop's timers are on average."""
    flood = await world.stage.spawn(kind, "-m", "tests.overload.flood", kind, str(port), host)
    try:
        await flood.said("begun")
        before = await lag(world)
        figures = await probed(world)
        after = await lag(world)
        assert flood.running, flood.output
    finally:
        await flood.end()
    return figures, (after[0] - before[0]) / max(1.0, after[1] - before[1])


async def lag(world: World) -> tuple[float, float]:
    metrics, name = await world.gateway.metrics(), "holdfast_event_loop_lag_seconds"
    return metrics[f"{name}_sum"], metrics[f"{name}_count"]


def told(figures: Figures) -> str:
    """In milliseconds."""
    return "; ".join(
        f"{way} {found['median'] * 1000:.2f} {found['p99'] * 1000:.2f} {found['longest'] * 1000:.2f}"
        for way, found in figures.items()
    )


def wrong(flood: str, alone: Figures, figures: Figures, late: float) -> list[str]:
    print(f"{flood}: {told(figures)}; loop late by {late * 1000:.1f} ms")
    slow = [
        f"{flood}: {way} {found}"
        for way, found in figures.items()
        if found["p99"] > SLOWEST + 10 * alone[way]["p99"]
    ]
    return slow + ([f"{flood}: the loop is late by {late} s"] if late > SLOWEST else [])


async def test_no_flood_takes_the_turn_of_others(world: World) -> None:
    alone = await probed(world)
    print(f"median, p99, longest in ms; alone: {told(alone)}")
    found: list[str] = []
    for kind, host in FLOODS if FULL else FLOODS[1:3] + FLOODS[4:]:
        figures, late = await during(world, kind, host, world.port)
        found += wrong(f"{kind} {host}", alone, figures, late)
    assert found == []


async def test_tls_handshakes_without_end_leave_others_their_turn(stage: Stage, certificate: Path) -> None:
    tls = {"certificate": str(certificate / "cert.pem"), "key": str(certificate / "key.pem")}
    listen = [{"address": "127.0.0.1:0"}, {"address": "127.0.0.1:0", "tls": tls}]
    world = await World.build(stage, listen=listen)
    alone = await probed(world)
    secure = int(world.gateway.addresses[1].rpartition(":")[2])
    figures, late = await during(world, "handshakes", "web", secure)
    assert wrong("handshakes", alone, figures, late) == []
    assert (await world.gateway.metrics())["holdfast_connections_total"] > 20
