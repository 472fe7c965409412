"""The part of a Kubernetes API server that EndpointSlices need, over real HTTP, which can be hurt at will.

What it does as the real one (kube-apiserver 1.36, and the concepts "Efficient detection of changes" and
"Retrieving large results sets in chunks"): one resource version for all objects; lists in pages, all of one
moment; watches from a version with a bounded memory, `ERROR` 410 in the body beyond it; label selectors, with
`ADDED` and `DELETED` for objects that begin and cease to match; bookmarks; an orderly end after
`timeoutSeconds`; `Status` objects for refusals; bearer tokens and who may do what in which namespace.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web

GROUP = "/apis/discovery.k8s.io/v1"
SERVICE_NAME = "kubernetes.io/service-name"
BOOKMARK_BEFORE_END = 2.0

Object = dict[str, Any]
Verb = str


def endpoint(pod: str, address: str, **fields: Any) -> Object:
    """An endpoint of a pod as the controller writes it; `fields` go over it."""
    conditions = {"ready": True, "serving": True, "terminating": False}
    target = {"kind": "Pod", "name": pod, "namespace": "shop", "uid": f"uid-of-{pod}"}
    return {
        "addresses": [address],
        "conditions": conditions,
        "nodeName": "node-1",
        "targetRef": target,
        "zone": "zone-a",
    } | fields


def slice_of(service: str, name: str, *endpoints: Object, **fields: Any) -> Object:
    """An EndpointSlice as the controller writes it; `labels` are added, other `fields` go over it."""
    labels = {SERVICE_NAME: service, "endpointslice.kubernetes.io/managed-by": "tests"}
    labels |= fields.pop("labels", {})
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": labels},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    } | fields


class Refused(Exception):
    """Answered with a `Status` object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }
        self.code = code


Expected = Callable[[Object], bool]


def selector(text: str) -> Expected:
    """Of a label selector: `a=b`, `a==b`, `a in (b,c)`, `a`, joined by commas."""
    requirements: list[Expected] = []
    rest = text.strip()
    while rest:
        if (head := rest.partition(" in ("))[1] and "," not in head[0]:
            values, _, rest = head[2].partition(")")
            requirements.append(_within(head[0].strip(), {value.strip() for value in values.split(",")}))
        else:
            one, _, rest = rest.partition(",")
            key, equals, value = one.replace("==", "=").partition("=")
            requirements.append(_within(key.strip(), {value.strip()} if equals else None))
        rest = rest.lstrip(", ")
    return lambda item: all(requirement(item) for requirement in requirements)


def _within(key: str, values: set[str] | None) -> Expected:
    def check(item: Object) -> bool:
        labels = item["metadata"].get("labels") or {}
        return key in labels and (values is None or labels[key] in values)

    return check


@dataclass(frozen=True)
class Change:
    """One write: the object before and after it, each None where there is none."""

    version: int
    before: Object | None
    after: Object | None

    def seen_by(self, matches: Expected) -> Object | None:
        """The event that a watch with this selector gets."""
        before = self.before is not None and matches(self.before)
        if self.after is not None and matches(self.after):
            return {"type": "MODIFIED" if before else "ADDED", "object": self.after}
        if not before:
            return None
        assert self.before is not None
        gone = copy.deepcopy(self.before)
        gone["metadata"]["resourceVersion"] = str(self.version)
        return {"type": "DELETED", "object": gone}


@dataclass(eq=False)
class Watch:
    """An open watch."""

    namespace: str
    matches: Expected
    since: int
    lines: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    """What to send; None: end in order."""
    transport: asyncio.Transport | None = None


