"""The `holdfast` command. `main` is its entry point; the rest is imported when a verb needs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage or configuration."""
    arguments = sys.argv[1:]
    if len(arguments) == 3 and arguments[0] == "run" and arguments[1] in ("-c", "--config"):
        # How supervisors start a proxy: it need not load click before it forwards.
        from proxy.process import run

        sys.exit(run(arguments[2]))
    if arguments[:1] == ["chat"]:
        # It has a command line of its own, and starts as often as anything here.
        from chat.__main__ import main as chat

        sys.exit(chat(arguments[1:], prog="holdfast chat"))
    from proxy.cli.commands import cli

    cli(prog_name="holdfast")
