"""The configuration as types: one immutable `Config`, and the units people write values in.

Durations become seconds (`float`), sizes bytes (`int`), shares fractions between 0 and 1 (`float`), and
addresses an `Address`. Every model refuses unknown keys; nothing here reads files or the environment
(`config.load` does).
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SecretStr,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|kB|MB|GB)?")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h)")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def parse_duration(value: object) -> float:
    """`250ms`, `30s`, `5m`, `1h30m` or a plain number of seconds, as seconds.

    Raises `ValueError` for anything else.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < 0 or not math.isfinite(value):
            raise ValueError("a duration cannot be negative or infinite")
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        parts = _DURATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
    raise ValueError(f"{value!r} is not a duration; write it as 250ms, 30s, 5m or 1h")


def parse_size(value: object) -> int:
    """`64KiB`, `1MB` or a plain number of bytes, as bytes. Raises `ValueError` for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match[1]) * _BYTES[match[2] or "B"])
    raise ValueError(f"{value!r} is not a size; write it as 512, 16KiB or 1MiB")


def parse_share(value: object) -> float:
    """`20%` or `0.2`, as a fraction from 0 to 1. Raises `ValueError` for anything else."""
    share: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        share = float(value)
    elif isinstance(value, str):
        text = value.strip()
        if match := _SHARE.fullmatch(text):
            share = float(match[1]) / 100
        elif re.fullmatch(r"\d*\.?\d+", text):
            share = float(text)
    if share is None or not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share; write it as 20% or 0.2")
    return share


def parse_rate(value: object) -> float:
    """`100/s`, `30/m` or `5/h`, as events per second. Raises `ValueError` for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return float(value)
    if isinstance(value, str) and (match := _RATE.fullmatch(value.strip())) and float(match[1]) > 0:
        return float(match[1]) / _SECONDS[match[2]]
    raise ValueError(f"{value!r} is not a rate; write it as 100/s, 30/m or 5/h")


def _quantity(parse: Callable[[object], Any], pattern: str, *examples: str) -> Any:
    return (
        BeforeValidator(parse),
        WithJsonSchema(
            {
                "anyOf": [{"type": "string", "pattern": pattern}, {"type": "number"}],
                "examples": list(examples),
            }
        ),
    )


