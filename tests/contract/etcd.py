"""A real etcd: one member that keeps its data, and notices a lost leader and a lease that ran out quickly."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from config.registries import EtcdRegistry
from discovery.etcd import EtcdWatcher
from discovery.etcd_client import encode
from discovery.etcd_entry import range_end
from discovery.etcd_registrar import EtcdRegistrar
from discovery.model import Instance, Watcher
from discovery.registrar import Registrar
from tests.contract.backend import RegistrarBackend
from tests.contract.server import Server, find, free_ports

_STARTED = 30.0
"""Seconds in which a member must have a leader."""
PREFIX = b"/holdfast/services/"


class Member:
    """One etcd. `peers` has the address of each member of its cluster by name, `options` are flags."""

    def __init__(
        self,
        folder: Path,
        name: str,
        port: int,
        peers: Mapping[str, str],
        *options: str,
        scheme: str = "http",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.url = f"{scheme}://127.0.0.1:{port}"
        flags = {
            "name": name,
            "data-dir": str(folder / "data"),
            "listen-client-urls": self.url,
            "advertise-client-urls": self.url,
            "listen-peer-urls": peers[name],
            "initial-advertise-peer-urls": peers[name],
            "initial-cluster": ",".join(f"{name}={peer}" for name, peer in peers.items()),
            "heartbeat-interval": "30",
            "election-timeout": "300",
            "log-level": "warn",
        }
        command = [find("etcd"), *(f"--{name}={value}" for name, value in flags.items())]
        # It survives its own death without it; only the machine's death would hurt.
        self._server = Server([*command, "--unsafe-no-fsync", *options], folder / "etcd.log")
        self.running = False

    async def start(self, **session: Any) -> None:
        """Returns once it answers a read that needs a leader."""
        self._server.start()
        self.running = True
        async with asyncio.timeout(_STARTED):
            while not await self._is_up(session):
                self._server.check()
                await asyncio.sleep(0.02)

    async def _is_up(self, session: dict[str, Any]) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http,
                http.post(f"{self.url}/v3/kv/range", json={"key": encode(b"/")}, **session) as response,
            ):
                return response.status in (200, 400)  # 400: it wants to know who asks
        except (aiohttp.ClientError, OSError):
            return False

    async def call(self, path: str, body: Any, **session: Any) -> Any:
        """One call of its API; raises `AssertionError` when it is refused."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.url + path, json=body, **session) as response,
        ):
            said = await response.read()
            assert response.status == 200, said
            return await response.json()

    async def put(self, key: str, value: str | bytes) -> None:
        """Writes a key as somebody does by hand."""
        data = value.encode() if isinstance(value, str) else value
        await self.call("/v3/kv/put", {"key": encode(key.encode()), "value": encode(data)})

    async def delete(self, key: str) -> None:
        """Deletes one by hand."""
        await self.call("/v3/kv/deleterange", {"key": encode(key.encode())})

    async def delete_all(self) -> None:
        """Deletes every instance, in one revision."""
        await self.call("/v3/kv/deleterange", {"key": encode(PREFIX), "range_end": encode(range_end(PREFIX))})

    async def keys(self) -> list[dict[str, Any]]:
        """All keys there are, with their leases."""
        everything = {"key": encode(PREFIX), "range_end": encode(range_end(PREFIX))}
        found: list[dict[str, Any]] = (await self.call("/v3/kv/range", everything)).get("kvs", [])
        return found

    async def kill(self) -> None:
        """Ends it at once; the data stays."""
        self.running = False
        await self._server.kill()

    def freeze(self) -> None:
        """Stops it in the middle of everything."""
        self._server.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        if self.running:
            self._server.signal(signal.SIGCONT)


def cluster(folder: Path, size: int = 1, *options: str, scheme: str = "http") -> list[Member]:
    """Members of one cluster, to be started together."""
    ports = free_ports(2 * size)
    peers = {f"m{number}": f"http://127.0.0.1:{port}" for number, port in enumerate(ports[size:])}
    return [
        Member(folder / name, name, port, peers, *options, scheme=scheme)
        for name, port in zip(peers, ports[:size], strict=True)
    ]


class Etcd(RegistrarBackend):
    """Registered by the product's registrar, watched by its watcher."""

    name = "etcd"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._member: Member | None = None

    @property
    def member(self) -> Member:
        assert self._member is not None
        return self._member

    def section(self) -> EtcdRegistry:
        return EtcdRegistry(kind="etcd", address=(self.member.url,))

    async def start(self) -> None:
        (self._member,) = cluster(self.folder)
        await self._member.start()

    async def stop(self) -> None:
        await self.leave()
        if self._member is not None:
            await self._member.kill()

    def watcher(self) -> Watcher:
        # By default a frozen server is known after ten seconds.
        return EtcdWatcher(self.section(), answer=2.0, pulse=0.5)

    def registrar(self, *, brief: bool = False) -> Registrar:
        return EtcdRegistrar(self.section(), ttl=1.0 if brief else 60.0)

    async def put_many(self, instances: Sequence[Instance]) -> None:
        async def enter(mine: Sequence[Instance]) -> None:
            # Nobody keeps these alive; they are to outlast every test and benchmark.
            registrar = EtcdRegistrar(self.section(), ttl=3600.0)
            for instance in mine:
                await registrar.register(instance)
            await registrar.close()

        await asyncio.gather(*(enter(instances[start::20]) for start in range(20)))

    async def forget(self) -> None:
        await self.member.delete_all()

    async def kill(self) -> None:
        await self.member.kill()

    async def restart(self) -> None:
        if not self.member.running:
            await self.member.start()
            await self.registered()

    async def freeze(self) -> None:
        self.member.freeze()

    async def thaw(self) -> None:
        self.member.thaw()


BACKENDS = (Etcd,)
