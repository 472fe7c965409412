"""The verbs, and the group that holds them. Verbs that start something are here, the others talk to one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from proxy.cli import operate, watch
from proxy.cli.common import DEFAULT_ADMIN, Group, Session, fail

if TYPE_CHECKING:
    from config.load import Problem
    from config.schema import Address

_ADDRESS_HELP = "host:port, http://host:port or unix:/path"


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.",
)
@click.option(
    "--admin",
    metavar="ADDRESS",
    envvar="HOLDFAST_ADMIN",
    default=DEFAULT_ADMIN,
    show_default=True,
    show_envvar=True,
    help=f"The admin API of a running proxy: {_ADDRESS_HELP}. Its token comes from HOLDFAST_ADMIN_TOKEN.",
)
@click.version_option(package_name="holdfast", message="holdfast %(version)s")
@click.pass_context
def cli(context: click.Context, admin: str) -> None:
    """A service-discovery sidecar and smart reverse proxy that keeps every connection."""
    context.obj = Session(admin)


@cli.command(short_help="Run the proxy.")
@click.option("-c", "--config", required=True, metavar="FILE", help="The configuration, YAML or JSON.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Forwarding processes.")
def run(config: str, workers: int) -> None:
    """Run the proxy, as an edge gateway or a sidecar: whichever the file says."""
    if workers != 1:
        raise click.BadParameter("only 1 is possible in this version", param_hint="--workers")
    from proxy.process import run as run_proxy

    sys.exit(run_proxy(config))


@cli.command(short_help="A registry, chat instances and the gateway, with one command.")
@click.option("--instances", type=click.IntRange(1, 64), default=3, show_default=True, help="Chat instances.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The gateway.")
@click.option("--admin-port", type=click.IntRange(0, 65535), default=9900, show_default=True)
@click.option("--registry-port", type=click.IntRange(0, 65535), default=8500, show_default=True)
@click.option("--data", metavar="DIR", help="Keep the chat's messages here; otherwise they go when it ends.")
def demo(instances: int, port: int, admin_port: int, registry_port: int, data: str | None) -> None:
    """Start the embedded registry, chat instances in processes of their own, and the gateway before them.

    Ctrl-C drains and ends everything.
    """
    from proxy.demo import DemoOptions, run_demo

    options = DemoOptions(
        instances=instances, port=port, admin_port=admin_port, registry_port=registry_port, data=data
    )
    sys.exit(run_demo(options))


@cli.command(
    short_help="One chat instance.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def chat(arguments: tuple[str, ...]) -> None:
    """One chat instance, which registers itself, heartbeats, and drains on SIGTERM."""
    from chat.__main__ import main as chat_main

    sys.exit(chat_main(list(arguments), prog="holdfast chat"))


@cli.command(short_help="The embedded registry alone.")
@click.option("--listen", default="127.0.0.1:8500", show_default=True, metavar="ADDRESS")
@click.option("--data", metavar="DIR", help="Keep its contents here; in memory otherwise.")
def registry(listen: str, data: str | None) -> None:
    """The embedded registry alone; it speaks the Consul HTTP API."""
    from config.schema import Address

    try:
        address = Address.parse(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None
    import asyncio

    try:
        asyncio.run(_serve_registry(address, data))
    except OSError as error:
        fail(error.strerror or str(error))


async def _serve_registry(address: Address, data: str | None) -> None:
    """Until SIGTERM or SIGINT, which end it in order."""
    import asyncio
    import signal
    from contextlib import suppress

    from discovery.embedded import serve

    def announce(where: Address) -> None:
        click.echo(f"listening on {where if where.path else f'http://{where}'}")
        sys.stdout.flush()

    serving = asyncio.ensure_future(serve(address, data, ready=announce))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving


@cli.command(short_help="Validate a configuration.")
@click.option("-c", "--config", required=True, metavar="FILE", help="The configuration, YAML or JSON.")
@click.option("--json", "as_json", is_flag=True, help="The problems as JSON, on standard output.")
def check(config: str, as_json: bool) -> None:
    """Validate a configuration; every problem at once, as FILE:LINE:COL: path.to.key: what is wrong.

    The files that it names are opened: certificates, keys and tokens.
    """
    import os

    from config.load import ConfigError, load, located
    from proxy.cli.files import unusable

    problems: list[Problem] = []
    try:
        loaded = load(config, environ=os.environ)
        problems = located(config, unusable(loaded), environ=os.environ)
    except ConfigError as error:
        problems = list(error.problems)
    if as_json:
        import json

        click.echo(json.dumps({"ok": not problems, "problems": [_as_json(p) for p in problems]}, indent=2))
    elif problems:
        click.echo("\n".join(map(str, problems)), err=True)
    else:
        services, routes = len(loaded.services), len(loaded.routes)
        click.echo(f"{config}: good; {_counted(services, 'service')}, {_counted(routes, 'route')}")
    sys.exit(2 if problems else 0)


def _as_json(problem: Problem) -> dict[str, object]:
    return {
        "file": problem.place.source,
        "line": problem.place.line,
        "column": problem.place.column,
        "path": problem.path,
        "message": problem.message,
    }


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


@cli.command(short_help="The JSON Schema of the configuration.")
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors and validators."""
    import json

    from config.json_schema import schema as json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@cli.command(short_help="Shell completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    For bash: holdfast completion bash > ~/.local/share/bash-completion/completions/holdfast
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "holdfast", "_HOLDFAST_COMPLETE").source())


for _verb in (*operate.VERBS, *watch.VERBS):
    cli.add_command(_verb)
