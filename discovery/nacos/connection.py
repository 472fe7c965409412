"""One gRPC connection to a Nacos server: what is registered and subscribed through it lives as long as it.

Source: Nacos' `remote` packages of server and Java client (2.x and 3.x). The order is ServerCheck (is it
up?), ConnectionSetup on the stream (who are we?), then requests; one that comes before the server has taken
the setup is answered with error 301, as is every request once the server has given the connection up. What
the server asks on the stream is answered there under the same requestId; a push that is not is repeated.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from config.registries import NacosRegistry, RegistryTLS
from discovery.model import RegistryError
from discovery.nacos.http import Denied, HttpApi
from discovery.nacos.payload import Payload, decode, encode
from discovery.nacos.servers import Server

if TYPE_CHECKING:
    import grpc.aio

TIMEOUT = 3.0
"""Seconds for one answer."""
LARGEST = 64 << 20
"""Bytes of one message; 10,000 instances are about 5 MB."""

_VERSION = "Nacos-Holdfast-Client:v1"
_LABELS = {"source": "sdk", "module": "naming"}
"""Without this module the server keeps no client for the connection."""
_UNREGISTERED, _DENIED = 301, (401, 403)
_SETUP_FIRST, _SETUP_MOST = 0.01, 0.2
"""Seconds between looks whether the server has taken the setup; doubled each time."""

_log = logging.getLogger(__name__)

Json = Mapping[str, Any]


class Unregistered(RegistryError):
    """The server does not know the connection (any more)."""


class _Wire:
    """What grpc knows of a connection."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/Request/request")
        self.stream: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(
            "/BiRequestStream/requestBiStream"
        )()


