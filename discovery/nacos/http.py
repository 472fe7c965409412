"""Nacos' HTTP API: tokens for everything, and instances where gRPC is not used.

Source: Nacos Open API of 2.x (`/v1/ns/instance`) and 3.x (`/v3/client/ns/instance`), "Authorization". 3.x has
the first no longer, so whichever a server has is found out. Instances that register here are kept by beats;
what they do not know of (UDP pushes) is gone from newer servers and not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from config.registries import NacosRegistry
from discovery.model import RegistryError
from discovery.nacos.servers import Server
from discovery.transport import ssl_context

TIMEOUT = 3.0
"""Seconds for one answer."""
RENEW = 0.9
"""Share of a token's life after which a new one is asked for."""

_INSTANCE = ("/v1/ns/instance", "/v3/client/ns/instance")
_LOGIN = ("/v1/auth/users/login", "/v3/auth/user/login")
_NO_SUCH_API = (404, 405, 410, 501)
_DENIED = (401, 403)
_BEAT_UNKNOWN = (20404, 21003)
"""What a beat is answered with when there is no such instance: in the first API, in the other."""


class Denied(RegistryError):
    """The server wants another token, or another user."""


class HttpApi:
    """Calls to the servers of one cluster, each with `timeout` seconds. To be used as an `async with` block,
    in one event loop. `clock` is `time.monotonic`-like."""

    def __init__(
        self,
        registry: NacosRegistry,
        *,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._token: str | None = None
        self._renew_at = 0.0
        self._generation: dict[str, int] = {}
        """Which of the APIs a server has; by base URL."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- tokens -----------------------------------------------------------------------------------------

    async def token(self, server: Server) -> str | None:
        """What to show: None without a user, else a token that is valid for a while.

        Raises `RegistryError` when the server does not give one.
        """
        user, password = self._registry.user, self._registry.password
        if user is None or password is None:
            return None
        if self._token is None or self._clock() >= self._renew_at:
            asked = self._clock()
            answer = await self._login(server, user, password.get_secret_value())
            try:
                self._token = str(answer["accessToken"])
                self._renew_at = asked + RENEW * float(answer["tokenTtl"])
            except (KeyError, TypeError, ValueError) as error:
                raise RegistryError(f"{server.base}: login of {user!r}: no token in the answer") from error
        return self._token

    def forget(self, token: str | None) -> None:
        """Not to be used any more: a server did not take it."""
        if token == self._token:
            self._token = None

    async def _login(self, server: Server, user: str, password: str) -> Any:
        data = {"username": user, "password": password}
        for path in _LOGIN:
            status, body = await self._send("POST", server, path, data=data)
            if status not in _NO_SUCH_API:
                break
        if status != 200:
            raise Denied(f"{server.base}: login of {user!r}: status {status}: {_said(body)}")
        return _json(server, body)

    # -- instances --------------------------------------------------------------------------------------

    async def list(self, server: Server, service: str) -> Sequence[Mapping[str, Any]]:
        """A service's instances; none when there is no such service. Raises `RegistryError`."""
        answer = _json(server, await self._call("GET", server, "/list", {"serviceName": service}))
        if self._generation[server.base]:
            answer = _data(server, answer)
        elif isinstance(answer, dict):
            answer = answer.get("hosts")
        if not isinstance(answer or [], list):
            raise RegistryError(f"{server.base}: service {service}: not a list of instances; is this Nacos?")
        return answer or []

    async def register(self, server: Server, service: str, entry: Mapping[str, Any]) -> None:
        """Makes an instance, or replaces it. Raises `RegistryError` when the server refuses."""
        await self._call("POST", server, "", _form(service, entry))

    async def beat(self, server: Server, service: str, entry: Mapping[str, Any]) -> bool:
        """Says that an instance lives. False when the server has none. Raises `RegistryError`."""
        form = _form(service, entry)
        if server.base not in self._generation:
            await self.list(server, service)
        if self._generation[server.base]:
            body = await self._call("POST", server, "", form | {"heartBeat": "true"})
        else:
            # Without `beat` this is a light one: it does not make what is not there.
            body = await self._call("PUT", server, "/beat", form)
        answer = _json(server, body)
        return not (isinstance(answer, dict) and answer.get("code") in _BEAT_UNKNOWN)

    async def deregister(self, server: Server, service: str, entry: Mapping[str, Any]) -> None:
        """Removes an instance; no error when there is none. Raises `RegistryError`."""
        await self._call("DELETE", server, "", _form(service, entry))

    async def _call(self, method: str, server: Server, path: str, params: Mapping[str, str]) -> bytes:
        registry = self._registry
        query = {"namespaceId": registry.namespace or "public", "groupName": registry.group, **params}
        known = self._generation.get(server.base)
        for generation in (0, 1) if known is None else (known,):
            status, body = await self._authorized(method, server, _INSTANCE[generation] + path, query)
            if status not in _NO_SUCH_API:
                break
        if status == 200:
            self._generation[server.base] = generation
            return body
        if status in _NO_SUCH_API:
            # Another version may answer here after the next restart.
            self._generation.pop(server.base, None)
        kind = Denied if status in _DENIED else RegistryError
        raise kind(f"{server.base}: status {status} for service {params['serviceName']}: {_said(body)}")

    async def _authorized(
        self, method: str, server: Server, path: str, query: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """With a new token when the old one has run out before its time."""
        token = await self.token(server)
        status, body = await self._send(method, server, path, params=query, token=token)
        if token is None or status not in _DENIED:
            return status, body
        self.forget(token)
        return await self._send(method, server, path, params=query, token=await self.token(server))

    async def _send(
        self,
        method: str,
        server: Server,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> tuple[int, bytes]:
        tls = self._registry.tls
        if self._session is None:
            # aiohttp repeats a GET by itself on a kept connection that broke, and would hide a restart so.
            connector = aiohttp.TCPConnector(
                limit=0,
                force_close=True,
                ssl=ssl_context(tls) if server.secure else True,
                resolver=aiohttp.ThreadedResolver(),
            )
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        try:
            async with self._session.request(
                method,
                server.base + path,
                params=params,
                data=data,
                headers={"accessToken": token} if token else None,
                server_hostname=tls.server_name,
            ) as response:
                return response.status, await response.read()
        except aiohttp.ClientResponseError as error:
            # An answer that is none: 2.3 says "HTTP/1.1 0" to a wrong password.
            return 0, str(error).encode()
        except TimeoutError:
            raise RegistryError(f"{server.base}: no answer in {self._timeout.total} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryError(f"{server.base}: {str(error) or type(error).__name__}") from error


def _form(service: str, entry: Mapping[str, Any]) -> dict[str, str]:
    text = {
        key: value if isinstance(value, str) else orjson.dumps(value).decode() for key, value in entry.items()
    }
    return {"serviceName": service, **text}


def _json(server: Server, body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RegistryError(f"{server.base}: not JSON: {_said(body)}; is this Nacos?") from error


def _data(server: Server, answer: Any) -> Any:
    if not isinstance(answer, dict) or answer.get("code") != 0:
        raise RegistryError(f"{server.base}: {answer!r:.200}")
    return answer.get("data")


def _said(body: bytes) -> str:
    return " ".join(body[:200].decode(errors="replace").split())
