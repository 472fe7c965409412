"""The configuration as types: one immutable `Config`.

Durations are seconds (`float`), sizes bytes (`int`), shares fractions between 0 and 1 (`float`), addresses an
`Address`; `config.units` has their written forms. Every model refuses unknown keys; nothing here reads files
or the environment (`config.load` does). What cannot be seen inside one section is in `config.checks`. The
text under each field is its documentation, which `config.descriptions` reads.
"""

from __future__ import annotations

import warnings
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from config import checks
from config.forms import (
    ONE_OR_MANY,
    OR_NONE,
    OR_SWITCH,
    OR_TEXT,
    BucketKey,
    HashKey,
    Host,
    Method,
    Name,
    Network,
    NoName,
    PathPrefix,
    Positive,
    PositiveSize,
    Regex,
    Secret,
    StatusRange,
    Target,
    Token,
    Upstream,
    sound,
)
from config.forms import Model as Model
from config.forms import RetryOn as RetryOn
from config.register import Notify as Notify
from config.register import NotifyForm as NotifyForm
from config.register import NotifyOn as NotifyOn
from config.register import Ready as Ready
from config.register import Register as Register
from config.register import Unready as Unready
from config.registries import ConsulRegistry as ConsulRegistry
from config.registries import DnsRegistry as DnsRegistry
from config.registries import EmbeddedRegistry as EmbeddedRegistry
from config.registries import EtcdRegistry as EtcdRegistry
from config.registries import FileRegistry as FileRegistry
from config.registries import Guard as Guard
from config.registries import KubernetesRegistry as KubernetesRegistry
from config.registries import NacosRegistry as NacosRegistry
from config.registries import Registry as Registry
from config.units import Address as Address
from config.units import Duration as Duration
from config.units import Rate as Rate
from config.units import Share as Share
from config.units import Size as Size
from config.units import parse_duration as parse_duration
from config.units import parse_rate as parse_rate
from config.units import parse_share as parse_share
from config.units import parse_size as parse_size


class TLS(Model):
    """TLS for a listener."""

    certificate: str
    """Path of the certificate chain, PEM."""
    key: str
    """Path of the private key, PEM."""
    client_ca: str | None = None
    """Path of the CA that client certificates must come from; asks every client for one when set."""


class Listen(Model):
    """One listening socket for clients."""

    address: Address
    """`:8080` (all interfaces), `127.0.0.1:8080` or `unix:/path`."""
    tls: TLS | None = None
    """Terminate TLS here."""
    proxy_protocol: bool = False
    """Expect a PROXY protocol header (v1 or v2) on each connection; it tells the client's address."""


class Admin(Model):
    """The admin API, metrics and dashboard."""

    address: Address = Address("127.0.0.1", 9900)
    """Its own listener. Beyond loopback and unix sockets a token is required."""
    token: Secret | None = None
    """Bearer token that every request must carry when set."""

    @model_validator(mode="after")
    def _token_when_reachable(self) -> Self:
        return sound(self, checks.admin(self))


class ClientTimeout(Model):
    """How long clients may take."""

    header: Positive = 10.0
    """From the first byte of a request to the end of its head."""
    body: Positive = 30.0
    """Longest silence while a request body is coming, or while the client does not read."""
    keepalive: Duration = 75.0
    """Longest silence between requests."""


class Limits(Model):
    """What one client, and all of them together, may use."""

    connections: Annotated[int, Field(ge=1)] = 10_000
    """Open client connections; more are answered 503 and closed."""
    request_line: PositiveSize = 16 << 10
    """Bytes of the request line; more is 414."""
    header_bytes: PositiveSize = 64 << 10
    """Bytes of the whole head; more is 431."""
    header_count: Annotated[int, Field(ge=1)] = 100
    """Fields in the head; more is 431."""


class Balance(StrEnum):
    """How an instance is chosen among those that are ready."""

    ROUND_ROBIN = "round_robin"
    WEIGHTED = "weighted"
    LEAST_CONN = "least_conn"
    P2C = "p2c"
    EWMA = "ewma"
    RING_HASH = "ring_hash"
    MAGLEV = "maglev"
    IP_HASH = "ip_hash"
    RANDOM = "random"


