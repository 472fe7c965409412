"""From a registry's section in the configuration to what speaks to it. Each kind is imported when used."""

from __future__ import annotations

from typing import assert_never

from config.registries import (
    ConsulRegistry,
    DnsRegistry,
    EtcdRegistry,
    FileRegistry,
    KubernetesRegistry,
    NacosRegistry,
    RemoteRegistry,
)
from discovery.discreet import Discreet, DiscreetRegistrar, secrets_of
from discovery.model import Watcher
from discovery.registrar import Registrar
from discovery.renamed import Renamed, RenamedRegistrar

CanRegister = ConsulRegistry | EtcdRegistry | NacosRegistry
"""The kinds of registries in which an instance can enter itself; with an embedded one, by its URL."""


def make_watcher(registry: RemoteRegistry) -> Watcher:
    """The watcher of a registry that runs elsewhere, under the names that services have here."""
    watcher = _watcher(registry)
    if secrets := secrets_of(registry):
        watcher = Discreet(watcher, secrets)
    match registry:
        case FileRegistry() | DnsRegistry():
            return watcher
        case _:
            return Renamed(watcher, registry.names) if registry.names else watcher


def _watcher(registry: RemoteRegistry) -> Watcher:
    match registry:
        case ConsulRegistry():
            from discovery.consul import ConsulWatcher

            return ConsulWatcher(
                registry.address,
                tls=registry.tls,
                token=registry.token.get_secret_value() if registry.token else None,
                datacenter=registry.datacenter,
                stale=registry.stale,
                tag=registry.tag,
                wait=registry.wait,
            )
        case EtcdRegistry():
            from discovery.etcd import EtcdWatcher

            return EtcdWatcher(registry)
        case NacosRegistry():
            from discovery.nacos import make_nacos_watcher

            return make_nacos_watcher(registry)
        case KubernetesRegistry():
            from discovery.kubernetes import KubernetesWatcher

            return KubernetesWatcher(registry)
        case DnsRegistry():
            from discovery.dns import DnsWatcher

            return DnsWatcher(registry)
        case FileRegistry():
            from discovery.file import FileWatcher

            return FileWatcher(registry.path)
        case _:
            assert_never(registry)


def make_registrar(registry: CanRegister, *, ttl: float, check: str | None = None) -> Registrar:
    """What enters instances there, under the names that services have there.

    `ttl`: seconds without a beat after which an instance counts as crashed. `check`: a URL that the registry
    asks itself instead of waiting for beats, where it can.
    """
    registrar = _registrar(registry, ttl, check)
    if secrets := secrets_of(registry):
        registrar = DiscreetRegistrar(registrar, secrets)
    return RenamedRegistrar(registrar, registry.names) if registry.names else registrar


def _registrar(registry: CanRegister, ttl: float, check: str | None) -> Registrar:
    match registry:
        case ConsulRegistry():
            from discovery.consul_registrar import ConsulRegistrar

            return ConsulRegistrar(
                registry.address,
                ttl=ttl,
                check=check,
                token=registry.token.get_secret_value() if registry.token else None,
                tls=registry.tls,
                tags=(registry.tag,) if registry.tag else (),
            )
        case NacosRegistry():
            from discovery.nacos import make_nacos_registrar

            return make_nacos_registrar(registry, ttl=ttl)
        case EtcdRegistry():
            from discovery.etcd_registrar import EtcdRegistrar

            return EtcdRegistrar(registry, ttl=ttl)
        case _:
            assert_never(registry)
