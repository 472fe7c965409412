"""Instances in etcd: one key for each, `PREFIX/SERVICE/ID`, with a JSON object as value.

`{"address": "10.0.0.7:80", "weight": 50, "metadata": {"version": "v2"}, "draining": true}`: `address` is
`host:port`, `[v6]:port` or `unix:/path`; the others may be missing; what is not known is passed over.
Services and ids are percent-encoded in the key, so that any of them is safe.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import orjson

from config.units import Address
from discovery.labels import MAX_WEIGHT, instance_from
from discovery.model import DEFAULT_WEIGHT, Instance, Status

_SAFE = ":@"
"""Not encoded: harmless in a key, and an id that is an address stays readable."""


def service_key(prefix: str, service: str) -> bytes:
    """What the keys of a service's instances begin with."""
    return f"{prefix.rstrip('/')}/{quote(service, safe=_SAFE)}/".encode()


def instance_key(prefix: str, instance: Instance) -> bytes:
    """The key of one instance."""
    return service_key(prefix, instance.service) + quote(instance.id, safe=_SAFE).encode()


def range_end(key: bytes) -> bytes:
    """The end of the range of all keys that begin with `key`."""
    return key[:-1] + bytes([key[-1] + 1])


def value_of(instance: Instance) -> bytes:
    """The value to write for an instance."""
    value: dict[str, Any] = {
        "address": instance.address,
        "weight": instance.weight,
        "metadata": dict(instance.metadata),
    }
    if instance.status is Status.DRAINING:
        value["draining"] = True
    return orjson.dumps(value)


def instance_of(service: str, rest: bytes, value: bytes) -> Instance:
    """The instance in a key, of which `rest` is what follows the service's. Raises `ValueError`."""
    try:
        data = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    id = unquote(rest.decode(), errors="strict")
    if not id:
        raise ValueError("the id is empty")
    address = Address.parse(data.get("address"))
    if not address.path and not (address.host and address.port):
        raise ValueError(f"address: '{address}' has no host or no port to connect to")
    draining = data.get("draining", False)
    if not isinstance(draining, bool):
        raise ValueError(f"draining: neither true nor false but {draining!r}")
    return instance_from(
        service,
        id,
        address.host,
        address.port,
        _metadata(data.get("metadata")),
        path=address.path,
        weight=_weight(data.get("weight", DEFAULT_WEIGHT)),
        status=Status.DRAINING if draining else Status.UP,
    )


def _weight(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_WEIGHT:
        raise ValueError(f"weight: not a whole number from 0 to {MAX_WEIGHT} but {value!r}")
    return value


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("metadata: not an object")
    found = {}
    for name, item in value.items():
        if isinstance(item, (dict, list)) or item is None:
            raise ValueError(f"metadata.{name}: not a text")
        # As people write them: `"canary": true`, `"version": 2`.
        found[name] = item if isinstance(item, str) else orjson.dumps(item).decode()
    return found
