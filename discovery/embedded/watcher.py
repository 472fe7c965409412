"""The embedded registry seen from inside its process: no polling, no sockets."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial

from discovery.embedded.shapes import health_entry
from discovery.embedded.store import Store
from discovery.embedded.topics import Kind, Topic
from discovery.entry import instances_of
from discovery.model import Instance, Update


class EmbeddedWatcher:
    """Yields the sets of a `Store` of this process, each change by itself, in order.

    A change is read at the moment it happens, not when the reader gets to it: two deregistrations in one
    turn of the loop are two updates, so neither looks like the loss of many at once.
    """

    kind = "embedded"

    def __init__(
        self, store: Store, node_address: str = "127.0.0.1", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._node_address = node_address
        self._clock = clock

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Yields for ever; a registry in the same process does not fail."""
        queue: deque[Update] = deque()
        filled = asyncio.Event()
        known = {name for name in services if self._store.instances(name)}

        def changed(name: str) -> None:
            at = self._clock()
            known.add(name)
            queue.append(Update(name, self._instances(name), at, self.kind))
            filled.set()

        unsubscribe = [
            self._store.topics.subscribe(Topic(Kind.SERVICE, name), partial(changed, name))
            for name in services
        ]
        try:
            for name in services:
                instances = self._instances(name) if name in known else None
                queue.append(Update(name, instances, self._clock(), self.kind))
            while True:
                while queue:
                    yield queue.popleft()
                filled.clear()
                await filled.wait()
        finally:
            for end in unsubscribe:
                end()

    def _instances(self, name: str) -> tuple[Instance, ...]:
        entries = [health_entry(service, self._node_address) for service in self._store.instances(name)]
        return instances_of(name, entries)
