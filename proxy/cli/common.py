"""What the verbs share: the running proxy they talk to, how they fail, and plain tables."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import click

from proxy.cli.client import AdminClient, AdminError, segment
from proxy.visible import visible

DEFAULT_ADMIN = "127.0.0.1:9900"

COLOURS = {
    "ready": "green",
    "starting": "cyan",
    "draining": "yellow",
    "ejected": "magenta",
    "unhealthy": "red",
    "gone": "bright_black",
}
"""Of the states of an instance."""


class Session:
    """One run of the command: where the proxy is, and whether answers are wanted as JSON."""

    def __init__(self, admin: str) -> None:
        self.admin = admin
        self.as_json = False

    def client(self, timeout: float = 10.0) -> AdminClient:
        """A client of the proxy. Wrong usage when the address is none."""
        try:
            token = os.environ.get("HOLDFAST_ADMIN_TOKEN")
            return AdminClient(self.admin, token, timeout, raw=self.as_json)
        except ValueError as error:
            hint = None if "HOLDFAST_ADMIN_TOKEN" in str(error) else "--admin"
            raise click.BadParameter(str(error), param_hint=hint) from None

    def show(self, answer: Any, human: Callable[[], str]) -> None:
        """Print an answer as JSON, or as `human` says it."""
        click.echo(as_json(answer, indent=2) if self.as_json else human())


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON for programs that people may look at as well."""
    return visible(json.dumps(value, indent=indent, ensure_ascii=False), keep="\n")


class Group(click.Group):
    """Turns what the admin client raises into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except AdminError as error:
            # What the proxy could not even understand is wrong usage.
            fail("\n".join((str(error), *error.problems)), code=2 if error.status == 400 else 1)


def fail(message: str, code: int = 1) -> NoReturn:
    """Say why, on standard error, and exit."""
    click.echo(f"holdfast: {message}", err=True)
    sys.exit(code)


def speaks_to_proxy(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb `--admin` and `--json`, and the `Session` as its first argument."""

    @click.option("--admin", metavar="ADDRESS", help="The admin API [env: HOLDFAST_ADMIN].")
    @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    @click.pass_obj
    @functools.wraps(function)
    def verb(session: Session, /, admin: str | None, as_json: bool, **options: Any) -> None:
        if admin is not None:
            session.admin = admin
        session.as_json = as_json
        function(session, **options)

    return verb


def table(head: Sequence[str], rows: Sequence[Sequence[object]], state: int | None = None) -> str:
    """Columns that a person and `awk` can read; numbers to the right. Column `state` gets its colour."""
    texts = [["-" if cell in (None, "") else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in (list(head), *texts)) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(head))]

    def line(cells: Sequence[str], colour: bool) -> str:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, right, strict=True)
        ]
        if colour and state is not None:
            padded[state] = click.style(padded[state], fg=COLOURS.get(cells[state]))
        return "  ".join(padded).rstrip()

    return "\n".join([line([name.upper() for name in head], False), *(line(row, True) for row in texts)])


def duration(seconds: float) -> str:
    """`3d 4h`, `2m 5s`, `1.5 s` or `12 ms`: two units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    parts = []
    rest = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def instance_path(service: str, instance: str) -> str:
    """Where the API has an instance."""
    return f"/v1/services/{segment(service)}/instances/{segment(instance)}"


def complete(path: str, collection: str, key: str) -> Callable[..., list[str]]:
    """Shell completion from a running proxy's lists; nothing when none can be asked.

    `path` may name `{service}`, taken from what has been typed already.
    """

    def candidates(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        where = context.params.get("admin") or os.environ.get("HOLDFAST_ADMIN") or DEFAULT_ADMIN
        names = {name: segment(str(value)) for name, value in context.params.items()}
        try:
            client = AdminClient(where, os.environ.get("HOLDFAST_ADMIN_TOKEN"), timeout=0.5, raw=True)
            answer = client.get(path.format(**names))
        except (AdminError, ValueError, KeyError):
            return []
        found = [cast(str, entry[key]) for entry in answer[collection]]
        return [name for name in found if name.startswith(incomplete) and name.isprintable()]

    return candidates


complete_service = complete("/v1/services", "services", "name")
complete_instance = complete("/v1/services/{service}/instances", "instances", "id")
complete_route = complete("/v1/routes", "routes", "name")
