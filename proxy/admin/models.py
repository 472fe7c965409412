"""What the admin API says and hears, as types: requests are checked by them, OpenAPI is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from config.schema import Capacity, Duration, Limit
from discovery.model import Status
from proxy.endpoint import State


class View(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Order(BaseModel):
    """Base of all request bodies: unknown keys are refused, and nothing is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# -- answers -----------------------------------------------------------------------------------------------


class OverrideView(View):
    """What an operator has said of an instance."""

    weight: int | None
    draining: bool


class InstanceView(View):
    """One instance."""

    service: str
    id: str
    address: str
    state: State
    registry: Status
    """What its registry says of it; `doubtful`: it is not believed that the instance is gone."""
    version: str
    backup: bool
    metadata: dict[str, str]
    weight: int
    """Share relative to the others, as it holds now."""
    registered_weight: int
    effective_weight: float
    """With slow start applied."""
    override: OverrideView | None
    inflight: int
    """Requests and tunnels under way."""
    tunnels: int
    tunnels_total: int
    requests: int
    """Requests and tunnels that have ended."""
    failed: int
    """Of them, those that the instance did wrong."""
    failures: int
    """Failed ones in a row."""
    latency_ms: float
    """Peak-sensitive moving average of the time to the response head."""
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    """In tunnels: what came from clients (in) and from the instance (out)."""
    connections: int
    """Open connections to it."""
    ejected_for: float | None
    """Seconds until its ejection is over."""


class DrainedInstanceView(InstanceView):
    """An instance that has been asked to leave."""

    drain_deadline: float
    """Seconds after which it is empty, whatever it holds now."""


class ServiceView(View):
    """One service, and the sums over its instances."""

    name: str
    balance: str
    sticky: str | None
    """`cookie`, `header`, `query`, `path`, `ip`, or none."""
    known: bool
    """Whether any source has said anything of it yet."""
    states: dict[str, int]
    """Number of instances in each state."""
    versions: dict[str, int]
    """Number of instances of each version."""
    inflight: int
    tunnels: int
    requests: int
    failed: int
    on_drain: str
    drain_timeout: float
    """Seconds."""


class ServiceDetailView(ServiceView):
    """One service with its instances."""

    instances: list[InstanceView]


class ServicesView(View):
    """All services."""

    services: list[ServiceView]


class InstancesView(View):
    """The instances of one service."""

    instances: list[InstanceView]


class VersionView(View):
    """The instances of one version."""

    instances: int
    ready: int


class Shares(View):
    """How traffic is split between versions."""

    split: dict[str, int] | None
    """Version to share, relative to each other; null: no split."""
    configured: dict[str, int] | None
    """What the file says."""
    versions: dict[str, VersionView]
    """Every version that has instances or a share."""


class SplitView(Shares):
    """How one route's traffic is split."""

    route: str


class TrafficView(View):
    """What a route has sent to one version of its service."""

    requests: int
    statuses: dict[str, int]
    """By class: `2xx`; `1xx` are tunnels that have ended."""
    reasons: dict[str, int]
    """Answers that the proxy made itself, by reason code."""
    bytes_in: int
    bytes_out: int


class RouteView(Shares):
    """One route."""

    name: str
    service: str
    match: dict[str, Any]
    """Its conditions, as configured."""
    limits: list[Limit]
    """That hold now."""
    mirror: dict[str, Any] | None
    traffic: dict[str, TrafficView]
    """By version; the empty one is for what never got to an instance, too."""


class RoutesView(View):
    """All routes, in the order of the file."""

    routes: list[RouteView]


class LimitsView(View):
    """The rate limits of a route or a service."""

    limits: list[Limit]
    """That hold now."""
    configured: list[Limit]
    """What the file says."""


class CapacityView(View):
    """What a service may have under way, and what it has."""

    capacity: Capacity
    """That holds now."""
    configured: Capacity
    """What the file says."""
    admitted: int
    """Requests that have a place."""
    waiting: int
    """Requests that wait for one."""
    places: int
    """Requests that may be under way; 0: no limit."""


class SessionView(View):
    """One live tunnel."""

    client: str
    target: str
    route: str
    service: str
    instance: str
    protocol: Literal["websocket", "tunnel"]
    seconds: float
    """Since its handshake."""
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    state: str


class SessionsView(View):
    """Live tunnels."""

    sessions: list[SessionView]
    total: int
    """All that fit the question, also those beyond `limit`."""