class StickyBy(StrEnum):
    """What keeps a client on its instance."""

    COOKIE = "cookie"
    HEADER = "header"
    QUERY = "query"
    PATH = "path"
    IP = "ip"


class Sticky(Model):
    """Keep a client on one instance for as long as that instance stays."""

    by: StickyBy
    """`cookie` is set by the proxy; the others hash or remember what the client sends."""
    name: Token | None = None
    """Name of the cookie, header or query parameter."""
    ttl: Duration = 3600.0
    """How long an unused binding is remembered, and the cookie's Max-Age (0: a session cookie)."""
    key: Secret | None = None
    """Signs the cookie; replicas that share it resolve each other's. Made at random when absent."""

    @model_validator(mode="after")
    def _needs_name(self) -> Self:
        return sound(self, checks.sticky(self))


class OnDrain(StrEnum):
    """What happens to the WebSockets of an instance that leaves."""

    MIGRATE = "migrate"
    CLOSE = "close"
    WAIT = "wait"


class Replay(Model):
    """What is kept of a client's messages until the instance has surely read them."""

    messages: Annotated[int, Field(ge=1)] = 1000
    """Messages kept for one client; beyond it the client is made to wait."""
    bytes: PositiveSize = 1 << 20
    """The same in bytes."""
    hold: Duration = 1.0
    """A confirmed message is kept so much longer: libraries confirm before the application has read."""
    pace: Positive = 0.25
    """Least time between two barriers (pings behind a message whose pong confirms it) of one client."""


class Migrate(Model):
    """How a WebSocket moves to another instance."""

    quiet: Duration = 0.2
    """The client is held, and the old instance is sent Close, once it has said nothing for so long."""
    patience: Duration = 2.0
    """The longest wait for that quiet."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Moves of one service at once."""
    timeout: Positive = 10.0
    """How long another instance is looked for before the client gets Close 1012."""
    frame: PositiveSize = 64 << 10
    """Frames up to this size are passed on only whole, so that a crash cannot cut one."""


class WebSocket(Model):
    """How tunnels live."""

    on_drain: OnDrain = OnDrain.CLOSE
    """`migrate`: the client keeps its connection, another instance takes over (`close` where none can);
    `close`: Close 1012 at a message boundary, spread over `drain.jitter`; `wait`: only at the deadline."""
    replay: Annotated[Replay | None, OR_SWITCH] = None
    """With `migrate`: send again what a dead instance may not have read; the application must drop
    duplicates. `true` for the defaults."""
    migrate: Migrate = Migrate()
    """How a move is made."""
    ping: Duration = 0.0
    """Ping a side that was silent for so long; one that stays silent as long again is dead. 0: never."""
    idle: Duration = 300.0
    """A tunnel in which nothing moved for so long is closed; 0: never."""
    max_age: Duration = 0.0
    """A tunnel is closed (with `migrate`: moved) once it is so old, within a tenth more; 0: never."""
    max_closes_per_second: Annotated[int, Field(ge=0)] = 0
    """Most tunnels of the service that the proxy closes in one second, so that clients do not all return at
    once; 0: no limit."""

    @model_validator(mode="after")
    def _replay_migrates(self) -> Self:
        return sound(self, checks.websocket(self))


class Drain(Model):
    """How an instance leaves."""

    timeout: Duration = 30.0
    """What is in flight has so long to finish."""
    jitter: Duration = 5.0
    """Closes of tunnels are spread uniformly over this time."""


class HealthKind(StrEnum):
    """What an active check does."""

    HTTP = "http"
    TCP = "tcp"
    WEBSOCKET = "websocket"


