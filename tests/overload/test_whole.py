"""What takes several turns of the loop arrives whole and in order, also when its sender ends behind it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.overload.wire import MASK, dial, talk, until
from tests.overload.world import World

FRAMES = 6000
"""Several times as many as are looked at in one turn."""


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def numbered(count: int) -> tuple[bytes, bytes]:
    """Messages of four bytes as a client sends them, and as they come back."""
    sent, back = bytearray(), bytearray()
    for number in range(count):
        text = number.to_bytes(4, "big")
        sent += b"\x82\x84" + MASK + bytes(byte ^ mask for byte, mask in zip(text, MASK, strict=True))
        back += b"\x82\x04" + text
    return bytes(sent), bytes(back)


@pytest.mark.parametrize("service", ["web", "moving"])
async def test_thousands_of_small_messages_come_back_whole_and_in_order(world: World, service: str) -> None:
    sent, back = numbered(FRAMES)

    def converse() -> bytes:
        data = b""
        with talk(world.port, "/echo", service) as sock:
            sock.sendall(sent)
            while len(data) < len(back):
                data += sock.recv(1 << 16)
        return data

    assert await asyncio.to_thread(converse) == back


async def test_a_body_of_thousands_of_chunks_is_read_to_its_end(world: World) -> None:
    head = b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"

    def post() -> bytes:
        with dial(world.port, head + body) as sock:
            first = until(sock, b"\r\n\r\nok")
            # The connection is as it should be behind it; and a client may have ended its side already.
            sock.sendall(head + body)
            sock.shutdown(socket.SHUT_WR)
            return first + read_all(sock)

    answers = await asyncio.to_thread(post)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2 and answers.count(b"\r\n\r\nok") == 2


async def test_an_answer_of_thousands_of_chunks_comes_whole(world: World) -> None:
    def get() -> bytes:
        request = b"GET /chunks/50000 HTTP/1.1\r\nHost: web\r\n"
        with dial(world.port, request + b"\r\n") as sock:
            first = until(sock, b"0\r\n\r\n")
            sock.sendall(request + b"Connection: close\r\n\r\n")
            return first + read_all(sock)

    assert (await asyncio.to_thread(get)).count(b"x") >= 100_000


async def test_requests_sent_ahead_are_all_answered_though_the_client_has_ended_its_side(
    world: World,
) -> None:
    def ask() -> bytes:
        with dial(world.port, b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n" * 1500) as sock:
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    assert (await asyncio.to_thread(ask)).count(b"HTTP/1.1 404") == 1500
