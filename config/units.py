"""The written forms of values: durations, sizes, shares, rates and addresses, read and written back.

Each kind has `parse_…`, which takes what a person writes and raises `ValueError` for anything else, and
`write_…`, which gives the shortest form that parses to exactly the same value.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KiB|MiB|GiB|kB|MB|GB)?")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)/(s|m|h)")
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+")
_MOST_SECONDS = 10 * 365 * 86400.0
# sun_path of sockaddr_un holds 108 bytes, the last of them NUL: unix(7).
_UNIX_PATH_BYTES = 107


def _plain_number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return None


def parse_duration(value: object) -> float:
    """`250ms`, `30s`, `5m`, `1h30m` or a plain number of seconds, as seconds.

    Raises `ValueError` for anything else, for a negative one, and for one of more than ten years.
    """
    seconds = _plain_number(value)
    if seconds is None and isinstance(value, str):
        text = value.strip()
        parts = _DURATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            # Milliseconds are divided, not multiplied, so that 3ms is the float nearest to 0.003.
            seconds = sum(
                float(number) / 1000 if unit == "ms" else float(number) * _SECONDS[unit]
                for number, unit in parts
            )
    if seconds is None:
        raise ValueError(f"{value!r} is not a duration; write it as 250ms, 30s, 5m or 1h")
    if not 0 <= seconds <= _MOST_SECONDS:
        raise ValueError(f"{value!r} is not a duration from 0s to ten years")
    return seconds


def parse_size(value: object) -> int:
    """`64KiB`, `1MB` or a plain number of bytes, as bytes. Raises `ValueError` for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number, unit = match[1], _BYTES[match[2] or "B"]
        return int(number) * unit if "." not in number else int(float(number) * unit)
    raise ValueError(f"{value!r} is not a size; write it as 512, 16KiB or 1MiB")


def parse_share(value: object) -> float:
    """`20%` or `0.2`, as a fraction from 0 to 1. Raises `ValueError` for anything else."""
    share = _plain_number(value)
    if share is None and isinstance(value, str) and (match := _SHARE.fullmatch(value.strip())):
        share = float(match[1]) / 100
    if share is None or not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share; write it as 20% or 0.2")
    return share


def parse_rate(value: object) -> float:
    """`100/s`, `30/m`, `5/h` or a plain number per second, as events per second. Raises `ValueError`."""
    rate = _plain_number(value)
    if rate is None and isinstance(value, str) and (match := _RATE.fullmatch(value.strip())):
        rate = float(match[1]) / _SECONDS[match[2]]
    if rate is None or not 0 < rate < math.inf:
        raise ValueError(f"{value!r} is not a rate; write it as 100/s, 30/m or 5/h")
    return rate


def _decimal(number: float) -> str:
    """`number` in full, without exponent and without a trailing `.0`; `float` of it is `number` again."""
    return f"{Decimal(repr(number)):f}".removesuffix(".0")


def _shortest(exact: Iterable[str], otherwise: str) -> str:
    return min(exact, key=len, default=otherwise)


def write_duration(seconds: float) -> str:
    """`10s`, `250ms`, `90m`: the shortest whole number of one unit, or seconds with a fraction."""
    counts = ((round(seconds / size), unit) for unit, size in reversed(_SECONDS.items()))
    whole = [f"{count}{unit}" for count, unit in counts if parse_duration(f"{count}{unit}") == seconds]
    return "0s" if seconds == 0 else _shortest(whole, f"{_decimal(seconds)}s")


def write_size(size: int) -> str:
    """`64KiB`, `1MB`, `512`: the shortest whole number of one unit."""
    whole = [f"{size // unit}{name}" for name, unit in _BYTES.items() if name != "B" and size % unit == 0]
    return "0" if size == 0 else _shortest(whole, str(size))


def write_share(share: float) -> str:
    """`20%`, or the plain fraction where no short percentage is exactly the same."""
    percent = f"{share * 100:.6g}%"
    return percent if "e" not in percent and parse_share(percent) == share else _decimal(share)


def write_rate(rate: float) -> str:
    """`100/s`, `30/m`, `5/h`: a whole number of one unit, or a number per second with a fraction."""
    counts = ((round(rate * _SECONDS[unit]), unit) for unit in ("s", "m", "h"))
    whole = [f"{count}/{unit}" for count, unit in counts if count and parse_rate(f"{count}/{unit}") == rate]
    return _shortest(whole, f"{_decimal(rate)}/s")


@dataclass(frozen=True, slots=True)
class Quantity:
    """Marks a number that people write with a unit; `parse` reads that form and `write` gives it back."""

    name: str
    parse: Callable[[object], Any]
    write: Callable[[Any], str]
    pattern: str
    examples: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        written = {"type": "string", "pattern": self.pattern}
        return {"anyOf": [written, {"type": "number", "minimum": 0}], "examples": list(self.examples)}


_N = r"[0-9]+(\.[0-9]+)?"
DURATION = Quantity(
    "duration", parse_duration, write_duration, rf"^(({_N}(ms|s|m|h|d))+|{_N})$", ("250ms", "30s", "5m")
)
SIZE = Quantity(
    "size", parse_size, write_size, rf"^{_N}\s*(B|KiB|MiB|GiB|kB|MB|GB)?$", ("512", "16KiB", "1MiB")
)
SHARE = Quantity("share", parse_share, write_share, rf"^({_N}\s*%|[0-9]*\.?[0-9]+)$", ("20%", "0.2"))
RATE = Quantity("rate", parse_rate, write_rate, rf"^{_N}(/(s|m|h))?$", ("100/s", "30/m"))

Duration = Annotated[float, DURATION]
"""Seconds."""
Size = Annotated[int, SIZE]
"""Bytes."""
Share = Annotated[float, SHARE]
"""From 0 to 1."""
Rate = Annotated[float, RATE]
"""Events per second."""


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
            path = value.removeprefix("unix:")
            if not path or "\0" in path:
                raise ValueError(wrong)
            if len(path.encode()) > _UNIX_PATH_BYTES:
                raise ValueError(f"the path of a unix socket cannot be longer than {_UNIX_PATH_BYTES} bytes")
            return cls(path=path)
        host, colon, port = value.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(wrong)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                raise ValueError(wrong) from None
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

    def overlaps(self, other: Address) -> bool:
        """Whether both cannot be listened on at once: the same port and the same host, or one of all hosts.

        Port 0 takes a free port and never overlaps.
        """
        if self.path or other.path:
            return self.path == other.path
        if self.port != other.port or self.port == 0:
            return False
        hosts = {_LOCALHOST.get(address.host, address.host) for address in (self, other)}
        return len(hosts) == 1 or not hosts.isdisjoint(_ALL_HOSTS)

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
        pattern = r"^(unix:.+|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):[0-9]{1,5})$"
        return {
            "type": "string",
            "pattern": pattern,
            "examples": [":8080", "127.0.0.1:9900", "unix:/run/x.sock"],
        }


_ALL_HOSTS = frozenset({"", "0.0.0.0", "::"})
_LOCALHOST = {"localhost": "127.0.0.1"}
