"""Nacos' instances as ours, and ours as Nacos': the one place that knows their fields.

Source: Nacos Open API, "Query instances" and "Register instance". Weights are decimal there, 1.0 when nothing
else is stated; 0.01 to 10000 are kept, 0 means no work. An instance has no id of its choice there, so ours is
in the metadata.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from discovery.labels import MAX_WEIGHT, instance_from, metadata_of
from discovery.model import DEFAULT_WEIGHT, Instance, RegistryError, Status

DEFAULT_CLUSTER = "DEFAULT"
ID = "id"
"""Metadata key of the id that an instance registered itself with."""
_HIDDEN = "preserved."
"""Metadata keys that begin so are orders to the server, not about the instance."""
_RANK = {Status.UP: 0, Status.DRAINING: 1, Status.DOWN: 2}


def instances_of(
    service: str,
    hosts: Sequence[Mapping[str, Any]],
    clusters: Collection[str] = (),
    refused: list[str] | None = None,
) -> tuple[Instance, ...]:
    """The instances in a service's `hosts`, sorted by id; only of these `clusters` unless there are none.

    One that is not enabled is draining: an operator took it offline, it is not dead. Entries without a port
    cannot be proxied to and are left out. An id that several addresses use is made unique by the address; of
    several entries of one id and address (the same instance, registered again before its last connection has
    ended) the one that may do most is taken.

    One entry that makes no sense does not take the others away: it is left out, and the reason is added to
    `refused`. Raises `RegistryError` when not a single one does.
    """
    found: list[Instance] = []
    wrong: list[str] = []
    for host in hosts:
        try:
            if not clusters or host.get("clusterName", DEFAULT_CLUSTER) in clusters:
                found += _instance(service, host)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            wrong.append(f"entry {host!r:.80}: {type(error).__name__}: {error}")
    if wrong and len(wrong) == len(hosts):
        raise RegistryError(f"service {service}: not a list of instances: {wrong[0]}")
    if refused is not None:
        refused += wrong
    addresses: dict[str, set[str]] = {}
    for instance in found:
        addresses.setdefault(instance.id, set()).add(instance.address)
    unique: dict[str, Instance] = {}
    for instance in sorted(found, key=lambda i: _RANK[i.status]):
        shared = len(addresses[instance.id]) > 1
        id = f"{instance.id}@{instance.address}" if shared else instance.id
        unique.setdefault(id, replace(instance, id=id))
    return tuple(sorted(unique.values(), key=lambda instance: instance.id))


def entry_of(instance: Instance, cluster: str = DEFAULT_CLUSTER) -> dict[str, Any]:
    """The other way: what to register for an instance.

    Raises `RegistryError` for one on a unix socket: Nacos knows hosts and ports only.
    """
    if instance.path:
        raise RegistryError(f"{instance.id}: Nacos cannot hold a unix socket")
    metadata = {**metadata_of(instance), ID: instance.id}
    # Its own field can be changed in the console, the metadata would overrule that.
    del metadata["weight"]
    return {
        "ip": instance.host,
        "port": instance.port,
        "weight": instance.weight / DEFAULT_WEIGHT,
        "healthy": True,
        "enabled": True,
        "ephemeral": True,
        "clusterName": cluster,
        "metadata": metadata,
    }


def _instance(service: str, host: Mapping[str, Any]) -> list[Instance]:
    """One, or none where nobody can be reached."""
    ip, port = str(host["ip"]), int(host["port"])
    if not ip or not 0 < port <= 65535:
        return []
    metadata = {
        str(key): str(value)
        for key, value in (host.get("metadata") or {}).items()
        if not str(key).startswith(_HIDDEN)
    }
    weight = float(host.get("weight", 1.0))
    if weight != 1.0:
        # Somebody set it, in the console perhaps: that is newer than what the instance says of itself.
        metadata.pop("weight", None)
    id = metadata.pop(ID, "") or (f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}")
    return [instance_from(service, id, ip, port, metadata, weight=_weight(weight), status=_status(host))]


def _weight(weight: float) -> int:
    """What is above 0 stays above 0. Raises `ValueError` or `OverflowError` for what is no number."""
    return min(MAX_WEIGHT, max(1, round(weight * DEFAULT_WEIGHT))) if weight > 0 else 0


def _status(host: Mapping[str, Any]) -> Status:
    if not host.get("healthy", True):
        return Status.DOWN
    return Status.UP if host.get("enabled", True) else Status.DRAINING
