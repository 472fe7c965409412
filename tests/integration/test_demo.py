"""`holdfast demo` as its user meets it: one command, a chat that goes on, and Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed

from tests.integration.stage import PATIENCE, Admin, Child, Stage, exists, free_port


class Demo:
    """A running demo: its process, and what it said of itself."""

    def __init__(self, child: Child, page: str, admin: str, registry: str) -> None:
        self.child = child
        self.page = page
        self.admin = admin
        self.registry = registry

    @property
    def instances(self) -> dict[str, int]:
        """The pid of each instance, the last one when it was started again."""
        told = (re.search(r"(chat-\d+)\s+pid (\d+)\s+listening", line) for line in self.child.lines)
        return {found[1]: int(found[2]) for found in told if found}


async def start(stage: Stage, instances: int, *arguments: str) -> Demo:
    child = await stage.holdfast(
        "demo", "--instances", str(instances),
        "--port", "0", "--admin-port", "0", "--registry-port", "0", *arguments,
    )  # fmt: skip
    page = await child.said(r"chat page\s+(http://\S+)/$")
    admin = await child.said(r"dashboard\s+(http://\S+)/$")
    registry = await child.said(r"registry\s+(http://[^/]+)/")
    for number in range(instances):
        await child.said(rf"chat-{number + 1}\s+pid \d+\s+listening")
    await Admin(admin[1]).ready("chat", *(f"chat-{number + 1}" for number in range(instances)))
    return Demo(child, page[1], admin[1], registry[1])


async def interrupt(demo: Demo) -> None:
    """Ctrl-C, and nothing of it is left."""
    pids = [demo.child.pid, *demo.instances.values()]
    demo.child.signal(signal.SIGINT)
    assert await demo.child.ended() == 0
    assert demo.child.lines[-1] == "all ended"
    assert [pid for pid in pids if exists(pid)] == []
    assert "Traceback" not in demo.child.output


async def test_everything_that_it_prints_is_there_and_ctrl_c_ends_all_of_it(stage: Stage) -> None:
    demo = await start(stage, 3)
    http = await stage.client()
    for url, found in (
        (f"{demo.page}/", "<!doctype html>"),
        (f"{demo.page}/agent", "<!doctype html>"),
        (f"{demo.admin}/", "<!doctype html>"),
        (f"{demo.admin}/metrics", "holdfast_connections_total"),
        (f"{demo.registry}/v1/catalog/services", '"chat"'),
    ):
        async with http.get(url) as response:
            assert response.status == 200, url
            assert found in (await response.text()).lower(), url
    await interrupt(demo)


class Customer:
    """Asks through the gateway, and comes back where it was when the connection ends."""

    def __init__(self) -> None:
        self.instance = ""
        self.seqs: list[int] = []
        self._asked = 0

    async def ask(self, socket: ClientConnection, text: str) -> str:
        """The answer to a question."""
        self._asked += 1
        id = f"c-{self._asked}"
        await socket.send(json.dumps({"type": "message", "id": id, "text": text}))
        mine = -1
        while True:
            async with asyncio.timeout(PATIENCE):
                frame = json.loads(await socket.recv())
            if frame["type"] == "ack" and frame["id"] == id:
                mine = frame["seq"]
            elif frame["type"] == "message":
                self.seqs.append(frame["seq"])
                if frame.get("reply_to") == mine:
                    return str(frame["text"])

    async def enter(self, socket: ClientConnection) -> None:
        self.instance = json.loads(await socket.recv())["instance"]

    def url(self, demo: Demo) -> str:
        return (
            f"{demo.page.replace('http', 'ws', 1)}/ws?session=customer&last_seq={max(self.seqs, default=0)}"
        )


async def rest(socket: ClientConnection) -> tuple[int, list[str | bytes]]:
    """The code by which the connection ends (1006: without a Close), and what came before."""
    frames: list[str | bytes] = []
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                frames.append(await socket.recv())
    except ConnectionClosed as closed:
        return (closed.rcvd.code if closed.rcvd is not None else 1006), frames


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["kill", "kill -9"])
async def test_a_chat_goes_on_as_if_nothing_had_happened(stage: Stage, number: signal.Signals) -> None:
    demo = await start(stage, 2)
    customer = Customer()
    async with websocket(customer.url(demo)) as socket:
        await customer.enter(socket)
        assert await customer.ask(socket, "Where is my order?")
        left = customer.instance
        before, pid = len(demo.child.lines), demo.instances[left]
        os.kill(pid, number)
        await demo.child.said(rf"{left}\s+ended", after=before)
        # On the same connection, which another instance serves now.
        assert await customer.ask(socket, "How do I pay?")
    assert customer.seqs == [1, 2, 3, 4]
    # The one that ended is started again, as a new process.
    again = await demo.child.said(rf"{left}\s+pid (\d+)\s+listening", after=before)
    assert int(again[1]) != pid
    await interrupt(demo)


async def test_ctrl_c_sends_those_who_chat_away_politely(stage: Stage) -> None:
    demo = await start(stage, 1)
    customer = Customer()
    async with websocket(customer.url(demo)) as socket:
        await customer.enter(socket)
        await customer.ask(socket, "hello")
        await interrupt(demo)
        code, _ = await rest(socket)
    assert code == 1012


@pytest.mark.parametrize("moment", ["Ctrl-C drains", "pid", "starting it again"])
async def test_ctrl_c_while_instances_are_starting_leaves_none_of_them(
    stage: Stage, tmp_path: Path, moment: str
) -> None:
    mark = f"STARTED_BY={tmp_path}"
    child = await stage.holdfast(
        "demo", "--port", "0", "--admin-port", "0", "--registry-port", "0",
        environment=dict([mark.split("=", 1)]),
    )  # fmt: skip
    if moment == "starting it again":
        os.kill(int((await child.said(r"pid (\d+)"))[1]), signal.SIGKILL)
    await child.said(moment)
    assert child.pid in marked(mark)
    child.signal(signal.SIGINT)
    assert await child.ended() == 0
    assert marked(mark) == []
    assert "Traceback" not in child.output


def marked(mark: str) -> list[int]:
    """The processes in whose environment that is."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


