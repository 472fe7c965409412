"""holdfast as process 1, as in a container, which ends with it: whatever has replaced it meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from tests.integration.stage import Admin, Child, Stage, exists, write_config

_ALONE = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
if os.getuid():
    _ALONE += ["--user", "--map-root-user"]


def _possible() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_ALONE, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _possible(), reason="no process namespaces here")


_FORWARDING = r"forwarding on (\S+), admin on (\S+)"


async def _alone(stage: Stage, instance: str) -> tuple[Child, str, Admin]:
    """The proxy as process 1, where it forwards, and its admin API."""
    path = stage.folder / "first.yaml"
    config = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "access_log": "none",
        "services": {"web": {"instances": [instance]}},
        "routes": [{"service": "web"}],
        "shutdown": "10s",
    }
    write_config(path, config)
    command = [*_ALONE, sys.executable, "-m", "proxy.cli", "run", "-c", str(path)]
    child = await stage.spawn("first", "-c", f"import os; os.execvp('unshare', {command!r})")
    found = await child.said(_FORWARDING)
    return child, found[1], Admin(f"http://{found[2]}")


async def _upgrade(child: Child, admin: Admin) -> int:
    """Replace it; how many lines it had said before."""
    so_far = len(child.lines)
    status, _ = await admin.ask("POST", "/v1/upgrade")
    assert status == 200
    await child.said(_FORWARDING, after=so_far)
    return so_far


async def test_a_signal_that_comes_while_it_is_being_replaced_ends_both(stage: Stage) -> None:
    entered, let_go = asyncio.Event(), asyncio.Event()

    async def slowly(request: web.Request) -> web.Response:
        entered.set()
        await let_go.wait()
        return web.Response(text="at last")

    app = web.Application()
    app.router.add_get("/", slowly)
    child, address, admin = await _alone(stage, await stage.serve(app))
    session = await stage.client()
    request = asyncio.create_task(session.get(f"http://{address}/"))
    await entered.wait()
    await _upgrade(child, admin)
    os.kill(_child_of(child.pid), signal.SIGTERM)
    # The old process has a request to finish; the new one has nothing.
    await child.said("draining clients=1")
    await child.said("draining clients=0")
    let_go.set()
    async with await request as response:
        assert await response.text() == "at last"
    assert await child.ended() == 0


async def test_signals_reach_whoever_has_replaced_the_first_process(stage: Stage) -> None:
    child, _, admin = await _alone(stage, "127.0.0.1:1")
    first = _child_of(child.pid)
    for _ in range(2):
        so_far = await _upgrade(child, admin)
    os.kill(first, signal.SIGHUP)
    await child.said("reloaded: 0 changes", after=so_far)
    os.kill(first, signal.SIGTERM)
    assert await child.ended() == 0
    assert not exists(first)
    assert child.output.count("holdfast.events: started") == 3


def _child_of(pid: int) -> int:
    """Process 1 of the namespace, by the number that it has out here."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
