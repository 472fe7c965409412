"""Consul's health entries as instances: the one place that knows `Meta`, `Tags`, `Weights` and checks.

Source: Consul HTTP API, "List Service Instances for Service" (`/v1/health/service/:service`). The embedded
registry speaks the same shape, so its in-memory watcher and the Consul watcher give equal instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from discovery.labels import instance_from
from discovery.model import DEFAULT_WEIGHT, Instance, RegistryError, Status

MAINTENANCE = ("_service_maintenance:", "_node_maintenance")
"""Check ids that maintenance mode makes start so; they are critical, but the instance is alive."""

_CONSUL_DEFAULT_WEIGHT = 1


def instances_of(service: str, entries: Sequence[Mapping[str, Any]]) -> tuple[Instance, ...]:
    """The instances in the answer to `/v1/health/service/:service`, sorted by id.

    Entries without a port or socket cannot be proxied to and are left out. An id that several nodes use is
    made unique by the node's name. Consul fills in a weight of 1 where none was stated, so 1 is taken
    literally only when another entry states something else.
    Raises `RegistryError` when the answer does not have the documented shape.
    """
    try:
        ids = Counter(entry["Service"]["ID"] for entry in entries)
        literal = any(_passing_weight(entry) != _CONSUL_DEFAULT_WEIGHT for entry in entries)
        found = [
            _instance(service, entry, unique=ids[entry["Service"]["ID"]] == 1, literal_weight=literal)
            for entry in entries
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RegistryError(
            f"service {service}: not a list of health entries: {type(error).__name__}: {error}"
        ) from error
    return tuple(sorted((i for i in found if i is not None), key=lambda instance: instance.id))


def _passing_weight(entry: Mapping[str, Any]) -> int:
    weights = entry["Service"].get("Weights") or {}
    return int(weights.get("Passing", _CONSUL_DEFAULT_WEIGHT))


def _instance(
    service: str, entry: Mapping[str, Any], *, unique: bool, literal_weight: bool
) -> Instance | None:
    node, definition = entry.get("Node") or {}, entry["Service"]
    path, port = str(definition.get("SocketPath") or ""), int(definition.get("Port") or 0)
    host = "" if path else str(definition.get("Address") or node.get("Address") or "")
    if not path and not (host and 0 < port <= 65535):
        return None
    metadata = dict(_tagged(definition.get("Tags") or ()))
    metadata.update((str(key), str(value)) for key, value in (definition.get("Meta") or {}).items())
    return instance_from(
        service,
        str(definition["ID"]) if unique else f"{definition['ID']}@{node.get('Node', '')}",
        host,
        0 if path else port,
        metadata,
        path=path,
        weight=_passing_weight(entry) if literal_weight else DEFAULT_WEIGHT,
        status=_status(entry.get("Checks") or ()),
    )


def _tagged(tags: Sequence[str]) -> list[tuple[str, str]]:
    pairs = (tag.partition("=") for tag in tags)
    return [(key, value) for key, equals, value in pairs if key and equals]


def _status(checks: Sequence[Mapping[str, Any]]) -> Status:
    """A failed check beats maintenance: what is dead cannot keep what it has."""
    critical = [str(check.get("CheckID", "")) for check in checks if check["Status"] == "critical"]
    maintained = sum(check_id.startswith(MAINTENANCE) for check_id in critical)
    if len(critical) > maintained:
        return Status.DOWN
    return Status.DRAINING if maintained else Status.UP
