"""Kubernetes' EndpointSlices, by list and watch.

Source: Kubernetes API concepts, "Efficient detection of changes". The rules kept here: one list and one watch
for each namespace, whatever the number of services; a version that the server has forgotten (410, as a status
or within the watch) means to list anew; a watch that ends in order goes on from the last version, bookmarks
included; one that the server does not end in time means that it is frozen.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

import aiohttp

from config.registries import KubernetesRegistry
from discovery.belief import Backoff
from discovery.endpointslices import SERVICE_NAME, Slices, service_refs
from discovery.kubernetes_api import Api, Events, Expired, access_of
from discovery.model import RegistryError, Update

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds `token`, `ca.crt` and `namespace`; the token and the CA rotate there."""
GRACE = 10.0
"""Seconds until the head of an answer must be there, and a watch's end after it was due."""
LONGEST_SELECTOR = 2000
"""Characters of names in one request; with more, the slices of all services are asked for."""
SHORT = 5.0
"""Seconds (or half of what was asked for) that a watch lasts where all is well."""
MOST_SHORT = 8
"""Watches in a row that may be shorter until that is an error."""
MOST_SILENT = 5
"""Watches in a row that may tell nothing at all until all is listed anew. A server that was set back to a
backup says nothing until it reaches the version it is asked about."""

_log = logging.getLogger(__name__)
_Answers = asyncio.Queue[Update | RegistryError]


class KubernetesWatcher:
    """Yields the instances of each service; `watch` takes names as `discovery.endpointslices.service_refs`.

    `environ` and `account` are where a pod finds its API server and its credentials.
    """

    kind = "kubernetes"

    def __init__(
        self,
        registry: KubernetesRegistry,
        *,
        environ: Mapping[str, str] = os.environ,
        account: Path = ACCOUNT,
        grace: float = GRACE,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._environ = environ
        self._account = account
        self._grace = grace
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._random = rng or random.Random()

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """Raises `RegistryError` as soon as one namespace cannot be followed."""
        access = access_of(self._registry, self._environ, self._account)
        wanted = {name: service_refs(name, access.namespace) for name in services}
        slices = Slices(wanted, self._registry.port or "", access.family)
        for name in sorted(name for name, refs in wanted.items() if not refs):
            yield Update(name, None, self._clock(), self.kind)
        # aiohttp repeats a GET by itself on a kept connection that broke. The system's resolver: names of a
        # cluster come from its search path and its hosts file.
        connector = aiohttp.TCPConnector(limit=0, force_close=True, resolver=aiohttp.ThreadedResolver())
        answers: _Answers = asyncio.Queue()
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
            api = Api(session, access, self._grace)
            tasks = [
                asyncio.create_task(self._deliver(api, namespace, names, slices, answers))
                for namespace, names in sorted(slices.namespaces().items())
            ]
            try:
                while True:
                    answer = await answers.get()
                    if isinstance(answer, RegistryError):
                        raise answer
                    yield answer
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(
        self, api: Api, namespace: str, names: set[str], slices: Slices, answers: _Answers
    ) -> None:
        try:
            await self._follow(api, namespace, _selector(names), slices, answers)
        except RegistryError as error:
            answers.put_nowait(error)
        except Exception as error:
            answers.put_nowait(RegistryError(f"{api.base}: {type(error).__name__}: {error}"))

    async def _follow(
        self, api: Api, namespace: str, selector: str, slices: Slices, answers: _Answers
    ) -> None:
        """Lists, and watches for ever. Waits only between watches that end too early."""
        version, short, silent = "", 0, 0
        while True:
            begun = self._clock()
            silent += 1
            try:
                if not version:
                    version, items = await api.listing(namespace, selector)
                    self._tell(slices, slices.replace(namespace, items), self._clock(), answers)
                seconds = max(1, round(self._registry.wait * self._random.uniform(0.7, 1.0)))
                async with aclosing(api.watch(namespace, selector, version, seconds)) as stream:
                    async for events in stream:
                        silent = 0
                        version = self._take(slices, namespace, events, answers) or version
            except Expired:
                version = ""
            if silent >= MOST_SILENT:
                version, silent = "", 0
            lasted = self._clock() - begun >= min(SHORT, self._registry.wait / 2)
            short = 0 if lasted else short + 1
            if short > MOST_SHORT:
                raise RegistryError(f"{api.base}: {short} watches in a row ended as soon as they had begun")
            if short:
                await asyncio.sleep(self._backoff.delay(short, self._random))

    def _take(self, slices: Slices, namespace: str, events: Events, answers: _Answers) -> str:
        """Returns the version after these events; empty when they tell none."""
        at, changed, version = self._clock(), set[str](), ""
        for kind, item in events:
            version = str(item["metadata"].get("resourceVersion") or version)
            if kind == "DELETED":
                changed |= slices.remove(namespace, item)
            elif kind != "BOOKMARK":
                changed |= slices.put(namespace, item)
        self._tell(slices, changed, at, answers)
        return version

    def _tell(self, slices: Slices, changed: set[str], at: float, answers: _Answers) -> None:
        for name in sorted(changed):
            if not slices.is_complete(name):
                continue
            instances, refused, usable = slices.told(name)
            if usable:
                # What is not there may be in a slice that makes no sense.
                answers.put_nowait(Update(name, instances, at, self.kind, refused, partial=bool(refused)))
            else:
                _log.warning("service %s: nothing can be read: %s", name, "; ".join(refused))


def _selector(names: set[str]) -> str:
    listed = f"{SERVICE_NAME} in ({','.join(sorted(names))})"
    return listed if len(listed) <= LONGEST_SELECTOR else SERVICE_NAME
