"""Keeps registries watched for ever: one `Supervisor` between the watchers and the proxy's table.

Watchers only connect and read; everything that makes discovery robust is here, once for all of them: waits
between attempts, silence for equal sets, the guards of `discovery.belief`, the merging of several registries,
staleness, and the last good answers on disk. What is decided is decided by the pure classes in
`discovery.belief`; this file moves their inputs and outputs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.registries import Guard
from discovery.belief import Backoff, Belief, Merge
from discovery.lastgood import LastGood, encode
from discovery.model import Instance, RegistryError, Status, Update, Watcher
from discovery.source import Source, SourceState

__all__ = ["Source", "SourceState", "Supervisor"]

Sink = Callable[[Update], None]
"""Takes each changed full set; synchronous. What it raises ends `Supervisor.run`."""
Emit = Callable[..., None]
"""Takes an event: its kind, and its facts by name."""
Confirm = Callable[[Instance], Awaitable[bool]]
"""Asks one instance for its health now: whether it says that it is ready. May raise: then it said nothing."""
Sleep = Callable[[float], Awaitable[None]]

PATIENCE = 1.0
"""Seconds a cold start waits for a first answer before it uses what is on disk."""
SAVE_DELAY = 0.5
"""Seconds in which changes are gathered into one write of the last good sets."""
PAUSE = 2.0
"""Seconds a timer may be late; more means that this process was stopped, and every deadline begins anew."""

_log = logging.getLogger(__name__)


class _WatchFailed(Exception):
    """The watcher raised; the message is the reason. Tells its errors from those of the sink."""


class Supervisor:
    """Runs `watchers` (the first takes precedence) and gives changes to `sink` in the loop it runs in.

    `confirm` asks suspects of a mass loss for their health; without it they stay for `guard.hold`. `emit` is
    told of what registries do that they should not.
    `directory` is where last good sets are kept; nowhere when None. `inherited` is what an earlier process
    knew: it is not told to `sink`, but nothing of it is lost to a registry that answers late. `clock` is
    `time.monotonic`-like.
    """

    def __init__(
        self,
        watchers: Sequence[Watcher],
        sink: Sink,
        services: Collection[str] = (),
        *,
        confirm: Confirm | None = None,
        emit: Emit = lambda kind, **facts: None,
        guard: Guard | None = None,
        backoff: Backoff | None = None,
        directory: Path | None = None,
        inherited: Mapping[str, tuple[Instance, ...]] | None = None,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.sources = tuple(Source(rank, watcher, clock()) for rank, watcher in enumerate(watchers))
        self._sink = sink
        self._services = frozenset(services)
        self._confirm = confirm
        self._emit = emit
        self._guard = guard or Guard()
        self._backoff = backoff or Backoff()
        self._files = {
            source.rank: LastGood(directory / f"{source.name}.json")
            for source in self.sources
            if directory is not None
        }
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._random = rng or random.Random()
        self._merge = Merge()
        self._inherited = {name: _undoubted(found) for name, found in (inherited or {}).items()}
        for name, instances in self._inherited.items():
            self._merge.inherit(name, instances, range(len(self.sources)))
            if len(self.sources) == 1:
                # With several nobody knows whose they were, and which losses are to be judged.
                belief = self.sources[0].beliefs[name] = Belief(self._guard)
                belief.remember(instances)
                belief.fall_back()
        self._tasks: asyncio.TaskGroup | None = None
        self._watching: dict[int, asyncio.Task[None]] = {}
        self._unsaved: set[int] = set()
        self._saving: set[int] = set()

    async def run(self) -> None:
        """Watches until cancelled. Raises only what the sink raises (in an `ExceptionGroup`)."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for source in self.sources:
                    self._remember(source)
                    self._restart(source)
                    self._spawn(self._lose_patience(source))
                await asyncio.Event().wait()
        finally:
            self._tasks = None
            for rank in self._unsaved:
                self._write(self.sources[rank], self._snapshot(self.sources[rank]))

    def set_services(self, services: Collection[str]) -> None:
        """Watches these from now on. Those that stay lose nothing; those that go are not told of."""
        names = frozenset(services)
        if names == self._services:
            return
        gone, self._services = self._services - names, names
        self._merge.forget(gone)
        for source in self.sources:
            for name in gone:
                source.beliefs.pop(name, None)
                source.behind.pop(name, None)
                source.refused.pop(name, None)
            if self._tasks is not None:
                self._restart(source)

    def awaited(self) -> dict[str, list[str]]:
        """The names of the registries that each service is still waited for from, as after a start."""
        return {
            service: names
            for service in sorted(self._services - self._inherited.keys())
            if (names := [s.name for s in self.sources if s.patient and not s.has_told(service)])
        }

    # -- one registry -----------------------------------------------------------------------------------

    def _restart(self, source: Source) -> None:
        if (old := self._watching.get(source.rank)) is not None:
            old.cancel()
        self._watching[source.rank] = self._spawn(self._watch(source, self._services))

    async def _watch(self, source: Source, services: frozenset[str]) -> None:
        attempts = 0
        if not services:
            source.state = SourceState.IDLE
        while services:
            source.state, begun = SourceState.CONNECTING, self._clock()
            try:
                await self._read(source, services)
            except _WatchFailed as failure:
                # A registry that answers and breaks at once, again and again, must not be asked in a loop.
                lasted = source.state is SourceState.LIVE and self._clock() - begun >= self._backoff.most
                attempts = 1 if lasted else attempts + 1
                self._failed(source, str(failure))
            await self._sleep(self._backoff.delay(attempts, self._random))

    async def _read(self, source: Source, services: frozenset[str]) -> None:
        stream = source.watcher.watch(services)
        try:
            while True:
                update = await _next(stream)
                if update.service in services:
                    self._answered(source, update)
                    # Updates that are there already come without a pause, and hundreds of them at a start.
                    await asyncio.sleep(0)
        finally:
            if (close := getattr(stream, "aclose", None)) is not None:
                await close()

    def _answered(self, source: Source, update: Update) -> None:
        if source.state is not SourceState.LIVE and source.failures:
            _log.info("registry %s answers again", source.kind)
            seconds = round(self._clock() - source.answered_at, 3)
            self._emit("registry_recovered", registry=source.name, seconds=seconds)
        source.state, source.failures, source.answered_at = SourceState.LIVE, 0, self._clock()
        source.answered = True
        update = _without_twins(update)
        self._refuse(source, update)
        self._date(source, update)
        belief = source.beliefs.setdefault(update.service, Belief(self._guard))
        before = belief.flapping
        suspects = belief.answer(update.instances, update.at, partial=update.partial)
        self._merge.answers(source.rank, update.service)
        self._publish(source, update.service, update.at)
        for instance in (flapping := sorted(belief.flapping - before)):
            self._emit("instance_flapping", registry=source.name, service=update.service, instance=instance)
        if suspects:
            self._hold(source, update, belief, suspects)
        if suspects or flapping:
            self._spawn(self._expire(source, update.service, belief))

    def _failed(self, source: Source, reason: str) -> None:
        if source.failures == 0:
            rest = "its last answers stay in use" if source.answered else "it has not answered yet"
            _log.warning("registry %s: %s; %s", source.kind, reason, rest)
            self._emit("registry_failed", registry=source.name, reason=reason)
        source.state, source.last_error = SourceState.FAILED, reason
        source.failures += 1
        source.failed_total += 1
        source.behind.clear()
        for update in self._merge.falls_silent(source.rank, self._clock(), source.kind):
            self._sink(update)
        self._fall_back(source)

    def _refuse(self, source: Source, update: Update) -> None:
        """Tell once of each entry that made no sense, and again when it comes back after it was mended."""
        refused = frozenset(update.refused)
        if fresh := sorted(refused - source.refused.get(update.service, frozenset())):
            source.refused_total += len(fresh)
            _log.warning(
                "registry %s: service %s: left out: %s", source.kind, update.service, "; ".join(fresh)
            )
            self._emit("entries_refused", registry=source.name, service=update.service, reasons=fresh)
        source.refused[update.service] = refused

    def _date(self, source: Source, update: Update) -> None:
        """Note how old an answer is by the registry's own word; tell when the first one is, and the last."""
        before = bool(source.behind)
        if update.behind > 0:
            source.behind[update.service] = update.behind, self._clock()
        else:
            source.behind.pop(update.service, None)
        if bool(source.behind) is not before:
            _log.warning("registry %s: its answers are %s", source.kind, "right again" if before else "old")
            kind = "registry_current" if before else "registry_stale"
            self._emit(kind, registry=source.name, seconds=round(update.behind, 3))

    def _publish(self, source: Source, service: str, at: float) -> None:
        believed = source.beliefs[service].believed
        update = self._merge.put(source.rank, Update(service, believed, at, source.kind))
        if update is not None:
            self._sink(update)
            self._save_soon(source)

    # -- suspects of a mass loss, and who comes and goes ------------------------------------------------

    def _hold(self, source: Source, update: Update, belief: Belief, suspects: tuple[Instance, ...]) -> None:
        _log.warning(
            "registry %s: service %s lost %d instances at once; each stays until it says it is not ready, "
            "the registry repeats itself, or %g s have passed",
            source.kind,
            update.service,
            len(suspects),
            self._guard.hold,
        )
        source.mass_losses += 1
        ids = [instance.id for instance in suspects]
        left = len(update.instances or ())
        self._emit("instances_held", registry=source.name, service=update.service, instances=ids, left=left)
        if self._confirm is not None:
            for instance in suspects:
                self._spawn(self._ask(self._confirm, source, belief, instance, update.at))

    async def _ask(
        self, confirm: Confirm, source: Source, belief: Belief, instance: Instance, at: float
    ) -> None:
        try:
            ready = await confirm(instance)
        except Exception as error:
            _log.warning("instance %s/%s cannot be asked: %s", instance.service, instance.id, error)
            return
        if belief.verdict(instance, ready=ready) and self._is_current(source, instance.service, belief):
            self._publish(source, instance.service, at)

    async def _expire(self, source: Source, service: str, belief: Belief) -> None:
        while (deadline := belief.deadline) is not None and self._is_current(source, service, belief):
            now = self._clock()
            if deadline > now:
                await self._sleep(deadline - now)
                self._allow_for_pause(belief, self._clock() - deadline)
            elif belief.expire(now):
                self._publish(source, service, now)

    def _allow_for_pause(self, belief: Belief, late: float) -> None:
        deadline = belief.deadline
        if late > PAUSE and deadline is not None and deadline + PAUSE < self._clock():
            _log.warning("this process was stopped for %.1f s; what is held is held anew", late)
            self._emit("clock_jumped", seconds=round(late, 3))
            belief.renew(self._clock())

    def _is_current(self, source: Source, service: str, belief: Belief) -> bool:
        """Whether the service is still asked for, and this is what is believed of it."""
        return source.beliefs.get(service) is belief

    # -- last good sets on disk -------------------------------------------------------------------------

    def _remember(self, source: Source) -> None:
        if (file := self._files.get(source.rank)) is None:
            return
        sets, problem = file.read()
        if problem is not None:
            _log.warning("the last good instances are lost: %s", problem)
        for service in self._services & sets.keys():
            belief = source.beliefs.setdefault(service, Belief(self._guard))
            belief.remember(sets[service])

    async def _lose_patience(self, source: Source) -> None:
        await self._sleep(self._patience)
        source.patient = False
        self._fall_back(source)

    def _fall_back(self, source: Source) -> None:
        for service in [name for name, belief in source.beliefs.items() if belief.fall_back()]:
            _log.warning("registry %s has not answered for %s; using what is on disk", source.kind, service)
            instances = len(source.beliefs[service].known or ())
            self._emit("last_good_used", registry=source.name, service=service, instances=instances)
            self._publish(source, service, self._clock())

    def _save_soon(self, source: Source) -> None:
        if source.rank not in self._files:
            return
        self._unsaved.add(source.rank)
        if source.rank not in self._saving:
            self._saving.add(source.rank)
            self._spawn(self._save(source))

    async def _save(self, source: Source) -> None:
        while source.rank in self._unsaved:
            await self._sleep(SAVE_DELAY)
            self._unsaved.discard(source.rank)
            await asyncio.to_thread(self._write, source, self._snapshot(source))
        self._saving.discard(source.rank)

    def _snapshot(self, source: Source) -> bytes:
        known = {service: belief.known for service, belief in source.beliefs.items()}
        return encode({service: instances for service, instances in known.items() if instances})

    def _write(self, source: Source, data: bytes) -> None:
        try:
            self._files[source.rank].write(data)
        except OSError as error:
            _log.warning("the last good instances cannot be kept: %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None
        return self._tasks.create_task(work)


def _undoubted(instances: tuple[Instance, ...]) -> tuple[Instance, ...]:
    """As the registry told them: doubts are for whoever believes it now."""
    return tuple(replace(i, status=Status.UP) if i.status is Status.DOUBTFUL else i for i in instances)


def _without_twins(update: Update) -> Update:
    """An id stands for one instance: of several with the same one, the first by address is kept."""
    instances = update.instances or ()
    found: dict[str, Instance] = {}
    refused = []
    for instance in sorted(instances, key=lambda instance: instance.address):
        if found.setdefault(instance.id, instance) is not instance:
            refused.append(f"{instance.id} at {instance.address}: another instance has this id")
    if not refused:
        return update
    kept = tuple(instance for instance in instances if found[instance.id] is instance)
    return replace(update, instances=kept, refused=(*update.refused, *refused))


async def _next(stream: AsyncIterator[Update]) -> Update:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        raise _WatchFailed("the watch ended") from None
    except (RegistryError, OSError) as error:
        raise _WatchFailed(str(error) or type(error).__name__) from error
    except Exception as error:
        _log.exception("a watcher failed in a way it should not")
        raise _WatchFailed(f"{type(error).__name__}: {error}") from error
