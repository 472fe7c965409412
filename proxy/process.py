"""A holdfast process as the system sees it: start, signals, systemd, replacement by a new one, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from config.load import ConfigError, load
from proxy.app import App
from proxy.descriptors import raise_limit
from proxy.handover import VARIABLE, HandoverError, report_failure
from proxy.takeover import Predecessor
from proxy.visible import visible

_LOOK = 0.2
"""Seconds between looks of a process that stands by for its successors."""

_log = logging.getLogger("holdfast")


def run(path: str) -> int:
    """`holdfast run`: until SIGTERM or SIGINT. Exit codes: 0 done, 1 failed, 2 wrong configuration."""
    set_up_logging()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        # Until there is somebody to act on them: by default they would end the process.
        signal.signal(number, signal.SIG_IGN)
    descriptor = os.environ.pop(VARIABLE, "")
    predecessor = int(descriptor) if descriptor else None
    try:
        config = load(path, environ=os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        if predecessor is not None:
            report_failure(predecessor, str(error))
        return 2
    raise_limit()
    app = App(config, path, [sys.executable, *sys.orig_argv[1:]])
    code = run_app(lambda: _serve(app, predecessor))
    return _stand_by() if app.replacement.successor is not None and os.getpid() == 1 else code


def run_app(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a coroutine function on uvloop; its result is the exit code."""
    import uvloop

    return uvloop.run(main())


class _Lines(logging.Formatter):
    """Each record begins a line, and nothing in it can look like another one's beginning."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return visible(super().format(record), keep="\n").replace("\n", "\n  ")


def set_up_logging() -> None:
    """The process log: lines for people on standard error, with times in UTC."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = _Lines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # It tells of every change in the folder of the configuration, whatever file that is.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def notify(state: str) -> None:
    """Tell systemd (`Type=notify`), when it asked to be told. See sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())


async def until_signalled() -> None:
    """Wait for SIGTERM or SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()

    def ask() -> None:
        if signalled.is_set():
            os._exit(1)
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    await signalled.wait()


async def _serve(app: App, descriptor: int | None) -> int:
    loop = asyncio.get_running_loop()
    signalled = asyncio.ensure_future(until_signalled())
    replaced = asyncio.ensure_future(app.replacement.over.wait())
    predecessor = Predecessor.reach(descriptor) if descriptor is not None else None
    # Only the main process may say who the main process is (NotifyAccess=main, systemd.service(5)).
    app.replacement.on_successor = lambda pid: notify(f"MAINPID={pid}")
    try:
        await app.start(predecessor)
        loop.add_signal_handler(signal.SIGHUP, app.reload_soon)
        loop.add_signal_handler(signal.SIGUSR1, lambda: app.plane.log.reopen())
        loop.add_signal_handler(signal.SIGUSR2, app.upgrade_soon)
        app.watch_file()
        notify("READY=1")
        _log.info("%s", app.where())
        await asyncio.wait((signalled, replaced), return_when=asyncio.FIRST_COMPLETED)
        if app.replacement.successor is None:
            notify("STOPPING=1")
        elif signalled.done() and os.getpid() == 1:
            # Nobody but PID 1 is told that the container ends.
            _pass_on(signal.SIGTERM)
        await app.drain()
    except (OSError, HandoverError) as error:
        why = str(getattr(error, "strerror", None) or error)
        print(f"holdfast: {why}", file=sys.stderr)
        if predecessor is not None:
            await predecessor.fail(why)
        return 1
    finally:
        signalled.cancel()
        replaced.cancel()
        await app.close()
    return 0


def _stand_by() -> int:
    """PID 1 of a container must not end while its successor runs: pass signals on, and reap.

    Successors of a successor become children of PID 1 when their parents end. Until then a signal goes to
    both: the one that has been replaced has nothing left to do on it. Returns the exit code of the last.
    """
    # Handlers, not a blocked mask: other threads may be left, and would take what this one waits for.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: _pass_on(number))
    code = 0
    while _descendants(1):
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(ended[1])
        time.sleep(_LOOK)
    return code


def _pass_on(number: int) -> None:
    for pid in _descendants(1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []  # it has just ended
    return children + [descendant for child in children for descendant in _descendants(child)]