@pytest.mark.parametrize("option", ["--port", "--admin-port", "--registry-port"])
async def test_a_port_in_use_is_one_clear_line(stage: Stage, option: str) -> None:
    ports = {name: str(free_port()) for name in ("--port", "--admin-port", "--registry-port")}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[option] = str(taken.getsockname()[1])
        child = await stage.holdfast("demo", *(word for pair in ports.items() for word in pair))
        assert await child.ended() == 1
    assert len(child.lines) == 1
    assert f"cannot listen on 127.0.0.1:{ports[option]}: " in child.lines[0]
    assert "address" in child.lines[0] and "in use" in child.lines[0]


async def test_a_second_demo_runs_beside_the_first(stage: Stage) -> None:
    first, second = await start(stage, 1), await start(stage, 1)
    for demo in (first, second):
        customer = Customer()
        async with websocket(customer.url(demo)) as socket:
            await customer.enter(socket)
            await customer.ask(socket, "hello")
            # Each has a store of its own: the session of the same name is new in both.
            assert customer.seqs == [1, 2]
    await interrupt(first)
    assert second.child.running
    await interrupt(second)


async def test_the_messages_are_kept_where_it_is_told_to(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "by the demo"
    customer = Customer()
    for seqs in ([1, 2], [1, 2, 3, 4]):
        demo = await start(stage, 1, "--data", str(folder))
        async with websocket(customer.url(demo)) as socket:
            await customer.enter(socket)
            await customer.ask(socket, "hello")
        assert customer.seqs == seqs
        await interrupt(demo)
