"""holdfast as process 1, as in a container, which ends with it: whatever has replaced it meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.stage import Admin, Stage, exists, write_config

_ALONE = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
if os.getuid():
    _ALONE += ["--user", "--map-root-user"]


def _possible() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_ALONE, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _possible(), reason="no process namespaces here")


async def test_signals_reach_whoever_has_replaced_the_first_process(stage: Stage) -> None:
    path = stage.folder / "first.yaml"
    config = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "access_log": "none",
        "services": {"web": {"instances": ["127.0.0.1:1"]}},
        "routes": [{"service": "web"}],
        "shutdown": "2s",
    }
    write_config(path, config)
    command = [*_ALONE, sys.executable, "-m", "proxy.cli", "run", "-c", str(path)]
    child = await stage.spawn("first", "-c", f"import os; os.execvp('unshare', {command!r})")
    forwarding = r"forwarding on \S+, admin on (\S+)"
    found = await child.said(forwarding)
    first = _child_of(child.pid)
    for _ in range(2):
        so_far = len(child.lines)
        status, _ = await Admin(f"http://{found[1]}").ask("POST", "/v1/upgrade")
        assert status == 200
        found = await child.said(forwarding, after=so_far)
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
