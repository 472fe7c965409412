"""What a client or another process says that only the proxy may say."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from config.load import read
from config.schema import Address
from proxy.app import App
from proxy.handover import Channel, HandoverError
from tests.security.conftest import ask, request

TEXT = """
listen: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
access_log: none
trusted_proxies: [TRUSTED]
services: {web: {instances: ["127.0.0.1:PORT"]}}
routes: [{service: web}]
shutdown: 1s
"""


@pytest.fixture
async def origin() -> AsyncIterator[Address]:
    """Answers with the fields that it was sent."""

    async def tell(asked: web.Request) -> web.Response:
        return web.Response(text="\n".join(f"{name}: {value}" for name, value in asked.headers.items()))

    served = web.Application()
    served.router.add_get("/", tell)
    runner = web.AppRunner(served, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Address("127.0.0.1", runner.addresses[0][1])
    await runner.cleanup()


async def arrives(origin: Address, trusted: str, *fields: str) -> str:
    """The header that an instance gets."""
    text = TEXT.replace("PORT", str(origin.port)).replace("TRUSTED", trusted)
    app = App(read(text.encode(), source="forged.yaml", environ={}))
    try:
        await app.start()
        return (await ask(app.addresses[0], request("GET /", *fields))).body.decode().lower()
    finally:
        await app.close()


@pytest.mark.parametrize("name", ["Holdfast-Resume", "holdfast-resume", "HOLDFAST_RESUME", "Holdfast_Resume"])
async def test_an_untrusted_client_cannot_name_where_to_go_on(origin: Address, name: str) -> None:
    field = f"{name}: CANARY"
    assert "canary" not in await arrives(origin, "10.9.9.9", field)
    if "_" not in name:
        assert "holdfast-resume: canary" in await arrives(origin, "127.0.0.1", field)


class Trap:
    """Would run a command where it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo trapped >&2",)


@pytest.mark.parametrize(
    "trap", [Trap(), pytest.raises, Address("h", 1)], ids=["a call", "a function", "a class"]
)
async def test_a_hand_over_message_can_make_no_object(
    trap: object, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(asyncio.get_running_loop(), ours)
    try:
        body = pickle.dumps(("take", {"figures": trap}), protocol=4)
        theirs.sendall(struct.pack("!IH", len(body), 0) + body)
        with pytest.raises(HandoverError, match="holds a"):
            await channel.receive()
    finally:
        channel.close()
        theirs.close()
    assert capfd.readouterr().err == ""
