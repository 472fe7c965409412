"""Requests and answers as Consul writes them: parameters, errors, headers, and who may change anything."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from config.schema import parse_duration
from discovery.embedded.store import UnknownIdError

DEFAULT_WAIT = 300.0
MAX_WAIT = 600.0
"""Seconds a blocking query may wait (Consul's default and limit)."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_YES = ("", "1", "t", "true")
_NO = ("0", "f", "false")


@web.middleware
async def plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as status and plain text: `UnknownIdError` is 404, `ValueError` 400."""
    try:
        return await handler(request)
    except UnknownIdError as error:
        return web.Response(status=404, text=str(error))
    except ValueError as error:
        return web.Response(status=400, text=str(error))


@web.middleware
async def own_site_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Browsers name the page a change comes from. A page of another host has no business here, and neither
    has one whose name was made to point here (DNS rebinding), so the host must be an address or localhost."""
    origin = request.headers.get("Origin")
    if origin is not None and request.method not in ("GET", "HEAD"):
        host = urlsplit(f"//{request.host}")
        if urlsplit(origin).netloc != host.netloc or not _is_literal(host.hostname or ""):
            raise web.HTTPForbidden(text=f"changes from pages of {origin} are refused")
    return await handler(request)


def _is_literal(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def json_body(request: web.Request) -> object:
    """The request's body. Raises `ValueError` when it is not JSON."""
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"Request decode failed: {error}") from None


def flag(request: web.Request, name: str) -> bool:
    """A boolean parameter; present without a value means true. Raises `ValueError`."""
    value = request.query.get(name)
    if value is None:
        return False
    if value.lower() not in _YES + _NO:
        raise ValueError(f"Invalid value for ?{name}: {value!r}")
    return value.lower() in _YES


def integer(request: web.Request, name: str) -> int | None:
    """An unsigned parameter, None when absent. Raises `ValueError`."""
    value = request.query.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and int(value) < 1 << 64):
        raise ValueError(f"Invalid {name}: {value!r} is not an unsigned 64-bit integer")
    return int(value)


def wait_time(request: web.Request) -> float:
    """Seconds that `?wait` allows. Raises `ValueError`."""
    value = request.query.get("wait")
    if not value:
        return DEFAULT_WAIT
    try:
        return min(parse_duration(value), MAX_WAIT) or DEFAULT_WAIT
    except ValueError as error:
        raise ValueError(f"Invalid wait time: {error}") from None


def refuse_filter(request: web.Request) -> None:
    """Raises `ValueError` for filter expressions: ignoring one would answer something else than was asked."""
    if request.query.get("filter"):
        raise ValueError("filter expressions are not supported by this registry")


def cut(key: str, prefix: str, separator: str) -> str:
    """`key` up to and with the first `separator` after `prefix`: how `?keys` folds what lies deeper."""
    if not separator:
        return key
    end = key.find(separator, len(prefix))
    return key if end < 0 else key[: end + len(separator)]


def index_headers(index: int) -> dict[str, str]:
    """What Consul says with every answer that can be waited for."""
    return {"X-Consul-Index": str(index), "X-Consul-KnownLeader": "true", "X-Consul-LastContact": "0"}


def answer(value: object, *, index: int | None = None, status: int = 200) -> web.Response:
    """A JSON answer, with Consul's headers when it has an index. A 404 has no body."""
    return web.Response(
        body=b"" if status == 404 else orjson.dumps(value),
        content_type="application/json",
        headers=None if index is None else index_headers(index),
        status=status,
    )
