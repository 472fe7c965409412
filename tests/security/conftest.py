"""A whole proxy in this process, and raw connections to its faces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest

from config.load import read
from config.schema import Address
from proxy.app import App

PATIENCE = 10.0
"""Seconds after which something that must come is said not to come."""

CONFIG = """
listen: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
registry: {kind: embedded, listen: "127.0.0.1:0"}
access_log: none
services: {web: {}}
routes: [{service: web}]
shutdown: 1s
"""


class Answer:
    """A response as it was on the wire."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head, _, self.body = raw.partition(b"\r\n\r\n")
        self.line, *lines = head.decode("latin-1").split("\r\n")
        self.fields = {name.lower(): value.strip() for name, _, value in (i.partition(":") for i in lines)}

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])


async def ask(where: Address | None, raw: bytes, *, head_only: bool = False) -> Answer:
    """Send bytes; everything that comes until the other side closes, or the head of what comes."""
    assert where is not None
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        writer.write(raw)
        async with asyncio.timeout(PATIENCE):
            return Answer(await (reader.readuntil(b"\r\n\r\n") if head_only else reader.read()))
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def request(line: str, *fields: str, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """A request after whose answer the connection ends."""
    lines = [f"{line} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task does."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def app() -> AsyncIterator[App]:
    """A proxy with an embedded registry and no token."""
    app = App(read(CONFIG.encode(), source="security.yaml", environ={}))
    try:
        await app.start()
        yield app
    finally:
        await app.close()


@pytest.fixture
async def guarded() -> AsyncIterator[App]:
    """The same with the token `sesame`."""
    text = CONFIG.replace("admin: {", "admin: {token: sesame, ")
    app = App(read(text.encode(), source="security.yaml", environ={}))
    try:
        await app.start()
        yield app
    finally:
        await app.close()
