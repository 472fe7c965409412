"""What sections are made of: their base, checks of single values, and shorter ways to write a value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from config import checks
from config.units import Address, Duration, Size

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_DNS_NAME = re.compile(
    r"([A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?)?"
)  # RFC 1035 section 2.3.4, RFC 2782
# RFC 1123 section 2.1, RFC 6335 section 5.1
_SERVICE = r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})?(:[a-z0-9-]{1,15})?"
_SERVICES = re.compile(rf"{_SERVICE}(,{_SERVICE})*")
_HASH_ON = re.compile(r"ip|path|(header|cookie|query):[^\s:]+")
_BUCKET = re.compile(r"client|route|service|(header|cookie|query):[^\s:]+")
_Section = TypeVar("_Section")
_URL = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")


def _checked(form: re.Pattern[str], wrong: str) -> AfterValidator:
    def check(value: str) -> str:
        if not form.fullmatch(value):
            raise ValueError(f"{value!r} is not {wrong}")
        return value

    return AfterValidator(check)


def _without_secrets(value: str) -> str:
    if "@" in value or "?" in value:
        raise ValueError("must have no user, no password and no query in it; there are keys for these")
    return value


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{value!r} is not an address or a network such as 10.0.0.0/8") from None
    return value


def _compiles(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return value


def _reachable(address: Address) -> Address:
    if not address.path and not address.port:
        raise ValueError(f"'{address}' has no port to connect to")
    return address


def _status_code(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def sound(section: _Section, problems: Iterable[checks.Problem]) -> _Section:
    """The section itself when it has no problems; else puts each message at its own path below it."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError("value_error", "{problem}", {"problem": message}), loc=path, input=None
        )
        for path, message in problems
    ]
    if details:
        raise ValidationError.from_exception_data("configuration", details)
    return section


@dataclass(frozen=True, slots=True, eq=False)
class Also:
    """Marks a value that has a shorter written form.

    `read` turns that form into the full one and leaves the rest alone; `forms` gives the JSON Schemas of the
    short form, out of the one of the full form.
    """

    read: Callable[[object], object]
    forms: Callable[[dict[str, Any]], list[dict[str, Any]]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        full = handler(schema)
        return {"anyOf": [*full.get("anyOf", [full]), *self.forms(full)]}


def _one_or_many(value: object) -> object:
    if value == "none":
        return ()
    return (value,) if isinstance(value, (dict, str, Model)) else value


_NONE: dict[str, Any] = {"const": "none"}
OR_NONE = Also(lambda value: None if value == "none" else value, lambda full: [_NONE])
ONE_OR_MANY = Also(_one_or_many, lambda full: [full["items"], _NONE])


def _switched(value: object) -> object:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    return ({} if value else None) if isinstance(value, bool) else value


OR_SWITCH = Also(_switched, lambda full: [{"type": "boolean"}])
"""For sections that `true` turns on as they are, and `false` off."""
OR_TEXT = Also(lambda value: value, lambda full: [{"type": "string"}])
"""For models that have a validator of their own that reads the text."""

Name = Annotated[str, _checked(re.compile(r"[^\s/]+"), "a name without spaces and slashes")]
NoName = Annotated[str, _checked(re.compile(r"[^\s/]*"), "a name without spaces and slashes")]
Token = Annotated[str, _checked(_TOKEN, "a name that HTTP allows (RFC 9110 section 5.6.2)")]
Method = Annotated[Token, AfterValidator(str.upper)]
Host = Annotated[
    str,
    AfterValidator(str.lower),
    _checked(_HOST, "a host such as example.com or *.example.com, without port"),
]
PathPrefix = Annotated[str, _checked(re.compile(r"/[^\s?#]*"), "a path; it starts with / and has no ? or #")]
Target = Annotated[str, _checked(re.compile(r"/[^\s#]*"), "a request target; it starts with /")]
Regex = Annotated[str, AfterValidator(_compiles)]
HashKey = Annotated[str, _checked(_HASH_ON, "ip, path, header:NAME, cookie:NAME or query:NAME")]
BucketKey = Annotated[
    str, _checked(_BUCKET, "client, route, service, header:NAME, cookie:NAME or query:NAME")
]
Url = Annotated[str, AfterValidator(_without_secrets), _checked(_URL, "a URL such as http://127.0.0.1:8500")]
ServiceNames = Annotated[
    str, _checked(_SERVICES, "NAME[.NAMESPACE][:PORT] of a Kubernetes Service, or several joined by commas")
]
DnsName = Annotated[str, _checked(_DNS_NAME, "a domain name such as service.consul")]
StatusRange = Annotated[
    str, _checked(re.compile(r"[1-5](xx|\d\d(-[1-5]\d\d)?)"), "a status such as 200, 2xx or 200-399")
]
Network = Annotated[str, AfterValidator(_network)]
Upstream = Annotated[Address, AfterValidator(_reachable)]
RetryOn = Annotated[Literal["connect", "reset", "timeout", 502, 503, 504], BeforeValidator(_status_code)]
Positive = Annotated[Duration, Field(gt=0)]
PositiveSize = Annotated[Size, Field(ge=1)]
Secret = Annotated[SecretStr, Field(min_length=1)]


class Model(BaseModel):
    """Base of all sections: immutable; unknown keys are errors, a key without a value keeps its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        if not isinstance(value, dict) or None not in value.values():
            return value
        return {key: item for key, item in value.items() if item is not None or not cls._fills(key)}

    @classmethod
    def _fills(cls, key: object) -> bool:
        """Whether the field has a default and null is not one of its values."""
        field = cls.model_fields.get(key) if isinstance(key, str) else None
        return field is not None and not field.is_required() and type(None) not in get_args(field.annotation)