class RegistryView(View):
    """One registry."""

    name: str
    """Its place in the configuration and its kind."""
    kind: str
    state: str
    staleness: float
    """Seconds since it was last known to be right; 0 while its watch is open."""
    held: int
    """Instances that stay although it no longer lists them: a mass loss is not believed at once."""
    failures: int
    error: str | None


class EntryRegistryView(View):
    """An application's entry in one registry."""

    name: str
    """The registry's place in the configuration and its kind."""
    registered: bool
    """Whether it has the entry, as far as this process knows."""
    shown: bool
    """Whether it has shown the entry to whoever watches it."""
    error: str | None
    """Why it does not have it."""


class EntryView(View):
    """An application that this process enters in registries."""

    service: str
    id: str
    address: str
    """What others are told to reach it by."""
    app_ready: bool
    app_error: str | None
    """Why the application is not ready."""
    registries: list[EntryRegistryView]


class TotalsView(View):
    """Process-wide counts since the start; `_open` ones are now."""

    requests: int
    refused: int
    """Requests that were answered before they had a route."""
    retries: int
    connections: int
    connections_open: int
    connections_refused: int
    tunnels: int
    tunnels_open: int
    log_lines_dropped: int


class StatusView(View):
    """The process as a whole."""

    version: str
    pid: int
    uptime: float
    """Seconds."""
    ready: bool
    reasons: list[str]
    """Why it is not ready."""
    totals: TotalsView
    registries: list[RegistryView]
    entries: list[EntryView]
    """Of the applications beside this process."""
    services: list[ServiceView]


class ChangeView(View):
    """One difference between two configurations."""

    path: str
    before: Any
    after: Any
    effect: str
    """When it takes effect."""
    line: str
    """The same for people."""


class ChangesView(View):
    """Everything that a reload changes."""

    changes: list[ChangeView]


class UpgradeView(View):
    """The process that has taken over."""

    pid: int


class LeftView(View):
    """What has left."""

    left: list[str]
    """Ids of the instances that were taken out of the registries."""


class EventsView(View):
    """The last events, oldest first."""

    events: list[dict[str, Any]]
    last: int
    """Sequence number to go on from."""


class HealthView(View):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class ReadyView(View):
    """Whether traffic should be sent here."""

    ready: bool
    reasons: list[str]


class FieldView(View):
    """What is wrong with one field of a request."""

    field: str
    message: str


class ErrorView(View):
    """Every answer above 399."""

    error: str
    """A code."""
    detail: str
    """A sentence."""
    fields: list[FieldView] | None = None
    """For `invalid_request`."""
    problems: list[str] | None = None
    """For `invalid_config`: FILE:LINE:COL: path: what is wrong."""


# -- request bodies ----------------------------------------------------------------------------------------


class WeightOrder(Order):
    """Change an instance's weight."""

    weight: Annotated[int, Field(strict=True, ge=0, le=65535)] | None
    """0: nothing new; null: the registered one again."""


class DrainOrder(Order):
    """Take an instance out gently."""

    deadline: Duration | None = None
    """What is in flight has so long; the service's drain timeout when absent."""


class LeaveOrder(Order):
    """Leave the registries."""

    settle: Duration | None = None
    """Wait so long for others to hear of it; as configured when absent."""


class EjectOrder(Order):
    """Take an instance out for a time."""

    duration: Duration = 30.0

    @field_validator("duration")
    @classmethod
    def _some_time(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be longer than nothing")
        return value


class SplitOrder(Order):
    """Replace a route's split. The shares may also be the whole body: `{"stable": 90, "canary": 10}`."""

    split: dict[str, Annotated[int, Field(strict=True, ge=0, le=1_000_000)]] | None
    """Version to share; null: no split."""

    @model_validator(mode="before")
    @classmethod
    def _bare_shares(cls, value: Any) -> Any:
        bare = isinstance(value, dict) and value and all(type(share) is int for share in value.values())
        return {"split": value} if bare else value

    @field_validator("split")
    @classmethod
    def _some_share(cls, value: dict[str, int] | None) -> dict[str, int] | None:
        if value is not None and not any(value.values()):
            raise ValueError("needs at least one share above 0")
        return value


class LimitsOrder(Order):
    """Replace the rate limits of a route or a service."""

    limits: list[Limit] | None
    """All of them; empty: none; null: those of the file."""


class CapacityOrder(Order):
    """Replace what a service may have under way."""

    capacity: Capacity | None
    """All of it, what is left out is not limited; null: what the file says."""


class PlanOrder(Order):
    """A configuration to compare with the one that holds."""

    config: str | None = None
    """Its text, YAML or JSON; the file on disk as it is now when absent."""
    path: str = "config"
    """What messages call it."""
