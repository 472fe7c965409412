"""What is believed of a registry's answers: the guards and the merging, pure and synchronous.

A registry that restarts empty, loses its disk or its peers tells of services without instances while all of
them are alive. One instance that leaves is believed at once, always. When most of a service vanishes in one
answer, or the registry no longer knows the service, each missing instance becomes a suspect: it stays as last
choice until it says itself that it is not ready, the registry repeats its answer, or `Guard.hold` has passed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from config.registries import Guard
from discovery.damping import Damping
from discovery.model import Instance, Status, Update

Instances = tuple[Instance, ...] | None
"""A full set; None: the registry does not know the service (ABSENT)."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Growing waits between attempts, partly left to chance so that many do not come back together."""

    first: float = 0.1
    most: float = 5.0

    def delay(self, failures: int, rng: Random) -> float:
        """Seconds to wait after so many failures in a row (1, 2, …)."""
        return min(self.most, self.first * 2.0 ** min(failures - 1, 30)) * rng.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class _Suspect:
    """An instance as it was before the answer at `since` that lacked it."""

    instance: Instance
    since: float


class _Origin(Enum):
    """Where the present belief comes from."""

    NOWHERE = "nowhere"
    DISK = "disk"
    """Remembered from an earlier process and not in use: any real set replaces it."""
    FALLBACK = "fallback"
    """A remembered set that had to be put to use: losses are judged."""
    REGISTRY = "registry"
    """An answer: losses are judged."""


class Belief:
    """One service as one registry tells it. `answer` it, then read `believed`."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._origin = _Origin.NOWHERE
        self._told: Instances = None
        self._suspects: dict[str, _Suspect] = {}
        self._damping = Damping(guard.flaps, guard.calm)

    @property
    def believed(self) -> Instances:
        """What the registry told last, and the suspects; those and who flaps are `DOUBTFUL`. Sorted by id."""
        known = self.known
        doubtful = self._suspects.keys() | self._damping.flapping
        if known is None or not doubtful:
            return known
        return tuple(
            replace(i, status=Status.DOUBTFUL) if i.id in doubtful and i.status is Status.UP else i
            for i in known
        )

    @property
    def known(self) -> Instances:
        """The same without the doubts: what is to be remembered."""
        if self._told is None and not self._suspects:
            return None
        merged = {instance.id: instance for instance in self._told or ()}
        merged.update((suspect.instance.id, suspect.instance) for suspect in self._suspects.values())
        return tuple(sorted(merged.values(), key=lambda instance: instance.id))

    @property
    def suspects(self) -> int:
        """How many instances stay although the registry no longer lists them as alive."""
        return len(self._suspects)

    @property
    def flapping(self) -> frozenset[str]:
        """Ids of the instances that are used only as last choice because they come and go."""
        return self._damping.flapping

    @property
    def has_begun(self) -> bool:
        """Whether there was an answer, or what is remembered had to do."""
        return self._origin in (_Origin.FALLBACK, _Origin.REGISTRY)

    @property
    def from_disk(self) -> bool:
        """Whether what is believed was remembered from an earlier process, for want of an answer."""
        return self._origin is _Origin.FALLBACK

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        held = [suspect.since + self._guard.hold for suspect in self._suspects.values()]
        calm = self._damping.deadline
        return min(held if calm is None else [*held, calm], default=None)

    def remember(self, instances: tuple[Instance, ...]) -> None:
        """Takes what an earlier process believed, before the first answer."""
        if self._origin is _Origin.NOWHERE:
            self._told, self._origin = instances, _Origin.DISK

    def fall_back(self) -> bool:
        """Puts what is remembered to use, as the registry does not answer. Returns whether there is any."""
        if self._origin is not _Origin.DISK:
            return False
        self._origin = _Origin.FALLBACK
        return True

    def answer(self, instances: Instances, at: float, *, partial: bool = False) -> tuple[Instance, ...]:
        """Takes the registry's answer and returns the new suspects, whose health is to be asked now.

        `partial`: nobody that it lacks is believed to be gone, however few they are.
        """
        if self._origin is _Origin.DISK and instances is not None:
            self._told = None
        before = {instance.id: instance for instance in self.known or ()}
        told = {instance.id: instance for instance in instances or ()}
        lost = {name: instance for name, instance in before.items() if _is_lost(instance, told)}
        held = {name: suspect for name, suspect in self._suspects.items() if name in lost}
        trusted = sum(i.status is not Status.DOWN for name, i in before.items() if name not in held)
        if self.has_begun and instances == self._told:
            confirmed_before = at - self._guard.repeat
            held_still = {name: s for name, s in held.items() if s.since > confirmed_before}
        else:
            held_still = held
        self._told, self._origin, self._suspects = instances, _Origin.REGISTRY, held_still
        fresh = tuple(instance for name, instance in lost.items() if name not in held)
        doubtful = self._is_doubtful(len(fresh), trusted, absent=partial or instances is None)
        present = {name for name, instance in told.items() if instance.status is Status.UP}
        self._damping.note(() if doubtful else [instance.id for instance in fresh], present, at)
        if not doubtful:
            return ()
        self._suspects = held_still | {instance.id: _Suspect(instance, at) for instance in fresh}
        return fresh

    def verdict(self, instance: Instance, *, ready: bool) -> bool:
        """What a suspect's own health says. Returns whether that changed the belief: it is evicted."""
        suspect = self._suspects.get(instance.id)
        if ready or suspect is None or suspect.instance != instance:
            return False
        del self._suspects[instance.id]
        return True

    def expire(self, now: float) -> bool:
        """Gives up the suspects that were held long enough, and the doubts of who has stayed for long enough.
        Returns whether there were any."""
        due = [name for name, s in self._suspects.items() if s.since + self._guard.hold <= now]
        for name in due:
            del self._suspects[name]
        return self._damping.expire(now) or bool(due)

    def renew(self, now: float) -> None:
        """This process was stopped, and could hear nobody: every deadline begins anew."""
        self._suspects = {name: replace(suspect, since=now) for name, suspect in self._suspects.items()}
        self._damping.renew(now)

    def _is_doubtful(self, lost: int, trusted: int, *, absent: bool) -> bool:
        if self._guard.hold <= 0 or not lost:
            return False
        return absent or (lost > 1 and lost > self._guard.share * trusted)


