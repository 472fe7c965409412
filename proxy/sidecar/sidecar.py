"""All the entries of one process: made as configured, handed to a successor, or taken out at the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence

from config.schema import Register
from discovery.register import CALL_TIMEOUT
from proxy.sidecar.address import instance_of
from proxy.sidecar.entry import Entry, re_enters
from proxy.sidecar.seat import Place

_SHARE = 1 / 3
"""Share of the time for the whole end that registries may take to be told."""
_WEBHOOKS = 2.0
"""Seconds that webhooks have at the end."""

Key = tuple[str, str]
"""Service and id of an instance."""


class Sidecar:
    """`start`, `configure` on each reload, then `leave` or, when another process takes over, `release`."""

    def __init__(
        self,
        places: Sequence[Place],
        emit: Callable[..., None],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """`places`: every registry in which instances can be entered."""
        self.leaving = False
        """It was decided that the entries go for good."""
        self._places = places
        self._emit = emit
        self._clock = clock
        self._random = rng
        self._entries: dict[Key, Entry] = {}
        self._going: asyncio.Task[None] | None = None
        self._changing: asyncio.Task[None] | None = None
        self._closing: list[Entry] = []
        """Entries that have left, and whose webhooks may have something to say yet."""

    @property
    def entries(self) -> Iterable[Entry]:
        """As they are now."""
        return self._entries.values()

    @property
    def keys(self) -> list[Key]:
        """Of the entries that this process sees to."""
        return list(self._entries)

    async def start(self, sections: Iterable[Register], inherited: Iterable[Sequence[object]] = ()) -> None:
        """Begin with these sections. `inherited`: what another process has given by `save`.

        Returns once the registries were asked to take what is inherited: until then the other process may
        not let go of it.
        """
        ups = {(str(service), str(id)): bool(up) for service, id, up in inherited}
        taken: list[Entry] = []
        for section in sections:
            entry = self._add(section)
            key = _key(entry)
            entry.start(inherited=key in ups, up=ups.get(key, False))
            if key in ups:
                taken.append(entry)
        if taken:
            attempts = [asyncio.ensure_future(seat.attempted()) for entry in taken for seat in entry.seats]
            _, late = await asyncio.wait(attempts, timeout=CALL_TIMEOUT)
            for attempt in late:
                attempt.cancel()

    def configure(self, sections: Sequence[Register]) -> None:
        """Take over changed sections, by and by. What cannot change in place leaves and is entered anew."""
        former = self._changing

        async def change() -> None:
            if former is not None:
                await former
            if not self.leaving:
                await self._change(sections)

        self._changing = asyncio.create_task(change(), name="register")

    def unready(self) -> list[str]:
        """Why the applications should not be sent traffic, in sentences; empty when they should."""
        if self.leaving:
            return ["it is leaving its registries"] if self._entries else ["it is leaving"]
        return [reason for entry in self.entries for reason in entry.unready()]

    async def leave(self, limit: float, settle: float | None = None) -> None:
        """Take every entry out, and wait until everybody can have heard; within `limit` seconds.

        Not ready from this moment on. Only the first call does something, the others wait for it. `settle`:
        seconds to wait instead of those that the sections say.
        """
        if self._going is None:
            self.leaving = True
            self._going = asyncio.create_task(self._leave(limit, settle), name="leave")
        await asyncio.shield(self._going)

    async def outlive(self, limit: float) -> None:
        """After `leave`: wait until the applications have ended, those whose sections want that, for at most
        `limit` seconds."""
        await asyncio.gather(*(entry.outlive(limit) for entry in self._closing))

    def save(self) -> list[tuple[str, str, bool]]:
        """What is entered, for the process that takes over: service, id, and whether it counts as up."""
        return [(*_key(entry), entry.up) for entry in self.entries if entry.app_ready]

    async def release(self, kept: Iterable[Sequence[object]]) -> None:
        """Another process keeps the entries `kept`, by service and id; the others are taken out."""
        theirs = {(str(service), str(id)) for service, id, *_ in kept}
        await self._settle_changes()
        self.leaving = True
        await asyncio.gather(
            *(
                entry.release() if key in theirs else entry.leave(CALL_TIMEOUT, "it is not configured")
                for key, entry in self._entries.items()
            )
        )
        self._closing += self._entries.values()
        self._entries.clear()

    async def renew(self) -> None:
        """The other process has not taken over after all, and may have taken entries along into its end.

        It may also have entered what this one has meanwhile been told to take out.
        """
        if self.leaving:
            await asyncio.gather(*(entry.forget() for entry in self.entries))
        else:
            await asyncio.gather(*(entry.renew() for entry in self.entries))

    async def close(self) -> None:
        """End whatever is left; what was not taken out yet is, quickly."""
        await self.leave(CALL_TIMEOUT, 0.0)
        await asyncio.gather(*(entry.close(_WEBHOOKS) for entry in self._closing))

    # -- inside --------------------------------------------------------------------------------------------

    def _add(self, section: Register) -> Entry:
        places = [place for place in self._places if place.kind in (section.registry or (place.kind,))]
        entry = Entry(section, places, self._emit, clock=self._clock, rng=self._random)
        self._entries[_key(entry)] = entry
        return entry

    async def _leave(self, limit: float, settle: float | None) -> None:
        began = self._clock()
        await self._settle_changes()
        entries = list(self._entries.values())
        known = any(entry.known for entry in entries)
        if settle is None:
            settle = max((entry.section.settle for entry in entries), default=0.0) if known else 0.0
        if entries:
            self._emit("leaving", entries=[entry.instance.id for entry in entries], settle=settle)
            within = min(CALL_TIMEOUT, limit * _SHARE)
            await asyncio.gather(*(entry.leave(within, "it is shutting down") for entry in entries))
        self._closing += entries
        left = limit - (self._clock() - began)
        await asyncio.sleep(max(0.0, min(settle, left)))

    async def _settle_changes(self) -> None:
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait({self._changing})

    async def _change(self, sections: Sequence[Register]) -> None:
        wanted = {_key_of(section): section for section in sections}
        for key, entry in list(self._entries.items()):
            section = wanted.get(key)
            if section is not None and not re_enters(entry.section, section):
                await entry.reconfigure(section)
                continue
            await entry.leave(
                CALL_TIMEOUT, "it is not configured" if section is None else "it is entered anew"
            )
            del self._entries[key]
            await entry.close(0.0)
        for key, section in wanted.items():
            if key not in self._entries:
                self._add(section).start()


def _key(entry: Entry) -> Key:
    return entry.instance.service, entry.instance.id


def _key_of(section: Register) -> Key:
    instance = instance_of(section)
    return instance.service, instance.id