class Health(Model):
    """Active check of every instance."""

    kind: HealthKind = HealthKind.HTTP
    """`http`: a GET that must be answered as wanted; `websocket`: a handshake that must succeed; `tcp`: a
    connection that must open."""
    path: Target = "/"
    """Request target of `http` and `websocket`."""
    host: Host | None = None
    """Its Host; the instance's address when absent."""
    status: Annotated[tuple[StatusRange, ...], ONE_OR_MANY] = ("200-399",)
    """Statuses that are healthy for `http`: `200`, `2xx` or `200-399`."""
    body: str | None = None
    """Text that the first 64 KiB of the answer's body must contain, for `http`."""
    interval: Positive = 2.0
    """Between checks of one instance."""
    timeout: Positive = 1.0
    """Longer than this counts as failed."""
    healthy: Annotated[int, Field(ge=1)] = 2
    """Passes in a row until an unhealthy instance is used again; a new one needs one pass."""
    unhealthy: Annotated[int, Field(ge=1)] = 2
    """Failures in a row until an instance gets nothing new; what it has it keeps."""
    dead: Annotated[int, Field(ge=0)] = 0
    """Checks in a row without any answer (refused, timed out) after which an instance counts as dead: its
    tunnels leave at once. 0: only its registry and its connections tell that."""
    startup: Duration = 0.0
    """A new instance may fail for so long, and is checked four times as often, before it counts as
    unhealthy."""

    @model_validator(mode="after")
    def _dead_after_unhealthy(self) -> Self:
        return sound(self, checks.health(self))


class SuccessRate(Model):
    """Instances compared with each other: one that fails far more than its peers is ejected."""

    interval: Positive = 10.0
    """Requests are counted for so long, then judged."""
    requests: Annotated[int, Field(ge=1)] = 100
    """An instance with fewer requests in the interval is not judged."""
    instances: Annotated[int, Field(ge=2)] = 5
    """With fewer judged instances there is no comparison."""
    deviation: Annotated[float, Field(gt=0)] = 1.9
    """Ejected is who succeeds less often than the mean minus so many standard deviations."""


class Outlier(Model):
    """Passive health: what real traffic says."""

    consecutive_failures: Annotated[int, Field(ge=1)] = 3
    """Connect failures, resets, timeouts and 502/503/504 in a row that eject an instance."""
    success_rate: Annotated[SuccessRate | None, OR_SWITCH] = None
    """Also compare instances with each other; `true` for the defaults."""
    base_ejection: Duration = 5.0
    """Length of the first ejection; each further one is longer by this much, up to ten times. A time of good
    behaviour six times as long makes up for one."""
    max_ejected: Share = 0.5
    """Never more than this share of a service's instances at once."""


class Retry(Model):
    """When a request may be sent to another instance. Never after response bytes went out."""

    attempts: Annotated[int, Field(ge=0)] = 2
    """Further tries after the first."""
    budget: Share = 0.2
    """Retries may be at most this share of a service's live traffic (with a small floor)."""
    on: tuple[RetryOn, ...] = ("connect", "reset")
    """`reset`, `timeout` and status codes only for idempotent requests whose body was not begun."""
    timeout: Duration = 0.0
    """One try may take so long to its response head; then, with `timeout` among `on`, the next is made. 0:
    only `timeout.response`, which holds for all tries together."""
    hedge: Duration = 0.0
    """An idempotent request without a body that has no answer after so long is sent to a second instance too;
    the first answer counts. It costs budget as a retry does. Not for sticky services. 0: never."""


class UpstreamTimeout(Model):
    """How long instances may take."""

    connect: Positive = 1.0
    """To accept a connection."""
    response: Positive = 30.0
    """To the response head, from the end of the request."""
    read: Duration = 300.0
    """Silence within a response's body; what brings nothing for so long is broken off, after twice as long at
    the latest. 0: never."""
    idle: Duration = 60.0
    """A pooled connection unused for so long is closed."""


class Pool(Model):
    """Connections kept to each instance."""

    idle: Annotated[int, Field(ge=0)] = 64
    """Idle connections kept per instance."""


class StaticInstance(Model):
    """An instance named in the configuration."""

    address: Upstream
    """`host:port`, `:port` on this machine, or `unix:/path`."""
    id: str = ""
    """Defaults to the address."""
    weight: Annotated[int, Field(ge=0, le=65535)] = 100
    """Share of traffic relative to the others; 0: none."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """`version`, `zone`, `draining`, `backup` have a meaning; others are labels."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _default_id(self) -> Self:
        if not self.id:
            object.__setattr__(self, "id", str(self.address))
        return self


