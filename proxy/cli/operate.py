"""Verbs that ask or change a running proxy once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from config.checks import closest
from config.schema import parse_duration
from proxy.cli.client import AdminClient, AdminError, segment
from proxy.cli.common import (
    Session,
    complete_instance,
    complete_route,
    complete_service,
    duration,
    fail,
    instance_path,
    speaks_to_proxy,
    table,
)
from proxy.cli.limits import capacity, limit

_POLL = 0.2
"""Seconds between looks at an instance that is being waited for."""

_LEAVE = 600.0
"""Seconds in which a proxy has surely left: it keeps to its own `shutdown`."""

_SLACK = 2.0
"""Seconds over a drain's deadline in which the proxy may still be closing what is left."""


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="The proxy in a few lines.")
@speaks_to_proxy
def status(session: Session) -> None:
    """Is it ready, what does it carry, and how are registries and services?"""
    answer = session.client().get("/v1/status")
    session.show(answer, lambda: _status_text(answer))


def _status_text(answer: dict[str, Any]) -> str:
    state = "ready" if answer["ready"] else "not ready: " + "; ".join(answer["reasons"])
    totals = answer["totals"]
    lines = [
        f"holdfast {answer['version']}, process {answer['pid']}, up {duration(answer['uptime'])}, {state}",
        f"{totals['connections_open']} connections, {totals['tunnels_open']} tunnels, "
        f"{totals['requests']} requests so far, {totals['retries']} retries",
    ]
    lines += [_registry_line(registry) for registry in answer["registries"]]
    lines += [_entry_line(entry) for entry in answer["entries"]]
    rows = [_service_row(service) for service in answer["services"]]
    return "\n".join([*lines, "", table(_SERVICE_HEAD, rows)]) if rows else "\n".join(lines)


def _registry_line(registry: dict[str, Any]) -> str:
    line = f"registry {registry['kind']}: {registry['state']}"
    if registry["staleness"]:
        line += f", last known to be right {duration(registry['staleness'])} ago"
    if registry["held"]:
        line += f", {registry['held']} missing instances kept until that is certain"
    wrong = registry["error"] if registry["state"] not in ("live", "idle") else None
    return f"{line} ({wrong})" if wrong else line


def _entry_line(entry: dict[str, Any]) -> str:
    line = f"{entry['service']} {entry['id']} ({entry['address']}): "
    if not entry["app_ready"]:
        return f"{line}not ready, {entry['app_error']}"
    return line + ", ".join(f"{_entered(registry)} {registry['name']}" for registry in entry["registries"])


def _entered(registry: dict[str, Any]) -> str:
    if not registry["registered"]:
        return f"not registered ({registry['error'] or 'under way'}) in"
    return "shown by" if registry["shown"] else "registered in"


_SERVICE_HEAD = ("service", "ready", "instances", "balance", "in flight", "tunnels", "requests", "failed")


def _service_row(service: dict[str, Any]) -> tuple[object, ...]:
    states = service["states"]
    return (
        service["name"],
        states["ready"],
        sum(states.values()),
        service["balance"],
        service["inflight"],
        service["tunnels"],
        service["requests"],
        service["failed"],
    )


@click.command(short_help="The services and their counts.")
@speaks_to_proxy
def services(session: Session) -> None:
    """The services and their counts."""
    answer = session.client().get("/v1/services")
    session.show(answer, lambda: table(_SERVICE_HEAD, [_service_row(s) for s in answer["services"]]))


@click.command(short_help="The instances of a service, or all of them.")
@click.argument("service", required=False, shell_complete=complete_service)
@speaks_to_proxy
def instances(session: Session, service: str | None) -> None:
    """The instances of SERVICE, or of all services."""
    client = session.client()
    if service is not None:
        found = client.get(f"/v1/services/{segment(service)}/instances")["instances"]
    else:
        names = [entry["name"] for entry in client.get("/v1/services")["services"]]
        found = [
            instance
            for name in names
            for instance in client.get(f"/v1/services/{segment(name)}/instances")["instances"]
        ]
    session.show({"instances": found}, lambda: instances_text(found))