def _is_lost(instance: Instance, told: dict[str, Instance]) -> bool:
    """Whether the answer ends an instance that had not announced it: one that drains may go at any time."""
    if instance.status is not Status.UP:
        return False
    now = told.get(instance.id)
    return now is None or now.status is Status.DOWN


_INHERITED = 1 << 30
"""Rank of what an earlier process knew: every registry takes precedence over it."""


class Merge:
    """The sets of several registries as one set for each service.

    A registry that fails keeps its last set and hurts none of the others: what it said last is second-hand,
    and so is what is remembered of it from disk. Where two tell of the same id or address, who answers is
    believed before what is second-hand, then who is sure of it, then the earlier registry. Whom one that
    answers has taken out is not brought back by second-hand word. A set is returned only when it differs from
    the last one.
    """

    def __init__(self) -> None:
        self._sets: dict[str, dict[int, Instances]] = {}
        self._published: dict[str, Instances] = {}
        self._silent: dict[str, set[int]] = {}
        """Registries that have told nothing yet of a service that was known before."""
        self._answering: dict[str, set[int]] = {}
        """Registries whose set of a service is first-hand."""
        self._left: dict[str, set[str]] = {}
        """Ids of a service that a registry which answers has taken out while another one that has them is
        silent, and that none has put back."""

    def inherit(self, service: str, instances: tuple[Instance, ...], sources: Collection[int]) -> None:
        """Begins with what an earlier process knew of a service, by all registries together.

        An instance of it stays until a registry tells of it, which then has the say, or until all `sources`
        have told of the service.
        """
        self._sets.setdefault(service, {})[_INHERITED] = instances
        self._silent[service] = set(sources)

    def put(self, source: int, update: Update) -> Update | None:
        """Takes the full set of one registry (by its rank, 0 first); returns what to publish, if anything."""
        sets = self._sets.setdefault(update.service, {})
        answering = self._answering.get(update.service, set())
        if source in answering:
            former, now = _ids(sets.get(source)), _ids(update.instances)
            second_hand = set().union(*(_ids(told) for rank, told in sets.items() if rank not in answering))
            left = self._left.get(update.service, set())
            self._left[update.service] = ((left | former) - now) & second_hand
        sets[source] = update.instances
        self._disinherit(source, update, sets)
        return self._changed(update)

    def answers(self, source: int, service: str) -> None:
        """What this registry is about to `put` of a service is its own word."""
        self._answering.setdefault(service, set()).add(source)

    def falls_silent(self, source: int, at: float, kind: str) -> list[Update]:
        """A registry has failed: what it said is second-hand from now on. Returns what to publish."""
        updates = []
        for service, answering in self._answering.items():
            if source in answering:
                answering.discard(source)
                updates.append(self._changed(Update(service, None, at, kind)))
        return [update for update in updates if update is not None]

    def _changed(self, update: Update) -> Update | None:
        service = update.service
        merged = self._merged(service)
        if service in self._published and self._published[service] == merged:
            return None
        self._published[service] = merged
        return replace(update, instances=merged)

    def _disinherit(self, source: int, update: Update, sets: dict[int, Instances]) -> None:
        inherited = sets.get(_INHERITED)
        if inherited is None:
            return
        silent = self._silent[update.service]
        silent.discard(source)
        told = {instance.id for instance in update.instances or ()}
        left = tuple(instance for instance in inherited if instance.id not in told)
        if silent and left:
            sets[_INHERITED] = left
        else:
            del sets[_INHERITED], self._silent[update.service]

    def forget(self, services: Collection[str]) -> None:
        """Drops services that are no longer asked for; one that comes back is published anew."""
        for service in services:
            self._sets.pop(service, None)
            self._published.pop(service, None)
            self._silent.pop(service, None)
            self._answering.pop(service, None)
            self._left.pop(service, None)

    def _merged(self, service: str) -> Instances:
        known = [(rank, told) for rank, told in sorted(self._sets[service].items()) if told is not None]
        answering, left = self._answering.get(service, set()), self._left.get(service, set())
        if len(known) < 2 and not left:
            return known[0][1] if known else None
        first_hand = [told for rank, told in known if rank in answering]
        second_hand = [
            tuple(instance for instance in told if instance.id not in left)
            for rank, told in known
            if rank not in answering
        ]
        ids: dict[str, Instance] = {}
        addresses: set[str] = set()
        for sets in (first_hand, second_hand):
            for doubtful in (False, True):
                for instances in sets:
                    candidates = [i for i in instances if (i.status is Status.DOUBTFUL) is doubtful]
                    new = [i for i in candidates if i.id not in ids and i.address not in addresses]
                    ids.update((instance.id, instance) for instance in new)
                    addresses.update(instance.address for instance in new)
        return tuple(sorted(ids.values(), key=lambda instance: instance.id))


def _ids(instances: Instances) -> set[str]:
    return {instance.id for instance in instances or ()}
