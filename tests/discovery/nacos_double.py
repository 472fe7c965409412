"""A Nacos server as far as discovery sees one, that can be made to do what a real one does only by chance.

It speaks real gRPC and HTTP on loopback, and keeps what makes Nacos Nacos: entries that belong to a
connection and end with it, error 301 for connections it does not know, pushes that are repeated until they
are answered, answers and pushes ordered by its own clock, emptiness that looks like a service nobody
registered, tokens that run out. `test_nacos.py` asks the same of it and of a real server.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from config.registries import NacosRegistry
from discovery.nacos.payload import Payload, decode, encode
from tests.contract.server import free_ports

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
import grpc.aio  # it reads that when it is imported

PUSH_DELAY = 0.01
"""Seconds in which changes are gathered into one push. A real server takes 0.5."""
SWEEP = 0.05
"""Seconds between looks for instances that do not beat. A real server takes 5."""

_RESPONSES = {"ServiceQueryRequest": "QueryServiceResponse"}

Key = tuple[str, str, str]
"""Namespace, group, service."""
Entry = dict[str, Any]


@dataclass(eq=False)
class Client:
    """One connection, and what it owns."""

    id: str
    labels: dict[str, str] = field(default_factory=dict)
    outgoing: asyncio.Queue[Payload | Exception | None] = field(default_factory=asyncio.Queue)
    entries: dict[Key, list[Entry]] = field(default_factory=dict)
    subscriptions: set[Key] = field(default_factory=set)
    answers: list[Payload] = field(default_factory=list)
    """What it has said on the stream after its setup."""
    waiting: dict[str, asyncio.Event] = field(default_factory=dict)
    """Pushes that it has not answered."""


class NacosDouble:
    """`start` it, and put what `section` returns into a configuration."""

    def __init__(self, *, user: tuple[str, str] | None = None, apis: tuple[str, ...] = ("v1",)) -> None:
        self.http_port, self.grpc_port = sorted(free_ports(2))
        self.user = user
        self.apis = apis
        self.token_life = 3600.0
        """Seconds, as told; what is accepted ends with `expire_tokens`."""
        self.logins = 0
        self.clients: dict[str, Client] = {}
        self.registered: dict[Key, dict[tuple[str, int, str], Entry]] = {}
        """By HTTP: kept by beats, or for ever."""
        self.thresholds: dict[Key, float] = {}
        self.starting = False
        self.readable = True
        """Whether it tells of instances; one that is loading only takes them."""
        self.answers_pushes = True
        self.clock_offset = 0
        """Milliseconds that its clock is wrong."""
        self.push_retry = 0.2
        """Seconds until a push that was not answered is repeated."""
        self.asked: list[tuple[str, Entry]] = []
        """Types and bodies of all gRPC requests."""
        self.paths: list[str] = []
        """Of all HTTP requests."""
        self._beats: dict[tuple[Key, tuple[str, int, str]], float] = {}
        self._tokens: set[str] = set()
        self._going = asyncio.Event()
        self._going.set()
        self._dirty: set[Key] = set()
        self._number = itertools.count(1)
        self._grpc: grpc.aio.Server | None = None
        self._web: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.http_port}/nacos"

    def section(self, **facts: Any) -> NacosRegistry:
        """The part of a configuration that names this server."""
        user = {"user": self.user[0], "password": self.user[1]} if self.user else {}
        offset = self.grpc_port - self.http_port
        return NacosRegistry.model_validate(
            {"kind": "nacos", "address": self.url, "grpc_port_offset": offset} | user | facts
        )

    # -- its life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Answers after this; nothing is left of what connections owned before."""
        self._grpc = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._grpc.add_generic_rpc_handlers((_Handler(self._unary, self._stream),))
        assert self._grpc.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        await self._grpc.start()
        app = web.Application()
        app.router.add_route("*", "/nacos/{path:.*}", self._http)
        self._web = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.1)
        await self._web.setup()
        await web.TCPSite(self._web, "127.0.0.1", self.http_port, reuse_address=True).start()
        self._spawn(self._sweep())

    async def stop(self) -> None:
        """Ends at once, as if killed. Ephemeral entries are lost."""
        self._going.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._grpc is not None:
            await self._grpc.stop(None)
        if self._web is not None:
            await self._web.cleanup()
        self._grpc = self._web = None
        self.clients.clear()
        self._dirty.clear()
        for entries in self.registered.values():
            for where in [where for where, entry in entries.items() if entry["ephemeral"]]:
                del entries[where]

    def freeze(self) -> None:
        """Takes what comes, and says nothing."""
        self._going.clear()

    def thaw(self) -> None:
        """Goes on."""
        self._going.set()

    # -- what it is made to do --------------------------------------------------------------------------

    def forget(self) -> None:
        """Loses every entry and tells whoever watches; connections stay."""
        for client in self.clients.values():
            self._changed(*client.entries)
            client.entries.clear()
        self._changed(*self.registered)
        self.registered.clear()

    def unregister(self) -> None:
        """Does not know its connections any more, and leaves them open: error 301."""
        for client in list(self.clients.values()):
            self._gone(client)

    def end_streams(self, error: Exception | None = None) -> None:
        """Ends all streams: cleanly, or by an error."""
        for client in self.clients.values():
            client.outgoing.put_nowait(error)

    def reset(self, host: str | None = None, port: str | None = None) -> None:
        """Sends everybody away, to another server perhaps."""
        self._say_to_all("ConnectResetRequest", {"serverIp": host, "serverPort": port})

    def detect(self) -> None:
        """Asks everybody whether they are there."""
        self._say_to_all("ClientDetectionRequest", {})

    def expire_tokens(self) -> None:
        """Accepts none of the tokens given so far."""
        self._tokens.clear()

    def set_healthy(self, host: str, healthy: bool) -> None:
        """What its own health check finds."""
        for key in self._keys():
            for entry in self._entries(key):
                if entry["ip"] == host:
                    entry["healthy"] = healthy
                    self._changed(key)

    def send(self, key: Key, info: Entry) -> None:
        """A push of whatever is wanted to all that subscribe to the service."""
        for client in self.clients.values():
            if key in client.subscriptions:
                self._push(client, info)

    # -- what it knows ----------------------------------------------------------------------------------

    def info(self, key: Key) -> Entry:
        """What is said of a service: a new stamp each time, as a real server does."""
        _, group, service = key
        hosts = [dict(entry) for entry in self._entries(key) if entry.get("enabled", True)]
        healthy = sum(host["healthy"] for host in hosts)
        protected = bool(hosts) and healthy <= self.thresholds.get(key, -1.0) * len(hosts)
        if protected:
            hosts = [host | {"healthy": True} for host in hosts]
        return {
            "name": service,
            "groupName": group,
            "clusters": "",
            "cacheMillis": 10000,
            "hosts": hosts,
            "lastRefTime": self._now(),
            "checksum": "",
            "allIPs": False,
            "reachProtectionThreshold": protected,
            "valid": True,
        }

    def _keys(self) -> set[Key]:
        owned = {key for client in self.clients.values() for key in client.entries}
        return owned | set(self.registered)

    def _entries(self, key: Key) -> list[Entry]:
        owned = [entry for client in self.clients.values() for entry in client.entries.get(key, [])]
        return [*owned, *self.registered.get(key, {}).values()]

    def _now(self) -> int:
        return time.time_ns() // 1_000_000 + self.clock_offset

    # -- gRPC -------------------------------------------------------------------------------------------

    async def _unary(self, data: bytes, context: Any) -> bytes:
        await self._going.wait()
        payload = decode(data)
        self.asked.append((payload.type, dict(payload.body)))
        body = self._answer(payload, context.peer())
        await self._going.wait()
        if body["errorCode"] in (300, 301, 302):
            return encode(Payload("ErrorResponse", body))
        return encode(
            Payload(_RESPONSES.get(payload.type, payload.type.replace("Request", "Response")), body)
        )

    def _answer(self, payload: Payload, peer: str) -> Entry:
        if self.starting:
            return _error(300, "Server is starting,please try later.")
        if payload.type == "ServerCheckRequest":
            return _fine(connectionId=f"1_{peer.rpartition(':')[0].partition(':')[2]}_{peer[-5:]}")
        client = self.clients.get(peer)
        if client is None:
            return _error(301, "Connection is unregistered.")
        if payload.type == "HealthCheckRequest":
            return _fine()
        if self.user and payload.headers.get("accessToken") not in self._tokens:
            return _error(403, "authorization failed!")
        body = payload.body
        if client.labels.get("module") != "naming":
            return _error(500, "Client is already disconnected")
        key = (body["namespace"], body["groupName"], body["serviceName"])
        if not self.readable and payload.type in ("SubscribeServiceRequest", "ServiceQueryRequest"):
            return _error(500, "server is DOWN now")
        match payload.type:
            case "SubscribeServiceRequest":
                client.subscriptions.add(key)
                return _fine(serviceInfo=self.info(key))
            case "ServiceQueryRequest":
                return _fine(serviceInfo=self.info(key))
            case "InstanceRequest" | "BatchInstanceRequest":
                found = body.get("instances") or [body["instance"]]
                if body["type"] == "deregisterInstance":
                    client.entries.pop(key, None)
                else:
                    client.entries[key] = [_whole(entry, key) for entry in found]
                self._changed(key)
                return _fine(type=body["type"])
            case _:
                return _error(302, "RequestHandler Not Found")

    async def _stream(self, incoming: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        client = Client(context.peer())
        reader = asyncio.create_task(self._listen(client, incoming))
        try:
            while (said := await client.outgoing.get()) is not None:
                if isinstance(said, Payload):
                    await self._going.wait()
                    yield encode(said)
                else:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(said))
        finally:
            reader.cancel()
            self._gone(client)

    async def _listen(self, client: Client, incoming: AsyncIterator[bytes]) -> None:
        async for data in incoming:
            payload = decode(data)
            if payload.type == "ConnectionSetupRequest":
                await self._going.wait()
                client.labels = dict(payload.body["labels"])
                self.clients[client.id] = client
                client.outgoing.put_nowait(Payload("SetupAckRequest", {"requestId": "0", "abilityTable": {}}))
                continue
            client.answers.append(payload)
            answered = client.waiting.pop(str(payload.body.get("requestId")), None)
            if answered is not None:
                answered.set()
        client.outgoing.put_nowait(None)

    def _gone(self, client: Client) -> None:
        if self.clients.get(client.id) is client:
            del self.clients[client.id]
            self._changed(*client.entries)

    def _say_to_all(self, type: str, body: Entry) -> None:
        for client in self.clients.values():
            client.outgoing.put_nowait(Payload(type, {"requestId": str(next(self._number)), **body}))

    # -- pushes -----------------------------------------------------------------------------------------

    def _changed(self, *keys: Key) -> None:
        for key in keys:
            if key not in self._dirty:
                self._dirty.add(key)
                self._spawn(self._push_soon(key))

    async def _push_soon(self, key: Key) -> None:
        await asyncio.sleep(PUSH_DELAY)
        await self._going.wait()
        self._dirty.discard(key)
        self.send(key, self.info(key))

    def _push(self, client: Client, info: Entry) -> None:
        number = str(next(self._number))
        client.waiting[number] = asyncio.Event()
        self._spawn(self._deliver(client, number, info))

    async def _deliver(self, client: Client, number: str, info: Entry) -> None:
        body = {"requestId": number, "serviceInfo": info, "module": "naming"}
        answered = client.waiting[number]
        while client.id in self.clients and not answered.is_set():
            client.outgoing.put_nowait(Payload("NotifySubscriberRequest", body))
            with suppress(TimeoutError):
                await asyncio.wait_for(answered.wait(), self.push_retry)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now = time.monotonic()
            for (key, where), at in list(self._beats.items()):
                entry = self.registered.get(key, {}).get(where)
                if entry is None:
                    del self._beats[key, where]
                    continue
                late = 1000 * (now - at)
                if late > int(entry["metadata"].get("preserved.ip.delete.timeout", 30000)):
                    del self.registered[key][where]
                    self._changed(key)
                    continue
                allowed = int(entry["metadata"].get("preserved.heart.beat.timeout", 15000))
                if late > allowed and entry["healthy"]:
                    entry["healthy"] = False
                    self._changed(key)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- HTTP -------------------------------------------------------------------------------------------

    async def _http(self, request: web.Request) -> web.Response:
        await self._going.wait()
        path = request.match_info["path"]
        self.paths.append(path)
        form = {**request.query, **{k: str(v) for k, v in (await request.post()).items()}}
        generation = path.partition("/")[0]
        if generation not in self.apis:
            return web.Response(status=410 if generation == "v1" else 404)
        if path in ("v1/auth/users/login", "v3/auth/user/login"):
            return self._login(form)
        if self.user and (request.headers.get("accessToken") or form.get("accessToken")) not in self._tokens:
            return web.Response(status=403, text="authorization failed!")
        call = (request.method, path.removeprefix("v1/ns").removeprefix("v3/client/ns"))
        answer = self._instances(call, form, modern=generation == "v3")
        return answer if answer is not None else web.Response(status=404)

    def _login(self, form: dict[str, str]) -> web.Response:
        self.logins += 1
        if self.user != (form.get("username"), form.get("password")):
            return web.Response(status=403, text="unknown user!")
        token = f"token-{next(self._number)}"
        self._tokens.add(token)
        return _answered({"accessToken": token, "tokenTtl": self.token_life, "globalAdmin": True})

    def _instances(self, call: tuple[str, str], form: dict[str, str], *, modern: bool) -> web.Response | None:
        wrap: Callable[[Any], web.Response] = (
            (lambda data: _answered({"code": 0, "message": "success", "data": data})) if modern else _answered
        )
        key = (form.get("namespaceId", "public"), form["groupName"], form["serviceName"])
        if call == ("GET", "/instance/list"):
            if not self.readable:
                return web.Response(status=503, text="server is DOWN now")
            info = self.info(key)
            return wrap(info["hosts"] if modern else info | {"name": f"{key[1]}@@{key[2]}"})
        entry = _whole({**form, "metadata": orjson.loads(form.get("metadata", "{}"))}, key)
        where = (entry["ip"], entry["port"], entry["clusterName"])
        beat = call == ("PUT", "/instance/beat") or form.get("heartBeat") == "true"
        if beat:
            known = self.registered.get(key, {}).get(where)
            if known is None:
                return _answered({"code": 21003 if modern else 20404, "message": "not found"})
            self._beats[key, where] = time.monotonic()
            if not known["healthy"]:
                known["healthy"] = True
                self._changed(key)
            return wrap("ok") if modern else _answered({"code": 10200, "clientBeatInterval": 5000})
        match call:
            case ("POST", "/instance"):
                self.registered.setdefault(key, {})[where] = entry
                if entry["ephemeral"]:
                    self._beats[key, where] = time.monotonic()
            case ("DELETE", "/instance"):
                self.registered.get(key, {}).pop(where, None)
            case _:
                return None
        self._changed(key)
        return wrap("ok") if modern else web.Response(text="ok")


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, unary: Any, stream: Any) -> None:
        self._methods: dict[str, Any] = {
            "/Request/request": grpc.unary_unary_rpc_method_handler(unary),
            "/BiRequestStream/requestBiStream": grpc.stream_stream_rpc_method_handler(stream),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._methods.get(handler_call_details.method)


def _whole(entry: Entry, key: Key) -> Entry:
    """With everything that a real server adds."""
    cluster = entry.get("clusterName") or "DEFAULT"
    name = f"{key[1]}@@{key[2]}"
    return {
        "instanceId": f"{entry['ip']}#{entry['port']}#{cluster}#{name}",
        "ip": entry["ip"],
        "port": int(entry["port"]),
        "weight": float(entry.get("weight", 1.0)),
        "healthy": entry.get("healthy", True) in (True, "true"),
        "enabled": entry.get("enabled", True) in (True, "true"),
        "ephemeral": entry.get("ephemeral", True) in (True, "true"),
        "clusterName": cluster,
        "serviceName": name,
        "metadata": dict(entry.get("metadata") or {}),
        "instanceHeartBeatInterval": 5000,
        "instanceHeartBeatTimeOut": 15000,
        "ipDeleteTimeout": 30000,
        "instanceIdGenerator": "simple",
    }


def _fine(**fields: Any) -> Entry:
    return {"resultCode": 200, "errorCode": 0, **fields}


def _error(code: int, message: str) -> Entry:
    return {"resultCode": 500, "errorCode": code, "message": message}


def _answered(data: Any) -> web.Response:
    return web.Response(body=orjson.dumps(data), content_type="application/json")
