"""One table for the router and for the OpenAPI description: what the API can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel

Handler = Callable[[web.Request, Any], Awaitable[object]]
"""Gets the request and its checked body (None without one); returns what `Operation.answer` says, or a
`StreamResponse` that it has made itself."""

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter, or a segment of the path."""

    name: str
    description: str
    place: str = "query"
    required: bool = False
    type: str = "string"
    many: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path."""

    method: str
    path: str
    summary: str
    handler: Handler
    answer: Any = None
    """Type of the JSON answer; None when `media` is another type."""
    order: type[BaseModel] | None = None
    """Type of the JSON body."""
    order_needed: bool = True
    """Whether the body may be left out."""
    most: int = 64 << 10
    """Bytes that the body may have."""
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[int, ...] = ()
    """Statuses of its own, beyond those that any operation may answer."""
    media: str = "application/json"
    status: int = 200
    public: bool = False
    """Needs no token."""

    @property
    def name(self) -> str:
        """Unique among all: the handler's."""
        return str(getattr(self.handler, "__name__", self.summary))


SERVICE = Parameter("service", "Name of a service.", "path", True)
INSTANCE = Parameter("instance", "Id of an instance, percent-encoded.", "path", True)
ROUTE = Parameter("route", "Name of a route.", "path", True)
