"""An application's own entry in a registry: made, kept alive, marked as leaving, removed.

How a registry holds an entry is its `Registrar`'s business; here is the life of the entry, the same for all
of them. The registry may be away at any time, before the start too: the application goes on, and the entry is
made again when the registry is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any

from discovery.model import Instance, Status
from discovery.registrar import Registrar

CALL_TIMEOUT = 3.0
"""Seconds that one call to the registry may take: a frozen one must not freeze the application."""
BACKOFF_MIN, BACKOFF_MAX = 0.1, 2.0
"""Seconds between attempts while the registry is away; doubled each time, up to half left to chance."""
LAST_ATTEMPTS = 3
"""How often a deregistration is tried: a registry that elects a leader just then must not keep the entry."""

_log = logging.getLogger(__name__)


class State(Enum):
    """What the registry knows of us, as far as we know."""

    NEW = "new"
    """`start` was not called yet."""
    UNKNOWN = "unknown"
    """The registry has not confirmed the entry as it should be: it is being made."""
    REGISTERED = "registered"
    """The registry has confirmed it; beats keep it."""
    ENDED = "ended"
    """Deregistered, or given up to its time to live."""


class Registration:
    """One instance's entry in one registry: `registrar` holds it, `instance` is what it shall say.

    One task makes every call but the last, so that a change never overtakes the one before it. `timeout` is
    in seconds, for one call.
    """

    def __init__(
        self,
        registrar: Registrar,
        instance: Instance,
        *,
        timeout: float = CALL_TIMEOUT,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.instance = instance
        self.state = State.NEW
        self.last_error: str | None = None
        """Why the registry does not have the entry; None when it does."""
        self.beats_failed = 0
        """Beats that the registry did not take, since the start."""
        self.on_change: Callable[[], None] = lambda: None
        """Told when `state` has changed, and when the first of several attempts has failed."""
        self._registrar = registrar
        self._timeout = timeout
        self._sleep = sleep
        self._random = rng or random.Random()
        self._failures = 0
        self._wanted = asyncio.Event()
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def kind(self) -> str:
        """Of the registry."""
        return self._registrar.kind

    async def start(self) -> bool:
        """Registers, and keeps the entry from now on.

        Returns after the first attempt, whether it succeeded: False means that the registry is away and the
        entry will be made as soon as it is back. Never raises for the registry's sake.
        """
        if self._task is not None:
            raise RuntimeError("this registration was started already")
        self._set(State.UNKNOWN)
        self._task = asyncio.create_task(self._keep(), name=f"entry {self.instance.id}")
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

    async def deregister(self, within: float = CALL_TIMEOUT) -> bool:
        """Ends the beats and removes the entry, within so many seconds. May be called twice.

        Returns False when the registry could not be told; the entry ends by its time to live then.
        """
        if self.state is State.ENDED or self._task is None:
            return self.state is State.ENDED
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        try:
            # A call that is out would make the entry again, if it reached the registry after the last one.
            await self._end(within / 2)
            return await self._remove(deadline)
        finally:
            await self._registrar.close()

    async def release(self) -> None:
        """Ends the beats and leaves the entry to whoever keeps it now, or to its time to live."""
        if self.state is not State.ENDED and self._task is not None:
            await self._end(0.0)
            await self._registrar.close()

    # -- inside -----------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while not self._has_ended():
            # A change that comes while a call is out must find the flag down, so that it raises it again.
            self._wanted.clear()
            entry = self.instance
            await self._attempt(entry)
            if entry is self.instance:
                self._attempted.set()
            if not self._has_ended():
                await self._pause()

    async def _attempt(self, entry: Instance) -> None:
        beating = self.state is State.REGISTERED
        try:
            async with asyncio.timeout(max(0.2, min(self._timeout, self._registrar.interval))):
                if not (beating and await self._registrar.beat(entry)):
                    if beating:
                        self._missed(f"the registry does not know {entry.id}")
                    await self._registrar.register(entry)
        except Exception as error:  # a registrar that fails in a way of its own must not end the beats
            if beating:
                self._missed(_reason(error))
            self._failed(_reason(error))
        else:
            if self._failures:
                _log.info("%s: %s is registered", self.kind, entry.id)
            self._failures, self.last_error = 0, None
            if entry is self.instance:
                self._set(State.REGISTERED)

    def _missed(self, reason: str) -> None:
        self.beats_failed += 1
        _log.info("%s: the entry was not kept: %s", self.kind, reason)

    async def _pause(self) -> None:
        """Until the next beat or attempt is due, or the entry is to say something else."""
        if self._failures:
            delay = _backoff(self._failures, self._random)
        else:
            delay = self._registrar.interval * self._random.uniform(0.8, 1.0)
        timer = asyncio.ensure_future(self._sleep(delay))
        wanted = asyncio.ensure_future(self._wanted.wait())
        try:
            await asyncio.wait({timer, wanted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            wanted.cancel()

    def _failed(self, reason: str) -> None:
        if self.last_error is None:
            _log.warning("%s: cannot register %s: %s; trying on", self.kind, self.instance.id, reason)
        self._failures += 1
        self.last_error = reason
        if self.state is not State.UNKNOWN:
            self._set(State.UNKNOWN)
        elif self._failures == 1:
            self.on_change()

    async def _end(self, patience: float) -> None:
        """End the beats; a call that is out has so many seconds to finish."""
        task = self._task
        assert task is not None
        self._set(State.ENDED)
        self._wanted.set()
        await asyncio.wait({task}, timeout=patience)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        self._attempted.set()

    async def _remove(self, deadline: float) -> bool:
        kind, entry = self._registrar.kind, self.instance
        reason = ""
        try:
            async with asyncio.timeout_at(deadline):
                for attempt in range(1, LAST_ATTEMPTS + 1):
                    try:
                        await self._registrar.deregister(entry)
                        return True
                    except Exception as error:
                        reason = _reason(error)
                    if attempt < LAST_ATTEMPTS:
                        await self._sleep(_backoff(attempt, self._random))
        except TimeoutError:
            reason = reason or "no answer in time"
        _log.warning("%s: cannot deregister %s: %s; it ends by its time to live", kind, entry.id, reason)
        return False

    def _set(self, state: State) -> None:
        # What has ended stays so, whatever a call that was out still brings.
        if self.state is not State.ENDED and state is not self.state:
            self.state = state
            self.on_change()

    def _has_ended(self) -> bool:
        return self.state is State.ENDED

    def _is_registered(self) -> bool:
        return self.state is State.REGISTERED


def _backoff(failures: int, rng: random.Random) -> float:
    delay = min(BACKOFF_MAX, BACKOFF_MIN * 2.0 ** min(failures - 1, 16))
    return delay * rng.uniform(0.5, 1.0)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
