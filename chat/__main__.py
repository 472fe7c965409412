"""`python -m chat`: one chat instance. `holdfast chat` is the same with the rest of the command line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields


def _duration(text: str) -> float:
    from config.schema import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> float:
    from config.schema import parse_rate

    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chat", description="One instance of the chat.")
    add = parser.add_argument
    add("--host", help="address to listen on (127.0.0.1)")
    add("--port", type=int, help="port to listen on (0: any free one)")
    add("--advertise", help="host that others reach this instance by (the listening address)")
    add("--registry", help="URL of the registry; none: register nowhere (none)")
    add("--service", help="name to register under (chat)")
    add("--id", help="name of this instance (machine and port)")
    add("--version", help="version label, for traffic splits")
    add("--weight", type=int, help="share of new sessions (100)")
    add("--store", help="database URL (sqlite:///holdfast-chat.db)")
    add("--bus", help="unix:DIRECTORY or local: (a directory beside the SQLite file)")
    add("--rate", type=_rate, help="messages of one session, such as 10/s")
    add("--burst", type=int, help="messages of one session at once (40)")
    add("--context-ttl", type=_duration, help="idle sessions time out after (30m)")
    add("--deadline", type=_duration, help="after SIGTERM, gone within (25s)")
    add("--settle", type=_duration, help="after SIGTERM, new connections are served for (500ms)")
    add("--spread", type=_duration, help="after SIGTERM, spread Close frames over (1s)")
    parser.epilog = "HOLDFAST_AGENT_TOKEN: what agents must show, as a bearer token or ?token=."
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs. Exit codes: 0 done, 1 failed, 2 wrong usage."""
    parser = _parser()
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    if given.get("registry") == "none":
        del given["registry"]
    if token := os.environ.get("HOLDFAST_AGENT_TOKEN"):
        given["agent_token"] = token

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    import uvloop

    from chat.options import Options
    from chat.server import serve
    from chat.store import StoreError

    assert given.keys() <= {field.name for field in fields(Options)}
    try:
        return uvloop.run(serve(Options(**given)))
    except ValueError as error:
        parser.error(str(error))
    except (OSError, StoreError) as error:
        sys.stderr.write(f"cannot start: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