class Limit(Model):
    """Token bucket; over it is 429 with Retry-After."""

    rate: Rate
    """Sustained rate."""
    burst: Annotated[int, Field(ge=1)] | None = None
    """Bucket size; defaults to one second's worth, at least 1."""
    per: BucketKey = "client"
    """A bucket for each `client` address or each value of `header:NAME`, `cookie:NAME` or `query:NAME` (who
    has none shares one), or one for the whole `route` or `service`."""
    wait: Duration = 0.0
    """A request whose turn comes within this time waits for it; only others are refused."""
    warm_up: Duration = 0.0
    """A bucket that was not used for so long starts at a third of its rate and takes as long to reach it."""


class Adaptive(Model):
    """The number of requests under way is found by how answers slow down (gradient of the latency)."""

    min: Annotated[int, Field(ge=1)] = 10
    """Never fewer."""
    max: Annotated[int, Field(ge=1)] = 1000
    """Never more."""
    tolerance: Annotated[float, Field(ge=1)] = 1.5
    """Answers may take so many times as long as usual before fewer are let through."""
    window: Positive = 1.0
    """Latencies are averaged over so long, and then judged."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        return sound(self, checks.adaptive(self))


class Capacity(Model):
    """How much of a service's work may be under way in this process; 0: no limit. What finds no place waits
    in a queue, first come first served; what finds none there gets 503 with Retry-After at once."""

    requests: Annotated[int, Field(ge=0)] = 0
    """Requests under way."""
    tunnels: Annotated[int, Field(ge=0)] = 0
    """WebSockets; a handshake beyond is refused without waiting."""
    connections: Annotated[int, Field(ge=0)] = 0
    """Connections to all instances; idle ones are closed to make room."""
    queue: Annotated[int, Field(ge=0)] = 0
    """Requests that may wait for a place."""
    wait: Positive = 1.0
    """How long each may wait."""
    adaptive: Annotated[Adaptive | None, OR_SWITCH] = None
    """Find `requests` by itself; `true` for the defaults."""


class Service(Model):
    """A set of interchangeable instances and how they are used."""

    balance: Balance = Balance.LEAST_CONN
    """How an instance is chosen."""
    hash_on: HashKey = "ip"
    """Key of the hashing balancers: `ip`, `path`, `header:NAME`, `cookie:NAME` or `query:NAME`."""
    sticky: Annotated[Sticky | None, OR_NONE] = None
    """Keep a client on one instance."""
    websocket: WebSocket = WebSocket()
    """How tunnels live."""
    drain: Drain = Drain()
    """How an instance leaves."""
    health: Annotated[Health | None, OR_NONE] = None
    """Active check; absent: the registry is believed."""
    outlier: Annotated[Outlier | None, OR_NONE] = None
    """Passive ejection; absent: none."""
    panic: Share = 0.0
    """With fewer than this share of its instances ready, all are used that are not leaving and that the
    registry does not call down: unhealthy and ejected ones rather than few or nobody. 0: never."""
    retry: Retry = Retry()
    """When a request may be sent to another instance."""
    timeout: UpstreamTimeout = UpstreamTimeout()
    """How long instances may take."""
    pool: Pool = Pool()
    """Connections kept to each instance."""
    limit: Annotated[tuple[Limit, ...], ONE_OR_MANY] = ()
    """How many requests it may be given, whatever their route; one limit or several, of which all hold."""
    capacity: Capacity = Capacity()
    """How much may be under way."""
    slow_start: Duration = 0.0
    """A new or recovered instance grows to its full weight over this time."""
    instances: tuple[Annotated[StaticInstance, OR_TEXT], ...] | None = None
    """Static instances; absent: they come from the registry."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        return sound(self, [*checks.buckets(self, "service"), *checks.hedge(self)])


