"""What is new is refused first, and quickly; who is not so far yet cannot keep the others out."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.stage import Stage
from tests.overload.wire import ask, dial, get, say, talk, until
from tests.overload.world import Crowd, World

MOST = 20
BEYOND = 16
"""Connections beyond the limit whose handshake or PROXY header is waited for."""
PROXY = b"PROXY TCP4 203.0.113.7 127.0.0.1 5555 80\r\n"


@contextmanager
def crowd() -> Iterator[Crowd]:
    people = Crowd()
    try:
        yield people
    finally:
        people.close()


def over(sock: socket.socket) -> bool:
    """Whether the other side has ended it, in order or not."""
    try:
        return not sock.recv(1)
    except ConnectionError:
        return True


async def limited(stage: Stage, certificate: Path) -> tuple[World, int, int]:
    """A gateway with few connections, and the ports before which a PROXY header or TLS has to come."""
    tls = {"certificate": str(certificate / "cert.pem"), "key": str(certificate / "key.pem")}
    address = {"address": "127.0.0.1:0"}
    world = await World.build(
        stage,
        listen=[address, {**address, "proxy_protocol": True}, {**address, "tls": tls}],
        limits={"connections": MOST},
        timeout={"header": "600ms"},
    )
    proxied, secure = (int(one.rpartition(":")[2]) for one in world.gateway.addresses[1:])
    return world, proxied, secure


@pytest.mark.parametrize("secure", [False, True])
async def test_who_is_not_so_far_yet_counts_and_others_go_on(
    stage: Stage, certificate: Path, secure: bool
) -> None:
    world, proxied, behind_tls = await limited(stage, certificate)
    with crowd() as silent, dial(world.port) as asking, talk(world.port, "/echo") as talking:
        ask(asking)
        await silent.add(3 * MOST, lambda number: dial(behind_tls if secure else proxied, timeout=10.0))
        await world.until(lambda m: m["holdfast_connections_refused_total"] == 2 * MOST - BEYOND + 2)
        begun = time.perf_counter()
        with dial(world.port, get("/")) as late:
            assert until(late, b"}\n").startswith(b"HTTP/1.1 503")
        assert time.perf_counter() - begun < 1.0
        assert ask(asking).startswith(b"HTTP/1.1 200")
        assert say(talking, b"hello") == b"hello"
        # Their time is bounded, and then there is room again.
        for sock in silent.sockets:
            assert over(sock)
        await world.until(lambda m: m["holdfast_connections_open"] <= 2)
        with dial(world.port) as late:
            assert ask(late).startswith(b"HTTP/1.1 200")


async def test_at_the_limit_a_client_is_told_so_behind_tls_and_behind_a_proxy_header(
    stage: Stage, certificate: Path
) -> None:
    world, proxied, secure = await limited(stage, certificate)
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with crowd() as people, ExitStack() as stack:
        await people.add(MOST, lambda number: talk(world.port, "/echo"))
        late = stack.enter_context(dial(proxied, PROXY + get("/")))
        assert until(late, b"}\n").startswith(b"HTTP/1.1 503")
        inner = stack.enter_context(dial(secure))
        behind = stack.enter_context(context.wrap_socket(inner, server_hostname="localhost"))
        behind.sendall(get("/"))
        assert until(behind, b"}\n").startswith(b"HTTP/1.1 503")
        for person in people.sockets:
            assert say(person, b"hello") == b"hello"


async def test_a_client_that_never_says_goodbye_to_tls_counts_and_is_cut(
    stage: Stage, certificate: Path
) -> None:
    world, _, secure = await limited(stage, certificate)
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with dial(secure) as inner:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        answer = b""
        sent = False
        while not answer.endswith(b"ok"):
            try:
                if not sent:
                    client.do_handshake()
                    client.write(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
                    sent = True
                else:
                    answer += client.read(4096)
                    continue
            except ssl.SSLWantReadError:
                pass
            if data := outgoing.read():
                inner.sendall(data)
            if not answer.endswith(b"ok"):
                incoming.write(inner.recv(1 << 16))
        metrics = await world.gateway.metrics()
        assert metrics["holdfast_connections_open"] == 1
        await world.until(lambda m: m["holdfast_connections_open"] == 0)
        while not over(inner):
            pass
