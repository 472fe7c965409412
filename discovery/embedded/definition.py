"""What registrars send, read and checked: JSON bodies to definitions.

Source: Consul HTTP API, "Register Service" and "Register Check". Keys are matched without regard to case
and underscores, as Consul does; keys that this registry has no use for are ignored, check types that it
cannot run are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from config.schema import Address, parse_duration

MAX_PORT = 65535
MAX_WEIGHT = 65535
MAX_NAME = 512
"""Characters of a service name, an id or a check id."""
MAX_META = 64
"""Entries of `Meta`; its keys have at most 128 characters and its values 512 (Consul's limits)."""
MIN_TTL = 0.01
"""Seconds; also the shortest interval between two runs of a check."""
DEFAULT_TIMEOUT = 10.0
"""Seconds one run of an HTTP or TCP check may take (Consul's default)."""

_UNSUPPORTED = ("args", "script", "dockercontainerid", "grpc", "h2ping", "udp", "aliasservice", "aliasnode")


class CheckStatus(StrEnum):
    """What a check says, in Consul's words."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """GET (or `method`) of `url`: 2xx passes, 429 warns, anything else is critical. Times in seconds."""

    url: str
    method: str
    headers: tuple[tuple[str, str], ...]
    body: str
    interval: float
    timeout: float
    verify: bool


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """A connection to `address` that is accepted passes. Times in seconds."""

    address: Address
    interval: float
    timeout: float


@dataclass(frozen=True, slots=True)
class CheckDefinition:
    """One check of one service. Exactly one of `ttl` (seconds) and `probe` is given, or neither."""

    id: str
    name: str
    ttl: float | None = None
    probe: HttpProbe | TcpProbe | None = None
    deregister_after: float | None = None
    """Seconds for which it may be critical until its service is deregistered; None: for ever."""
    status: CheckStatus = CheckStatus.CRITICAL
    """What it says until it is told or has run."""
    notes: str = ""

    @property
    def type(self) -> str:
        """Consul's word for the kind of check."""
        if self.ttl is not None:
            return "ttl"
        return {HttpProbe: "http", TcpProbe: "tcp"}.get(type(self.probe), "")


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """One instance of a service, as its registrar describes it."""

    id: str
    name: str
    address: str = ""
    port: int = 0
    socket_path: str = ""
    tags: tuple[str, ...] = ()
    meta: tuple[tuple[str, str], ...] = ()
    passing_weight: int = 1
    warning_weight: int = 1
    enable_tag_override: bool = False
    checks: tuple[CheckDefinition, ...] = ()


def service_definition(body: object) -> ServiceDefinition:
    """The body of `PUT /v1/agent/service/register`. Raises `ValueError` with a message for the registrar."""
    fields = _Fields(body, "the body")
    name = fields.text("Name")
    if not name:
        raise ValueError("Missing service name")
    service_id = fields.text("ID") or name
    for label, value in (("Name", name), ("ID", service_id)):
        _identifier(label, value)
    port = fields.integer("Port", 0, MAX_PORT)
    weights = _Fields(fields.get("Weights") or {}, "Weights")
    return ServiceDefinition(
        id=service_id,
        name=name,
        address=fields.text("Address"),
        port=port,
        socket_path=fields.text("SocketPath"),
        tags=_texts(fields.get("Tags"), "Tags"),
        meta=_meta(fields.get("Meta")),
        passing_weight=weights.integer("Passing", 1, MAX_WEIGHT, default=1),
        warning_weight=weights.integer("Warning", 0, MAX_WEIGHT, default=1),
        enable_tag_override=fields.boolean("EnableTagOverride"),
        checks=_checks(fields, service_id, name),
    )


def check_definition(body: object) -> tuple[str, CheckDefinition]:
    """The body of `PUT /v1/agent/check/register`, as (service id, definition). Raises `ValueError`."""
    fields = _Fields(body, "the body")
    name = fields.text("Name")
    if not name:
        raise ValueError("Missing check name")
    service_id = fields.text("ServiceID")
    if not service_id:
        raise ValueError("Missing ServiceID: this registry has checks of services only, not of nodes")
    return service_id, _check(fields, fields.text("CheckID") or fields.text("ID") or name, name)


class _Fields:
    """A JSON object whose keys are found as Consul finds them."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{what} must be a JSON object")
        self._values = {str(key).replace("_", "").lower(): item for key, item in value.items()}

    def get(self, key: str) -> Any:
        return self._values.get(key.lower())

    def text(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ValueError(f"{key} must be a string")
        return value

    def integer(self, key: str, low: int, high: int, *, default: int = 0) -> int:
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{key} must be an integer from {low} to {high}, not {value!r}")
        return value

    def boolean(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool | None):
            raise ValueError(f"{key} must be true or false")
        return bool(value)

    def seconds(self, key: str, *, low: float = 0.0) -> float | None:
        """A Go duration; None when it is absent or empty. Bare numbers are refused: their unit is a guess."""
        value = self.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or value.strip().replace(".", "").isdigit():
            raise ValueError(f'{key}: {value!r} has no unit; write it as "10s"')
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        if seconds < low:
            raise ValueError(f"{key} must be at least {low:g}s")
        return seconds


def _identifier(label: str, value: str) -> None:
    if len(value) > MAX_NAME:
        raise ValueError(f"{label} is longer than {MAX_NAME} characters")
    if not value.isprintable():
        raise ValueError(f"{label} contains characters that cannot be printed")


def _texts(value: object, key: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key} must be a list of strings")
    return tuple(value)


def _meta(value: object) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError("Meta must be an object with string values")
    if len(value) > MAX_META:
        raise ValueError(f"Meta has more than {MAX_META} entries")
    for key, item in value.items():
        if not key or len(key) > 128 or len(item) > 512:
            raise ValueError(f"Meta {key[:128]!r}: keys have 1 to 128 characters, values at most 512")
    return tuple(sorted(value.items()))


def _checks(fields: _Fields, service_id: str, service: str) -> tuple[CheckDefinition, ...]:
    several = fields.get("Checks") or []
    if not isinstance(several, list):
        raise ValueError("Checks must be a list")
    single = fields.get("Check")
    given = [*([single] if single else []), *(item for item in several if item)]
    checks = []
    for number, item in enumerate(given, start=1):
        check = _Fields(item, "a check")
        default = f"service:{service_id}" if len(given) == 1 else f"service:{service_id}:{number}"
        name = check.text("Name") or f"Service '{service}' check"
        checks.append(_check(check, check.text("CheckID") or check.text("ID") or default, name))
    if len({check.id for check in checks}) != len(checks):
        raise ValueError("two checks have the same CheckID")
    return tuple(checks)


def _check(fields: _Fields, check_id: str, name: str) -> CheckDefinition:
    _identifier("CheckID", check_id)
    for key in _UNSUPPORTED:
        if fields.get(key):
            raise ValueError(f"check {check_id}: {key} checks are not run here; use TTL, HTTP or TCP")
    status = fields.text("Status") or CheckStatus.CRITICAL
    if status not in set(CheckStatus):
        raise ValueError(f"check {check_id}: Status must be passing, warning or critical, not {status!r}")
    ttl, probe = fields.seconds("TTL", low=MIN_TTL), _probe(fields, check_id)
    if ttl is not None and probe is not None:
        raise ValueError(f"check {check_id}: give only one of TTL, HTTP and TCP")
    if ttl is None and probe is None:
        raise ValueError(f"check {check_id}: one of TTL, HTTP and TCP must be given")
    return CheckDefinition(
        id=check_id,
        name=name,
        ttl=ttl,
        probe=probe,
        deregister_after=fields.seconds("DeregisterCriticalServiceAfter", low=MIN_TTL),
        status=CheckStatus(status),
        notes=fields.text("Notes"),
    )


def _probe(fields: _Fields, check_id: str) -> HttpProbe | TcpProbe | None:
    url, tcp = fields.text("HTTP"), fields.text("TCP")
    if not url and not tcp:
        return None
    if url and tcp:
        raise ValueError(f"check {check_id}: give only one of TTL, HTTP and TCP")
    interval = fields.seconds("Interval", low=MIN_TTL)
    if interval is None:
        raise ValueError(f"check {check_id}: an HTTP or TCP check needs an Interval")
    timeout = fields.seconds("Timeout", low=MIN_TTL) or DEFAULT_TIMEOUT
    if tcp:
        return TcpProbe(Address.parse(tcp), interval, timeout)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"check {check_id}: HTTP must be an http or https URL, not {url!r}")
    headers = fields.get("Header") or {}
    if not isinstance(headers, Mapping):
        raise ValueError(f"check {check_id}: Header must be an object of lists of strings")
    return HttpProbe(
        url=url,
        method=(fields.text("Method") or "GET").upper(),
        headers=tuple((key, item) for key, items in headers.items() for item in _texts(items, "Header")),
        body=fields.text("Body"),
        interval=interval,
        timeout=timeout,
        verify=not fields.boolean("TLSSkipVerify"),
    )