class Match(Model):
    """What a request must look like; all that is given must hold."""

    host: Host | None = None
    """`example.com` or `*.example.com`, without port."""
    path: PathPrefix | None = None
    """Prefix, at segment borders: `/api` matches `/api` and `/api/x`, not `/apix`."""
    path_exact: PathPrefix | None = None
    """The whole path."""
    path_regex: Regex | None = None
    """Python regular expression that must match the whole path."""
    method: Annotated[tuple[Method, ...], ONE_OR_MANY] = ()
    """One of these."""
    headers: dict[Token, str] = Field(default_factory=dict)
    """Field name to value; `*` means present."""
    cookies: dict[Token, str] = Field(default_factory=dict)
    """Cookie name to value; `*` means present."""
    query: dict[str, str] = Field(default_factory=dict)
    """Parameter to value; `*` means present."""

    @model_validator(mode="after")
    def _one_path(self) -> Self:
        return sound(self, checks.match(self))


class Mirror(Model):
    """Send copies of requests to another version and throw the answers away."""

    to: str
    """Version label of the subset that gets the copies."""
    share: Share = 1.0
    """Which share of requests is copied."""


class Route(Model):
    """Which requests go to which service."""

    name: NoName = ""
    """How the CLI and the admin API call it; defaults to the service's name, numbered when needed."""
    match: Match = Match()
    """What a request must look like; absent: every request."""
    service: str
    """Where they go: a key of `services`."""
    split: Annotated[dict[str, Annotated[int, Field(ge=0)]] | None, OR_NONE] = None
    """Version label to share; the shares are relative to each other."""
    mirror: Annotated[Mirror | None, OR_NONE] = None
    """Copies of requests to another version."""
    limit: Annotated[tuple[Limit, ...], ONE_OR_MANY] = ()
    """How many requests may pass; one limit or several, of which all hold."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        return sound(self, [*checks.split(self), *checks.buckets(self, "route")])


class AccessLog(Model):
    """One JSON line per request."""

    path: Annotated[str | None, OR_NONE] = "-"
    """A file, `-` for standard output, or `none`."""

    @model_validator(mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        return {"path": None} if value == "none" else value


# That it hides ABCMeta.register is harmless: nobody declares virtual subclasses of a section.
warnings.filterwarnings("ignore", 'Field name "register" in "Config" shadows', UserWarning)


class Config(Model):
    """The whole configuration of one holdfast process."""

    listen: tuple[Listen, ...] = (Listen(address=Address("", 8080)),)
    """Where clients connect."""
    admin: Admin = Admin()
    """The admin API, metrics and dashboard."""
    timeout: ClientTimeout = ClientTimeout()
    """How long clients may take."""
    limits: Limits = Limits()
    """What one client, and all of them together, may use."""
    trusted_proxies: tuple[Network, ...] = ()
    """Addresses or networks whose X-Forwarded-* are believed."""
    via: Token | None = None
    """Name under which the proxy enters itself in the Via of requests, as RFC 9110 section 7.6.3 asks of
    gateways. Without one it does not: nginx and others do not compress what they answer to such requests."""
    registry: Annotated[tuple[Registry, ...], ONE_OR_MANY] = ()
    """Where instances come from; a single one may be written without the list, and `none` is none. Where two
    tell of the same instance, the first is believed."""
    guard: Guard = Guard()
    """When registries are not believed at once."""
    register: Annotated[tuple[Register, ...], ONE_OR_MANY] = ()
    """Applications beside this process that it enters in the registries; one may be written without the
    list."""
    services: dict[Name, Service] = Field(default_factory=dict)
    """Each by its name."""
    routes: tuple[Route, ...] = ()
    """Which requests go to which service; the most specific match wins, then the first."""
    access_log: Annotated[AccessLog, OR_TEXT] = AccessLog()
    """One JSON line per request."""
    shutdown: Duration = 30.0
    """On SIGTERM, what is in flight has so long to finish."""
    state: str | None = None
    """Directory for what outlives the process: the last good answers of the registries."""

    @model_validator(mode="after")
    def _references(self) -> Self:
        sound(self, checks.integrity(self))
        taken = {route.name for route in self.routes if route.name}
        for route in self.routes:
            if not route.name:
                name, suffix = route.service, 1
                while name in taken:
                    suffix += 1
                    name = f"{route.service}-{suffix}"
                taken.add(name)
                object.__setattr__(route, "name", name)
        return self
