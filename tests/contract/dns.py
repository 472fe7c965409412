"""A real DNS server: Consul's own port, with the instances registered by the product's registrar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from config.registries import DnsRegistry
from config.units import Address
from discovery.dns import DnsWatcher
from discovery.model import Watcher
from tests.contract.backend import Ability
from tests.contract.consul import Consul


class Dns(Consul):
    """Seen through DNS, which knows addresses, ports and weights, and nothing else."""

    name = "dns"
    many = 900  # an answer holds 64 KiB
    lacks: ClassVar[Mapping[Ability, str]] = {
        Ability.IDS: "an instance is its target and port",
        Ability.METADATA: "SRV records have none",
        Ability.DRAINING: "SRV records have no such mark",
    }

    def watcher(self) -> Watcher:
        return DnsWatcher(self.section())

    def section(self) -> DnsRegistry:
        return DnsRegistry(
            kind="dns",
            server=(Address("127.0.0.1", self.agent.dns),),
            domain="service.consul",
            ttl_min=0.1,
            timeout=2.0,
        )


BACKENDS = (Dns,)
