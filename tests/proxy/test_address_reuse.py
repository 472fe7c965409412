"""An address that another instance gets, and an instance that gets another address: nothing is inherited."""

from __future__ import annotations

from dataclasses import replace

import pytest

from discovery.model import Instance, Status
from proxy.endpoint import State

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"

OUTLIER = {"outlier": {"consecutive_failures": 1, "base_ejection": "1h", "max_ejected": 1.0}}


def successor(instance: Instance) -> Instance:
    """Another one at the same address."""
    return replace(instance, id="b")


async def exchange(stage, client, origin) -> None:
    await origin.head()
    stage.clock.advance(0.5)
    origin.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_a_new_instance_at_an_old_address_gets_connections_of_its_own(stage):
    client, old = await stage.pair(GET)
    await exchange(stage, client, old)
    a = stage.endpoint("a")
    assert (len(a.idle), a.latency) == (1, 0.5)
    origin = stage.origins[0]
    stage.apply(successor(origin.instance))
    # The pooled connection is closed, not handed on.
    assert await old.ended()
    b = stage.endpoint("b")
    assert (len(b.idle), len(b.connections), b.latency, b.finished) == (0, 0, 0.0, 0)
    client.send(GET)
    await exchange(stage, client, await origin.accept())
    assert (origin.accepted, a.finished, b.finished) == (2, 1, 1)


async def test_a_connection_that_is_busy_when_its_instance_leaves_is_not_pooled_for_the_next_one(stage):
    client, old = await stage.pair(GET)
    await old.head()
    origin = stage.origins[0]
    stage.apply(successor(origin.instance))
    old.send(OK)
    assert (await client.message())[1] == b"ok"
    assert await old.ended()
    client.send(GET)
    await exchange(stage, client, await origin.accept())
    assert stage.endpoint("b").finished == 1


async def test_an_ejection_is_not_inherited_with_the_address(stage):
    stage.configure(OUTLIER)
    origin = await stage.origin("a")
    other = await stage.origin("z")
    stage.table.eject("s", "a", 3600.0, stage.clock())
    ejected = stage.endpoint("a")
    stage.apply(successor(origin.instance), other.instance)
    assert (ejected.state, stage.endpoint("b").state) == (State.GONE, State.READY)
    assert stage.endpoint("b").ejections == 0


@pytest.mark.parametrize("through", ["another address", "a time away", "a time as dead and away"])
async def test_an_instance_that_comes_back_begins_anew(stage, through):
    client, old = await stage.pair(GET)
    await exchange(stage, client, old)
    first = stage.endpoint("a")
    instance = stage.origins[0].instance
    if through == "another address":
        second = await stage.origin("a", apply=False)
        instance = second.instance
    elif through == "a time away":
        stage.apply()
    else:
        stage.mark(stage.origins[0], Status.DOWN)
        stage.apply()
    stage.apply(instance)
    again = stage.endpoint("a")
    assert await old.ended()
    assert again is not first
    assert (first.state, again.state) == (State.GONE, State.READY)
    assert (again.latency, again.finished, len(again.idle)) == (0.0, 0, 0)


async def test_what_an_operator_said_of_an_instance_ends_with_it(stage):
    origin = await stage.origin("a")
    stage.table.set_weight("s", "a", 7, stage.clock())
    stage.drainer.depart(stage.table.drain("s", "a", stage.clock()))
    stage.apply(replace(origin.instance, port=1))
    endpoint = stage.endpoint("a")
    assert (endpoint.weight, endpoint.state) == (100, State.READY)
