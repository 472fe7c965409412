"""One application beside this process: asked whether it is ready, entered while it is, taken out in time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from config.schema import Health, HealthKind, NotifyOn, Ready, Register, Unready
from discovery.model import Status
from proxy.health import probe
from proxy.sidecar.address import app_instance, instance_of
from proxy.sidecar.notice import Notice
from proxy.sidecar.seat import Place, Seat
from proxy.sidecar.webhook import Webhook

_HURRY = 0.25
"""Share of the interval while it is being made sure whether the application is ready."""
_REACH = 1.0
"""Seconds in which the address that others are told should accept a connection."""
_LOOK = 0.1
"""Seconds between looks whether the application has ended."""
_ACCEPTS = Health(kind=HealthKind.TCP)


@dataclass(slots=True)
class Streak:
    """Whether the application is ready, by what it answered so far. Not until it has been seen to be."""

    ready: bool = False
    _differing: int = 0

    @property
    def sure(self) -> bool:
        """Whether it is ready, and the last answer said so too."""
        return self.ready and not self._differing

    def observe(self, passed: bool, healthy: int, unhealthy: int) -> bool:
        """Count an answer; whether readiness has changed by it. It takes as many in a row as are given."""
        if passed is self.ready:
            self._differing = 0
            return False
        self._differing += 1
        if self._differing < (healthy if passed else unhealthy):
            return False
        self.ready, self._differing = passed, 0
        return True


class Entry:
    """The life of one section `register`. `start`, and `leave` or `release` in the end."""

    def __init__(
        self,
        section: Register,
        places: Sequence[Place],
        emit: Callable[..., None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.section = section
        self.instance = instance_of(section)
        self.seats = [Seat(place, emit, self._seat_changed, clock=clock, rng=rng) for place in places]
        self.webhooks = [Webhook(notify) for notify in section.notify]
        self.wrong: str | None = "it was not asked yet"
        """Why the application is not ready, as it was found last; None when it is."""
        self.up = False
        """Its registries show it, as far as they can be relied on."""
        self._emit = emit
        self._wall = wall
        self._random = rng or random.Random()
        self._streak = Streak()
        self._task: asyncio.Task[None] | None = None
        self._reaching: asyncio.Task[None] | None = None

    @property
    def known(self) -> bool:
        """Whether others may come: by a registry that has the entry, or by the readiness answered here."""
        return any(seat.known for seat in self.seats) or (not self.seats and self.app_ready)

    @property
    def app_ready(self) -> bool:
        """Whether the application counts as ready."""
        return self._streak.ready

    def start(self, *, inherited: bool = False, up: bool = False) -> None:
        """Begin to ask the application. `inherited`: another process has had it entered up to now."""
        if inherited:
            self._streak.ready, self.wrong, self.up = True, None, up
            self._join()
        self._task = asyncio.create_task(self._ask_for_ever(), name=f"app of {self.instance.service}")

    def unready(self) -> list[str]:
        """Why the application should not be sent traffic; empty when it is ready and can be found."""
        service = self.instance.service
        if not self.app_ready:
            return [f"the application of {service} is not ready: {self.wrong}"]
        waiting = [seat.place.name for seat in self.seats if not seat.settled]
        return [f"{service} is not shown by {', '.join(waiting)} yet"] if waiting and not self.up else []

    async def reconfigure(self, section: Register) -> None:
        """Take over a section that differs only in what an entry can change in its life."""
        former, self.section = self.section, section
        if section.notify != former.notify:
            closing = self.webhooks
            self.webhooks = [Webhook(notify) for notify in section.notify]
            await asyncio.gather(*(webhook.close(0.0) for webhook in closing))
        instance = instance_of(section)
        if instance != self.instance:
            self.instance = instance
            await asyncio.gather(*(seat.update(instance) for seat in self.seats))

    async def leave(self, within: float, reason: str) -> bool:
        """Take the entry out for good within so many seconds; whether every registry has taken note."""
        await self._stop()
        told = await asyncio.gather(*(seat.leave(within) for seat in self.seats))
        self._is_down(reason)
        return all(told)

    async def release(self) -> None:
        """Leave the entry to the process that keeps it from now on."""
        await self._stop()
        await asyncio.gather(*(seat.release() for seat in self.seats))

    async def renew(self) -> None:
        """Say again what the entry says: another process may have taken it along into its end."""
        await asyncio.gather(*(seat.renew() for seat in self.seats))

    async def forget(self) -> None:
        """Take out what another process has entered, after this one has left or is leaving."""
        await asyncio.gather(*(seat.forget(self.instance) for seat in self.seats))

    async def outlive(self, limit: float) -> None:
        """Wait until the application has ended, for as long as its section says, within `limit` seconds."""
        app = app_instance(self.section)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(self.section.outlive, limit))):
                while (await probe(app, _ACCEPTS, _REACH)).wrong is None:  # noqa: ASYNC110 - a process's end
                    await asyncio.sleep(_LOOK)

    async def close(self, patience: float) -> None:
        """Give webhooks a last moment."""
        await asyncio.gather(*(webhook.close(patience) for webhook in self.webhooks))

    # -- inside --------------------------------------------------------------------------------------------

    async def _ask_for_ever(self) -> None:
        app = app_instance(self.section)
        while True:
            ready = self.section.ready
            self.wrong = (await probe(app, _check(ready), ready.timeout)).wrong
            if self._streak.observe(self.wrong is None, ready.healthy, ready.unhealthy):
                if self._streak.ready:
                    await self._came()
                else:
                    await self._went(self.wrong or "")
            wait = ready.interval * (1.0 if self._streak.sure else _HURRY)
            await asyncio.sleep(wait * self._random.uniform(0.9, 1.1))

    async def _came(self) -> None:
        self._emit("app_ready", service=self.instance.service, instance=self.instance.id)
        marked = [seat for seat in self.seats if seat.entered]
        self._join()
        await asyncio.gather(*(seat.mark(Status.UP) for seat in marked))
        self._seat_changed()

    async def _went(self, reason: str) -> None:
        self._emit("app_unready", service=self.instance.service, instance=self.instance.id, reason=reason)
        if self.section.unready is Unready.DRAIN:
            await asyncio.gather(*(seat.mark(Status.DRAINING) for seat in self.seats))
        else:
            await asyncio.gather(*(seat.leave() for seat in self.seats))
        self._is_down(reason)

    def _join(self) -> None:
        for seat in self.seats:
            if not seat.entered:
                seat.join(self.instance, self.section.ttl, self.section.check)
        if self._reaching is None:
            self._reaching = asyncio.create_task(self._reach(), name="reach")

    async def _reach(self) -> None:
        """An address that nobody can reach is the commonest mistake, and the hardest to see from here."""
        found = await probe(self.instance, _ACCEPTS, _REACH)
        if found.wrong is not None:
            self._emit(
                "address_unreachable",
                service=self.instance.service,
                address=self.instance.address,
                reason=found.wrong,
            )

    def _seat_changed(self) -> None:
        shown = [seat.place.name for seat in self.seats if seat.confirmed]
        found = bool(shown or not self.seats) and all(seat.settled for seat in self.seats)
        if self.app_ready and not self.up and found:
            self.up = True
            self._notify(NotifyOn.UP, "", shown)

    def _is_down(self, reason: str) -> None:
        if self.up:
            self.up = False
            self._notify(NotifyOn.DOWN, reason, [seat.place.name for seat in self.seats])

    def _notify(self, event: NotifyOn, reason: str, registries: Sequence[str]) -> None:
        at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")
        notice = Notice(event, self.instance, tuple(registries), reason, at)
        for webhook in self.webhooks:
            webhook.post(notice)

    async def _stop(self) -> None:
        for task in (self._task, self._reaching):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._task = self._reaching = None


def _check(ready: Ready) -> Health:
    if ready.path is None:
        return _ACCEPTS
    return Health(path=ready.path)


def re_enters(old: Register, new: Register) -> bool:
    """Whether what differs between two sections cannot be changed in an entry's life."""
    keys = ("service", "app", "address", "id", "registry", "ttl", "check")
    return any(getattr(old, key) != getattr(new, key) for key in keys)
