"""The admin application: admits requests, hands them to their operations, writes answers and errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

from proxy.admin.changing import Changing
from proxy.admin.control import Control
from proxy.admin.guard import Refused, admit
from proxy.admin.limiting import Limiting
from proxy.admin.openapi import describe
from proxy.admin.operation import MIB, Operation
from proxy.admin.reading import Reading
from proxy.table import UnknownName

_BODY_TIMEOUT = 10.0
"""Seconds in which a request body must have come."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Of the dashboard's files. The page asks for a token itself, so they need none."""

_PAGE = {
    "Content-Security-Policy": (
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Of the dashboard's own files, besides what every answer has."""

_ALWAYS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer that does not say otherwise: what is data is never a page, nor part of another site's."""

_SILENCE = 10.0
"""Seconds between two events that somebody was not let in."""

_log = logging.getLogger("holdfast.admin")
_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(control: Control) -> web.Application:
    """The API, the metrics and the dashboard of one process."""
    reading = Reading(control)
    operations = [*reading.operations(), *Changing(control).operations(), *Limiting(control).operations()]
    description = _Description(operations)
    operations.append(description.operation)
    assets = _assets()
    public = {operation.path for operation in operations if operation.public} | set(assets)
    app = web.Application(middlewares=[_errors, _Guard(control, public).admit], client_max_size=MIB)
    app.on_response_prepare.append(_protect)
    for operation in operations:
        app.router.add_route(operation.method, operation.path, _served(operation))
        if operation.method == "GET" and operation.media != "text/event-stream":
            app.router.add_head(operation.path, _served(operation))
    for path, asset in assets.items():
        app.router.add_get(path, asset)

    async def end_streams(_: web.Application) -> None:
        reading.streams.close()

    app.on_shutdown.append(end_streams)
    return app


class _Description:
    """`/openapi.json`, made when it is first asked for."""

    def __init__(self, operations: list[Operation]) -> None:
        self._operations = operations
        self._made: dict[str, Any] | None = None
        summary = "This description."
        self.operation = Operation("GET", "/openapi.json", summary, self.openapi, dict[str, Any])

    async def openapi(self, request: web.Request, _: None) -> dict[str, Any]:
        if self._made is None:
            self._made = describe(self._operations, version("holdfast"))
        return self._made


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _ALWAYS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "holdfast-admin"


class _Guard:
    """Asks `admit` about every request, and lets be known who was not let in."""

    def __init__(self, control: Control, public: set[str]) -> None:
        """`public`: the paths of what everybody may see, as the router knows them."""
        self._control = control
        self._public = public
        self._untold = 0
        self._told_at = -_SILENCE

    @web.middleware
    async def admit(self, request: web.Request, handler: _Next) -> web.StreamResponse:
        """The request is answered, or `Refused` is raised."""
        token = self._control.config.admin.token
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        # By what the router has found, so that no way to write a path can make the two differ.
        resource = request.match_info.route.resource
        try:
            admit(
                request.method,
                request.headers,
                token=token.get_secret_value() if token is not None else None,
                unix=not isinstance(peer, tuple),
                public=resource is not None and resource.canonical in self._public,
                body=request.can_read_body,
            )
        except Refused as refused:
            self._count(refused.code, peer)
            raise
        return await handler(request)

    def _count(self, code: str, peer: object) -> None:
        counts, now = self._control.plane.counters.admin_refused, self._control.plane.clock()
        counts[code] = counts.get(code, 0) + 1
        self._untold += 1
        if now - self._told_at >= _SILENCE:
            by = str(peer[0]) if isinstance(peer, tuple) else "unix"
            self._control.events.emit("admin_refused", code=code, by=by, count=self._untold)
            self._untold, self._told_at = 0, now


@web.middleware
async def _errors(request: web.Request, handler: _Next) -> web.StreamResponse:
    """Every refusal in one form."""
    try:
        return await handler(request)
    except Refused as refused:
        return _refusal(refused)
    except UnknownName as error:
        return _refusal(Refused(404, "not_found", str(error.args[0])))
    except web.HTTPRequestEntityTooLarge:
        return _refusal(Refused(413, "too_large", f"a body may have {MIB} bytes"))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        detail = f"{request.method} is not possible here; {allowed} is"
        return _refusal(Refused(405, "method_not_allowed", detail, {"Allow": allowed}))
    except web.HTTPNotFound:
        return _refusal(Refused(404, "not_found", f"there is nothing at {request.path}; see /openapi.json"))
    except web.HTTPException as error:
        return _refusal(Refused(error.status, "refused", error.reason))
    except ConnectionError:
        raise
    except Exception:
        _log.exception("%s %s failed", request.method, request.rel_url.raw_path)
        return _refusal(Refused(500, "internal_error", "this is a mistake in the proxy; its log says more"))


def _refusal(refused: Refused) -> web.Response:
    body = {"error": refused.code, "detail": refused.detail, **refused.more}
    return web.json_response(body, status=refused.status, headers=refused.headers)


def _served(operation: Operation) -> _Next:
    adapter: TypeAdapter[Any] | None = TypeAdapter(operation.answer) if operation.answer is not None else None

    async def handler(request: web.Request) -> web.StreamResponse:
        order = await _order(request, operation)
        answer = await operation.handler(request, order)
        if isinstance(answer, web.StreamResponse):
            return answer
        assert adapter is not None
        return web.Response(
            body=adapter.dump_json(answer),
            content_type="application/json",
            status=operation.status,
            headers={"Cache-Control": "no-store"},
        )

    return handler


async def _order(request: web.Request, operation: Operation) -> BaseModel | None:
    """The body, checked."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            body = await request.read() if (request.content_length or 0) <= operation.most else None
    except TimeoutError:
        raise Refused(408, "body_timeout", "the body took too long", {"Connection": "close"}) from None
    if body is None or len(body) > operation.most:
        raise Refused(413, "too_large", f"a body may have {operation.most} bytes")
    if operation.order is None:
        if body.strip() not in (b"", b"{}"):
            raise Refused(400, "invalid_request", "this takes no body")
        return None
    if not body:
        if operation.order_needed:
            raise Refused(400, "invalid_request", "this takes a JSON object as its body")
        return None
    try:
        return operation.order.model_validate_json(body)
    except ValidationError as error:
        raise _misshapen(error) from None


def _misshapen(error: ValidationError) -> Refused:
    fields = []
    for mistake in error.errors(include_url=False, include_context=False, include_input=False):
        name = ".".join(str(part) for part in mistake["loc"])
        fields.append({"field": name, "message": mistake["msg"].removeprefix("Value error, ")})
    detail = "; ".join(f"{entry['field']}: {entry['message']}".removeprefix(": ") for entry in fields)
    return Refused(400, "invalid_request", detail, fields=fields)


def _assets() -> dict[str, _Next]:
    """The dashboard by path: the page itself at `/`."""
    found = {}
    for file in files("proxy.admin").joinpath("web").iterdir():
        name = file.name
        path = "/" if name == "index.html" else f"/dashboard/{name}"
        found[path] = _asset(file.read_bytes(), _TYPES[PurePath(name).suffix])
    return found


def _asset(content: bytes, content_type: str) -> _Next:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=content, content_type=content_type, charset="utf-8", headers=_PAGE)

    return handler