class ApiServer:
    """The server. Writes by `apply` and `delete`, or over HTTP. Everything is public for tests to turn.

    `tokens`: who a bearer token is; anybody when empty. `rules`: (user, verb, namespace) that are allowed;
    everything when empty. `history`: writes that watches may ask for; `bookmarks`: seconds between two.
    """

    def __init__(self, *, history: int = 1000, bookmarks: float = 60.0, index: int = 1000) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.version = index
        self.oldest = index
        self.history: list[Change] = []
        self.remembered = history
        self.bookmarks = bookmarks
        self.tokens: dict[str, str] = {}
        self.rules: set[tuple[str, Verb, str]] = set()
        self.watches: set[Watch] = set()
        self.asked: list[web.Request] = []
        self.bookmarked: list[int] = []
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None
        """Asked before each request is handled; what it returns is the answer."""
        self.url = ""
        self._running = asyncio.Event()
        self._running.set()
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.Transport] = set()
        """Those with a request that is being answered."""

    # -- the process ------------------------------------------------------------------------------------

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application(client_max_size=8 << 20, middlewares=[self._guarded])
        path = GROUP + "/namespaces/{namespace}/endpointslices"
        app.router.add_get(path, self._read)
        app.router.add_get(GROUP + "/endpointslices", self._read)
        app.router.add_post(path, self._create)
        app.router.add_get(path + "/{name}", self._one)
        app.router.add_put(path + "/{name}", self._replace)
        app.router.add_delete(path + "/{name}", self._delete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True)
        await site.start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """As a killed process: connections break where they are. What was written stays."""
        self.thaw()
        if (runner := self._runner) is not None:
            self._runner = None
            self.break_watches()
            for transport in self._connections:
                transport.abort()
            await runner.cleanup()

    def freeze(self) -> None:
        """Nothing is answered any more; connections are still made, as by a stopped process."""
        self._running.clear()

    def thaw(self) -> None:
        self._running.set()

    # -- writes -----------------------------------------------------------------------------------------

    def apply(self, item: Object, namespace: str = "shop") -> Object:
        """Creates the object, or replaces the one of its name."""
        item = copy.deepcopy(item)
        meta = item["metadata"]
        key = (namespace, meta["name"])
        before = self.objects.get(key)
        self.version += 1
        meta |= {"namespace": namespace, "resourceVersion": str(self.version)}
        uid = before["metadata"]["uid"] if before else f"uid-{self.version}"
        meta |= {"uid": uid, "generation": (before["metadata"]["generation"] if before else 0) + 1}
        self.objects[key] = item
        self._tell(namespace, Change(self.version, before, item))
        return item

    def delete(self, name: str, namespace: str = "shop") -> Object:
        before = self.objects.pop((namespace, name))
        self.version += 1
        self._tell(namespace, Change(self.version, before, None))
        return before

    def compact(self) -> None:
        """Forgets everything but the present."""
        self.history.clear()
        self.oldest = self.version

    def _tell(self, namespace: str, change: Change) -> None:
        self.history.append(change)
        if len(self.history) > self.remembered:
            self.oldest = self.history.pop(0).version
        for watch in self.watches:
            # A version that is still to come is waited for without a word.
            if watch.namespace in ("", namespace) and change.version > watch.since:
                event = change.seen_by(watch.matches)
                if event is not None:
                    watch.lines.put_nowait(encoded(event))

    # -- trouble ----------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Writes this into every watch as it is."""
        for watch in self.watches:
            watch.lines.put_nowait(data)

    def end_watches(self) -> None:
        """In order, as a server does that is going to be replaced. They hear of nothing that comes after."""
        for watch in self.watches:
            watch.lines.put_nowait(None)
        self.watches.clear()

    def break_watches(self) -> None:
        """In the middle of a line."""
        for watch in self.watches:
            if watch.transport is not None:
                watch.transport.write(b'10\r\n{"type":"MODI')
                watch.transport.abort()

    # -- requests ---------------------------------------------------------------------------------------

    @web.middleware
    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.asked.append(request)
        # uvloop's transports are not asyncio.Transport by inheritance.
        transport = cast(asyncio.Transport, request.transport)
        self._connections.add(transport)
        try:
            await self._running.wait()
            if self.answer is not None and (given := await self.answer(request)) is not None:
                return given
            self._authorize(request)
            return await handler(request)
        except Refused as refused:
            return web.json_response(refused.status, status=refused.code)
        finally:
            self._connections.discard(transport)

    def _authorize(self, request: web.Request) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.tokens.get(token, "") if self.tokens else "system:anonymous"
        if not user:
            raise Refused(401, "Unauthorized", "Unauthorized")
        namespace = request.match_info.get("namespace", "")
        verb = {"POST": "create", "PUT": "update", "DELETE": "delete"}.get(request.method, "list")
        if verb == "list" and _is_true(request.query.get("watch")):
            verb = "watch"
        if self.rules and (user, verb, namespace) not in self.rules:
            raise Refused(
                403,
                "Forbidden",
                f'endpointslices.discovery.k8s.io is forbidden: User "{user}" cannot {verb} resource '
                f'"endpointslices" in API group "discovery.k8s.io" in the namespace "{namespace}"',
            )

    async def _read(self, request: web.Request) -> web.StreamResponse:
        namespace = request.match_info.get("namespace", "")
        matches = selector(request.query.get("labelSelector", ""))
        if _is_true(request.query.get("watch")):
            return await self._watch(request, namespace, matches)
        return self._list(request, namespace, matches)

    def _list(self, request: web.Request, namespace: str, matches: Expected) -> web.Response:
        """A page. The continue token holds the rest of its moment, which is gone once that was compacted."""
        if token := request.query.get("continue"):
            version, names = json.loads(base64.urlsafe_b64decode(token))
            if version < self.oldest:
                message = "The provided continue parameter is too old to display a consistent list result."
                raise Refused(410, "Expired", message)
            state = self._at(version)
            keys = [(space, name) for space, name in names if (space, name) in state]
        else:
            version, state = self.version, dict(self.objects)
            keys = sorted(key for key, item in state.items() if namespace in ("", key[0]) and matches(item))
        limit = int(request.query.get("limit") or 0) or len(keys)
        meta: Object = {"resourceVersion": str(version)}
        if rest := keys[limit:]:
            meta["continue"] = base64.urlsafe_b64encode(json.dumps([version, rest]).encode()).decode()
        # As the real server does: within a list the objects do not say their kind.
        items = [
            {name: value for name, value in state[key].items() if name not in ("kind", "apiVersion")}
            for key in keys[:limit]
        ]
        return web.json_response(
            {
                "kind": "EndpointSliceList",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": meta,
                "items": items,
            }
        )

    def _at(self, version: int) -> dict[tuple[str, str], Object]:
        """Everything as it was then: what was written later is taken back."""
        state = dict(self.objects)
        for change in reversed([change for change in self.history if change.version > version]):
            meta = (change.after or change.before or {})["metadata"]
            key = (meta["namespace"], meta["name"])
            state.pop(key, None)
            if change.before is not None:
                state[key] = change.before
        return state

    async def _watch(self, request: web.Request, namespace: str, matches: Expected) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        seconds = float(request.query.get("timeoutSeconds") or 1800)
        bookmarks = _is_true(request.query.get("allowWatchBookmarks"))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        watch = Watch(namespace, matches, since)
        # Nothing may be awaited from here until the watch is known: no write falls in between.
        if since and since < self.oldest:
            message = f"too old resource version: {since} ({self.oldest})"
            error = Refused(410, "Expired", message).status
            await response.write(encoded({"type": "ERROR", "object": error}))
            return response
        for event in self._backlog(since, namespace, matches):
            watch.lines.put_nowait(encoded(event))
        # uvloop's transports are not asyncio.Transport by inheritance.
        watch.transport = cast(asyncio.Transport, request.transport)
        self.watches.add(watch)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._pour(watch, response, seconds, bookmarks)
            await self._running.wait()
        finally:
            self.watches.discard(watch)
        return response

    def _backlog(self, since: int, namespace: str, matches: Expected) -> list[Object]:
        if not since:
            state = sorted(self.objects.items())
            changes = [(key[0], Change(0, None, item)) for key, item in state]
        else:
            changes = [
                ((change.after or change.before or {})["metadata"]["namespace"], change)
                for change in self.history
                if change.version > since
            ]
        events = (change.seen_by(matches) for space, change in changes if namespace in ("", space))
        return [event for event in events if event is not None]

    async def _pour(
        self, watch: Watch, response: web.StreamResponse, seconds: float, bookmarks: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time() + seconds - BOOKMARK_BEFORE_END
        due = min(loop.time() + self.bookmarks, max(last, loop.time()))
        while True:
            try:
                async with asyncio.timeout_at(due if bookmarks else None):
                    line = await watch.lines.get()
            except TimeoutError:
                now = loop.time()
                due = now + self.bookmarks if now >= last else min(now + self.bookmarks, last)
                if self.version <= watch.since:
                    continue
                meta = {"resourceVersion": str(self.version), "creationTimestamp": None}
                kind = {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1"}
                event = {"type": "BOOKMARK", "object": kind | {"metadata": meta, "endpoints": None}}
                line = encoded(event)
                self.bookmarked.append(self.version)
            await self._running.wait()
            if line is None:
                return
            await response.write(line)

    async def _create(self, request: web.Request) -> web.Response:
        item = await request.json()
        namespace, name = request.match_info["namespace"], item["metadata"]["name"]
        if (namespace, name) in self.objects:
            message = f'endpointslices.discovery.k8s.io "{name}" already exists'
            raise Refused(409, "AlreadyExists", message)
        return web.json_response(self.apply(item, namespace), status=201)

    async def _one(self, request: web.Request) -> web.Response:
        return web.json_response(self._found(request))

    async def _replace(self, request: web.Request) -> web.Response:
        self._found(request)
        return web.json_response(self.apply(await request.json(), request.match_info["namespace"]))

    async def _delete(self, request: web.Request) -> web.Response:
        self._found(request)
        self.delete(request.match_info["name"], request.match_info["namespace"])
        return web.json_response({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    def _found(self, request: web.Request) -> Object:
        name = request.match_info["name"]
        found = self.objects.get((request.match_info["namespace"], name))
        if found is None:
            raise Refused(404, "NotFound", f'endpointslices.discovery.k8s.io "{name}" not found')
        return found


def encoded(event: Object) -> bytes:
    """One line of a watch."""
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def _is_true(value: str | None) -> bool:
    return value in ("1", "true", "True")