Duration = Annotated[float, *_quantity(parse_duration, r"^(\d+(\.\d+)?(ms|s|m|h|d))+$", "250ms", "30s", "5m")]
Size = Annotated[int, *_quantity(parse_size, r"^\d+(\.\d+)?\s*(B|KiB|MiB|GiB|kB|MB|GB)?$", "16KiB", "1MiB")]
Share = Annotated[float, *_quantity(parse_share, r"^\d+(\.\d+)?\s*%$", "20%", "0.2")]
Rate = Annotated[float, *_quantity(parse_rate, r"^\d+(\.\d+)?/(s|m|h)$", "100/s", "30/m")]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect: a TCP `host` and `port`, or the `path` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, value: object) -> Address:
        """`:8080`, `127.0.0.1:9900`, `[::1]:80`, `name:80` or `unix:/run/x.sock`. Raises `ValueError`."""
        if isinstance(value, Address):
            return value
        wrong = (
            f"{value!r} is not an address; write it as :8080, 127.0.0.1:8080, [::1]:8080 or unix:/run/x.sock"
        )
        if not isinstance(value, str):
            raise ValueError(wrong)
        if value.startswith("unix:"):
            if len(value) == len("unix:"):
                raise ValueError(wrong)
            return cls(path=value.removeprefix("unix:"))
        host, colon, port = value.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(wrong)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            ipaddress.IPv6Address(host)
        elif not re.fullmatch(r"[A-Za-z0-9._-]*", host):
            raise ValueError(wrong)
        return cls(host=host, port=int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it: a unix socket or a loopback address."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "examples": [":8080", "127.0.0.1:9900", "unix:/run/x.sock"]}


class Model(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
    token: SecretStr | None = None
    """Bearer token that every request must carry when set."""

    @model_validator(mode="after")
    def _token_when_reachable(self) -> Self:
        if not self.address.is_loopback and self.token is None:
            raise ValueError("an admin address beyond loopback needs a token")
        return self


class ClientTimeout(Model):
    """How long clients may take."""

    header: Duration = 10.0
    """From the first byte of a request to the end of its head."""
    body: Duration = 30.0
    """Longest silence while a request body is coming, or while the client does not read."""
    keepalive: Duration = 75.0
    """Longest silence between requests."""


class Limits(Model):
    """What one client, and all of them together, may use."""

    connections: Annotated[int, Field(ge=1)] = 10_000
    """Open client connections; more are answered 503 and closed."""
    request_line: Size = 16 << 10
    """Bytes of the request line; more is 414."""
    header_bytes: Size = 64 << 10
    """Bytes of the whole head; more is 431."""
    header_count: Annotated[int, Field(ge=1)] = 100
    """Fields in the head; more is 431."""


class EmbeddedRegistry(Model):
    """The registry inside this process; it speaks the Consul HTTP API on `listen`."""

    kind: Literal["embedded"]
    listen: Address = Address("127.0.0.1", 8500)
    """Where instances register."""
    data: str | None = None
    """Directory to keep its contents in; in memory when absent."""


class ConsulRegistry(Model):
    """Consul, or a holdfast registry on another machine."""

    kind: Literal["consul"]
    address: str = "http://127.0.0.1:8500"
    """Base URL of the agent."""
    token: SecretStr | None = None
    """ACL token."""
    datacenter: str | None = None
    """Datacenter to ask, when not the agent's own."""
    wait: Duration = 55.0
    """How long one blocking query may wait."""


class FileRegistry(Model):
    """A watched YAML or JSON file: `services: {NAME: [instances]}`."""

    kind: Literal["file"]
    path: str
    """The file; replaced atomically or through a ConfigMap's symlink."""


Registry = Annotated[EmbeddedRegistry | ConsulRegistry | FileRegistry, Field(discriminator="kind")]


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
    name: str | None = None
    """Name of the cookie, header or query parameter."""
    ttl: Duration = 3600.0
    """How long an unused binding is remembered, and the cookie's Max-Age (0: a session cookie)."""
    key: SecretStr | None = None
    """Signs the cookie; replicas that share it resolve each other's. Made at random when absent."""

    @model_validator(mode="after")
    def _needs_name(self) -> Self:
        if self.name is None and self.by in (StickyBy.COOKIE, StickyBy.HEADER, StickyBy.QUERY):
            raise ValueError(f"sticky by {self.by} needs a name")
        return self


class OnDrain(StrEnum):
    """What happens to the WebSockets of an instance that leaves."""

    CLOSE = "close"
    WAIT = "wait"


class WebSocket(Model):
    """How tunnels live."""

    on_drain: OnDrain = OnDrain.CLOSE
    """`close`: Close 1012 at a message boundary, spread over `drain.jitter`; `wait`: only at the deadline."""
    idle: Duration = 300.0
    """A tunnel in which nothing moved for so long is closed; 0: never."""


class Drain(Model):
    """How an instance leaves."""

    timeout: Duration = 30.0
    """What is in flight has so long to finish."""
    jitter: Duration = 5.0
    """Closes of tunnels are spread uniformly over this time."""


class Health(Model):
    """Active HTTP health check of every instance."""

    path: str = "/"
    """Request target; 2xx and 3xx are healthy."""
    interval: Duration = 2.0
    """Between checks of one instance."""
    timeout: Duration = 1.0
    """Longer than this counts as failed."""
    healthy: Annotated[int, Field(ge=1)] = 2
    """Passes in a row until an unhealthy instance is used again; a new one needs one pass."""
    unhealthy: Annotated[int, Field(ge=1)] = 2
    """Failures in a row until an instance is taken out."""


class Outlier(Model):
    """Passive health: what real traffic says."""

    consecutive_failures: Annotated[int, Field(ge=1)] = 3
    """Connect failures, resets, timeouts and 502/503/504 in a row that eject an instance."""
    base_ejection: Duration = 5.0
    """Length of the first ejection; each further one is longer by this much."""
    max_ejected: Share = 0.5
    """Never more than this share of a service's instances at once."""


RetryOn = Literal["connect", "reset", 502, 503, 504]


class Retry(Model):
    """When a request may be sent to another instance. Never after response bytes went out."""

    attempts: Annotated[int, Field(ge=0)] = 2
    """Further tries after the first."""
    budget: Share = 0.2
    """Retries may be at most this share of a service's live traffic (with a small floor)."""
    on: tuple[RetryOn, ...] = ("connect", "reset")
    """`reset` and status codes only for idempotent requests whose body was not begun."""


class UpstreamTimeout(Model):
    """How long instances may take."""

    connect: Duration = 1.0
    """To accept a connection."""
    response: Duration = 30.0
    """To the response head, from the end of the request."""
    idle: Duration = 60.0
    """A pooled connection unused for so long is closed."""


class Pool(Model):
    """Connections kept to each instance."""

    idle: Annotated[int, Field(ge=0)] = 64
    """Idle connections kept per instance."""
    connections: Annotated[int, Field(ge=0)] = 0
    """Most connections per instance; 0: no limit."""


class StaticInstance(Model):
    """An instance named in the configuration."""

    address: Address
    """`host:port` or `unix:/path`."""
    id: str = ""
    """Defaults to the address."""
    weight: Annotated[int, Field(ge=0, le=65535)] = 100
    """Share of traffic relative to the others; 0: none."""
    metadata: dict[str, str] = {}
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


class Service(Model):
    """A set of interchangeable instances and how they are used."""

    balance: Balance = Balance.LEAST_CONN
    """How an instance is chosen."""
    hash_on: str = "ip"
    """Key of the hashing balancers: `ip`, `path`, `header:NAME`, `cookie:NAME` or `query:NAME`."""
    sticky: Sticky | None = None
    """Keep a client on one instance."""
    websocket: WebSocket = WebSocket()
    drain: Drain = Drain()
    health: Health | None = None
    """Active check; absent: the registry is believed."""
    outlier: Outlier | None = None
    """Passive ejection; absent: none."""
    retry: Retry = Retry()
    timeout: UpstreamTimeout = UpstreamTimeout()
    pool: Pool = Pool()
    slow_start: Duration = 0.0
    """A new or recovered instance grows to its full weight over this time."""
    instances: tuple[StaticInstance, ...] | None = None
    """Static instances; absent: they come from the registry."""


class Match(Model):
    """What a request must look like; all that is given must hold."""

    host: str | None = None
    """`example.com` or `*.example.com`, without port."""
    path: str | None = None
    """Prefix, at segment borders: `/api` matches `/api` and `/api/x`, not `/apix`."""
    path_exact: str | None = None
    path_regex: str | None = None
    """Python regular expression that must match the whole path."""
    method: tuple[str, ...] = ()
    """One of these."""
    headers: dict[str, str] = {}
    """Field name to value; `*` means present."""
    cookies: dict[str, str] = {}
    """Cookie name to value; `*` means present."""
    query: dict[str, str] = {}
    """Parameter to value; `*` means present."""

    @model_validator(mode="before")
    @classmethod
    def _one_method(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("method"), str):
            return {**value, "method": (value["method"],)}
        return value

    @model_validator(mode="after")
    def _one_path(self) -> Self:
        if sum(p is not None for p in (self.path, self.path_exact, self.path_regex)) > 1:
            raise ValueError("give only one of path, path_exact and path_regex")
        if self.path_regex is not None:
            try:
                re.compile(self.path_regex)
            except re.error as error:
                raise ValueError(f"path_regex: {error}") from None
        return self


class Mirror(Model):
    """Send copies of requests to another version and throw the answers away."""

    to: str
    """Version label of the subset that gets the copies."""
    share: Share = 1.0
    """Which share of requests is copied."""


class RouteLimit(Model):
    """Token bucket on a route; over it is 429 with Retry-After."""

    rate: Rate
    """Sustained rate."""
    burst: Annotated[int, Field(ge=1)] | None = None
    """Bucket size; defaults to one second's worth, at least 1."""
    per: Literal["client", "route"] = "client"
    """A bucket for each client address, or one for all."""


class Route(Model):
    """Which requests go to which service."""

    name: str = ""
    """How the CLI and the admin API call it; defaults to the service's name, numbered when needed."""
    match: Match = Match()
    service: str
    split: dict[str, Annotated[int, Field(ge=0)]] | None = None
    """Version label to share; the shares are relative to each other."""
    mirror: Mirror | None = None
    limit: RouteLimit | None = None

    @model_validator(mode="after")
    def _some_share(self) -> Self:
        if self.split is not None and not any(self.split.values()):
            raise ValueError("a split needs at least one share above 0")
        return self


class AccessLog(Model):
    """One JSON line per request."""

    path: str | None = "-"
    """A file, `-` for standard output, or null for none."""


class Config(Model):
    """The whole configuration of one holdfast process."""

    listen: tuple[Listen, ...] = (Listen(address=Address("", 8080)),)
    admin: Admin = Admin()
    timeout: ClientTimeout = ClientTimeout()
    limits: Limits = Limits()
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose X-Forwarded-* are believed."""
    registry: tuple[Registry, ...] = ()
    """Where instances come from; a single one may be written without the list."""
    services: dict[str, Service] = {}
    routes: tuple[Route, ...] = ()
    access_log: AccessLog = AccessLog()
    shutdown: Duration = 30.0
    """On SIGTERM, what is in flight has so long to finish."""

    @model_validator(mode="before")
    @classmethod
    def _registry_list(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("registry"), dict):
            return {**value, "registry": (value["registry"],)}
        return value

    @model_validator(mode="after")
    def _references(self) -> Self:
        for network in self.trusted_proxies:
            ipaddress.ip_network(network, strict=False)
        taken: set[str] = {route.name for route in self.routes if route.name}
        names = [route.name for route in self.routes if route.name]
        if len(names) != len(taken):
            raise ValueError("two routes have the same name")
        for number, route in enumerate(self.routes):
            if route.service not in self.services:
                raise ValueError(f"routes[{number}].service: there is no service {route.service!r}")
            if not route.name:
                name, suffix = route.service, 1
                while name in taken:
                    suffix += 1
                    name = f"{route.service}-{suffix}"
                taken.add(name)
                object.__setattr__(route, "name", name)
        return self
