"""An entry in Consul, or in an embedded registry on another machine.

Source: Consul HTTP API, "Register Service", "TTL Check Pass", "Deregister Service", "Register Check". An
agent that restarts without its data forgets its services, and one that counted the entry as critical for long
enough removes it: both are seen at the next beat, and the entry is made again.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from config.registries import RegistryTLS
from discovery.labels import metadata_of
from discovery.model import Instance, RegistryError
from discovery.transport import ssl_context

DEFAULT_TTL = 10.0
"""Seconds without a beat after which the registry counts the instance as crashed."""
BEATS_PER_TTL = 3
DEREGISTER_AFTER = 60.0
"""Seconds as crashed until the registry forgets the entry. Consul knows no less than a minute."""


class ConsulRegistrar:
    """Holds entries through one agent, whose base URL is `address`. `ttl` and `deregister_after` in seconds.

    With `check`, a URL, the agent asks the instance itself every `ttl / 3`, and a beat only looks whether the
    entry is there. `tags` are what the service is registered with, in the order given.
    """

    kind = "consul"

    def __init__(
        self,
        address: str,
        *,
        ttl: float = DEFAULT_TTL,
        check: str | None = None,
        deregister_after: float = DEREGISTER_AFTER,
        token: str | None = None,
        tls: RegistryTLS | None = None,
        tags: tuple[str, ...] = (),
    ) -> None:
        self.interval = ttl / BEATS_PER_TTL
        self._base = address.rstrip("/")
        self._ttl = ttl
        self._check = check
        self._deregister_after = deregister_after
        self._headers = {"X-Consul-Token": token} if token else None
        self._tls = tls
        self._tags = tags
        self._session: aiohttp.ClientSession | None = None

    async def register(self, instance: Instance) -> None:
        """Raises `RegistryError` when the agent refuses, or cannot be reached."""
        await self._expect_ok("PUT", "/v1/agent/service/register", orjson.dumps(self._body(instance)))
        if self._check is None:
            # Registering again does not lift a check that was critical.
            await self._expect_ok("PUT", f"/v1/agent/check/pass/{_quoted(_check_id(instance))}")

    async def beat(self, instance: Instance) -> bool:
        """Raises `RegistryError` as `register` does; False when the agent has forgotten the entry."""
        if self._check is None:
            status, said = await self._call("PUT", f"/v1/agent/check/pass/{_quoted(_check_id(instance))}")
        else:
            status, said = await self._call("GET", f"/v1/agent/service/{_quoted(instance.id)}")
        if status in (404, 500):  # agents before 1.12 answer 500 for a check that they do not know
            return False
        self._expect(status, said)
        return True

    async def deregister(self, instance: Instance) -> None:
        """Raises `RegistryError` as `register` does."""
        status, said = await self._call("PUT", f"/v1/agent/service/deregister/{_quoted(instance.id)}")
        if status != 404 and not (status == 500 and b"nknown service" in said):
            self._expect(status, said)

    async def close(self) -> None:
        """Ends the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _expect_ok(self, method: str, path: str, body: bytes = b"") -> None:
        self._expect(*await self._call(method, path, body))

    def _expect(self, status: int, said: bytes) -> None:
        if status != 200:
            text = " ".join(said[:200].decode(errors="replace").split())
            raise RegistryError(f"{self._base}: status {status}{': ' * bool(text)}{text}")

    async def _call(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        if self._session is None:
            # No time limit of its own: whoever calls has one.
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None),
                connector=self._connector(),
            )
        server_name = self._tls.server_name if self._tls is not None else None
        try:
            async with self._session.request(
                method, URL(self._base + path, encoded=True), data=body, server_hostname=server_name
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryError(f"{self._base}: {str(error) or type(error).__name__}") from error

    def _connector(self) -> aiohttp.TCPConnector:
        if self._tls is not None and self._base.startswith("https:"):
            return aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver(), ssl=ssl_context(self._tls))
        return aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())

    def _body(self, instance: Instance) -> dict[str, Any]:
        body: dict[str, Any] = {
            "ID": instance.id,
            "Name": instance.service,
            "Tags": self._tags,
            "Meta": metadata_of(instance),
            # Consul's own weights begin at 1, so the exact one is in Meta too.
            "Weights": {"Passing": max(1, instance.weight), "Warning": max(1, instance.weight)},
            "Check": self._check_of(instance),
        }
        if instance.path:
            return body | {"SocketPath": instance.path}
        return body | {"Address": instance.host, "Port": instance.port}

    def _check_of(self, instance: Instance) -> dict[str, Any]:
        check: dict[str, Any] = {
            "CheckID": _check_id(instance),
            "DeregisterCriticalServiceAfter": _go_duration(self._deregister_after),
            # Whoever registers is there; without it the entry would be critical until the first beat.
            "Status": "passing",
        }
        if self._check is None:
            return check | {"TTL": _go_duration(self._ttl)}
        interval = _go_duration(self.interval)
        return check | {"HTTP": self._check, "Interval": interval, "Timeout": interval}


def _check_id(instance: Instance) -> str:
    return f"service:{instance.id}"


def _go_duration(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _quoted(text: str) -> str:
    return quote(text, safe="")
