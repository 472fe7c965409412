"""What the proxy may rely on, whatever the registry: the same tests for all of them.

Servers are real ones where this machine has them. Each test follows the registry by the real supervisor into
a real table (see `world`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from discovery.model import Instance, Status
from discovery.watch import SourceState
from proxy.endpoint import State
from proxy.table import Cause
from tests.contract.backend import Ability, Backend
from tests.contract.world import GUARD, MINUTE, World, following

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[..., Instance]
needs = pytest.mark.needs


async def test_what_is_registered_is_seen(backend: Backend, service: str, make: Make) -> None:
    one, two = make(1), make(2)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until(lambda: world.source.state is SourceState.LIVE)
        assert world.ready == set()
        await backend.put(one)
        await world.until_ready(one)
        await backend.put(two)
        await world.until_ready(one, two)
        if Ability.IDS not in backend.lacks:
            assert {e.instance.id for e in world.endpoints.values()} == {one.id, two.id}


async def test_what_was_registered_before_is_seen_at_once(backend: Backend, service: str, make: Make) -> None:
    one, two = make(1), make(2)
    await backend.put(one)
    await backend.put(two)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one, two)
        assert len([u for u in world.updates if u.instances]) <= 2


@needs(Ability.WEIGHT)
async def test_a_weight_changes_in_place(backend: Backend, service: str, make: Make) -> None:
    one, two = make(1, weight=50), make(2, weight=100)
    await backend.put(one)
    await backend.put(two)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one, two)
        endpoint = world.endpoints[one.address]
        await world.until(lambda: endpoint.weight == 50)
        await backend.put(replace(one, weight=7))
        await world.until(lambda: endpoint.weight == 7)
        assert world.endpoints[one.address] is endpoint
        assert (endpoint.state, world.departures) == (State.READY, [])
        assert world.endpoints[two.address].weight == 100


@needs(Ability.METADATA)
async def test_metadata_change_in_place(backend: Backend, service: str, make: Make) -> None:
    one = make(1, metadata={"version": "v1", "zone": "eu"})
    await backend.put(one)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one)
        endpoint = world.endpoints[one.address]
        assert (endpoint.instance.version, endpoint.instance.metadata["zone"]) == ("v1", "eu")
        await backend.put(replace(one, metadata={"version": "v2", "zone": "eu"}))
        await world.until(lambda: endpoint.instance.version == "v2")
        assert world.endpoints[one.address] is endpoint
        assert (endpoint.state, world.departures) == (State.READY, [])


@needs(Ability.DRAINING)
async def test_an_instance_marked_as_leaving_keeps_what_it_has(
    backend: Backend, service: str, make: Make
) -> None:
    one, two = make(1), make(2)
    await backend.put(one)
    await backend.put(two)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one, two)
        await backend.put(replace(one, status=Status.DRAINING))
        await world.until_ready(two)
        assert world.state(one) is State.DRAINING
        assert [departure.cause for departure in world.departures] == [Cause.DRAINING]
        await backend.put(one)
        await world.until_ready(one, two)


async def test_one_that_is_deregistered_goes_at_once_and_alone(
    backend: Backend, service: str, make: Make
) -> None:
    one, two = make(1), make(2)
    await backend.put(one)
    await backend.put(two)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one, two)
        kept = world.endpoints[two.address]
        await backend.remove(one)
        await world.until_ready(two)
        assert world.state(one) is None
        assert [departure.cause for departure in world.departures] == [Cause.GONE]
        assert (world.endpoints[two.address], world.asked) == (kept, [])
        # The last one is believed as well: a registry that works may empty a service one by one.
        await backend.remove(two)
        await world.until_ready()
        assert world.asked == []


@needs(Ability.CRASH)
async def test_one_that_ends_without_a_word_gets_nothing_more(
    backend: Backend, service: str, make: Make
) -> None:
    one, two = make(1), make(2)
    await backend.put(one, brief=True)
    await backend.put(two)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one, two)
        await backend.crash(one)
        await world.until_ready(two)
        assert world.state(one) in (None, State.UNHEALTHY)


@needs(Ability.IDS)
async def test_two_instances_that_swap_their_addresses_are_new_ones(
    backend: Backend, service: str, make: Make
) -> None:
    one, two = make(1), make(2)
    await backend.put(one)
    await backend.put(two)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one, two)
        before = dict(world.endpoints)
        await backend.put(replace(one, host=two.host))
        await backend.put(replace(two, host=one.host))
        await world.until(lambda: {a: e.instance.id for a, e in world.endpoints.items()}
                          == {two.address: one.id, one.address: two.id})  # fmt: skip
        await world.until_ready(one, two)
        assert not set(before.values()) & set(world.endpoints.values())
        assert all(endpoint.state is State.GONE for endpoint in before.values())


async def test_very_many_instances_are_one_set_and_one_of_them_goes_alone(
    backend: Backend, service: str, make: Make
) -> None:
    instances = [make(number) for number in range(backend.many)]
    await backend.put_many(instances)
    async with following([backend.watcher()], service, patience=3 * backend.patience) as world:
        await world.until_ready(*instances)
        before = world.endpoints
        await backend.remove(instances[7])
        await world.until_ready(*instances[:7], *instances[8:])
        assert len(world.departures) == 1
        left = world.endpoints
        assert all(before[address] is endpoint for address, endpoint in left.items())


# -- a registry that has trouble --------------------------------------------------------------------------


async def lost(world: World) -> None:
    """Waits until it is known that the registry does not answer."""
    await world.until(lambda: world.source.failures > 0)


@needs(Ability.EMPTY)
async def test_a_registry_that_loses_everything_empties_nothing_that_is_alive(
    backend: Backend, service: str, make: Make
) -> None:
    one, two, dead = make(1), make(2), make(3)
    for instance in (one, two, dead):
        await backend.put(instance)
    guard = GUARD.model_copy(update={"hold": 3600.0, "repeat": 3600.0})
    async with following([backend.watcher()], service, patience=backend.patience, guard=guard) as world:
        await world.until_ready(one, two, dead)
        world.alive = {one.address, two.address}
        await backend.forget()
        await world.until(lambda: world.state(dead) is None)
        assert {one.address, two.address} <= set(world.endpoints)
        assert sorted(world.asked) == sorted(i.address for i in (one, two, dead))
        assert world.source.held == 2
        # Who registers again is no suspect any more.
        await backend.put(one)
        await world.until(lambda: world.source.held == 1)
        await backend.put(two)
        await world.until(lambda: world.source.held == 0)
        await world.until_ready(one, two)


@needs(Ability.KILL)
async def test_a_minute_without_the_registry_changes_nothing_and_the_next_change_is_seen(
    backend: Backend, service: str, make: Make
) -> None:
    one, two, three = make(1), make(2), make(3)
    await backend.put(one)
    await backend.put(two)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one, two)
        before = world.endpoints
        world.alive = {one.address, two.address}
        await backend.kill()
        await lost(world)
        failed = world.source.failures
        await world.until(lambda: world.source.staleness(time.monotonic()) >= MINUTE)
        assert world.source.failures > failed  # it is asked again and again
        assert world.endpoints == before
        await backend.restart()
        await world.until(lambda: world.source.state is SourceState.LIVE)
        await world.until(lambda: world.source.held == 0)
        assert world.source.staleness(time.monotonic()) == 0
        assert (world.endpoints, world.ready) == (before, {one.address, two.address})
        await backend.put(three)
        await world.until_ready(one, two, three)


@needs(Ability.KILL)
async def test_a_cold_start_without_the_registry_goes_by_what_was_known_last(
    backend: Backend, service: str, make: Make, tmp_path: Path
) -> None:
    one, two, three = make(1), make(2), make(3, metadata={"version": "v3"})
    if Ability.METADATA in backend.lacks:
        three = make(3)
    for instance in (one, two, three):
        await backend.put(instance)
    async with following(
        [backend.watcher()], service, patience=backend.patience, directory=tmp_path
    ) as world:
        await world.until_ready(one, two, three)
        known = {endpoint.instance for endpoint in world.endpoints.values()}
    await backend.kill()
    try:
        async with following(
            [backend.watcher()], service, patience=backend.patience, directory=tmp_path
        ) as world:
            await world.until_ready(one, two, three)
            assert {endpoint.instance for endpoint in world.endpoints.values()} == known
            assert world.source.state is not SourceState.LIVE
            world.alive = {i.address for i in (one, two, three)}
            await backend.restart()
            await world.until(lambda: world.source.state is SourceState.LIVE)
            await world.until(lambda: world.source.held == 0)
            await backend.remove(three)
            await world.until_ready(one, two)
    finally:
        await backend.restart()


@needs(Ability.FREEZE)
async def test_a_frozen_registry_is_noticed_and_nothing_is_lost_by_it(
    backend: Backend, service: str, make: Make
) -> None:
    one, two = make(1), make(2)
    await backend.put(one)
    async with following([backend.watcher()], service, patience=backend.patience) as world:
        await world.until_ready(one)
        await backend.freeze()
        try:
            await lost(world)
            assert world.ready == {one.address}
        finally:
            await backend.thaw()
        await backend.put(two)
        await world.until_ready(one, two)
