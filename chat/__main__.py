"""`python -m chat`: one chat instance. `holdfast chat` is the same with the rest of the command line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
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


def _within(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return whole


def _url(text: str) -> str:
    from urllib.parse import urlsplit

    if text == "none":
        return text
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise argparse.ArgumentTypeError("this is not a URL such as http://127.0.0.1:8500, or none")
    return text


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="One instance of the chat.")
    add = parser.add_argument
    add("--host", help="address to listen on (127.0.0.1)")
    add("--port", type=_within(0, 65535), help="port to listen on (0: any free one)")
    add("--advertise", help="host that others reach this instance by (the listening address)")
    add("--registry", type=_url, help="URL of the registry; none: register nowhere (none)")
    add("--service", help="name to register under (chat)")
    add("--id", help="name of this instance (machine and port)")
    add("--version", help="version label, for traffic splits")
    add("--weight", type=_within(0, 65535), help="share of new sessions (100)")
    add("--store", help="database URL (sqlite:///holdfast-chat.db)")
    add("--bus", help="unix:DIRECTORY or local: (a directory beside the SQLite file)")
    add("--rate", type=_rate, help="messages of one session, such as 10/s")
    add("--burst", type=_within(1, 1_000_000), help="messages of one session at once (40)")
    add("--context-ttl", type=_duration, help="idle sessions time out after (30m)")
    add("--deadline", type=_duration, help="after SIGTERM, gone within (25s)")
    add("--settle", type=_duration, help="after SIGTERM, new connections are served for (500ms)")
    add("--spread", type=_duration, help="after SIGTERM, spread Close frames over (1s)")
    parser.epilog = "HOLDFAST_AGENT_TOKEN: what agents must show, as a bearer token."
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m chat") -> int:
    """Parses the command line and runs; `prog` is how it is called. Exit codes: 0 done, 1 failed, 2 wrong
    usage."""
    parser = _parser(prog)
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
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        sys.stderr.write(f"{prog}: cannot start: {reason}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
