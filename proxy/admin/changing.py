"""The operations that change something. Each is logged with who, what, before and after."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from config.load import ConfigError
from proxy.admin import views
from proxy.admin.control import Control
from proxy.admin.guard import Refused
from proxy.admin.models import (
    ChangesView,
    DrainedInstanceView,
    DrainOrder,
    EjectOrder,
    InstanceView,
    LeaveOrder,
    LeftView,
    PlanOrder,
    SplitOrder,
    SplitView,
    UpgradeView,
    WeightOrder,
)
from proxy.admin.operation import INSTANCE, MIB, ROUTE, SERVICE, Operation
from proxy.admin.who import who
from proxy.endpoint import Endpoint, State
from proxy.handover import HandoverError
from proxy.table import Cause, Departure

_BROWSER = ("Sec-Fetch-Site", "Origin", "Referer", "Cookie", "Accept-Language")
"""Fields that browsers send, and kubelets do not."""
_ONE = "/v1/services/{service}/instances/{instance}"


class Changing:
    """What can be changed in a process."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def operations(self) -> list[Operation]:
        """For the router and for OpenAPI."""
        one = (SERVICE, INSTANCE)
        return [
            Operation(
                "PATCH",
                _ONE,
                "Change an instance's weight.",
                self.set_weight,
                InstanceView,
                WeightOrder,
                parameters=one,
                refusals=(404,),
            ),
            Operation(
                "POST",
                f"{_ONE}/drain",
                "Take an instance out gently.",
                self.drain,
                DrainedInstanceView,
                DrainOrder,
                order_needed=False,
                parameters=one,
                refusals=(404,),
            ),
            Operation(
                "POST",
                f"{_ONE}/undrain",
                "Take a drain back.",
                self.undrain,
                InstanceView,
                parameters=one,
                refusals=(404, 409),
            ),
            Operation(
                "POST",
                f"{_ONE}/eject",
                "Take an instance out for a time; what it has goes on.",
                self.eject,
                InstanceView,
                EjectOrder,
                order_needed=False,
                parameters=one,
                refusals=(404, 409),
            ),
            Operation(
                "PUT",
                "/v1/routes/{route}/split",
                "Replace a route's split.",
                self.set_split,
                SplitView,
                SplitOrder,
                parameters=(ROUTE,),
                refusals=(404,),
            ),
            Operation(
                "POST",
                "/v1/reload",
                "Take over the configuration file: all of it, or nothing.",
                self.reload,
                ChangesView,
                refusals=(409,),
            ),
            Operation(
                "POST",
                "/v1/upgrade",
                "Replace the process by a new one, connections included.",
                self.upgrade,
                UpgradeView,
                refusals=(409,),
            ),
            Operation(
                "POST",
                "/v1/leave",
                "Take the applications beside this process out of the registries, and let everybody hear.",
                self.leave,
                LeftView,
                LeaveOrder,
                order_needed=False,
            ),
            Operation(
                "GET",
                "/v1/prestop",
                "The same, for the preStop hooks of Kubernetes, which can only GET. Not for browsers.",
                self.prestop,
                LeftView,
                refusals=(403,),
            ),
            Operation(
                "POST",
                "/v1/plan",
                "What a reload would change. Changes nothing.",
                self.plan,
                ChangesView,
                PlanOrder,
                order_needed=False,
                most=MIB,
            ),
        ]

    async def set_weight(self, request: web.Request, order: WeightOrder) -> InstanceView:
        """Holds for as long as the instance is registered."""

        def change(endpoint: Endpoint, now: float) -> None:
            instance = endpoint.instance
            self._control.plane.table.set_weight(instance.service, instance.id, order.weight, now)

        return self._change(request, "weight", change, lambda endpoint: endpoint.weight)

    async def drain(self, request: web.Request, order: DrainOrder | None) -> DrainedInstanceView:
        """Once more with another deadline: the new one holds."""
        control, plane = self._control, self._control.plane
        deadline = order.deadline if order is not None else None

        def change(endpoint: Endpoint, now: float) -> None:
            instance = endpoint.instance
            departures = plane.table.drain(instance.service, instance.id, now)
            if not departures and deadline is not None:
                departures = [Departure(endpoint, Cause.DRAINING)]
            control.depart(departures, deadline)

        view = self._change(request, "drain", change, lambda endpoint: endpoint.state.value)
        settings = plane.table.find_service(view.service).config.drain
        allowed = (settings.timeout if deadline is None else deadline) + settings.jitter
        return DrainedInstanceView(**view.model_dump(), drain_deadline=allowed)

    async def undrain(self, request: web.Request, _: None) -> InstanceView:
        """Refused while the registry asks for the drain."""
        control = self._control

        def change(endpoint: Endpoint, now: float) -> None:
            instance = endpoint.instance
            departures = control.plane.table.undrain(instance.service, instance.id, now)
            control.depart(departures, None)

        view = self._change(request, "undrain", change, lambda endpoint: endpoint.state.value)
        if view.state is State.DRAINING:
            raise Refused(409, "wrong_state", f"{view.id} is still marked as draining in its registry")
        return view

    async def eject(self, request: web.Request, order: EjectOrder | None) -> InstanceView:
        """Refused for one that is out already."""
        seconds = (order or EjectOrder()).duration

        def change(endpoint: Endpoint, now: float) -> None:
            instance = endpoint.instance
            if endpoint.state in (State.DRAINING, State.EJECTED):
                raise Refused(409, "wrong_state", f"{instance.id} is {endpoint.state.value} already")
            self._control.plane.table.eject(instance.service, instance.id, seconds, now)

        return self._change(request, "eject", change, lambda endpoint: endpoint.state.value)

    async def set_split(self, request: web.Request, order: SplitOrder) -> SplitView:
        """Holds until the next change, or until the file says something else."""
        table = self._control.plane.table
        route = table.find_route(request.match_info["route"])
        before = dict(route.split.shares) if route.split is not None else None
        table.set_split(route.name, order.split)
        self._log(request, "split", route=route.name, before=before, after=order.split)
        return views.split_view(route)

    async def reload(self, request: web.Request, _: None) -> ChangesView:
        """Refused with every mistake of the file."""
        try:
            changes = await self._control.reload()
        except ConfigError as error:
            self._log(request, "reload", refused=len(error.problems))
            raise _misconfigured(409, error) from None
        self._log(request, "reload", changes=[change.path for change in changes])
        return ChangesView(changes=[views.change_view(change) for change in changes])

    async def upgrade(self, request: web.Request, _: None) -> UpgradeView:
        """Answered by the old process, once the new one accepts."""
        try:
            pid = await self._control.upgrade()
        except HandoverError as error:
            self._log(request, "upgrade", refused=str(error))
            raise Refused(409, "upgrade_failed", str(error)) from None
        self._log(request, "upgrade", pid=pid)
        return UpgradeView(pid=pid)

    async def leave(self, request: web.Request, order: LeaveOrder | None) -> LeftView:
        """Once and for all: what comes back is the next process."""
        left = [entry.instance.id for entry in self._control.sidecar.entries]
        self._log(request, "leave", left=left)
        await self._control.leave(order.settle if order is not None else None)
        return LeftView(left=left)

    async def prestop(self, request: web.Request, _: None) -> LeftView:
        """A GET that changes something: so pages that somebody visits must not be able to send it."""
        if request.method != "GET" or any(name in request.headers for name in _BROWSER):
            raise Refused(403, "not_for_browsers", "this is for preStop hooks; POST /v1/leave does the same")
        return await self.leave(request, None)

    async def plan(self, request: web.Request, order: PlanOrder | None) -> ChangesView:
        """Environment and `${VAR}` are those of the running process."""
        text = order.config if order is not None else None
        data = text.encode() if text is not None else None
        try:
            changes = await self._control.plan(data, order.path if order is not None else "config")
        except ConfigError as error:
            raise _misconfigured(400 if data is not None else 409, error) from None
        return ChangesView(changes=[views.change_view(change) for change in changes])

    def _change(
        self,
        request: web.Request,
        action: str,
        change: Callable[[Endpoint, float], None],
        shown: Callable[[Endpoint], object],
    ) -> InstanceView:
        """Change one instance, log it, and answer with what it is then."""
        plane, names = self._control.plane, request.match_info
        endpoint = plane.table.find(names["service"], names["instance"])
        now = plane.clock()
        before = shown(endpoint)
        change(endpoint, now)
        instance = endpoint.instance
        self._log(
            request,
            action,
            service=instance.service,
            instance=instance.id,
            before=before,
            after=shown(endpoint),
        )
        return views.instance_view(plane.table, endpoint, now)

    def _log(self, request: web.Request, action: str, **facts: object) -> None:
        by = who(request, self._control.config.admin.token is not None)
        self._control.events.emit("admin_change", action=action, by=by, **facts)


def _misconfigured(status: int, error: ConfigError) -> Refused:
    problems = [str(problem) for problem in error.problems]
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return Refused(
        status, "invalid_config", f"the configuration has {count}; nothing was changed", problems=problems
    )
