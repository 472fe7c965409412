"""A real Consul: one server agent that keeps its data, as small and quick as it can be made."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from discovery.consul import ConsulWatcher
from discovery.consul_registrar import ConsulRegistrar
from discovery.model import Instance, Watcher
from discovery.registrar import Registrar
from tests.contract.backend import RegistrarBackend, in_parallel
from tests.contract.server import Server, find, free_ports

_STARTED = 30.0
"""Seconds in which an agent must have a leader."""


class Agent:
    """One Consul agent, a server by itself. `options` go into its configuration."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.data = folder / "data"
        self.http, self.dns, *ports = free_ports(5)
        names = ("server", "serf_lan", "serf_wan")
        self.url = f"http://127.0.0.1:{self.http}"
        self.options: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": "tests",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "data_dir": str(self.data),
            "ports": {
                "http": self.http,
                "dns": self.dns,
                "grpc": -1,
                **dict(zip(names, ports, strict=True)),
            },
            "performance": {"raft_multiplier": 1},
            "limits": {"http_max_conns_per_client": 1000},
            "disable_update_check": True,
            "log_level": "warn",
            **options,
        }
        self._config = folder / "consul.json"
        self._config.write_text(json.dumps(self.options))
        self._server = Server(
            [find("consul"), "agent", "-config-file", str(self._config)], folder / "consul.log"
        )
        self.running = False

    async def start(self, **session: Any) -> None:
        """Returns once there is a leader and the agent has entered itself."""
        self._server.start()
        self.running = True
        async with asyncio.timeout(_STARTED), aiohttp.ClientSession(**session) as http:
            while not await self._is_up(http):
                self._server.check()
                await asyncio.sleep(0.02)

    async def _is_up(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(f"{self.url}/v1/health/node/tests") as response:
                return response.status == 200 and bool(await response.json())
        except (aiohttp.ClientError, OSError):
            return False

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One call of its API; raises `AssertionError` when it is refused."""
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.request(method, self.url + path, json=body) as response,
        ):
            said = await response.read()
            assert response.status == 200, said
            return json.loads(said) if said else None

    async def kill(self) -> None:
        """Ends it at once; the data stays."""
        self.running = False
        await self._server.kill()

    def freeze(self) -> None:
        """Stops it in the middle of everything."""
        self._server.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._server.signal(signal.SIGCONT)


class Consul(RegistrarBackend):
    """Registered by the product's registrar, watched by its watcher."""

    name = "consul"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._agent: Agent | None = None

    @property
    def agent(self) -> Agent:
        assert self._agent is not None
        return self._agent

    async def start(self) -> None:
        self._agent = Agent(self.folder)
        await self._agent.start()

    async def stop(self) -> None:
        await self.leave()
        if self._agent is not None:
            await self._agent.kill()

    def watcher(self) -> Watcher:
        # A wait of a minute would make a frozen agent known only after that.
        return ConsulWatcher(self.agent.url, wait=1.0, grace=1.0)

    def registrar(self, *, brief: bool = False) -> Registrar:
        return ConsulRegistrar(self.agent.url, ttl=0.5 if brief else 30.0)

    async def put_many(self, instances: Sequence[Instance]) -> None:
        await in_parallel(self.registrar, instances)

    async def forget(self) -> None:
        await self.agent.kill()
        shutil.rmtree(self.agent.data)
        await self.agent.start()

    async def kill(self) -> None:
        await self.agent.kill()

    async def restart(self) -> None:
        if not self.agent.running:
            await self.agent.start()
            await self.registered()

    async def freeze(self) -> None:
        self.agent.freeze()

    async def thaw(self) -> None:
        self.agent.thaw()


BACKENDS = (Consul,)
