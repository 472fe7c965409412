"""The metadata keys with a meaning, read and written in one place for every registry."""

from __future__ import annotations

from collections.abc import Mapping

from discovery.model import DEFAULT_WEIGHT, Instance, Status

MAX_WEIGHT = 65535
"""Consul's own limit for a weight; a larger one in metadata counts as not stated."""


def instance_from(
    service: str,
    id: str,
    host: str,
    port: int,
    metadata: Mapping[str, str],
    *,
    path: str = "",
    weight: int = DEFAULT_WEIGHT,
    status: Status = Status.UP,
) -> Instance:
    """An instance that a registry tells `metadata` of; `weight` and `draining` are taken out of it.

    `weight` is what holds when the metadata states none; `status` what the registry itself says. What is dead
    cannot drain.
    """
    rest = dict(metadata)
    stated = rest.pop("weight", "")
    draining = rest.pop("draining", "").lower() == "true"
    if stated.isascii() and stated.isdigit() and int(stated) <= MAX_WEIGHT:
        weight = int(stated)
    if draining and status is Status.UP:
        status = Status.DRAINING
    return Instance(service, id, host, port, path, weight, status, rest)


def metadata_of(instance: Instance) -> dict[str, str]:
    """The other way: the metadata to write for an instance, its weight and whether it drains included."""
    metadata = {**instance.metadata, "weight": str(instance.weight)}
    if instance.status is Status.DRAINING:
        metadata["draining"] = "true"
    return metadata
