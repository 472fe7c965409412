"""Verbs that go on looking: events and top."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.client import AdminClient, segment
from proxy.cli.common import COLOURS, Session, as_json, duration, speaks_to_proxy

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command(short_help="What has happened.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones until interrupted.")
@click.option("--since", type=click.IntRange(0), default=0, help="Only those after this sequence number.")
@speaks_to_proxy
def events(session: Session, follow: bool, since: int) -> None:
    """What has happened lately, oldest first. With --json one event per line."""
    client = session.client()
    if follow:
        try:
            for event in client.stream(f"/v1/events?since={since}"):
                _print_event(session, event)
        except KeyboardInterrupt:
            return
        click.echo("holdfast: the proxy has ended the stream", err=True)
        raise SystemExit(1)
    for event in client.get("/v1/events", since=str(since), follow="false")["events"]:
        _print_event(session, event)


def _print_event(session: Session, event: dict[str, Any]) -> None:
    if session.as_json:
        click.echo(as_json(event))
        return
    facts = {name: fact for name, fact in event.items() if name not in ("seq", "at", "kind")}
    subject = " ".join(str(facts.pop(name)) for name in ("service", "instance", "route") if name in facts)
    if "before" in facts and "after" in facts:
        subject += f" {_fact(facts.pop('before'))} -> {_fact(facts.pop('after'))}"
    rest = " ".join(f"{name}={_fact(fact)}" for name, fact in facts.items() if fact is not None)
    words = (str(event["at"]), click.style(str(event["kind"]), bold=True), subject.strip(), rest)
    click.echo("  ".join(word for word in words if word))


def _fact(fact: object) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)


@click.command(short_help="Live figures.")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(1), help="End after so many looks.")
@speaks_to_proxy
def top(session: Session, interval: float, count: int | None) -> None:
    """Instances with their rates, until interrupted. With --json one object per look and line."""
    client = session.client()
    try:
        if session.as_json:
            for look in _looks(client, interval, count):
                click.echo(as_json(look))
        else:
            _live(client, interval, count)
    except KeyboardInterrupt:
        return


def _looks(client: AdminClient, interval: float, count: int | None) -> Any:
    """Status and instances again and again, each instance with `rate`: requests per second since the last."""
    former: dict[tuple[str, str], int] = {}
    before = 0.0
    number = 0
    while count is None or number < count:
        if number:
            time.sleep(interval)
        number += 1
        status = client.get("/v1/status")
        now = time.monotonic()
        found = []
        for service in status["services"]:
            answer = client.get(f"/v1/services/{segment(service['name'])}/instances")
            found += answer["instances"]
        for instance in found:
            past = former.get((instance["service"], instance["id"]))
            instance["rate"] = 0.0 if past is None else (instance["requests"] - past) / (now - before)
        former = {(i["service"], i["id"]): i["requests"] for i in found}
        before = now
        yield {"status": status, "instances": found}


def _live(client: AdminClient, interval: float, count: int | None) -> None:
    from rich.live import Live

    with Live(refresh_per_second=4, screen=count is None) as live:
        for look in _looks(client, interval, count):
            live.update(_picture(look), refresh=True)


def _picture(look: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    status = look["status"]
    totals = status["totals"]
    rate = sum(instance["rate"] for instance in look["instances"])
    heading = Text.assemble(
        ("holdfast ", "bold"),
        f"up {duration(status['uptime'])}   ",
        f"{rate:,.0f} requests/s   {totals['connections_open']} connections   ",
        f"{totals['tunnels_open']} tunnels   ",
        ("ready", "green") if status["ready"] else ("not ready: " + "; ".join(status["reasons"]), "red"),
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("service", "instance"):
        table.add_column(name, overflow="fold", min_width=8)
    for name in ("state", "version"):
        table.add_column(name, no_wrap=True)
    for name in ("weight", "busy", "tunnels", "req/s", "failed", "latency"):
        table.add_column(name, justify="right", no_wrap=True)
    for i in look["instances"]:
        table.add_row(
            Text(i["service"]),
            Text(i["id"]),  # a plain string would be read as markup
            Text(i["state"], COLOURS.get(i["state"], "")),
            Text(i["version"] or "-"),
            str(i["weight"]),
            str(i["inflight"]),
            str(i["tunnels"]),
            f"{i['rate']:,.0f}",
            str(i["failed"]),
            f"{i['latency_ms']:.1f} ms",
        )
    return Group(heading, Text(), table)


VERBS: tuple[click.Command, ...] = (events, top)
