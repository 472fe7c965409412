"""Nacos, followed and registered in.

`entry` knows its instances, `payload` what travels over gRPC, `servers` whom to ask. On them stand the two
ways to speak: `connection` (gRPC) and `http`; on these `watcher` and `registrar`.
"""

from __future__ import annotations

from config.registries import NacosRegistry, NacosTransport
from discovery.model import Watcher
from discovery.registrar import Registrar


def make_nacos_watcher(registry: NacosRegistry) -> Watcher:
    """What follows it in the way that the configuration names."""
    from discovery.nacos.watcher import PollWatcher, PushWatcher

    if registry.transport is NacosTransport.HTTP:
        return PollWatcher(registry)
    return PushWatcher(registry)


def make_nacos_registrar(registry: NacosRegistry, *, ttl: float) -> Registrar:
    """What enters instances there. `ttl`: seconds without a beat until one counts as crashed; over gRPC it
    does the moment its connection ends."""
    from discovery.nacos.registrar import BeatRegistrar, ConnectionRegistrar

    if registry.transport is NacosTransport.HTTP:
        return BeatRegistrar(registry, ttl=ttl)
    return ConnectionRegistrar(registry)
