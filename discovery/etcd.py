"""etcd v3, followed by one read at one revision and a watch from the next one on.

Source: etcd v3 API reference, "Range", "Transaction", "Watch", and what servers really do: compaction is told
in the stream, which stays open; a frozen server is silent. So silence is answered with a question (the reader
notices a server that does not answer, or has no majority), the kernel probes the connection, and everything
is read anew every `resync` seconds. Where to watch from is always the revision of the read itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from config.registries import EtcdRegistry
from discovery.etcd_client import EtcdClient, Json, Members, decode, encode
from discovery.etcd_entry import instance_of, range_end, service_key
from discovery.model import Instance, RegistryError, Update

ANSWER = 5.0
"""Seconds for one answer."""
PULSE = 5.0
"""Seconds of silence in the watch until the server is asked whether it is there."""
PAGE = 500
"""Keys in one answer, of each service."""
BATCH = 100
"""Services in one request; etcd takes 128 operations in a transaction unless told otherwise."""
HOT = 0.25
"""Seconds to wait before everything is read again although it was read just now."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Service:
    """What etcd has of one service."""

    name: str
    key: bytes
    """What its keys begin with."""
    instances: dict[bytes, Instance] = field(default_factory=dict)
    refused: dict[bytes, str] = field(default_factory=dict)
    """Keys whose value makes no sense, and why. What such a key said before holds, if it ever said something:
    that it is there says that its instance is."""
    seen: bool = False
    """There was a key since the watch began: only then has etcd told that they went. It keeps no names of
    services, and one without keys is like one that nobody has heard of."""

    def update(self, at: float, *, read: bool = False) -> Update:
        """`read`: everything was read, and keys that cannot be understood may be instances known before."""
        ordered = tuple(sorted(self.instances.values(), key=lambda instance: instance.id))
        unknown = self.refused.keys() - self.instances.keys()
        told = ordered if self.seen and (ordered or not unknown) else None
        refused = tuple(self.refused.values())
        return Update(self.name, told, at, EtcdWatcher.kind, refused, partial=read and bool(unknown))

    def put(self, kv: Json) -> None:
        key = decode(kv["key"])
        self.seen = True
        try:
            self.instances[key] = instance_of(self.name, key[len(self.key) :], decode(kv.get("value", "")))
        except ValueError as error:
            self.refused[key] = f"{key.decode(errors='replace')}: {error}"
        else:
            self.refused.pop(key, None)

    def drop(self, key: bytes) -> None:
        self.instances.pop(key, None)
        self.refused.pop(key, None)

    def replace(self, found: list[Json]) -> None:
        for key in (self.instances.keys() | self.refused.keys()) - {decode(kv["key"]) for kv in found}:
            self.drop(key)
        for kv in found:
            self.put(kv)


