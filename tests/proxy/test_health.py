"""Active checks against real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from config.schema import Health
from discovery.model import Instance
from proxy.dialing import accept_for
from proxy.endpoint import State
from proxy.health import Checker, Finding, probe
from proxy.table import Cause

HTTP = Health()


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
    asking = asyncio.ensure_future(probe(origin.instance, Health(path="/readyz"), 2.0))
    wire = await origin.accept()
    head = await wire.head()
    assert head.line == "GET /readyz HTTP/1.1"
    assert head.get("connection") == "close"
    wire.send(answer)
    wire.finish()
    found = await asking
    assert (found.wrong is None) if wrong is None else (wrong in (found.wrong or ""))
    assert found.silent is (wrong == "closed before an answer")


async def test_silence_and_absence_are_failures_with_a_reason(stage):
    origin = await stage.origin(apply=False)
    assert await probe(origin.instance, HTTP, 0.05) == Finding("no answer within 0.05 s", silent=True)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        where = nobody.getsockname()
    for nowhere, wrong in (
        (Instance("s", "x", *where), "refused"),
        (Instance("s", "x", path="/nowhere/x.sock"), "No such file"),
        (Instance("s", "x", "x" * 80, 1), "Error"),
        (Instance("s", "x", "127.0.0.1", 1 << 17), "Error"),
    ):
        found = await probe(nowhere, HTTP, 1.0)
        assert wrong in (found.wrong or "")
        assert found.silent


async def test_a_unix_socket_is_asked_as_localhost(stage):
    origin = await stage.origin(unix=True, apply=False)
    asking = asyncio.ensure_future(probe(origin.instance, HTTP, 2.0))
    wire = await origin.accept()
    assert (await wire.head()).get("host") == "localhost"
    wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
    assert await asking == Finding()


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


@pytest.mark.parametrize(
    ("check", "answer", "wrong"),
    [
        ({"status": ["204"]}, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "status 200"),
        ({"status": ["204", "4xx"]}, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", None),
        ({"body": "fine"}, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nI fine", None),
        ({"body": "fine"}, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno fine", "does not contain 'fine'"),
        (
            {"body": "fine"},
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nfi\r\n2\r\nne\r\n0\r\n\r\n",
            None,
        ),
        ({"body": "fine"}, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n", "malformed"),
        ({"body": "fine"}, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 70_000 + b"fine", "does not contain"),
    ],
)
async def test_what_is_healthy_can_be_said(stage, check, answer, wrong):
    origin = await stage.origin(apply=False)
    asking = asyncio.ensure_future(probe(origin.instance, Health.model_validate(check), 2.0))
    wire = await origin.accept()
    await wire.head()
    wire.send(answer)
    wire.finish()
    found = await asking
    assert (found.wrong is None) if wrong is None else (wrong in (found.wrong or ""))
    assert not found.silent


async def test_an_open_port_is_enough_for_tcp(stage):
    origin = await stage.origin(apply=False)
    assert await probe(origin.instance, Health.model_validate({"kind": "tcp"}), 2.0) == Finding()
    await origin.stop()
    await origin.server.wait_closed()
    assert (await probe(origin.instance, Health.model_validate({"kind": "tcp"}), 2.0)).silent


@pytest.mark.parametrize("wrong", ["", "status 200 instead of 101", "does not fit the key"])
async def test_a_handshake_must_succeed_for_websocket(stage, wrong):
    origin = await stage.origin(apply=False)
    check = Health.model_validate({"kind": "websocket", "path": "/ws", "host": "chat.example"})
    asking = asyncio.ensure_future(probe(origin.instance, check, 2.0))
    wire = await origin.accept()
    head = await wire.head()
    assert (head.line, head.get("host"), head.get("upgrade")) == (
        "GET /ws HTTP/1.1",
        "chat.example",
        "websocket",
    )
    accept = accept_for(head.get("sec-websocket-key").encode() if "key" not in wrong else b"another")
    if "status" in wrong:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    else:
        wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
    found = await asking
    assert wrong in (found.wrong or "")
    assert (found.wrong is None) is (wrong == "")


async def test_an_instance_that_stops_answering_altogether_is_dead_and_one_that_refuses_is_not(stage):
    answers = [b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"]

    async def answer(wire, head):
        wire.send(answers[0])

    stage.configure({"health": {"interval": "10ms", "timeout": "1s", "unhealthy": 1, "dead": 3}})
    origin = await stage.origin(apply=False)
    origin.serve(answer)
    stage.apply(origin.instance)
    endpoint = stage.endpoint()
    departed = []
    checker = Checker(stage.plane, departed.extend)
    try:
        checker.sync("s")
        await stage.until(lambda: endpoint.fails >= 5)
        assert departed == []
        await origin.stop()
        await origin.server.wait_closed()
        await stage.until(lambda: endpoint.silences >= 5)
        assert [(departure.endpoint, departure.cause) for departure in departed] == [(endpoint, Cause.DEAD)]
    finally:
        await checker.close()


async def test_a_new_instance_may_fail_while_it_starts_and_is_used_as_soon_as_it_answers(stage):
    status = b"503"

    async def answer(wire, head):
        wire.send(b"HTTP/1.1 " + status + b" X\r\nContent-Length: 0\r\n\r\n")

    stage.configure({"health": {"interval": "20ms", "healthy": 9, "unhealthy": 1, "startup": "1m"}})
    origin = await stage.origin(apply=False)
    origin.serve(answer)
    stage.apply(origin.instance)
    endpoint = stage.endpoint()
    checker = Checker(stage.plane)
    try:
        checker.sync("s")
        await stage.until(lambda: endpoint.fails >= 5)
        assert endpoint.state is State.STARTING
        status = b"200"
        await stage.until(lambda: endpoint.state is State.READY)
        status = b"503"
        await stage.until(lambda: endpoint.state is State.UNHEALTHY)
    finally:
        await checker.close()
