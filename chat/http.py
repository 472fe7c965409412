"""The HTTP face: the handshake, the pages, the JSON the console reads, and what operators probe."""

from __future__ import annotations

import hmac
import logging
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from chat import message as wire
from chat.client import Client, Services
from chat.message import Position, Role
from chat.metrics import CONTENT_TYPE, Metrics
from chat.options import Options
from chat.record import Summary
from chat.store import Store, StoreError

_log = logging.getLogger("holdfast.chat.http")

_WEB = Path(__file__).with_name("web")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    # Older browsers do not count WebSockets to the page's own origin among 'self'.
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_DATA = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer that is no page: what somebody has sent must not become one."""
_TOKEN = "holdfast-token."
"""Begins the subprotocol that has the agent token: a URL would take it into logs."""
_MAX_BODY = 1 << 20
_PAGE = 500

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Phase(StrEnum):
    """Where the server is in its life; only ever moves on."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """Not ready any more; what still comes, because others have not heard of it yet, is served."""
    CLOSING = "closing"
    """New handshakes are refused."""


class Host(Protocol):
    """The server behind the routes."""

    options: Options
    phase: Phase
    store: Store
    metrics: Metrics
    services: Services

    def connected(self, client: Client) -> AbstractContextManager[None]:
        """Remembers a client for as long as its connection lasts."""
        ...


def make_app(server: Host) -> web.Application:
    """The aiohttp application of a server."""
    app = web.Application(middlewares=[_errors], client_max_size=_MAX_BODY)
    app.on_response_prepare.append(_protect)
    routes = Routes(server)
    app.router.add_get("/ws", routes.websocket)
    app.router.add_get("/api/sessions", routes.sessions)
    app.router.add_get("/api/sessions/{id}/messages", routes.messages)
    app.router.add_post("/api/echo", routes.echo)
    app.router.add_get("/healthz", routes.healthz)
    app.router.add_get("/readyz", routes.readyz)
    app.router.add_get("/startupz", routes.startupz)
    app.router.add_get("/metrics", routes.metrics)
    for file in sorted(_WEB.iterdir()):
        if file.suffix in _TYPES:
            app.router.add_get(f"/{file.name}", _page(file))
    app.router.add_get("/", _page(_WEB / "index.html"))
    app.router.add_get("/agent", _page(_WEB / "agent.html"))
    return app


class Routes:
    """The handlers that need the server."""

    def __init__(self, server: Host) -> None:
        self._server = server

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """`GET /ws?session=ID&last_seq=N&role=user|agent`; `Holdfast-Resume` wins over the query."""
        server = self._server
        if server.phase is Phase.CLOSING:
            server.metrics.handshakes_refused.labels("draining").inc()
            # Whoever keeps this connection open for more requests should take them elsewhere.
            raise _error(
                503, "draining", "this instance is leaving", {"Retry-After": "1", "Connection": "close"}
            )
        if not web.WebSocketResponse().can_prepare(request):
            raise _error(426, "websocket_expected", "this is a WebSocket endpoint", {"Upgrade": "websocket"})
        try:
            role = Role(request.query.get("role", Role.USER))
        except ValueError:
            raise _error(400, "bad_role", "role is user or agent") from None
        if role is Role.AGENT:
            self._agents_only(request)
        position = _position(request, role)
        client = Client(server.services, role, position)
        with server.connected(client):
            return await client.run(request)

    async def sessions(self, request: web.Request) -> web.Response:
        """The sessions, for the console."""
        self._agents_only(request)
        limit = min(_integer(request, "limit", 100), _PAGE)
        found = await self._server.store.sessions(limit)
        return _json({"sessions": [_summary(summary) for summary in found]})

    async def messages(self, request: web.Request) -> web.Response:
        """The history of one session, for whoever knows its id; `more` says whether to ask again."""
        id = request.match_info["id"]
        if not wire.is_session_id(id):
            raise _error(400, "bad_session", "a session id is 1 to 64 of A-Z a-z 0-9 _ -")
        after = _integer(request, "after", 0)
        limit = max(1, min(_integer(request, "limit", _PAGE), _PAGE))
        session = await self._server.store.session(id)
        if session.rev == 0:
            raise _error(404, "unknown_session", f"there is no session {id}")
        found = await self._server.store.messages(id, after, limit)
        last = found[-1].seq if found else after
        return _json(
            {
                "session": id,
                "state": session.state,
                "desk": session.desk,
                "seq": session.seq,
                "messages": [wire.message_fields(message) for message in found],
                "more": last < session.seq,
            }
        )

    async def echo(self, request: web.Request) -> web.Response:
        """The request's body; for load tests and for trying a proxy out."""
        body = await request.read()
        headers = {"X-Instance": self._server.options.id}
        return web.Response(body=body, content_type=request.content_type, headers=headers)

    async def healthz(self, request: web.Request) -> web.Response:
        """200 as long as the process can answer at all."""
        return self._status(200)

    async def startupz(self, request: web.Request) -> web.Response:
        """200 once the start is done."""
        return self._status(503 if self._server.phase is Phase.STARTING else 200)

    async def readyz(self, request: web.Request) -> web.Response:
        """200 when new sessions are welcome and the store answers."""
        if self._server.phase is not Phase.READY:
            return self._status(503)
        await self._server.store.ping()
        return self._status(200)

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus text."""
        return web.Response(body=self._server.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    def _status(self, status: int) -> web.Response:
        server = self._server
        fields: dict[str, object] = {
            "status": server.phase,
            "instance": server.options.id,
            "version": server.options.version,
        }
        if status >= 400:
            fields |= {"error": "not_ready", "detail": f"this instance is {server.phase}"}
        return _json(fields, status)

    def _agents_only(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        # A browser connects WebSockets for any page, and no page can set these two.
        own = {request.host.lower(), request.headers.get("X-Forwarded-Host", "").lower()}
        if origin is not None and _site(origin) not in own - {""}:
            raise _error(403, "foreign_origin", "agents come from this site's own page")
        expected = self._server.options.agent_token
        if expected is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        token = given.strip() if scheme.lower() == "bearer" else _offered_token(request)
        if not hmac.compare_digest(token.encode(), expected.encode()):
            challenge = {"WWW-Authenticate": 'Bearer realm="chat agents"'}
            raise _error(401, "unauthorized", "agents need the agent token", challenge)


def _site(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _offered_token(request: web.Request) -> str:
    """What a browser, which cannot set Authorization on a handshake, offers as a subprotocol."""
    for offered in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
        name = offered.strip()
        if name.startswith(_TOKEN):
            encoded = name.removeprefix(_TOKEN)
            try:
                return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            except ValueError:
                return ""
    return ""


def _position(request: web.Request, role: Role) -> Position | None:
    resumed = Position.from_token(request.headers.get("Holdfast-Resume", ""))
    if resumed is not None:
        return resumed
    session = request.query.get("session", "")
    if session and not wire.is_session_id(session):
        raise _error(400, "bad_session", "a session id is 1 to 64 of A-Z a-z 0-9 _ -")
    if not session and role is Role.AGENT:
        return None
    return Position(session or wire.new_session_id(), _integer(request, "last_seq", 0))


def _integer(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise _error(400, "bad_parameter", f"{name} must be an integer from 0")
    return int(text)


def _summary(summary: Summary) -> dict[str, object]:
    session, last = summary.session, summary.last
    return {
        "id": session.id,
        "state": session.state,
        "desk": session.desk,
        "seq": session.seq,
        "waiting_since": None if session.waiting_since is None else wire.iso(session.waiting_since),
        "created": wire.iso(session.created),
        "active": wire.iso(session.active),
        "last": None if last is None else wire.message_fields(last),
    }


def _page(file: Path) -> Handler:
    body, headers = file.read_bytes(), {**_HEADERS, "Content-Type": _TYPES[file.suffix]}

    async def serve(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers=headers)

    return serve


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    if not isinstance(response, web.WebSocketResponse):
        for name, value in _DATA.items():
            response.headers.setdefault(name, value)


def _json(fields: dict[str, Any], status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(
        body=orjson.dumps(fields), status=status, content_type="application/json", headers=headers
    )


class _Failure(Exception):
    def __init__(self, response: web.Response) -> None:
        self.response = response


def _error(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> _Failure:
    response = _json({"error": code, "detail": detail}, status)
    response.headers.update(headers or {})
    return _Failure(response)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except _Failure as failure:
        return failure.response
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = error.reason.lower().replace(" ", "_")
        detail = f"{request.method} {request.rel_url.raw_path}: {error.reason}"
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return _error(error.status, code, detail, headers).response
    except StoreError as error:
        _log.warning("%s %s: the store failed: %s", request.method, request.rel_url.raw_path, error)
        return _error(503, "store_unavailable", "the database does not answer", {"Retry-After": "1"}).response
