"""Both sides of a take-over where it goes wrong: a new process that hangs, an instance that has vanished."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.events import EventLog
from proxy.frames import Opcode, encode_frame
from proxy.handover import Channel, HandoverError, copy_of, release
from proxy.replacement import Group, Replacement
from proxy.takeover import Limits, Predecessor, Successor
from tests.integration.stage import exists
from tests.proxy.conftest import Stage, Wire
from tests.proxy.test_moving import HANDSHAKE, accepts, judged

READY = """
import os, pickle, socket, struct, time
sock = socket.socket(fileno=int(os.environ["HOLDFAST_HANDOVER"]))
body = pickle.dumps(("ready", {}), protocol=4)
sock.sendall(struct.pack("!IH", len(body), 0) + body)
time.sleep(600)
"""
"""A new process that never says more than that it is ready."""
NOTHING = "import time; time.sleep(600)"


def command(program: str) -> list[str]:
    return [sys.executable, "-c", program]


class House:
    """A process that can be replaced, as far as `Replacement` asks."""

    def __init__(self, stage: Stage) -> None:
        self.events = EventLog()
        self.plane = stage.plane
        self.config = stage.config
        self.listeners = stage.listeners
        self.reloading = asyncio.Lock()
        self.ending = False
        self.registry = "open"
        self.entries_kept = True

    def sockets(self) -> list[Group]:
        return []

    def entries(self) -> list[tuple[str, str, bool]]:
        return [("web", "a", True)]

    async def renew_entries(self) -> None:
        self.entries_kept = True

    async def close_registry(self) -> bytes | None:
        self.registry, self.entries_kept = "closed", False
        return b"contents"

    async def reopen_registry(self, contents: bytes) -> None:
        assert contents == b"contents"
        self.registry = "open"

    async def stop_accepting(self) -> None:
        raise AssertionError("nobody has taken over")

    async def retire(self) -> None:
        raise AssertionError("nobody has taken over")

    @property
    def happened(self) -> list[tuple[object, object]]:
        return [(event["kind"], event.get("reason")) for event in self.events.since(0)]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The new processes that were started."""
    pids: list[int] = []
    hear = Successor._hear

    async def noted(self: Successor, kind: str, seconds: float) -> dict[str, Any]:
        pids.append(self.pid)
        return await hear(self, kind, seconds)

    monkeypatch.setattr(Successor, "_hear", noted)
    return pids


@pytest.mark.parametrize(
    ("program", "limits", "why"),
    [
        (NOTHING, Limits(ready=0.2), "it did not say 'ready' within 0.2 s"),
        (READY, Limits(ready=20.0, up=0.2), "it did not say 'up' within 0.2 s"),
    ],
    ids=["starting", "taking"],
)
async def test_a_new_process_that_hangs_is_ended_and_the_old_one_goes_on(
    stage: Stage, started: list[int], program: str, limits: Limits, why: str
) -> None:
    house = House(stage)
    replacement = Replacement(house, command(program), limits)
    for attempt in range(2):
        with pytest.raises(HandoverError, match=why):
            await replacement.begin()
        assert house.registry == "open" and house.entries_kept
        assert house.happened[2 * attempt :] == [
            ("upgrade_started", None),
            ("upgrade_failed", f"the new process did not take over: {why}"),
        ]
    assert len(set(started)) == 2, "the second may be tried after the first"
    assert not any(exists(pid) for pid in started)
    assert replacement.successor is None and not house.reloading.locked()


async def test_an_upgrade_that_is_given_up_while_it_hangs_leaves_no_process(
    stage: Stage, started: list[int]
) -> None:
    house = House(stage)
    upgrade = asyncio.create_task(Replacement(house, command(READY), Limits()).begin())
    await stage.until(lambda: house.registry == "closed")
    await stage.until(lambda: len(started) == 2)
    upgrade.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upgrade
    assert house.registry == "open" and house.entries_kept
    assert not any(exists(pid) for pid in started)


# -- a tunnel whose instance the new process does not know --------------------------------------------------


class Handover:
    """The end of a hand-over: tunnels of one process go to another that knows none of their instances."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        self.channel = Channel(loop, ours)
        self.predecessor = Predecessor(Channel(loop, theirs))
        self.counted: list[Any] = []

    async def tunnel(self, **websocket: Any) -> tuple[Wire, Wire]:
        self.stage.configure({"websocket": websocket})
        client, server = await self.stage.pair(HANDSHAKE)
        server.send(accepts(await server.head()))
        assert (await client.head()).status == 101
        return client, server

    async def go(self) -> None:
        """Hand the one tunnel over, and its instance to nobody."""
        (tunnel,) = self.stage.plane.sessions
        saved = tunnel.save()
        assert saved is not None
        facts, transports = saved
        descriptors = [copy_of(transport) for transport in transports]
        tunnel.let_go()
        for transport in transports:
            release(transport)
        self.stage.apply()
        kind = "moving" if "relay" in facts else "plain"
        await self.channel.send(kind, {**facts, "instance": "unknown"}, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.channel.close()
        await self.predecessor.take_connections(self.stage.plane, self.counted.append)


@pytest.fixture
async def handover(stage: Stage) -> AsyncIterator[Handover]:
    yield Handover(stage)


KINDS = pytest.mark.parametrize(
    "rules", [{"on_drain": "close"}, {"on_drain": "migrate"}], ids=["copied", "relayed"]
)


@KINDS
async def test_a_tunnel_without_its_instance_is_told_to_come_back(
    handover: Handover, rules: dict[str, Any]
) -> None:
    client, server = await handover.tunnel(**rules)
    whole = encode_frame(Opcode.TEXT, b"whole")
    server.send(whole)
    assert await client.exactly(len(whole)) == whole
    await handover.go()
    assert judged(await client.rest()) == ([], 1012)
    assert await server.ended()
    assert len(handover.stage.plane.sessions) == 0


@KINDS
async def test_no_close_is_put_into_a_message_that_is_half_said(
    handover: Handover, rules: dict[str, Any]
) -> None:
    client, server = await handover.tunnel(**rules)
    half = b"\x01\x04half"
    server.send(half)
    assert await client.exactly(len(half)) == half
    await handover.go()
    assert await client.rest() == b""
    assert await server.ended()
