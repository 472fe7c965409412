"""A real control plane of Kubernetes, where this machine has one: kube-apiserver over etcd, controllers."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from config.registries import KubernetesRegistry
from tests.contract.backend import Missing
from tests.contract.etcd import Member, cluster
from tests.contract.server import SERVERS, Server, free_ports
from tests.discovery.support_kubernetes import GROUP

ADMIN = "admin-token"
STARTED = 60.0
"""Seconds in which a server must be ready."""


def executable(name: str) -> str:
    """The path of a server of the control plane. Raises `Missing`."""
    found = shutil.which(name, path=str(SERVERS))
    if found is None:
        raise Missing(f"no {name} here; scripts/make-kubernetes builds one, with Go and ten minutes")
    return found


class Cluster:
    """An API server from the outside: its address, and how to write there."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        self.url = url
        self._context = context

    async def call(
        self, method: str, path: str, body: Any = None, *, token: str = ADMIN, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """One call of its API; returns the status and what was answered: as text when it is no JSON, or the
        events of a watch. `kind` is the type of the body."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
        data = None if body is None else json.dumps(body)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http,
            http.request(
                method, self.url + path, data=data, headers=headers, ssl=self._context or True
            ) as response,
        ):
            said = await response.text()
            lines = said.startswith('{"type":')
            return response.status, json.loads(said) if said.startswith("{") and not lines else said

    async def done(self, method: str, path: str, body: Any = None, **options: str) -> Any:
        """A call that must succeed."""
        status, said = await self.call(method, path, body, **options)
        assert status in (200, 201, 202), said
        return said

    async def write(self, item: Mapping[str, Any], namespace: str = "default") -> None:
        """Creates an EndpointSlice, or replaces the one of its name."""
        path = f"{GROUP}/namespaces/{namespace}/endpointslices"
        status, said = await self.call("PUT", f"{path}/{item['metadata']['name']}", item)
        if status == 404:
            status, said = await self.call("POST", path, item)
        assert status in (200, 201), said


class ControlPlane:
    """The servers. `start` raises `Missing` when there are none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.etcd: Member
        (self.etcd,) = cluster(folder)
        # The etcd has not bound its own yet.
        self._port = free_ports(3)[2]
        self.ca = folder / "certificates" / "apiserver.crt"
        self._server = Server(self._command(), folder / "kube-apiserver.log")
        self._controllers: Server | None = None
        self.running = False

    def _command(self) -> list[str]:
        tokens, key = self._folder / "tokens.csv", str(self._folder / "accounts.key")
        tokens.write_text(f'{ADMIN},admin,admin,"system:masters"\n')
        flags = {
            "etcd-servers": self.etcd.url,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": str(self._port),
            "cert-dir": str(self.ca.parent),
            "token-auth-file": str(tokens),
            "authorization-mode": "RBAC",
            "service-cluster-ip-range": "10.96.0.0/16,fd00:10:96::/112",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            # Nobody is there to make accounts for namespaces.
            "disable-admission-plugins": "ServiceAccount",
        }
        return [executable("kube-apiserver"), *(f"--{name}={value}" for name, value in flags.items())]

    @property
    def cluster(self) -> Cluster:
        """How to speak to it as its administrator."""
        return Cluster(f"https://127.0.0.1:{self._port}", ssl.create_default_context(cafile=str(self.ca)))

    def registry(self, **options: Any) -> KubernetesRegistry:
        """A section of the configuration for it; its administrator's unless it says a token."""
        section = {
            "kind": "kubernetes",
            "address": f"https://127.0.0.1:{self._port}",
            "tls": {"ca": str(self.ca)},
            "token": ADMIN,
        }
        return KubernetesRegistry.model_validate(section | options)

    async def start(self) -> None:
        """Returns once it is ready."""
        openssl = shutil.which("openssl")
        if openssl is None:
            raise Missing("no openssl here to make the keys with")
        key = str(self._folder / "accounts.key")
        made = await asyncio.create_subprocess_exec(
            openssl, "genrsa", "-out", key, "2048", stderr=asyncio.subprocess.DEVNULL
        )
        assert await made.wait() == 0
        await self.etcd.start()
        await self.begin()

    async def begin(self) -> None:
        """Begins the API server, also again after `kill`. It makes its certificate at its first start."""
        self._server.start()
        self.running = True
        async with asyncio.timeout(STARTED):
            while not await self._is_up():
                self._server.check()
                await asyncio.sleep(0.05)

    async def _is_up(self) -> bool:
        if not self.ca.exists():
            return False
        try:
            return (await self.cluster.call("GET", "/readyz"))[0] == 200
        except (aiohttp.ClientError, OSError):
            return False

    def control(self, *names: str) -> None:
        """Begins these controllers."""
        where = {"server": self.cluster.url, "certificate-authority": str(self.ca)}
        server = {"name": "tests", "cluster": where}
        user = {"name": "tests", "user": {"token": ADMIN}}
        context = {"name": "tests", "context": {"cluster": "tests", "user": "tests"}}
        path = self._folder / "kubeconfig"
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "tests"}
        path.write_text(json.dumps(config | {"clusters": [server], "users": [user], "contexts": [context]}))
        flags = {
            "kubeconfig": str(path),
            "controllers": ",".join(names),
            "leader-elect": "false",
            "secure-port": "0",
        }
        options = [f"--{name}={value}" for name, value in flags.items()]
        log = self._folder / "kube-controller-manager.log"
        self._controllers = Server([executable("kube-controller-manager"), *options], log)
        self._controllers.start()

    async def compact(self) -> None:
        """etcd forgets everything but the present."""
        said = await self.etcd.call("/v3/kv/range", {"key": "AA=="})
        await self.etcd.call("/v3/kv/compaction", {"revision": said["header"]["revision"], "physical": True})

    async def stop(self) -> None:
        """Ends everything."""
        if self._controllers is not None:
            await self._controllers.kill()
        await self.kill()
        await self.etcd.kill()

    async def kill(self) -> None:
        """Ends the API server at once; what was written stays in etcd."""
        self.running = False
        await self._server.kill()

    def freeze(self) -> None:
        """Stops the API server in the middle of everything."""
        self._server.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._server.signal(signal.SIGCONT)
