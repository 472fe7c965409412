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

from config.registries import ConsulRegistry, RegistryTLS, RemoteRegistry
from discovery.consul import ConsulWatcher
from discovery.consul_registrar import ConsulRegistrar
from discovery.model import Instance, Watcher
from discovery.registrar import Registrar
from discovery.transport import ssl_context
from tests.contract.backend import RegistrarBackend
from tests.contract.server import Server, find, free_ports

_STARTED = 30.0
"""Seconds in which an agent must have a leader."""
_BULK = "bulk"


class Agent:
    """One Consul agent, a server by itself. `options` go into its configuration; with `tls` it speaks only
    HTTPS, and these are the certificates to ask it with."""

    def __init__(self, folder: Path, *, tls: RegistryTLS | None = None, **options: Any) -> None:
        self.data = folder / "data"
        self.running = False
        self.headers: dict[str, str] = {}
        """Sent with every call."""
        self._ssl = ssl_context(tls) if tls is not None else True
        port, self.dns, server, self.serf, wan = free_ports(5)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        ports = {"http": -1 if tls else port, "https": port if tls else -1, "dns": self.dns, "grpc": -1}
        config = {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": "tests",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "data_dir": str(self.data),
            "ports": ports | {"server": server, "serf_lan": self.serf, "serf_wan": wan},
            "performance": {"raft_multiplier": 1},
            "disable_update_check": True,
            "log_level": "warn",
            **options,
        }
        path = folder / "consul.json"
        path.write_text(json.dumps(config))
        self._server = Server([find("consul"), "agent", "-config-file", str(path)], folder / "consul.log")

    async def start(self) -> None:
        """Returns once there is a leader and the agent has entered itself."""
        await self.begin()
        await self.ready()

    async def begin(self) -> None:
        """Returns once it answers; it need not have a leader."""
        self._server.start()
        self.running = True
        await self._until("/v1/agent/services")

    async def ready(self) -> None:
        """Returns once there is a leader and the agent has entered itself."""
        await self._until("/v1/health/node/tests")

    async def _until(self, path: str) -> None:
        async with asyncio.timeout(_STARTED), self._client() as http:
            while not await self._answers(http, path):
                self._server.check()
                await asyncio.sleep(0.02)

    async def _answers(self, http: aiohttp.ClientSession, path: str) -> bool:
        try:
            async with http.get(self.url + path) as response:
                return response.status == 200 and await response.read() not in (b"", b"[]")
        except (aiohttp.ClientError, OSError):
            return False

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call of its API; raises `AssertionError` when it is refused."""
        async with self._client() as http, http.request(method, self.url + path, json=body) as response:
            said = await response.read()
            assert response.status == 200, said
            return json.loads(said) if said else None

    def _client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=self.headers, connector=aiohttp.TCPConnector(ssl=self._ssl))

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
        self._bulk: set[str] = set()

    @property
    def agent(self) -> Agent:
        assert self._agent is not None
        return self._agent

    async def start(self) -> None:
        self._agent = Agent(self.folder, limits={"http_max_conns_per_client": 1000})
        await self._agent.start()

    async def stop(self) -> None:
        await self.leave()
        if self._agent is not None:
            await self._agent.kill()

    def watcher(self) -> Watcher:
        # A wait of a minute would make a frozen agent known only after that.
        return ConsulWatcher(self.agent.url, wait=1.0, grace=1.0)

    def section(self) -> RemoteRegistry:
        return ConsulRegistry(kind="consul", address=self.agent.url)

    def registrar(self, *, brief: bool = False) -> Registrar:
        return ConsulRegistrar(self.agent.url, ttl=0.5 if brief else 30.0)

    async def put_many(self, instances: Sequence[Instance]) -> None:
        """In the catalog itself, on a node that no agent looks after: 64 in one transaction."""
        await self.agent.call("PUT", "/v1/catalog/register", {"Node": _BULK, "Address": "127.0.0.1"})
        for start in range(0, len(instances), 64):
            await self.agent.call("PUT", "/v1/txn", [_set(i) for i in instances[start : start + 64]])
        self._bulk |= {instance.id for instance in instances}

    async def remove(self, instance: Instance) -> None:
        if instance.id not in self._bulk:
            await super().remove(instance)
            return
        body = {"Node": _BULK, "ServiceID": instance.id}
        await self.agent.call("PUT", "/v1/catalog/deregister", body)

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


def _set(instance: Instance) -> dict[str, Any]:
    service = {
        "ID": instance.id,
        "Service": instance.service,
        "Address": instance.host,
        "Port": instance.port,
        "Weights": {"Passing": instance.weight, "Warning": instance.weight},
    }
    return {"Service": {"Verb": "set", "Node": _BULK, "Service": service}}


BACKENDS = (Consul,)
