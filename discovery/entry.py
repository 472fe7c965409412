"""Consul's health entries as instances: the one place that knows `Meta`, `Tags`, `Weights` and checks.

Source: Consul HTTP API, "List Service Instances for Service" (`/v1/health/service/:service`). The embedded
registry speaks the same shape, so its in-memory watcher and the Consul watcher give equal instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from discovery.labels import instance_from
from discovery.model import DEFAULT_WEIGHT, Instance, RegistryError, Status

MAINTENANCE = ("_service_maintenance:", "_node_maintenance")
"""Check ids that maintenance mode makes start so; they are critical, but the instance is alive."""

_CONSUL_DEFAULT_WEIGHT = 1
_CONSUL_DEFAULT_WEIGHTS = (1, 1)
_NONSENSE = (KeyError, TypeError, AttributeError, ValueError)


def instances_of(
    service: str, entries: Sequence[Mapping[str, Any]], refused: list[str] | None = None
) -> tuple[Instance, ...]:
    """The instances in the answer to `/v1/health/service/:service`, sorted by id.

    Entries without a port or socket cannot be proxied to and are left out. Ids are an agent's own: one that
    is only the service's name, as Consul gives where none was stated, or that several nodes use, gets the
    node's name. Consul fills in weights of 1 where none were stated, so they are taken literally only when an
    entry states something else.

    One entry that makes no sense does not take the others away: it is left out, and the reason is added to
    `refused`. Raises `RegistryError` when not a single one does.
    """
    weights: list[tuple[int, int]] = []
    wrong: list[str] = []
    sound: list[Mapping[str, Any]] = []
    for entry in entries:
        try:
            weights.append(_weights(entry))
            sound.append(entry)
        except _NONSENSE as error:
            wrong.append(_complaint(entry, error))
    literal = any(stated != _CONSUL_DEFAULT_WEIGHTS for stated in weights)
    found: list[tuple[str, Instance]] = []
    for entry, stated in zip(sound, weights, strict=True):
        try:
            weight = stated[_is_warning(entry)] if literal else DEFAULT_WEIGHT
            instance = _instance(service, entry, weight)
        except _NONSENSE as error:
            wrong.append(_complaint(entry, error))
            continue
        if instance is not None:
            found.append((str((entry.get("Node") or {}).get("Node", "")), instance))
    if wrong and len(wrong) == len(entries):
        raise RegistryError(f"service {service}: not a list of health entries: {wrong[0]}")
    if refused is not None:
        refused += wrong
    ids = Counter(instance.id for _, instance in found)
    named = (
        replace(i, id=f"{i.id}@{node}") if node and (ids[i.id] > 1 or i.id == service) else i
        for node, i in found
    )
    return tuple(sorted(named, key=lambda instance: instance.id))


def _complaint(entry: Any, error: Exception) -> str:
    service = entry.get("Service") if isinstance(entry, Mapping) else None
    found = service.get("ID") if isinstance(service, Mapping) else None
    return f"entry {found!r}: {type(error).__name__}: {error}"


def _weights(entry: Mapping[str, Any]) -> tuple[int, int]:
    """For an entry that passes its checks, and for one that warns."""
    weights = entry["Service"].get("Weights") or {}
    passing, warning = (int(weights.get(name, _CONSUL_DEFAULT_WEIGHT)) for name in ("Passing", "Warning"))
    return max(0, passing), max(0, warning)


def _is_warning(entry: Mapping[str, Any]) -> bool:
    return any(check["Status"] == "warning" for check in entry.get("Checks") or ())


def _instance(service: str, entry: Mapping[str, Any], weight: int) -> Instance | None:
    node, definition = entry.get("Node") or {}, entry["Service"]
    id = definition["ID"]
    if not isinstance(id, str) or not id:
        raise ValueError("the ID is no text")
    path, port = str(definition.get("SocketPath") or ""), int(definition.get("Port") or 0)
    host = "" if path else str(definition.get("Address") or node.get("Address") or "")
    if not path and not (host and 0 < port <= 65535):
        return None
    metadata = dict(_tagged(definition.get("Tags") or ()))
    metadata.update((str(key), str(value)) for key, value in (definition.get("Meta") or {}).items())
    return instance_from(
        service,
        id,
        host,
        0 if path else port,
        metadata,
        path=path,
        weight=weight,
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
