"""One instance in one registry: entered, seen there, kept, taken out."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from discovery.model import Instance, RegistryError, Status, Watcher
from discovery.register import CALL_TIMEOUT, Registration, State
from discovery.registrar import Registrar

CONFIRM_TIME = 5.0
"""Seconds in which a registry that has taken an entry should show it; nobody waits longer for that."""
_BACKOFF_MIN, _BACKOFF_MAX = 0.1, 2.0

_log = logging.getLogger("holdfast.register")


class MakeRegistrar(Protocol):
    """What enters instances in a registry."""

    def __call__(self, *, ttl: float, check: str | None) -> Registrar:
        """`ttl` in seconds; `check`: a URL that the registry shall ask itself, where it can."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A registry in which instances can be entered. `name` tells two of a kind apart."""

    kind: str
    name: str
    make_registrar: MakeRegistrar
    make_watcher: Callable[[], Watcher]
    """Reads the same registry as everybody else does."""


class Seat:
    """Owns one registration at a time. `emit` takes events, `changed` is told when something here is new."""

    def __init__(
        self,
        place: Place,
        emit: Callable[..., None],
        changed: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.place = place
        self.confirmed = False
        """The registry has shown the entry since it was made."""
        self.seconds = 0.0
        """From the wish to enter until the registry showed it, the last time."""
        self._emit = emit
        self._changed = changed
        self._clock = clock
        self._random = rng or random.Random()
        self._registration: Registration | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._attempted = asyncio.Event()
        self._there = asyncio.Event()
        self._overdue = False
        self._lost = False
        self._known = False
        """The registry has once taken the entry, and was not told since that it is gone."""
        self._beats_failed = 0

    @property
    def registered(self) -> bool:
        """Whether the registry has the entry, as far as this process knows."""
        return self._registration is not None and self._registration.state is State.REGISTERED

    @property
    def entered(self) -> bool:
        """Whether it was joined, and not left since."""
        return self._registration is not None

    @property
    def known(self) -> bool:
        """Whether others may have heard of the entry."""
        return self._known

    @property
    def error(self) -> str | None:
        """Why the registry does not have the entry; None when it has, or was not asked yet."""
        return self._registration.last_error if self._registration is not None else None

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: the entry is shown, or the registry cannot be relied on."""
        return self.confirmed or self._overdue or self.error is not None

    @property
    def beats_failed(self) -> int:
        """Beats that the registry did not take, since the process began."""
        now = self._registration.beats_failed if self._registration is not None else 0
        return self._beats_failed + now

    def join(self, instance: Instance, ttl: float, check: str | None) -> None:
        """Enter an instance, keep it entered, and see whether the registry shows it. Returns at once."""
        assert self._registration is None
        registration = Registration(self.place.make_registrar(ttl=ttl, check=check), instance)
        registration.on_change = self._told
        self._registration, self._leaving = registration, None
        self._attempted.clear()
        self._timer = asyncio.get_running_loop().call_later(CONFIRM_TIME, self._late)
        self._task = asyncio.create_task(self._enter(registration), name=f"entry in {self.place.name}")

    async def attempted(self) -> None:
        """Wait until the registry has been asked once, whatever it answered. Only after `join`."""
        await self._attempted.wait()

    async def update(self, instance: Instance) -> None:
        """Change what the entry says. Only after `join`."""
        if self._registration is not None:
            await self._registration.update(instance)

    async def mark(self, status: Status) -> None:
        """Change whether the entry is marked as leaving. Only after `join`."""
        if self._registration is not None:
            await self.update(replace(self._registration.instance, status=status))

    async def renew(self) -> None:
        """Say again what the entry says."""
        if self._registration is not None:
            await self.update(self._registration.instance)

    async def leave(self, within: float = CALL_TIMEOUT) -> bool:
        """Take the entry out within so many seconds; whether the registry has taken note.

        Goes on when the caller is cancelled: half a deregistration would be none.
        """
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(within))
        return await asyncio.shield(self._leaving)

    async def forget(self, instance: Instance) -> None:
        """Take out what another process has entered and cannot take out any more."""
        await self.leave()
        registrar = self.place.make_registrar(ttl=1.0, check=None)
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await registrar.deregister(instance)
        except (RegistryError, OSError) as error:
            _log.warning("%s: %s ends by its time to live: %s", self.place.name, instance.id, error)
        finally:
            await registrar.close()

    async def release(self) -> None:
        """Leave the entry to the process that keeps it from now on."""
        registration = self._take()
        if registration is not None:
            await self._stop_entering()
            await registration.release()

    # -- inside --------------------------------------------------------------------------------------------

    async def _enter(self, registration: Registration) -> None:
        began = self._clock()
        await registration.start()
        self._attempted.set()
        await self._see(registration)
        self.seconds = self._clock() - began
        self.confirmed, self._overdue = True, False
        self._stop_timer()
        self._note("registered", registration.instance, seconds=round(self.seconds, 3))
        self._changed()

    async def _see(self, registration: Registration) -> None:
        """Until the registry shows the entry to whoever watches it."""
        failures = 0
        while True:
            await self._there.wait()
            try:
                if await _shown(self.place.make_watcher(), registration.instance):
                    return
            except (RegistryError, OSError) as error:
                _log.info("%s: cannot see whether it shows the entry: %s", self.place.name, error)
            failures += 1
            delay = min(_BACKOFF_MAX, _BACKOFF_MIN * 2.0 ** min(failures - 1, 16))
            await asyncio.sleep(delay * self._random.uniform(0.5, 1.0))

    async def _leave(self, within: float) -> bool:
        registration = self._take()
        if registration is None:
            return True
        await self._stop_entering()
        told = await registration.deregister(within)
        self._known = False
        self._note("deregistered", registration.instance, told=told)
        return told

    def _take(self) -> Registration | None:
        registration, self._registration = self._registration, None
        if registration is not None:
            self._beats_failed += registration.beats_failed
            registration.on_change = lambda: None
        self.confirmed = self._overdue = self._lost = False
        self._there.clear()
        self._stop_timer()
        return registration

    async def _stop_entering(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._attempted.set()

    def _told(self) -> None:
        registration = self._registration
        assert registration is not None
        if registration.state is State.REGISTERED:
            self._known = True
            self._there.set()
            if self._lost and self.confirmed:
                self._note("registered_again", registration.instance)
            self._lost = False
        else:
            self._there.clear()
            if registration.last_error is not None and not self._lost:
                self._lost = True
                self._note("register_failed", registration.instance, reason=registration.last_error)
        self._changed()

    def _late(self) -> None:
        self._overdue = True
        if self.registered and self._registration is not None:
            self._note("entry_not_shown", self._registration.instance, seconds=CONFIRM_TIME)
        self._changed()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note(self, kind: str, instance: Instance, **facts: object) -> None:
        self._emit(kind, service=instance.service, instance=instance.id, registry=self.place.name, **facts)


async def _shown(watcher: Watcher, instance: Instance) -> bool:
    """Wait until a registry shows an instance; False when it stops telling anything before."""
    updates = watcher.watch(frozenset({instance.service}))
    try:
        async for update in updates:
            # Not every registry keeps ids.
            if any(
                seen.address == instance.address and seen.status is not Status.DOWN
                for seen in update.instances or ()
            ):
                return True
        return False
    finally:
        if (close := getattr(updates, "aclose", None)) is not None:
            await close()
