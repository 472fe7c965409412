"""Autobahn's fuzzing client judges a server through the proxy as it does without it.

`make autobahn` puts the suite in place and runs all of its cases; without the suite this is skipped, and
`test_websocket_verdicts` stands in. Which cases: AUTOBAHN_CASES, separated by commas.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stage import ROOT, Stage

WSTEST = ROOT / ".autobahn" / "wstest"
FEW = "1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*"
"""Without limits and performance (9) and compression (12, 13), which take an hour more."""
SECONDS = 120.0 if "AUTOBAHN_CASES" not in os.environ else 3 * 3600.0
COMPRESSION = ("12.", "13.")
UNIMPLEMENTED = ("UNIMPLEMENTED", "OK")
"""The server does not accept the extension that the cases are about."""
LATE = ("6.4.3", "6.4.4")
"""Text that is wrong in the first part of a frame whose end is held back. Whole frames are all that a moving
tunnel passes on, so the server cannot know yet: it says so when the frame is there, which is NON-STRICT."""

Verdicts = dict[str, tuple[str, str]]
"""Of each case: what was made of the messages, and of the Close."""


async def judge(agent: str, url: str, folder: Path) -> Verdicts:
    """Run the fuzzing client against a server."""
    specification = folder / f"{agent}.json"
    reports = folder / agent
    cases = os.environ.get("AUTOBAHN_CASES", FEW).split(",")
    specification.write_text(
        json.dumps({"outdir": str(reports), "cases": cases, "servers": [{"agent": agent, "url": url}]})
    )
    process = await asyncio.create_subprocess_exec(
        WSTEST, "-m", "fuzzingclient", "-s", specification,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        cwd=folder, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 0, output.decode(errors="replace")[-2000:]
    found: dict[str, Any] = json.loads((reports / "index.json").read_text())[agent]
    return {case: (verdict["behavior"], verdict["behaviorClose"]) for case, verdict in found.items()}


def through_a_move(case: str, verdict: tuple[str, str]) -> tuple[str, str]:
    """What a case comes to on a moving tunnel, when it comes to `verdict` without a proxy."""
    if case.startswith(COMPRESSION):
        return UNIMPLEMENTED
    return ("NON-STRICT", verdict[1]) if case in LATE else verdict


def differences(expected: Verdicts, found: Verdicts) -> dict[str, tuple[object, object]]:
    return {
        case: (expected.get(case), found.get(case))
        for case in sorted({*expected, *found})
        if expected.get(case) != found.get(case)
    }


@pytest.mark.slow
@pytest.mark.skipif(not WSTEST.exists(), reason="Autobahn's suite is not there (make autobahn, Python 2.7)")
async def test_the_verdicts_on_a_server_are_the_same_through_the_proxy(stage: Stage) -> None:
    origin = await stage.spawn("origin", "-m", "tests.integration.support_echo", "wsproto")
    address = (await origin.said(r"listening on (\S+)"))[1]
    modes = {"close": {"on_drain": "close"}, "migrate": {"on_drain": "migrate", "replay": True}}
    gateway = await stage.gateway(
        services={mode: {"instances": [address], "websocket": rules} for mode, rules in modes.items()},
        routes=[{"match": {"path": f"/{mode}"}, "service": mode} for mode in modes],
    )
    through = gateway.url.replace("http", "ws")
    direct, close, migrate = await asyncio.gather(
        judge("direct", f"ws://{address}/", stage.folder),
        judge("close", f"{through}/close", stage.folder),
        judge("migrate", f"{through}/migrate", stage.folder),
    )
    assert direct
    if "AUTOBAHN_CASES" not in os.environ:
        # The server does nothing wrong, so a difference is the proxy's doing.
        assert {verdict for verdict, _ in direct.values()} == {"OK", "INFORMATIONAL"}
    assert differences(direct, close) == {}
    assert (
        differences({case: through_a_move(case, verdict) for case, verdict in direct.items()}, migrate) == {}
    )
    print(f"{len(direct)} cases")