def instances_text(found: list[dict[str, Any]]) -> str:
    """Instances as a table."""
    head = (
        "service", "instance", "address", "state", "weight", "version",
        "in flight", "tunnels", "requests", "failed", "latency",
    )  # fmt: skip
    rows = [
        (
            i["service"],
            i["id"],
            i["address"],
            i["state"],
            i["weight"],
            i["version"],
            i["inflight"],
            i["tunnels"],
            i["requests"],
            i["failed"],
            f"{i['latency_ms']:.1f} ms",
        )
        for i in found
    ]
    return table(head, rows, state=3)


_service_argument = click.argument("service", shell_complete=complete_service)
_instance_argument = click.argument("instance", shell_complete=complete_instance)


@click.command(short_help="Change an instance's weight.")
@_service_argument
@_instance_argument
@click.argument("weight", metavar="N|reset")
@speaks_to_proxy
def weight(session: Session, service: str, instance: str, weight: str) -> None:
    """Give INSTANCE the weight N (0: nothing new), or with `reset` its registered one again."""
    if weight != "reset" and not weight.isdecimal():
        raise click.BadParameter(f"{weight!r} is neither a whole number nor `reset`", param_hint="N")
    wanted = None if weight == "reset" else int(weight)
    answer = session.client().send("PATCH", instance_path(service, instance), {"weight": wanted})
    session.show(answer, lambda: f"{service} {instance}: weight {answer['weight']}")


@click.command(short_help="Take an instance out gently.")
@_service_argument
@_instance_argument
@click.option(
    "--deadline", metavar="DURATION", callback=_seconds, help="Time for what is in flight, e.g. 30s."
)
@click.option("--wait", is_flag=True, help="Return when the instance is empty; fail when it is not in time.")
@speaks_to_proxy
def drain(session: Session, service: str, instance: str, deadline: float | None, wait: bool) -> None:
    """Take INSTANCE out gently: nothing new, and what it has may finish until the deadline."""
    client = session.client()
    body = None if deadline is None else {"deadline": deadline}
    answer = client.send("POST", f"{instance_path(service, instance)}/drain", body)
    if wait:
        answer = _wait_until_empty(client, service, instance, answer)
    session.show(answer, lambda: f"{service} {instance}: {_drained(answer)}")


def _drained(answer: dict[str, Any]) -> str:
    if not answer["inflight"] and not answer["tunnels"]:
        return f"{answer['state']}, empty"
    requests = answer["inflight"] - answer["tunnels"]
    return f"{answer['state']}, {requests} requests and {answer['tunnels']} tunnels left"


def _wait_until_empty(
    client: AdminClient, service: str, instance: str, answer: dict[str, Any]
) -> dict[str, Any]:
    allowed = answer["drain_deadline"] + _SLACK
    end = time.monotonic() + allowed
    told = ""
    while answer["inflight"] or answer["tunnels"]:
        if (left := _drained(answer)) != told:
            click.echo(f"{service} {instance}: {left}", err=True)
            told = left
        if answer["state"] not in ("draining", "gone"):
            fail(f"{service} {instance}: the drain was taken back; it is {answer['state']}")
        if time.monotonic() >= end:
            fail(f"{service} {instance}: after {duration(allowed)} {_drained(answer)}")
        time.sleep(_POLL)
        try:
            answer = client.get(instance_path(service, instance))
        except AdminError as error:
            if error.status != 404:
                raise
            return {**answer, "state": "gone", "inflight": 0, "tunnels": 0}
    return answer