class EtcdWatcher:
    """Yields the instances below the prefix of each service. `answer` and `pulse` in seconds."""

    kind = "etcd"

    def __init__(
        self,
        registry: EtcdRegistry,
        *,
        answer: float = ANSWER,
        pulse: float = PULSE,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._answer = answer
        self._pulse = pulse
        self._clock = clock
        self._random = rng or random.Random()
        self._members = Members(registry.address)

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Raises `RegistryError` when etcd does not answer, refuses, or is another one than before."""
        known = [_Service(name, service_key(self._registry.prefix, name)) for name in sorted(services)]
        member = self._members.current
        client = EtcdClient(self._registry, self._members, self._answer)
        try:
            cluster, revision = await self._read(client, known)
            while True:
                begun = self._clock()
                for service in known:
                    yield service.update(begun, read=True)
                async with aclosing(self._follow(client, known, revision + 1)) as changes:
                    async for update in changes:
                        yield update
                if self._clock() - begun < HOT:
                    await asyncio.sleep(HOT)
                before = cluster, revision
                cluster, revision = await self._read(client, known)
                if cluster != before[0] or revision < before[1]:
                    raise RegistryError(f"{member}: another cluster than before, or an older state of it")
        except RegistryError:
            self._members.failed(member)
            raise
        finally:
            await client.close()

    # -- everything at one revision ---------------------------------------------------------------------

    async def _read(self, client: EtcdClient, known: list[_Service]) -> tuple[str, int]:
        """Reads all services at one revision. Returns the cluster's id and that revision."""
        cluster, revision = "", 0
        with _plausible():
            for start in range(0, len(known), BATCH):
                batch = known[start : start + BATCH]
                asked = [
                    {"request_range": _range(service.key, service.key, limit=PAGE, revision=revision)}
                    for service in batch
                ]
                answer = await client.call("/v3/kv/txn", {"success": asked})
                cluster = answer["header"]["cluster_id"]
                revision = revision or int(answer["header"]["revision"])
                for service, response in zip(batch, answer["responses"], strict=True):
                    page = response["response_range"]
                    service.replace(await _whole(client, service, page, revision))
        return cluster, revision

    # -- what changes -----------------------------------------------------------------------------------

    async def _follow(
        self, client: EtcdClient, known: list[_Service], revision: int
    ) -> AsyncGenerator[Update, None]:
        """Yields changes until everything has to be read again."""
        due = self._clock() + self._registry.resync * self._random.uniform(0.9, 1.0)
        changes = _Changes(self._registry.prefix, known)
        async with client.stream("/v3/watch", changes.request(revision)) as stream:
            while (left := due - self._clock()) > 0:
                try:
                    async with asyncio.timeout(min(left, self._pulse)):
                        messages = await stream.read()
                except TimeoutError:
                    await client.call("/v3/kv/range", {"key": encode(known[0].key), "keys_only": True})
                    continue
                at = self._clock()
                for message in messages:
                    if message.get("compact_revision"):
                        _log.info("registry etcd: revision %d is compacted; reading anew", revision)
                        return
                    with _plausible():
                        changed = changes.take(message)
                    for service in changed:
                        yield service.update(at)


class _Changes:
    """One watch for all services, and what it tells of each.

    One, because over HTTP/1.1 etcd reads no more of a request once it has begun to answer: of several watches
    asked for in one stream, some are never made, and nothing tells of it. So it spans what lies between the
    services, too.
    """

    def __init__(self, prefix: str, services: Sequence[_Service]) -> None:
        self._root = len(prefix.rstrip("/").encode()) + 1
        self._services = {service.key: service for service in services}
        self._changed: dict[bytes, _Service] = {}

    def request(self, revision: int) -> bytes:
        first, last = min(self._services), max(self._services)
        watch = _range(first, last, start_revision=revision, fragment=True, progress_notify=True)
        return orjson.dumps({"create_request": watch}) + b"\n"

    def take(self, message: Json) -> list[_Service]:
        """Takes the events of one message. Returns the services that changed, once they are whole."""
        if message.get("canceled"):
            raise RegistryError(f"the watch was refused: {message.get('cancel_reason')}")
        for event in message.get("events", ()):
            key = decode(event["kv"]["key"])
            service = self._services.get(key[: key.find(b"/", self._root) + 1])
            if service is None:
                continue
            if event.get("type") == "DELETE":
                service.drop(key)
            else:
                service.put(event["kv"])
            self._changed[service.key] = service
        if message.get("fragment"):
            return []
        changed, self._changed = list(self._changed.values()), {}
        return changed


async def _whole(client: EtcdClient, service: _Service, page: Json, revision: int) -> list[Json]:
    """All keys of a service, of which `page` has the first."""
    found: list[Json] = page.get("kvs", [])
    while page.get("more"):
        after = decode(found[-1]["key"]) + b"\0"
        page = await client.call("/v3/kv/range", _range(after, service.key, limit=PAGE, revision=revision))
        found += page["kvs"]
    return found


@contextmanager
def _plausible() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RegistryError(f"not an answer of etcd's: {type(error).__name__}: {error}") from error


def _range(begin: bytes, service: bytes, **options: Any) -> Json:
    return {"key": encode(begin), "range_end": encode(range_end(service)), **options}
