"""Active checks against real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from discovery.model import Instance
from proxy.endpoint import State
from proxy.health import Checker, probe


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", None),
        (b"HTTP/1.0 302 Found\r\n\r\n", None),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No\r\n\r\n", None),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "status 503"),
        (b"HTTP/1.1 404 None\r\n\r\n", "status 404"),
        (b"nonsense\r\n\r\n", "malformed"),
        (b"", "closed before an answer"),
        (b"HTTP/1.1 200", "closed before an answer"),
    ],
)
async def test_only_a_valid_answer_of_2xx_or_3xx_is_healthy(stage, answer, wrong):
    origin = await stage.origin(apply=False)
    asking = asyncio.ensure_future(probe(origin.instance, "/readyz", 2.0))
    wire = await origin.accept()
    head = await wire.head()
    assert head.line == "GET /readyz HTTP/1.1"
    assert head.get("connection") == "close"
    wire.send(answer)
    wire.finish()
    result = await asking
    assert (result is None) if wrong is None else (wrong in (result or ""))


async def test_silence_and_absence_are_failures_with_a_reason(stage):
    origin = await stage.origin(apply=False)
    assert await probe(origin.instance, "/", 0.05) == "no answer within 0.05 s"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        where = nobody.getsockname()
    assert "refused" in (await probe(Instance("s", "x", *where), "/", 1.0) or "").lower()
    assert "No such file" in (await probe(Instance("s", "x", path="/nowhere/x.sock"), "/", 1.0) or "")
    assert await probe(Instance("s", "x", "x" * 80, 1), "/", 1.0)
    assert await probe(Instance("s", "x", "127.0.0.1", 1 << 17), "/", 1.0)


async def test_a_unix_socket_is_asked_as_localhost(stage):
    origin = await stage.origin(unix=True, apply=False)
    asking = asyncio.ensure_future(probe(origin.instance, "/", 2.0))
    wire = await origin.accept()
    assert (await wire.head()).get("host") == "localhost"
    wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
    assert await asking is None


async def test_checks_bring_instances_in_and_out_and_end_with_them(stage):
    status = b"200"

    async def answer(wire, head):
        wire.send(b"HTTP/1.1 " + status + b" X\r\nContent-Length: 0\r\n\r\n")

    stage.configure({"health": {"interval": "10ms", "healthy": 1, "unhealthy": 2}})
    origin = await stage.origin(apply=False)
    origin.serve(answer)
    stage.apply(origin.instance)
    endpoint = stage.endpoint()
    checker = Checker(stage.plane)
    try:
        checker.sync("s")
        await stage.until(lambda: endpoint.state is State.READY)
        status = b"500"
        await stage.until(lambda: endpoint.state is State.UNHEALTHY)
        assert ("state_changed", "status 500") in [(k, f.get("detail")) for k, f in stage.events]
        status = b"200"
        await stage.until(lambda: endpoint.state is State.READY)
        assert await checker.ask(origin.instance) is True
        stage.apply()
        checker.sync("s")
        await asyncio.sleep(0)
        asked = origin.accepted
        await asyncio.sleep(0.05)
        assert origin.accepted == asked
    finally:
        await checker.close()


async def test_without_a_configured_check_to_be_asked_is_to_accept(stage):
    origin = await stage.origin()
    checker = Checker(stage.plane)
    assert await checker.ask(origin.instance) is True
    await origin.stop()
    await origin.server.wait_closed()
    assert await checker.ask(origin.instance) is False
    await checker.close()
