"""Requests and answers as Consul writes them: parameters, errors, headers, and who may change anything."""

from __future__ import annotations

import asyncio
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

BODY_TIME = 10.0
"""Seconds in which a request body must have come."""

_BROWSER = ("Origin", "Referer", "Cookie", "Accept-Language", "Sec-Fetch-Site")
"""Fields that browsers send, one of them always, and registrars do not."""

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
    """Pages have no business here: neither those of other sites nor one whose name was made to point here
    (DNS rebinding). So browsers are answered only under an address or localhost, and what they say of where
    a request comes from must not be another site."""
    headers = request.headers
    if any(name in headers for name in _BROWSER) and not _is_literal(_host(request.host)):
        raise web.HTTPForbidden(text="browsers are answered under an address or localhost only")
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "").lower()
    is_link = request.method in ("GET", "HEAD") and headers.get("Sec-Fetch-Mode", "").lower() == "navigate"
    is_foreign = site in ("cross-site", "same-site") and not is_link
    if is_foreign or (origin is not None and origin.partition("://")[2].lower() != request.host.lower()):
        raise web.HTTPForbidden(text="pages of other sites are not answered")
    return await handler(request)


async def protect(_: web.Request, response: web.StreamResponse) -> None:
    """For every answer: what is data is never a page, nor part of another site's."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Content-Security-Policy", "sandbox; default-src 'none'")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    response.headers["Server"] = "holdfast-registry"


def _host(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _is_literal(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def body(request: web.Request) -> bytes:
    """The request's body. Raises `HTTPRequestTimeout` when it takes too long, `HTTPRequestEntityTooLarge`."""
    size = request.content_length or 0
    if size > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, size)
    try:
        async with asyncio.timeout(BODY_TIME):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the body took too long") from None


async def json_body(request: web.Request) -> object:
    """The request's body. Raises `ValueError` when it is not JSON."""
    try:
        return orjson.loads(await body(request))
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
