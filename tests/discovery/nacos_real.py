"""A real Nacos server for the tests, where `make servers` has put one; one for all tests of a run.

It takes some ten seconds to start, and asks for a user. What it listens on beside HTTP is on every interface:
it knows no setting for that.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from config.registries import NacosRegistry
from tests.contract.server import Server, find

STARTED = 90.0
"""Seconds in which it must answer, on a busy machine."""
TOKEN_LIFE = 1
"""Seconds until its tokens end."""
_OFFSETS = (0, 1000, 1001, -1000)
"""HTTP, gRPC for clients, gRPC for servers, consensus: from the HTTP port."""


class RealNacos:
    """A standalone server. `start` raises `Missing` when there is none here."""

    def __init__(self, folder: Path) -> None:
        self.http_port = _free()
        self.grpc_port = self.http_port + 1000
        options = (
            "-Dnacos.core.auth.enabled=true",
            "-Dnacos.core.auth.caching.enabled=false",
            # Changes are gathered for so many milliseconds before they are pushed; 500 by default.
            "-Dnacos.naming.push.pushTaskDelay=50",
            f"-Dnacos.core.auth.plugin.nacos.token.expire.seconds={TOKEN_LIFE}",
        )
        self._server = Server([find("nacos"), str(folder), str(self.http_port), *options], folder / "out.log")

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.http_port}/nacos"

    def section(self, **facts: Any) -> NacosRegistry:
        """The part of a configuration that names this server."""
        user = {"user": "nacos", "password": "nacos"}
        return NacosRegistry.model_validate({"kind": "nacos", "address": self.url} | user | facts)

    async def start(self) -> None:
        """Returns once it answers and gives tokens."""
        self._server.start()
        async with asyncio.timeout(STARTED):
            while True:
                self._server.check()
                try:
                    await self.call("GET", "/v1/ns/operator/metrics")
                    return
                except (aiohttp.ClientError, OSError, AssertionError):
                    await asyncio.sleep(0.1)

    async def call(self, method: str, path: str, **params: str) -> str:
        """One call of its API, as an operator makes it. `AssertionError` when it is refused."""
        async with aiohttp.ClientSession(self.url + "/") as http:
            data = {"username": "nacos", "password": "nacos"}
            async with http.post("v1/auth/users/login", data=data) as response:
                assert response.status == 200, await response.text()
                token = (await response.json())["accessToken"]
            headers = {"accessToken": token}
            async with http.request(method, path.lstrip("/"), params=params, headers=headers) as response:
                said = await response.text()
                assert response.status == 200, said
                return said

    def freeze(self) -> None:
        """Stops it in the middle of everything."""
        self._server.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._server.signal(signal.SIGCONT)

    def end(self) -> None:
        """Ends it at once."""
        self._server.signal(signal.SIGKILL)


_shared: RealNacos | None = None


async def shared() -> RealNacos:
    """The one of this run, which ends with it. Raises `Missing`."""
    global _shared
    if _shared is None:
        find("nacos")
        folder = Path(tempfile.mkdtemp(prefix="nacos-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        server = RealNacos(folder)
        atexit.register(server.end)
        await server.start()
        _shared = server
    return _shared


def _free() -> int:
    """A port for HTTP with which all of them are free."""
    for port in itertools.count(18000, 3):
        try:
            for offset in _OFFSETS:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
            return port
        except OSError:
            continue
    raise AssertionError("unreachable")
