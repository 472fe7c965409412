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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
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
    seen: bool = False
    """There was a key since the watch began: only then has etcd told that they went. It keeps no names of
    services, and one without keys is like one that nobody has heard of."""

    def update(self, at: float) -> Update:
        found: dict[str, Instance] = {}
        for key in sorted(self.instances):
            # Two keys can be the same id when one was written by hand.
            found.setdefault(self.instances[key].id, self.instances[key])
        ordered = tuple(found[id] for id in sorted(found))
        return Update(self.name, ordered if self.seen else None, at, EtcdWatcher.kind)


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
        self._garbage: dict[bytes, str] = {}
        """Keys that were complained of, with the revision of their value."""

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
                    yield service.update(begun)
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
                    self._replace(service, await _whole(client, service, page, revision))
        return cluster, revision

    def _replace(self, service: _Service, found: list[Json]) -> None:
        for key in service.instances.keys() - {decode(kv["key"]) for kv in found}:
            self._drop(service, key)
        for kv in found:
            self._put(service, kv)

    # -- what changes -----------------------------------------------------------------------------------

    async def _follow(
        self, client: EtcdClient, known: list[_Service], revision: int
    ) -> AsyncGenerator[Update, None]:
        """Yields changes until everything has to be read again."""
        due = self._clock() + self._registry.resync * self._random.uniform(0.9, 1.0)
        by_watch = dict(enumerate(known, 1))
        async with client.stream("/v3/watch", _watches(by_watch, revision)) as stream:
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
                        service = self._apply(by_watch, message)
                    if service is not None:
                        yield service.update(at)

    def _apply(self, known: Mapping[int, _Service], message: Json) -> _Service | None:
        """Takes the events of one message. Returns the service when it is whole again."""
        if message.get("canceled"):
            raise RegistryError(f"the watch was refused: {message.get('cancel_reason')}")
        events = message.get("events")
        if not events:
            return None
        service = known[int(message["watch_id"])]
        for event in events:
            if event.get("type") == "DELETE":
                self._drop(service, decode(event["kv"]["key"]))
            else:
                self._put(service, event["kv"])
        return None if message.get("fragment") else service

    def _put(self, service: _Service, kv: Json) -> None:
        key = decode(kv["key"])
        service.seen = True
        try:
            instance = instance_of(service.name, key[len(service.key) :], decode(kv.get("value", "")))
        except ValueError as error:
            # Its key says that it is alive; so what it said last holds, if it ever said something.
            if self._garbage.get(key) != kv["mod_revision"]:
                self._garbage[key] = kv["mod_revision"]
                kept = "what it said before holds" if key in service.instances else "it is left out"
                _log.warning("registry etcd: %s: %s; %s", key.decode(errors="replace"), error, kept)
        else:
            self._garbage.pop(key, None)
            service.instances[key] = instance

    def _drop(self, service: _Service, key: bytes) -> None:
        service.instances.pop(key, None)
        self._garbage.pop(key, None)


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


def _watches(services: Mapping[int, _Service], revision: int) -> bytes:
    """A watch for each service, in one stream: the gateway takes any number of requests in one body."""
    asked: Json = {"start_revision": revision, "fragment": True, "progress_notify": True}
    return b"".join(
        orjson.dumps({"create_request": _range(service.key, service.key, watch_id=number, **asked)}) + b"\n"
        for number, service in services.items()
    )
