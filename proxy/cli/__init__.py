"""The `holdfast` command. `main` is its entry point; the rest is imported when a verb needs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage or configuration."""
    config = _plain_run(sys.argv[1:])
    if config is not None:
        from proxy.app import run

        sys.exit(run(config))
    from proxy.cli.commands import cli

    cli(prog_name="holdfast")


def _plain_run(arguments: list[str]) -> str | None:
    """The file of a plain `run -c FILE`: how supervisors start a proxy, whose start need not load click."""
    if len(arguments) == 3 and arguments[0] == "run" and arguments[1] in ("-c", "--config"):
        return arguments[2]
    return None
