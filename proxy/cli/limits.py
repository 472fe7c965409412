"""Verbs on what may be under way: rate limits and capacities of a running proxy."""

from __future__ import annotations

from typing import Any

import click

from proxy.cli.client import segment
from proxy.cli.common import Session, complete_route, complete_service, duration, speaks_to_proxy, table


@click.command(short_help="Show or change the rate limit of a route or a service.")
@click.argument("name", shell_complete=complete_route)
@click.argument("rate", required=False)
@click.option("--service", "of_service", is_flag=True, help="NAME is a service, not a route.")
@click.option("--burst", type=click.IntRange(1), help="Bucket size.  [default: one second's worth]")
@click.option("--per", metavar="KEY", help="client, route, service, header:NAME, cookie:NAME or query:NAME.")
@click.option("--wait", metavar="TIME", help="Requests may wait so long for their turn.")
@click.option("--warm-up", metavar="TIME", help="Start at a third of the rate and grow for so long.")
@click.option("--off", is_flag=True, help="No limit.")
@click.option("--reset", is_flag=True, help="What the file says.")
@speaks_to_proxy
def limit(
    session: Session,
    name: str,
    rate: str | None,
    of_service: bool,
    off: bool,
    reset: bool,
    **options: object,
) -> None:
    """Show the rate limits of route NAME, or replace them by one: 100/s, 30/m."""
    given = {key: value for key, value in options.items() if value is not None}
    if sum((rate is not None, off, reset)) > 1:
        raise click.UsageError("give one of RATE, --off and --reset")
    if given and rate is None:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs a RATE")
    path = f"/v1/{'services' if of_service else 'routes'}/{segment(name)}/limits"
    if rate is None and not off and not reset:
        answer = session.client().get(path)
    else:
        limits = None if reset else [] if off else [{"rate": rate, **given}]
        answer = session.client().send("PUT", path, {"limits": limits})
    session.show(answer, lambda: _limits_text(name, answer))


def _limits_text(name: str, answer: dict[str, Any]) -> str:
    if not answer["limits"]:
        return f"{name}: no rate limit"
    rows = [
        (
            f"{limit['rate']:g}/s",
            limit["burst"] or "",
            limit["per"],
            duration(limit["wait"]) if limit["wait"] else "",
            duration(limit["warm_up"]) if limit["warm_up"] else "",
        )
        for limit in answer["limits"]
    ]
    return f"{name}\n{table(('rate', 'burst', 'per', 'wait', 'warm up'), rows)}"


@click.command(short_help="Show or change how much of a service may be under way.")
@click.argument("service", shell_complete=complete_service)
@click.argument("limits", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--off", is_flag=True, help="No limit.")
@click.option("--reset", is_flag=True, help="What the file says.")
@speaks_to_proxy
def capacity(session: Session, service: str, limits: tuple[str, ...], off: bool, reset: bool) -> None:
    """Show what SERVICE may have under way, or change some of it: requests=100 queue=50 wait=2s."""
    if sum((bool(limits), off, reset)) > 1:
        raise click.UsageError("give limits, --off or --reset, not several of them")
    path = f"/v1/services/{segment(service)}/capacity"
    answer = session.client().get(path)
    if limits:
        wanted = answer["capacity"] | dict(map(_pair, limits))
        answer = session.client().send("PUT", path, {"capacity": wanted})
    elif off or reset:
        answer = session.client().send("PUT", path, {"capacity": {} if off else None})
    session.show(answer, lambda: _capacity_text(service, answer))


def _pair(argument: str) -> tuple[str, object]:
    key, equals, value = argument.partition("=")
    if not key or not equals or not value:
        raise click.BadParameter(f"{argument!r} is not KEY=VALUE", param_hint="limits")
    return key, int(value) if value.isdecimal() else value


def _capacity_text(service: str, answer: dict[str, Any]) -> str:
    capacity = answer["capacity"]
    held = [
        f"{key} {capacity[key]}" for key in ("requests", "tunnels", "connections", "queue") if capacity[key]
    ]
    if capacity["adaptive"]:
        held.append("adaptive")
    if capacity["queue"]:
        held.append(f"wait {duration(capacity['wait'])}")
    places = f" of {answer['places']}" if answer["places"] else ""
    use = f"{answer['admitted']}{places} under way, {answer['waiting']} waiting"
    return f"{service}: {', '.join(held) or 'no limit'}; {use}"
