"""An application's own entry in a Consul-speaking registry: made, kept alive, marked as leaving, removed.

Source: Consul HTTP API, "Register Service", "TTL Check Pass", "Deregister Service". The registry may be away
at any time, before the start too: the application goes on, and the entry is made again when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from discovery.labels import metadata_of
from discovery.model import Instance, Status

DEFAULT_TTL = 10.0
"""Seconds without a heartbeat after which the registry counts the instance as crashed."""
HEARTBEATS_PER_TTL = 3
REQUEST_TIMEOUT = 3.0
"""Seconds one call to the registry may take; a frozen registry must not freeze the application."""
BACKOFF_MIN, BACKOFF_MAX = 0.1, 2.0
"""Seconds between attempts while the registry is away; doubled each time, up to half left to chance."""

_log = logging.getLogger(__name__)


class State(Enum):
    """What the registry knows of us, as far as we know."""

    NEW = "new"
    """`start` was not called yet."""
    UNKNOWN = "unknown"
    """The registry has not confirmed the entry as it should be: it is being made."""
    REGISTERED = "registered"
    """The registry has confirmed it; heartbeats keep it."""
    ENDED = "ended"
    """Deregistered, or given up to its TTL."""


class Registration:
    """One instance's entry. `url` is the registry's base URL, `instance` what it shall say.

    `ttl` is in seconds. With `http_check` (a URL) the registry asks the instance every `ttl / 3` instead of
    waiting for heartbeats. `deregister_after`: seconds critical until the registry forgets the entry.
    """

    def __init__(
        self,
        url: str,
        instance: Instance,
        *,
        ttl: float = DEFAULT_TTL,
        http_check: str | None = None,
        deregister_after: float = 60.0,
        token: str | None = None,
        sleep: Callable[[float], Any] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.instance = instance
        self.state = State.NEW
        self.last_error: str | None = None
        """Why the registry does not have the entry; None when it does."""
        self._url = url.rstrip("/")
        self._interval = ttl / HEARTBEATS_PER_TTL
        self._check = _check(instance.id, ttl, http_check, deregister_after)
        self._heartbeats = http_check is None
        self._headers = {"X-Consul-Token": token} if token else None
        self._sleep = sleep
        self._random = rng or random.Random()
        self._failures = 0
        self._wanted = asyncio.Event()
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> bool:
        """Registers, and keeps the entry from now on.

        Returns after the first attempt, whether it succeeded: False means that the registry is away and the
        entry will be made as soon as it is back. Never raises for the registry's sake.
        """
        if self._task is not None:
            raise RuntimeError("this registration was started already")
        timeout = aiohttp.ClientTimeout(total=min(REQUEST_TIMEOUT, max(self._interval, 0.2)))
        self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        self._set(State.UNKNOWN)
        self._task = asyncio.create_task(self._keep())
        await self._attempted.wait()
        return self._is_registered()

    async def drain(self) -> bool:
        """Marks the entry `draining=true`: keep what it has, give it nothing new. Returns after the attempt,
        whether the registry took it; if it did not, it is tried again until `deregister`."""
        return await self.update(replace(self.instance, status=Status.DRAINING))

    async def update(self, instance: Instance) -> bool:
        """Replaces what the entry says (weight, metadata, draining). Returns after the attempt, as `drain`.

        Raises `ValueError` when service or id differ: that is another entry.
        """
        if (instance.service, instance.id) != (self.instance.service, self.instance.id):
            raise ValueError("an entry keeps its service and id; make another registration")
        self.instance = instance
        if self.state in (State.NEW, State.ENDED):
            return False
        self._set(State.UNKNOWN)
        self._attempted.clear()
        self._wanted.set()
        await self._attempted.wait()
        return self._is_registered()

    async def deregister(self) -> bool:
        """Ends the heartbeats and removes the entry, within `REQUEST_TIMEOUT`. May be called twice.

        Returns False when the registry could not be told; the entry ends by its TTL then.
        """
        task, session = self._task, self._session
        if self.state is State.ENDED or task is None or session is None:
            return self.state is State.ENDED
        self._set(State.ENDED)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        self._attempted.set()
        try:
            status = await self._put(f"/v1/agent/service/deregister/{_quoted(self.instance.id)}")
            if status not in (200, 404):
                _log.warning("%s did not deregister %s: status %s", self._url, self.instance.id, status)
            return status in (200, 404)
        except (aiohttp.ClientError, OSError) as error:
            _log.warning("cannot deregister %s from %s: %s", self.instance.id, self._url, _reason(error))
            return False
        finally:
            await session.close()

    # -- inside -----------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            # A change that comes while a call is out must find the flag down, so that it raises it again.
            self._wanted.clear()
            entry = self.instance
            try:
                alive = self.state is State.REGISTERED and await self._still_there()
                if not alive:
                    await self._register(entry)
            except (aiohttp.ClientError, OSError) as error:
                self._failed(_reason(error))
            else:
                self._failures, self.last_error = 0, None
                if entry is self.instance:
                    self._set(State.REGISTERED)
            if entry is self.instance:
                self._attempted.set()
            await self._pause()

    async def _register(self, entry: Instance) -> None:
        body = orjson.dumps(_body(entry, self._check))
        status = await self._put("/v1/agent/service/register", body)
        if status == 200 and self._heartbeats:
            # Registering again does not lift a check that was critical.
            status = await self._put(f"/v1/agent/check/pass/{_quoted(self._check['CheckID'])}")
        if status != 200:
            raise aiohttp.ClientError(f"status {status}")

    async def _still_there(self) -> bool:
        """A heartbeat, or a look when the registry does the checking. False when the registry forgot us."""
        if self._heartbeats:
            status = await self._put(f"/v1/agent/check/pass/{_quoted(self._check['CheckID'])}")
        else:
            assert self._session is not None
            path = f"{self._url}/v1/agent/service/{_quoted(self.instance.id)}"
            async with self._session.get(_exact(path)) as response:
                status = response.status
        if status != 200:
            _log.info("%s does not know %s (status %s)", self._url, self.instance.id, status)
        return status == 200

    async def _put(self, path: str, body: bytes = b"") -> int:
        assert self._session is not None
        async with self._session.put(_exact(self._url + path), data=body) as response:
            await response.read()
            return response.status

    async def _pause(self) -> None:
        """Until the next heartbeat or attempt is due, or the entry is to say something else."""
        if self._failures:
            delay = min(BACKOFF_MAX, BACKOFF_MIN * 2.0 ** min(self._failures - 1, 16))
            delay *= self._random.uniform(0.5, 1.0)
        else:
            delay = self._interval * self._random.uniform(0.8, 1.0)
        timer = asyncio.ensure_future(self._sleep(delay))
        wanted = asyncio.ensure_future(self._wanted.wait())
        try:
            await asyncio.wait({timer, wanted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            wanted.cancel()

    def _failed(self, reason: str) -> None:
        if self.last_error is None:
            _log.warning("%s: cannot register %s: %s; trying on", self._url, self.instance.id, reason)
        self._failures += 1
        self.last_error = reason
        self._set(State.UNKNOWN)

    def _set(self, state: State) -> None:
        self.state = state

    def _is_registered(self) -> bool:
        return self.state is State.REGISTERED


def _check(instance_id: str, ttl: float, http_check: str | None, deregister_after: float) -> dict[str, Any]:
    check: dict[str, Any] = {
        "CheckID": f"service:{instance_id}",
        "DeregisterCriticalServiceAfter": _go_duration(deregister_after),
    }
    if http_check is None:
        return check | {"TTL": _go_duration(ttl), "Status": "passing"}
    interval = _go_duration(ttl / HEARTBEATS_PER_TTL)
    return check | {"HTTP": http_check, "Interval": interval, "Timeout": interval}


def _body(instance: Instance, check: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "ID": instance.id,
        "Name": instance.service,
        "Meta": metadata_of(instance),
        # Consul's own weights begin at 1, so the exact one is in Meta too.
        "Weights": {"Passing": max(1, instance.weight), "Warning": max(1, instance.weight)},
        "Check": check,
    }
    if instance.path:
        return body | {"SocketPath": instance.path}
    return body | {"Address": instance.host, "Port": instance.port}


def _go_duration(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _exact(url: str) -> URL:
    return URL(url, encoded=True)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
