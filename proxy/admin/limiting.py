"""The operations on what may be under way: rate limits of routes and services, places of services.

What is set here holds until the next change, or until the file says something else of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from config.checks import buckets
from config.schema import Limit
from proxy.admin.control import Control
from proxy.admin.guard import Refused
from proxy.admin.models import CapacityOrder, CapacityView, LimitsOrder, LimitsView
from proxy.admin.operation import ROUTE, SERVICE, Operation
from proxy.admin.who import who
from proxy.limit import Limiter

_ROUTE = "/v1/routes/{route}/limits"
_SERVICE = "/v1/services/{service}/limits"
_CAPACITY = "/v1/services/{service}/capacity"


class Limiting:
    """What limits can be seen and changed in a process."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def operations(self) -> list[Operation]:
        """For the router and for OpenAPI."""
        route, service = (ROUTE,), (SERVICE,)
        return [
            Operation(
                "GET",
                _ROUTE,
                "A route's rate limits.",
                self.route_limits,
                LimitsView,
                refusals=(404,),
                parameters=route,
            ),
            Operation(
                "PUT",
                _ROUTE,
                "Replace a route's rate limits.",
                self.set_route_limits,
                LimitsView,
                LimitsOrder,
                refusals=(404,),
                parameters=route,
            ),
            Operation(
                "GET",
                _SERVICE,
                "A service's rate limits.",
                self.service_limits,
                LimitsView,
                refusals=(404,),
                parameters=service,
            ),
            Operation(
                "PUT",
                _SERVICE,
                "Replace a service's rate limits.",
                self.set_service_limits,
                LimitsView,
                LimitsOrder,
                refusals=(404,),
                parameters=service,
            ),
            Operation(
                "GET",
                _CAPACITY,
                "What a service may have under way.",
                self.capacity,
                CapacityView,
                refusals=(404,),
                parameters=service,
            ),
            Operation(
                "PUT",
                _CAPACITY,
                "Replace what a service may have under way.",
                self.set_capacity,
                CapacityView,
                CapacityOrder,
                refusals=(404,),
                parameters=service,
            ),
        ]

    async def route_limits(self, request: web.Request, _: None) -> LimitsView:
        """Those that hold, and those of the file."""
        route = self._control.plane.table.find_route(request.match_info["route"])
        return _limits_view(route.limiters, route.compiled.limits)

    async def set_route_limits(self, request: web.Request, order: LimitsOrder) -> LimitsView:
        """A client's bucket is lost with the limit that it belongs to, and kept with one that stays."""
        table = self._control.plane.table
        name = table.find_route(request.match_info["route"]).name
        _check(order.limits, "route")
        table.set_route_limits(name, order.limits)
        self._log(request, "limits", route=name, after=order.model_dump(mode="json")["limits"])
        return await self.route_limits(request, None)

    async def service_limits(self, request: web.Request, _: None) -> LimitsView:
        """Those that hold, and those of the file."""
        service = self._control.plane.table.find_service(request.match_info["service"])
        return _limits_view(service.limiters, service.config.limit)

    async def set_service_limits(self, request: web.Request, order: LimitsOrder) -> LimitsView:
        """As for a route."""
        table = self._control.plane.table
        name = table.find_service(request.match_info["service"]).name
        _check(order.limits, "service")
        table.set_service_limits(name, order.limits)
        self._log(request, "limits", service=name, after=order.model_dump(mode="json")["limits"])
        return await self.service_limits(request, None)

    async def capacity(self, request: web.Request, _: None) -> CapacityView:
        """What holds, what the file says, and how it is used."""
        service = self._control.plane.table.find_service(request.match_info["service"])
        places = service.capacity
        return CapacityView(
            capacity=places.config,
            configured=service.config.capacity,
            admitted=places.inflight,
            waiting=places.waiting,
            places=places.limit,
        )

    async def set_capacity(self, request: web.Request, order: CapacityOrder) -> CapacityView:
        """Who has a place keeps it."""
        table = self._control.plane.table
        name = table.find_service(request.match_info["service"]).name
        table.set_capacity(name, order.capacity)
        self._log(request, "capacity", service=name, after=order.model_dump(mode="json")["capacity"])
        return await self.capacity(request, None)

    def _log(self, request: web.Request, action: str, **facts: object) -> None:
        by = who(request, self._control.config.admin.token is not None)
        self._control.events.emit("admin_change", action=action, by=by, **facts)


def _limits_view(limiters: Sequence[Limiter], configured: Sequence[Limit]) -> LimitsView:
    return LimitsView(limits=[limiter.limit for limiter in limiters], configured=list(configured))


def _check(limits: Sequence[Limit] | None, place: str) -> None:
    """Raises `Refused` when a bucket does not fit the place."""
    for _, problem in buckets({"limit": list(limits or ())}, place):
        raise Refused(400, "invalid_request", problem, fields=[{"field": "limits", "message": problem}])