@click.command(short_help="Take a drain back.")
@_service_argument
@_instance_argument
@speaks_to_proxy
def undrain(session: Session, service: str, instance: str) -> None:
    """Take a drain of INSTANCE back. One that its registry asks for stays."""
    answer = session.client().send("POST", f"{instance_path(service, instance)}/undrain")
    session.show(answer, lambda: f"{service} {instance}: {answer['state']}")


@click.command(short_help="Take an instance out for a time.")
@_service_argument
@_instance_argument
@click.option("--for", "seconds", metavar="DURATION", callback=_seconds, help="How long.  [default: 30s]")
@speaks_to_proxy
def eject(session: Session, service: str, instance: str, seconds: float | None) -> None:
    """Take INSTANCE out for a time; what it has goes on."""
    body = None if seconds is None else {"duration": seconds}
    answer = session.client().send("POST", f"{instance_path(service, instance)}/eject", body)
    left = answer["ejected_for"]
    session.show(answer, lambda: f"{service} {instance}: {answer['state']} for {duration(left)}")


@click.command(short_help="Show or change how a route's traffic is split.")
@click.argument("route", shell_complete=complete_route)
@click.argument("shares", nargs=-1, metavar="[VERSION=SHARE]...")
@click.option("--off", is_flag=True, help="No split: every version gets traffic, by its instances' weights.")
@speaks_to_proxy
def split(session: Session, route: str, shares: tuple[str, ...], off: bool) -> None:
    """Show how ROUTE's traffic is split between versions, or change it: stable=90 canary=10."""
    if off and shares:
        raise click.UsageError("give shares or --off, not both")
    path = f"/v1/routes/{segment(route)}/split"
    if off or shares:
        wanted = None if off else _shares(shares)
        answer = session.client().send("PUT", path, {"split": wanted})
        _warn_of_nobody(answer)
    else:
        answer = session.client().get(path)
    session.show(answer, lambda: _split_text(answer))


def _warn_of_nobody(answer: dict[str, Any]) -> None:
    """A share for a version that no instance has is taken: it may be coming. A typing error looks alike."""
    known = sorted(version for version, counts in answer["versions"].items() if counts["instances"])
    for version, share in (answer["split"] or {}).items():
        if share and version not in known:
            hint = closest(version, known)
            there = ", ".join(name or "(none)" for name in known) or "no instance at all"
            click.echo(
                f"holdfast: no instance has the version {version!r} yet{hint}; there is: {there}", err=True
            )


def _shares(arguments: tuple[str, ...]) -> dict[str, int]:
    shares: dict[str, int] = {}
    for argument in arguments:
        version, equals, share = argument.rpartition("=")
        if not equals or not version or not share.removesuffix("%").isdecimal():
            raise click.BadParameter(f"{argument!r} is not VERSION=SHARE", param_hint="shares")
        if version in shares:
            raise click.BadParameter(f"{version!r} is given twice", param_hint="shares")
        shares[version] = int(share.removesuffix("%"))
    return shares


def _split_text(answer: dict[str, Any]) -> str:
    shares = answer["split"]
    rows = []
    for version, counts in answer["versions"].items():
        share = "" if shares is None else shares.get(version, 0)
        rows.append((version or "(none)", share, counts["ready"], counts["instances"]))
    title = f"route {answer['route']}: " + ("no split" if shares is None else "split by version")
    return f"{title}\n{table(('version', 'share', 'ready', 'instances'), rows)}"


@click.command(short_help="Which instance a request would get, and why not the others.")
@click.argument("url")
@click.option("--method", default="GET", show_default=True)
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'")
@click.option("--client", help="The client's address, for what goes by it.  [default: 127.0.0.1]")
@speaks_to_proxy
def explain(session: Session, url: str, method: str, headers: tuple[str, ...], client: str | None) -> None:
    """Which route, subset and instance a request would get, and why every other instance was not taken."""
    for header in headers:
        if ":" not in header:
            raise click.BadParameter(f"{header!r} is not 'Name: value'", param_hint="-H")
    query: dict[str, str | list[str]] = {"url": url, "method": method, "header": list(headers)}
    if client is not None:
        query["client"] = client
    answer = session.client().get("/v1/explain", **query)
    session.show(answer, lambda: _explain_text(answer))


