"""How etcd v3 is spoken to: its JSON gateway over HTTP, with the next member of the cluster after a failure.

Source: etcd v3 API reference, "gRPC gateway", and "Role-based access control". Keys and values travel as
base64, 64-bit numbers as text; a stream is one JSON object in each line. All requests are POST, which aiohttp
never repeats by itself.
"""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from config.registries import EtcdRegistry
from discovery.model import RegistryError
from discovery.transport import ssl_context

KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds until the kernel probes a silent connection, between probes, and how many may be lost: a stream
over a path that has gone is otherwise silent like one without news."""
LONGEST_LINE = 64 << 20
"""Bytes of one message of a stream; etcd's own are far below."""

INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, UNAUTHENTICATED = 3, 5, 9, 16
"""gRPC status codes."""

Json = dict[str, Any]


class EtcdError(RegistryError):
    """etcd answered, and refused. `code` is the gRPC status code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Members:
    """The members of one cluster, and which of them is asked."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._addresses = tuple(address.rstrip("/") for address in addresses)
        self._turn = 0

    @property
    def current(self) -> str:
        """Base URL of the one to ask."""
        return self._addresses[self._turn % len(self._addresses)]

    def failed(self, address: str) -> None:
        """Makes it the next one's turn, if it is still this one's."""
        if address == self.current:
            self._turn += 1


class EtcdClient:
    """Calls to one cluster, each with `answer` seconds for it. A failure is raised, and the next call goes to
    the next of `members`. Made and closed in the loop that uses it."""

    def __init__(self, registry: EtcdRegistry, members: Members, answer: float) -> None:
        self._members = members
        self._answer = answer
        self._user = registry.user
        self._password = registry.password.get_secret_value() if registry.password else ""
        self._token: str | None = None
        self._server_name = registry.tls.server_name
        secure = any(address.startswith("https:") for address in registry.address)
        connector = aiohttp.TCPConnector(
            limit=0,
            ssl=ssl_context(registry.tls) if secure else True,
            # aiohttp's own choice changes with what else is installed.
            resolver=aiohttp.ThreadedResolver(),
            # Between two calls that follow each other, not between two beats: whoever closed it meanwhile
            # would look like a registry that fails.
            keepalive_timeout=1.0,
            socket_factory=_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )

    async def close(self) -> None:
        """Ends the connections."""
        await self._session.close()

    async def call(self, path: str, body: Mapping[str, Any]) -> Json:
        """Asks, and returns the answer; with a new token when the old one has run out.

        Raises `EtcdError` when etcd refuses, `RegistryError` when there is no answer.
        """
        if self._user is not None and self._token is None:
            await self._authenticate()
        try:
            return await self._ask(path, body)
        except EtcdError as error:
            if self._user is None or not _wants_token(error):
                raise
        await self._authenticate()
        return await self._ask(path, body)

    @asynccontextmanager
    async def stream(self, path: str, body: bytes) -> AsyncIterator[Stream]:
        """Opens a stream. Raises `RegistryError`, from within the block as well."""
        address = self._members.current
        try:
            async with asyncio.timeout(self._answer):
                response = await self._post(address, path, body)
        except (aiohttp.ClientError, OSError) as error:
            self._members.failed(address)
            raise _unreachable(address, error, self._answer) from error
        async with response:
            if response.status != 200:
                self._members.failed(address)
                raise _refused(address, response.status, await response.read())
            try:
                yield Stream(address, response.content)
            except RegistryError:
                self._members.failed(address)
                raise

    async def _authenticate(self) -> None:
        self._token = None
        try:
            answer = await self._ask(
                "/v3/auth/authenticate", {"name": self._user, "password": self._password}
            )
        except EtcdError as error:
            if error.code != FAILED_PRECONDITION:  # authentication is not on (yet): nothing is lost by that
                raise
            self._token = ""
        else:
            self._token = str(answer.get("token", ""))

    async def _ask(self, path: str, body: Mapping[str, Any]) -> Json:
        address = self._members.current
        try:
            async with (
                asyncio.timeout(self._answer),
                await self._post(address, path, orjson.dumps(body)) as response,
            ):
                said = await response.read()
            found = _object(address, said) if response.status == 200 else {}
            if not found or "error" in found:
                raise _refused(address, response.status, said)
            return found
        except (aiohttp.ClientError, OSError) as error:
            self._members.failed(address)
            raise _unreachable(address, error, self._answer) from error
        except (RegistryError, asyncio.CancelledError):
            # Who gave up on it, gave up on this member.
            self._members.failed(address)
            raise

    async def _post(self, address: str, path: str, body: bytes) -> aiohttp.ClientResponse:
        headers = {"Authorization": self._token} if self._token else None
        return await self._session.post(
            address + path, data=body, headers=headers, server_hostname=self._server_name
        )


class Stream:
    """The messages of one stream, as they come."""

    def __init__(self, address: str, content: aiohttp.StreamReader) -> None:
        self._address = address
        self._content = content
        self._rest = b""

    async def read(self) -> list[Json]:
        """Waits for the next bytes and returns the messages that are whole now, if any. May be cancelled
        without losing one. Raises `RegistryError` at the end, and for a message that is an error."""
        # Lines are split here because a line may be longer than what aiohttp's own reader takes.
        try:
            data = await self._content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(self._address, error) from error
        if not data:
            raise RegistryError(f"{self._address}: the stream ended")
        *lines, self._rest = (self._rest + data).split(b"\n") if b"\n" in data else [self._rest + data]
        if len(self._rest) > LONGEST_LINE:
            raise RegistryError(f"{self._address}: a message of more than {LONGEST_LINE} bytes")
        return [self._result(line) for line in lines if line.strip()]

    def _result(self, line: bytes) -> Json:
        message = _object(self._address, line)
        if "error" in message or not isinstance(message.get("result"), dict):
            raise _refused(self._address, 200, line)
        result: Json = message["result"]
        return result


def encode(data: bytes) -> str:
    """Bytes as they are written in JSON."""
    return base64.b64encode(data).decode()


def decode(text: str) -> bytes:
    """And read. Raises `ValueError`."""
    return base64.b64decode(text, validate=True)


def _socket(found: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol = found[:3]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


def _object(address: str, data: bytes) -> Json:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RegistryError(f"{address}: not JSON: {error}; is this etcd?") from error
    if not isinstance(found, dict):
        raise RegistryError(f"{address}: not an answer of etcd's")
    return found


def _refused(address: str, status: int, said: bytes) -> RegistryError:
    try:
        found = orjson.loads(said)
        # Of a call, and of a stream.
        error = found["error"] if isinstance(found.get("error"), dict) else found
        code = error.get("code", error.get("grpc_code"))
        return EtcdError(f"{address}: {error['message']}", int(code))
    except (ValueError, TypeError, KeyError, AttributeError):
        text = " ".join(said[:200].decode(errors="replace").split())
        return RegistryError(f"{address}: status {status}: {text}")


def _unreachable(address: str, error: BaseException, answer: float | None = None) -> RegistryError:
    if isinstance(error, TimeoutError) and answer is not None and not str(error):
        return RegistryError(f"{address}: no answer in {answer:.1f} s")
    return RegistryError(f"{address}: {str(error) or type(error).__name__}")


def _wants_token(error: EtcdError) -> bool:
    """Whether etcd does not know who asks: the token has run out, users were changed, or authentication was
    turned on meanwhile."""
    return error.code == UNAUTHENTICATED or (
        error.code == INVALID_ARGUMENT
        and ("user name is empty" in str(error) or "revision in header is old" in str(error))
    )
