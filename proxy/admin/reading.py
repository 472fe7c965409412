"""The operations that only look."""

from __future__ import annotations

import asyncio
import importlib
import os
from importlib.metadata import version
from random import Random
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from proxy.admin import views
from proxy.admin.control import Control
from proxy.admin.guard import Refused
from proxy.admin.models import (
    EventsView,
    HealthView,
    InstancesView,
    InstanceView,
    ReadyView,
    RoutesView,
    ServiceDetailView,
    ServicesView,
    SessionsView,
    SessionView,
    SplitView,
    StatusView,
)
from proxy.admin.operation import INSTANCE, ROUTE, SERVICE, Operation, Parameter
from proxy.admin.stream import EventStreams
from proxy.errors import ProxyError
from proxy.explain import Explanation, explain, make_request, refused

_MOST_SESSIONS = 2000
"""In one answer: the loop that forwards makes it."""


class Reading:
    """What can be seen of a process."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._started = control.plane.clock()
        self.streams = EventStreams(control.events)

    def operations(self) -> list[Operation]:
        """For the router and for OpenAPI."""
        return [
            Operation("GET", "/healthz", "The process is alive.", self.healthz, HealthView, public=True),
            Operation(
                "GET",
                "/readyz",
                "Whether traffic should be sent here.",
                self.readyz,
                ReadyView,
                refusals=(503,),
                public=True,
            ),
            Operation("GET", "/metrics", "Prometheus metrics.", self.metrics, media="text/plain"),
            Operation("GET", "/v1/status", "The process as a whole.", self.status, StatusView),
            Operation("GET", "/v1/services", "All services.", self.services, ServicesView),
            Operation(
                "GET",
                "/v1/services/{service}",
                "One service with its instances.",
                self.service,
                ServiceDetailView,
                parameters=(SERVICE,),
                refusals=(404,),
            ),
            Operation(
                "GET",
                "/v1/services/{service}/instances",
                "The instances of a service.",
                self.instances,
                InstancesView,
                parameters=(SERVICE,),
                refusals=(404,),
            ),
            Operation(
                "GET",
                "/v1/services/{service}/instances/{instance}",
                "One instance.",
                self.instance,
                InstanceView,
                parameters=(SERVICE, INSTANCE),
                refusals=(404,),
            ),
            Operation("GET", "/v1/routes", "All routes with their figures.", self.routes, RoutesView),
            Operation(
                "GET",
                "/v1/routes/{route}/split",
                "How a route's traffic is split.",
                self.split,
                SplitView,
                parameters=(ROUTE,),
                refusals=(404,),
            ),
            Operation(
                "GET",
                "/v1/config",
                "The configuration that holds, secrets masked.",
                self.config,
                dict[str, Any],
            ),
            Operation(
                "GET",
                "/v1/explain",
                "Which instance a request would get, and why not the others. Changes nothing.",
                self.explain,
                Explanation,
                parameters=(
                    Parameter("url", "http://host/path or /path.", required=True),
                    Parameter("method", "GET when absent."),
                    Parameter("header", "`Name: value`.", many=True),
                    Parameter("client", "The client's address; 127.0.0.1 when absent."),
                ),
                refusals=(400,),
            ),
            Operation(
                "GET",
                "/v1/events",
                "What has happened: server-sent events, or with `follow=false` a list.",
                self.events,
                EventsView,
                parameters=(
                    Parameter("since", "Only those after this number; 0: all there are.", type="integer"),
                    Parameter("follow", "`false`: answer with what there is.", type="boolean"),
                ),
                refusals=(400, 503),
                media="text/event-stream",
            ),
            Operation(
                "GET",
                "/v1/sessions",
                "Live tunnels.",
                self.sessions,
                SessionsView,
                parameters=(
                    Parameter("service", "Only those of this service."),
                    Parameter("instance", "Only those on this instance."),
                    Parameter(
                        "limit",
                        f"1000 when absent, {_MOST_SESSIONS} at most.",
                        type="integer",
                    ),
                ),
                refusals=(400,),
            ),
        ]

    async def healthz(self, request: web.Request, _: None) -> HealthView:
        """Alive, since it answers."""
        return HealthView()

    async def readyz(self, request: web.Request, _: None) -> web.Response:
        """200 or 503."""
        reasons = self._control.unready()
        view = ReadyView(ready=not reasons, reasons=reasons)
        return web.json_response(
            text=view.model_dump_json(), status=503 if reasons else 200, headers={"Cache-Control": "no-store"}
        )

    async def metrics(self, request: web.Request, _: None) -> web.Response:
        """Read here, written in a thread."""
        exposition = await asyncio.to_thread(importlib.import_module, "proxy.admin.exposition")
        snapshot = exposition.read(self._control)
        accept = request.headers.get("Accept", "")
        text, content_type = await asyncio.to_thread(exposition.render, snapshot, accept)
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def status(self, request: web.Request, _: None) -> StatusView:
        """Everything in short."""
        uptime = self._control.plane.clock() - self._started
        return views.status_view(self._control, version("holdfast"), os.getpid(), uptime)

    async def services(self, request: web.Request, _: None) -> ServicesView:
        """All of them."""
        table = self._control.plane.table
        return ServicesView(services=[views.service_view(state) for state in table.services.values()])

    async def service(self, request: web.Request, _: None) -> ServiceDetailView:
        """One of them."""
        plane = self._control.plane
        plane.sessions.book()
        state = plane.table.find_service(request.match_info["service"])
        return views.service_detail(plane.table, state, plane.clock())

    async def instances(self, request: web.Request, _: None) -> InstancesView:
        """Of one service."""
        return InstancesView(instances=(await self.service(request, None)).instances)

    async def instance(self, request: web.Request, _: None) -> InstanceView:
        """One of them."""
        plane, names = self._control.plane, request.match_info
        plane.sessions.book()
        endpoint = plane.table.find(names["service"], names["instance"])
        return views.instance_view(plane.table, endpoint, plane.clock())

    async def routes(self, request: web.Request, _: None) -> RoutesView:
        """All of them."""
        return RoutesView(routes=[views.route_view(route) for route in self._control.plane.table.routes])

    async def split(self, request: web.Request, _: None) -> SplitView:
        """Of one route."""
        return views.split_view(self._control.plane.table.find_route(request.match_info["route"]))

    async def config(self, request: web.Request, _: None) -> object:
        """Secrets are a type of their own, which masks itself."""
        return self._control.config.model_dump(mode="json")

    async def explain(self, request: web.Request, _: None) -> Explanation:
        """Rehearsed, not done."""
        query, plane = request.query, self._control.plane
        if "url" not in query:
            raise invalid("url", "is required")
        headers = []
        for line in query.getall("header", []):
            name, given, value = line.partition(":")
            if not given:
                raise invalid("header", f"{line!r} is not 'Name: value'")
            headers.append((name.strip(), value.strip()))
        try:
            head = make_request(query["url"], query.get("method", "GET"), headers)
        except ProxyError as error:
            return refused(error)
        except ValueError as error:
            field, colon, message = str(error).partition(": ")
            raise invalid(field if colon else "url", message if colon else field) from None
        secure = urlsplit(query["url"]).scheme in ("https", "wss")
        client = query.get("client", "127.0.0.1").encode()
        return explain(plane.table, head, client, secure, plane.clock(), Random())

    async def events(self, request: web.Request, _: None) -> object:
        """A stream, or what there is."""
        events, follow = self._control.events, request.query.get("follow", "true")
        if follow not in ("true", "false"):
            raise invalid("follow", "is true or false")
        default = events.last if follow == "true" else 0
        since = _number(request.headers.get("Last-Event-ID") or request.query.get("since"), "since", default)
        if follow == "false":
            return EventsView(events=events.since(since), last=events.last)
        return await self.streams.serve(request, since)

    async def sessions(self, request: web.Request, _: None) -> SessionsView:
        """Up to a limit: there may be very many."""
        query = request.query
        limit = min(_number(query.get("limit"), "limit", 1000), _MOST_SESSIONS)
        found: list[SessionView] = []
        total = 0
        for tunnel in self._control.plane.sessions:
            instance = tunnel.endpoint.instance
            if query.get("service") not in (None, instance.service):
                continue
            if query.get("instance") not in (None, instance.id):
                continue
            total += 1
            if len(found) < limit:
                found.append(SessionView.model_construct(None, **tunnel.describe()))
        return SessionsView(sessions=found, total=total)


def invalid(field: str, message: str) -> Refused:
    """400, with the field that it is about."""
    detail = f"{field}: {message}"
    fields = [{"field": field, "message": message}]
    return Refused(400, "invalid_request", detail, fields=fields)


def _number(text: str | None, field: str, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise invalid(field, "is not a whole number")
    return int(text)
