"""An entry in etcd: a key bound to a lease, which ends with the lease when nobody keeps it alive.

Source: etcd v3 API reference, "Lease" and "Transaction". Whatever is written is bound to the lease, and the
lease is revoked first at the end: a write that was still out cannot make the entry again after that.
"""

from __future__ import annotations

import math

from config.registries import EtcdRegistry
from discovery.etcd_client import NOT_FOUND, EtcdClient, EtcdError, Members, encode
from discovery.etcd_entry import instance_key, value_of
from discovery.model import Instance, RegistryError

DEFAULT_TTL = 10.0
"""Seconds without a beat after which the entry is gone. etcd's own least is 2."""
BEATS_PER_TTL = 3
ANSWER = 3.0
"""Seconds for an answer, shared by the members: if one is frozen, a deregistration still reaches the next."""
ANSWER_MIN = 1.0


class EtcdRegistrar:
    """Holds entries in one cluster. `ttl` in seconds, of which etcd knows whole ones only."""

    kind = "etcd"

    def __init__(self, registry: EtcdRegistry, *, ttl: float = DEFAULT_TTL) -> None:
        self._ttl = max(1, math.ceil(ttl))
        self.interval = ttl / BEATS_PER_TTL
        self._registry = registry
        self._members = Members(registry.address)
        self._leases: dict[bytes, str] = {}
        self._opened: EtcdClient | None = None

    async def register(self, instance: Instance) -> None:
        """Raises `RegistryError` when etcd refuses, or cannot be reached."""
        key = instance_key(self._registry.prefix, instance)
        if key in self._leases:
            try:
                await self._put(key, instance)
                return
            except EtcdError as error:
                if error.code != NOT_FOUND:
                    raise
        answer = await self._client.call("/v3/lease/grant", {"TTL": self._ttl})
        if not isinstance(lease := answer.get("ID"), str):
            raise RegistryError("not an answer of etcd's: a lease without an id")
        self._leases[key] = lease
        await self._put(key, instance)

    async def beat(self, instance: Instance) -> bool:
        """Raises as `register` does. False also when the key is there but not bound to our lease, as after
        an edit by hand: it would outlive us."""
        key = instance_key(self._registry.prefix, instance)
        lease = self._leases.get(key)
        if lease is None:
            return False
        answer = await self._client.call("/v3/lease/keepalive", {"ID": lease})
        if not answer.get("result", {}).get("TTL"):
            del self._leases[key]
            return False
        found = await self._client.call("/v3/kv/range", {"key": encode(key), "keys_only": True})
        return any(kv.get("lease") == lease for kv in found.get("kvs", ()))

    async def deregister(self, instance: Instance) -> None:
        """Raises as `register` does. The entry of a successor with the same id, which has a lease of its own,
        stays when we had one."""
        key = instance_key(self._registry.prefix, instance)
        compare = []
        if (lease := self._leases.get(key)) is not None:
            try:
                await self._client.call("/v3/lease/revoke", {"ID": lease})
            except EtcdError as error:
                if error.code != NOT_FOUND:
                    raise
            # What is bound to no lease, as after an edit by hand, would stay for ever.
            compare = [{"key": encode(key), "target": "LEASE", "result": "EQUAL", "lease": "0"}]
        delete = {"request_delete_range": {"key": encode(key)}}
        await self._client.call("/v3/kv/txn", {"compare": compare, "success": [delete]})
        self._leases.pop(key, None)

    async def close(self) -> None:
        """Ends the connections."""
        client, self._opened = self._opened, None
        if client is not None:
            await client.close()

    @property
    def _client(self) -> EtcdClient:
        if self._opened is None:
            answer = max(ANSWER_MIN, ANSWER / len(self._registry.address))
            self._opened = EtcdClient(self._registry, self._members, answer)
        return self._opened

    async def _put(self, key: bytes, instance: Instance) -> None:
        body = {"key": encode(key), "value": encode(value_of(instance)), "lease": self._leases[key]}
        await self._client.call("/v3/kv/put", body)
