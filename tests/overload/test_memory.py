"""What clients and instances can make the gateway keep, however many they are and whatever they do not do."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.stage import Stage, free_port
from tests.overload.wire import MASK, ask, dial, get, say, talk, until
from tests.overload.world import FULL, Crowd, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB, MIB = 1 << 10, 1 << 20
SLACK = 12 * MIB
"""What a process may have grown for reasons of its own: code that is loaded late, an allocator's arenas."""
READ = 256 * KIB
"""One read, which is passed on whole before anybody looks at what waits."""
UNSENT = 64 * KIB
"""What may wait for a slow side before the other has to: the transport's high-water mark."""


def many(full: int, few: int) -> int:
    return full if FULL else few


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> AsyncIterator[World]:
    """One gateway for all: what a crowd has cost is looked at before the next one comes."""
    tls = {"certificate": str(certificate / "cert.pem"), "key": str(certificate / "key.pem")}
    kept = {"on_drain": "migrate", "replay": True, "idle": "30s" if FULL else "2s"}
    limit = {"rate": 1, "burst": 5, "per": "client"}
    async with AsyncExitStack() as stack:
        yield await World.build(
            Stage(stack, tmp_path_factory.mktemp("memory")),
            {
                # A client that is made to wait is not read, so its end is not seen: idleness ends it.
                "waiting": {"websocket": kept},
                "known": {"sticky": {"by": "ip", "ttl": "1h"}, "limit": limit},
            },
            listen=[{"address": "127.0.0.1:0"}, {"address": "127.0.0.1:0", "tls": tls}],
            trusted_proxies=["127.0.0.1"],
            registry={"kind": "embedded", "listen": f"127.0.0.1:{free_port()}"},
        )


@asynccontextmanager
async def grown(world: World, crowd: Crowd, each: float) -> AsyncIterator[None]:
    """What happens inside makes a crowd; each costs at most `each` bytes, and leaves no trace."""
    descriptors = world.descriptors()
    before = await world.settled()
    try:
        yield
        during = await world.settled()
        count = len(crowd.sockets)
        cost = (during - before) / count
        print(f"{count} of them: {(during - before) / MIB:.1f} MiB, {cost / KIB:.1f} KiB each")
        assert during - before < SLACK + each * count
    finally:
        crowd.close()
    await world.until(lambda m: m["holdfast_connections_open"] + m["holdfast_tunnels_open"] == 0)
    if count >= 64 and each >= 64 * KIB:
        await world.shrunk(before + SLACK + (during - before) // 4)
    print(f"afterwards {(world.memory() - before) / MIB:.1f} MiB more than before")
    await world.closed(descriptors)
    with dial(world.port) as sock:
        assert ask(sock).startswith(b"HTTP/1.1 200")


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd()
    yield crowd
    crowd.close()


async def test_bodies_that_never_end_cost_what_is_kept_for_another_try(world: World, crowd: Crowd) -> None:
    head = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000000\r\n\r\n"
    async with grown(world, crowd, 64 * KIB + 24 * KIB):
        await crowd.add(many(1000, 60), lambda number: dial(world.port, head + bytes(1000)))
        for _ in range(80):
            for sock in crowd.sockets:
                sock.sendall(bytes(1000))


async def test_messages_that_never_end_cost_what_is_kept_for_another_instance(
    world: World, crowd: Crowd
) -> None:
    frame = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK
    async with grown(world, crowd, MIB + READ + UNSENT):
        await crowd.add(many(1000, 40), lambda number: talk(world.port, "/mute", "kept"))
        for sock in crowd.sockets:
            sock.sendall(frame)
        for _ in range(24):  # one and a half times as much as may be kept
            for sock in crowd.sockets:
                sock.sendall(bytes(64 * KIB))


async def test_readers_who_do_not_read_cost_what_waits_for_them(world: World, crowd: Crowd) -> None:
    request = get("/size/200000000")
    async with grown(world, crowd, READ + UNSENT):
        await crowd.add(many(1000, 80), lambda number: dial(world.port, request, receive=4096))
        await world.until(lambda m: m["holdfast_connections_open"] == len(crowd.sockets))


async def test_readers_behind_tls_cost_twice_as_much(world: World, crowd: Crowd, certificate: Path) -> None:
    port = int(world.gateway.addresses[1].rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))

    def reader(number: int) -> socket.socket:
        sock = context.wrap_socket(dial(port, receive=4096), server_hostname="localhost")
        sock.sendall(get("/size/200000000"))
        return sock

    # What is encrypted waits once more, and each connection has a buffer of its own to read into.
    async with grown(world, crowd, 2 * (READ + UNSENT) + READ):
        await crowd.add(many(1000, 40), reader)