class Connection:
    """Made by `connect`. Ends by itself when the server ends it; `failure` says why then."""

    def __init__(
        self, server: Server, registry: NacosRegistry, channel: grpc.aio.Channel, timeout: float
    ) -> None:
        self.server = server
        self.failure: RegistryError | None = None
        self.instead: tuple[str, str] | None = None
        """Host and port of the server that this one has sent us to; both empty when it was not said."""
        self.on_push: Callable[[Json], None] = _ignore
        """Told of each push, before it is acknowledged."""
        self.on_end: Callable[[RegistryError], None] = _ignore
        """Told once when the connection has ended, and why."""
        self._name = server.target(registry.grpc_port_offset)
        self._timeout = timeout
        self._wire: _Wire | None = _Wire(channel)
        self._reader: asyncio.Task[None] | None = None

    async def set_up(self, namespace: str) -> None:
        """Makes the server know us. Raises `RegistryError`."""
        id = str((await self.request("ServerCheckRequest", {})).get("connectionId", ""))
        setup = {"clientVersion": _VERSION, "tenant": namespace, "labels": _LABELS, "abilityTable": {}}
        self._reader = asyncio.create_task(
            self._read(Payload("ConnectionSetupRequest", setup, client_ip=_client_ip(id)))
        )
        wait = _SETUP_FIRST
        async with asyncio.timeout(self._timeout):
            while True:
                try:
                    await self.request("HealthCheckRequest", {})
                    return
                except Unregistered:
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, _SETUP_MOST)

    async def request(self, type: str, body: Json, headers: Mapping[str, str] | None = None) -> Any:
        """Asks, and returns the fields of the answer.

        Raises `Unregistered` for error 301, `Denied` when the token is not taken, `RegistryError` for every
        other refusal, and when there is no answer.
        """
        import grpc

        if self.failure is not None or self._wire is None:
            raise RegistryError(str(self.failure))
        broken = None
        try:
            data = await self._wire.unary(encode(Payload(type, body, headers or {})), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            broken = self._broken(error)
        if broken is not None:
            # Outside of the handler: grpc keeps a TCP connection open as long as anybody holds one of its
            # calls, and the frames of its error do.
            raise broken
        answer = decode(data).body
        code = answer.get("errorCode", 0)
        if answer.get("resultCode") == 200 and not code:
            return answer
        message = f"{self._name}: {type}: error {code}: {answer.get('message')}"
        if code == _UNREGISTERED:
            raise Unregistered(message)
        raise (Denied if code in _DENIED else RegistryError)(message)

    async def close(self) -> None:
        """Ends it, and with it what was registered through it. Never raises."""
        self._end(f"{self._name}: closed")
        self.on_push, self.on_end = _ignore, _ignore
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            del reader
        if self._wire is not None:
            # grpc leaves the TCP connection, and so the server what we registered, until its last call is
            # forgotten: nothing may refer to it, and the cycles of others must not.
            wire, self._wire = self._wire, None
            wire.stream.cancel()
            await wire.channel.close()

    # -- what the server says by itself -----------------------------------------------------------------

    async def _read(self, setup: Payload) -> None:
        import grpc

        wire = self._wire
        assert wire is not None
        try:
            await wire.stream.write(encode(setup))
            while self.failure is None:
                data = await wire.stream.read()
                if data is grpc.aio.EOF:
                    return self._end(f"{self._name}: the server has ended the stream")
                reply = self._answer(decode(cast(bytes, data)))
                if reply is not None:
                    await wire.stream.write(encode(reply))
                if self.instead is not None:
                    self._end(f"{self._name}: the server has sent us away")
        except grpc.aio.AioRpcError as error:
            self._end(str(self._broken(error)))
        except asyncio.InvalidStateError:
            self._end(f"{self._name}: the stream has ended")
        except RegistryError as error:
            self._end(f"{self._name}: {error}")
        except Exception as error:  # or nobody would hear of the end
            self._end(f"{self._name}: {type(error).__name__}: {error}")

    def _answer(self, asked: Payload) -> Payload | None:
        """What to reply to the server's own question."""
        match asked.type:
            case "NotifySubscriberRequest":
                self.on_push(asked.body)
                reply = "NotifySubscriberResponse"
            case "ClientDetectionRequest":
                reply = "ClientDetectionResponse"
            case "ConnectResetRequest":
                self.instead = str(asked.body.get("serverIp") or ""), str(asked.body.get("serverPort") or "")
                reply = "ConnectResetResponse"
            case "SetupAckRequest":
                return None
            case other:
                _log.debug("%s: %s is not understood", self._name, other)
                return None
        return Payload(reply, {"requestId": asked.body.get("requestId"), "resultCode": 200, "errorCode": 0})

    def _end(self, reason: str) -> None:
        if self.failure is None:
            self.failure = RegistryError(reason)
            self.on_end(self.failure)

    def _broken(self, error: grpc.aio.AioRpcError) -> RegistryError:
        details = " ".join((error.details() or "").split())
        return RegistryError(f"{self._name}: {error.code().name.lower().replace('_', ' ')}: {details}")


async def connect(server: Server, registry: NacosRegistry, timeout: float = TIMEOUT) -> Connection:
    """A new connection that the server knows. Raises `RegistryError`."""
    channel = await _channel(server, registry)
    connection = Connection(server, registry, channel, timeout)
    try:
        await connection.set_up(namespace_of(registry))
    except TimeoutError:
        await connection.close()
        raise RegistryError(f"{server.base}: the server does not take the connection") from None
    except BaseException:
        await connection.close()
        raise
    return connection


async def ask(api: HttpApi, connection: Connection, type: str, body: Json) -> Any:
    """As `Connection.request`, with a token, and a new one when the old one has run out before its time."""
    token = await api.token(connection.server)
    try:
        return await connection.request(type, body, _shown(token))
    except Denied:
        if token is None:
            raise
    api.forget(token)
    return await connection.request(type, body, _shown(await api.token(connection.server)))


def namespace_of(registry: NacosRegistry) -> str:
    """The id that the empty one stands for."""
    return registry.namespace or "public"


def _client_ip(connection_id: str) -> str:
    """Our own address as the server sees it: what its console shows. An id is `TIME_ADDRESS_PORT`."""
    parts = connection_id.split("_")
    return parts[1] if len(parts) == 3 else ""


def _ignore(event: object) -> None:
    pass


def _shown(token: str | None) -> Mapping[str, str]:
    return {"accessToken": token} if token else {}


async def _channel(server: Server, registry: NacosRegistry) -> grpc.aio.Channel:
    # By default it tells everybody of every server that goes.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        import grpc.aio
    except ImportError as error:
        raise RegistryError(
            "nacos with transport: grpc needs the extra 'nacos': pip install 'holdfast[nacos]'; "
            "or set transport: http"
        ) from error
    options: list[tuple[str, Any]] = [
        # The connection is who we are: two watchers in one process must not share one.
        ("grpc.use_local_subchannel_pool", 1),
        # A registry is not reached through the proxy for the outside.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", LARGEST),
    ]
    target = server.target(registry.grpc_port_offset)
    if not server.secure:
        return grpc.aio.insecure_channel(target, options=options)
    if registry.tls.server_name:
        options.append(("grpc.ssl_target_name_override", registry.tls.server_name))
    credentials = await asyncio.to_thread(_credentials, registry.tls)
    return grpc.aio.secure_channel(target, credentials, options=options)


def _credentials(tls: RegistryTLS) -> grpc.ChannelCredentials:
    import grpc

    def read(path: str | None, key: str) -> bytes | None:
        try:
            return None if path is None else Path(path).read_bytes()
        except OSError as error:
            raise RegistryError(f"tls.{key}: {path}: {error.strerror}") from error

    return grpc.ssl_channel_credentials(
        read(tls.ca, "ca"), read(tls.key, "key"), read(tls.certificate, "certificate")
    )
