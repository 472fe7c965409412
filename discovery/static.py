"""Instances that the configuration names itself: no registry, no watcher."""

from __future__ import annotations

from collections.abc import Mapping

from config.schema import Service, StaticInstance
from discovery.labels import instance_from
from discovery.model import Instance, Update

SOURCE = "static"


def static_updates(services: Mapping[str, Service], at: float) -> list[Update]:
    """One update for each service that has `instances`. `at`: a `time.monotonic` reading."""
    return [
        Update(name, instances_from(name, service.instances), at, SOURCE)
        for name, service in services.items()
        if service.instances is not None
    ]


def instances_from(service: str, given: tuple[StaticInstance, ...]) -> tuple[Instance, ...]:
    """Static instances in the words of discovery, sorted by id. `draining: "true"` in the metadata marks one
    that leaves, as in every registry."""
    return tuple(sorted((_instance(service, item) for item in given), key=lambda instance: instance.id))


def _instance(service: str, given: StaticInstance) -> Instance:
    return instance_from(
        service,
        given.id,
        given.address.host or ("" if given.address.path else "127.0.0.1"),
        given.address.port,
        given.metadata,
        path=given.address.path,
        weight=given.weight,
    )