def _explain_text(answer: dict[str, Any]) -> str:
    lines = []
    route = answer["route"]
    if route is None:
        lines.append(f"no route: {answer['outcome']}")
    else:
        lines.append(f"route {route['name']} to service {route['service']}")
    for other in answer["other_routes"]:
        lines.append(f"  not {other['name']}: {other['why']}")
    if answer["split"] is not None:
        split = answer["split"]
        shares = ", ".join(f"{version}={share}" for version, share in split["shares"].items())
        lines.append(f"split {shares}: version {split['version'] or '(none)'}, {split['why']}")
    if answer["sticky"] is not None:
        lines.append(f"sticky by {answer['sticky']['by']}: {answer['sticky']['why']}")
    if route is not None:
        lines.append(f"outcome: {answer['outcome']}")
        rows = [(i["id"], i["state"], "taken" if i["taken"] else "no", i["why"]) for i in answer["instances"]]
        lines += ["", table(("instance", "state", "taken", "why"), rows, state=1)] if rows else []
    return "\n".join(lines)


@click.command(short_help="What a reload with a file would change.")
@click.option("-c", "--config", required=True, metavar="FILE", help="The configuration, YAML or JSON.")
@speaks_to_proxy
def plan(session: Session, config: str) -> None:
    """What a reload with FILE would change in the running proxy."""
    try:
        text = Path(config).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise click.UsageError(f"cannot read {config}: {reason}") from None
    try:
        answer = session.client().send("POST", "/v1/plan", {"config": text, "path": config})
    except AdminError as error:
        if not error.problems:
            raise
        click.echo("\n".join(error.problems), err=True)
        raise SystemExit(2) from None
    session.show(answer, lambda: _changes_text(answer["changes"]))


@click.command(short_help="Take over a changed configuration file.")
@speaks_to_proxy
def reload(session: Session) -> None:
    """Take over a changed configuration file: everything in one step, or nothing."""
    answer = session.client(timeout=30.0).send("POST", "/v1/reload")
    session.show(answer, lambda: _changes_text(answer["changes"]))


@click.command(short_help="Replace the running proxy by a new process.")
@speaks_to_proxy
def upgrade(session: Session) -> None:
    """Replace the running proxy by a new process, which takes over every connection it can.

    The new process runs what is installed now, with the configuration file as it is now. When it does not
    start, the old one goes on.
    """
    answer = session.client(timeout=60.0).send("POST", "/v1/upgrade")
    session.show(answer, lambda: f"process {answer['pid']} has taken over")


@click.command(short_help="Take the applications beside a proxy out of the registries.")
@click.option(
    "--settle", metavar="DURATION", callback=_seconds, help="How long others may take to hear of it."
)
@speaks_to_proxy
def leave(session: Session, settle: float | None) -> None:
    """Take what a sidecar has registered out of the registries, and wait until everybody can have heard.

    The proxy is not ready from then on, and serves what still comes until it gets SIGTERM. Made for preStop
    hooks.
    """
    body = None if settle is None else {"settle": settle}
    answer = session.client(timeout=(settle or 0.0) + _LEAVE).send("POST", "/v1/leave", body)
    left = ", ".join(answer["left"])
    session.show(answer, lambda: f"left the registries: {left}" if left else "not ready from now on")


def _changes_text(changes: list[dict[str, Any]]) -> str:
    if not changes:
        return "nothing changes"
    return "\n".join(str(change["line"]) for change in changes)


VERBS: tuple[click.Command, ...] = (
    limit,
    capacity,
    status,
    services,
    instances,
    weight,
    drain,
    undrain,
    eject,
    split,
    explain,
    plan,
    reload,
    upgrade,
    leave,
)