async def test_what_is_kept_for_an_instance_that_confirms_nothing_is_bounded(
    world: World, crowd: Crowd
) -> None:
    message = b"\x82\xfe" + (4096).to_bytes(2, "big") + MASK + bytes(4096)

    def talker(number: int) -> socket.socket:
        sock = talk(world.port, "/mute", "waiting")
        sock.setblocking(False)
        return sock

    async with grown(world, crowd, MIB + READ + UNSENT):
        await crowd.add(many(1000, 40), talker)
        blocked: set[int] = set()
        for _ in range(3 * MIB // len(message)):
            for sock in crowd.sockets:
                try:
                    if sock.fileno() not in blocked and sock.send(message) < len(message):
                        blocked.add(sock.fileno())
                except BlockingIOError:
                    blocked.add(sock.fileno())
            await asyncio.sleep(0)


@pytest.mark.parametrize("service", ["web", "kept"])
async def test_a_tunnel_that_is_silent_costs_little(world: World, crowd: Crowd, service: str) -> None:
    async with grown(world, crowd, 16 * KIB):
        await crowd.add(many(9900, 300), lambda number: talk(world.port, "/echo", service))
        for sock in crowd.sockets[:: max(1, len(crowd.sockets) // 50)]:
            assert say(sock, b"hello") == b"hello"


async def test_clients_by_the_hundred_thousand_are_remembered_within_a_bound(world: World) -> None:
    """One trusted peer speaks for all of them: a limit and a binding for each address."""
    count = many(250_000, 6000)
    with dial(world.port) as sock:
        ask(sock)

        def speak(start: int, stop: int) -> None:
            for first in range(start, stop, 50):
                numbers = range(first, min(first + 50, stop))
                sock.sendall(
                    b"".join(
                        b"GET / HTTP/1.1\r\nHost: known\r\nX-Forwarded-For: 10.%d.%d.%d\r\n\r\n"
                        % (number >> 16, number >> 8 & 255, number & 255)
                        for number in numbers
                    )
                )
                answers = b""
                while answers.count(b"HTTP/1.1 200") < len(numbers) or not answers.endswith(b"ok"):
                    answers += sock.recv(1 << 16)

        before = await world.settled()
        await asyncio.to_thread(speak, 0, min(count, 100_000))
        full = await world.settled()
        print(f"{(full - before) / min(count, 100_000):.0f} bytes for each client")
        assert full - before < SLACK + 700 * count
        await asyncio.to_thread(speak, 100_000, count)
        after = await world.settled()
        # A table that grows by doubling holds its old half for a while.
        print(f"{(after - full) / MIB:.1f} MiB for {max(0, count - 100_000)} more")
        assert after - full < 2 * SLACK


async def test_a_log_that_nobody_takes_is_bounded_and_holds_nobody_up(tmp_path: Path) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)  # somebody has it open, and never reads
    try:
        async with AsyncExitStack() as stack:
            world = await World.build(Stage(stack, tmp_path), access_log={"path": str(fifo)})
            await long_lines(world)
    finally:
        os.close(end)


async def long_lines(world: World) -> None:
    before = await world.settled()
    request = get("/" + "x" * 15000)
    with dial(world.port) as sock:

        def ask_many() -> None:
            for _ in range(many(20_000, 2800)):
                sock.sendall(request)
                until(sock, b"\r\n\r\nok")

        await asyncio.to_thread(ask_many)
    metrics = await world.until(lambda m: m["holdfast_access_log_lines_dropped_total"] > 0)
    grown = await world.settled() - before
    lost = metrics["holdfast_access_log_lines_dropped_total"]
    print(f"a blocked log: {grown / MIB:.1f} MiB, {lost:.0f} lines lost")
    # What waits for its thread, the batch that becomes text, and that text.
    assert grown < SLACK + 32 * MIB + 2 * 256 * 16 * KIB


async def test_followers_of_events_who_do_not_read_are_only_numbers(world: World, crowd: Crowd) -> None:
    port = int(world.gateway.admin.rpartition(":")[2])
    before = await world.settled()
    request = get("/v1/events?since=0", f"127.0.0.1:{port}")
    await crowd.add(many(200, 50), lambda number: dial(port, request, receive=4096))
    instance = (await world.gateway.ask("GET", "/v1/services/web/instances"))[1]["instances"][0]["id"]
    for _ in range(many(1000, 100)):
        for way in ("drain", "undrain"):
            status, answer = await world.gateway.ask("POST", f"/v1/services/web/instances/{instance}/{way}")
            assert status == 200, answer
    during = await world.settled()
    print(f"{len(crowd.sockets)} followers: {(during - before) / KIB / len(crowd.sockets):.1f} KiB each")
    assert during - before < SLACK + 128 * KIB * len(crowd.sockets)


async def test_blocking_queries_of_the_embedded_registry_cost_little(world: World, crowd: Crowd) -> None:
    port = int(world.gateway.registry.rpartition(":")[2])
    with dial(port, get("/v1/health/service/shop")) as sock:
        head = until(sock, b"[]")
    index = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"x-consul-index"))
    number = index.partition(b":")[2].strip().decode()
    before = await world.settled()
    request = get(f"/v1/health/service/shop?index={number}&wait=5m")
    await crowd.add(many(1000, 200), lambda _: dial(port, request))
    with dial(port, get("/v1/health/service/shop")) as sock:
        until(sock, b"[]")
    during = await world.settled()
    print(f"{len(crowd.sockets)} queries: {(during - before) / KIB / len(crowd.sockets):.1f} KiB each")
    assert during - before < SLACK + 48 * KIB * len(crowd.sockets)
