"""The registries of a configuration in which instances can be entered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from config.schema import ConsulRegistry, EmbeddedRegistry, Registry
from discovery.build import CanRegister, make_registrar, make_watcher
from discovery.model import Watcher
from discovery.registrar import Registrar
from proxy.sidecar.seat import Place


def places_of(
    registries: Iterable[Registry], own_url: Callable[[], str], watch_own: Callable[[], Watcher]
) -> list[Place]:
    """Each by the name that metrics and events have for it.

    `own_url` and `watch_own` lead to the embedded registry of this process, wherever it listens then.
    """

    def in_own(*, ttl: float, check: str | None) -> Registrar:
        return make_registrar(ConsulRegistry(kind="consul", address=own_url()), ttl=ttl, check=check)

    places: list[Place] = []
    for rank, registry in enumerate(registries):
        name = f"{rank}-{registry.kind}"
        if isinstance(registry, EmbeddedRegistry):
            places.append(Place(registry.kind, name, in_own, watch_own))
        elif isinstance(registry, CanRegister):
            registrar = partial(make_registrar, registry)
            places.append(Place(registry.kind, name, registrar, partial(make_watcher, registry)))
    return places
