"""Limits on the way of a request: who waits, who is refused, and who gets a place that becomes free."""

from __future__ import annotations

import asyncio
import json

from config.schema import Capacity, Limit
from proxy.endpoint import State
from proxy.errors import Reason
from proxy.upstream import cut_busy

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n"
)


async def refusal(client) -> tuple[int, str, str | None]:
    head, body = await client.message()
    return head.status, json.loads(body)["error"], head.get("retry-after")


async def begun(stage, count: int = 1):
    """So many clients, each with a request that its instance has got and not answered yet."""
    pairs = []
    for _ in range(count):
        client = await stage.client()
        client.send(GET)
        wire = await stage.origins[0].accept()
        await wire.head()
        pairs.append((client, wire))
    return pairs


async def test_a_request_beyond_the_places_waits_until_one_is_free(stage):
    stage.configure({"capacity": {"requests": 2, "queue": 5, "wait": "1m"}})
    await stage.origin()
    (first, wire), (second, _) = await begun(stage, 2)
    third = await stage.client()
    third.send(GET)
    capacity = stage.table.services["s"].capacity
    await stage.until(lambda: capacity.waiting == 1)
    assert stage.endpoint().inflight == 2
    wire.send(OK)
    assert (await first.message())[1] == b"ok"
    head = await wire.head()  # on the connection that has become free
    assert head.line == "GET /x HTTP/1.1"
    wire.send(OK)
    assert (await third.message())[1] == b"ok"
    second.reset()
    await stage.until(lambda: capacity.inflight == 0)


async def test_a_request_that_finds_no_room_to_wait_is_refused_at_once(stage):
    stage.configure({"capacity": {"requests": 1}})
    await stage.origin()
    await begun(stage)
    second = await stage.client()
    second.send(GET)
    assert await refusal(second) == (503, "overloaded", "1")
    assert stage.log.outcomes == [(503, "overloaded")]


async def test_who_has_waited_in_vain_is_told_so_and_may_ask_again_on_its_connection(stage):
    stage.configure({"capacity": {"requests": 1, "queue": 1, "wait": "20ms"}})
    await stage.origin()
    ((first, wire),) = await begun(stage)
    second = await stage.client()
    second.send(GET)
    assert await refusal(second) == (503, "queue_timeout", "1")
    wire.send(OK)
    await first.message()
    second.send(GET)
    await wire.head()
    wire.send(OK)
    assert (await second.message())[1] == b"ok"


async def test_a_client_that_goes_while_it_waits_leaves_the_queue(stage):
    stage.configure({"capacity": {"requests": 1, "queue": 1, "wait": "1m"}})
    await stage.origin()
    ((first, wire),) = await begun(stage)
    second = await stage.client()
    second.send(GET)
    capacity = stage.table.services["s"].capacity
    await stage.until(lambda: capacity.waiting == 1)
    second.reset()
    await stage.until(lambda: capacity.waiting == 0)
    assert stage.log.outcomes == [(499, "client_gone")]
    wire.send(OK)
    await first.message()
    assert capacity.inflight == 0


async def test_a_request_with_a_body_waits_without_being_read_and_arrives_whole(stage):
    stage.configure({"capacity": {"requests": 1, "queue": 1, "wait": "1m"}})
    await stage.origin()
    ((first, wire),) = await begun(stage)
    second = await stage.client()
    second.send(b"POST /y HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n12345")
    await stage.until(lambda: stage.table.services["s"].capacity.waiting == 1)
    second.send(b"67890")
    wire.send(OK)
    await first.message()
    assert (await wire.head()).line == "POST /y HTTP/1.1"
    assert await wire.exactly(10) == b"1234567890"
    wire.send(OK)
    assert (await second.message())[1] == b"ok"


async def test_a_place_is_given_back_however_a_request_ends(stage):
    stage.configure({"capacity": {"requests": 4}, "retry": {"attempts": 0}})
    await stage.origin()
    capacity = stage.table.services["s"].capacity
    (gone, _), (failed, broken), (odd, strange), (cut, _) = await begun(stage, 4)
    assert capacity.inflight == 4
    gone.reset()
    broken.reset()
    assert (await failed.message())[0].status == 502
    strange.send(b"nonsense\r\n\r\n")
    assert (await odd.message())[0].status == 502
    stage.table.services["s"].endpoints["a"].state = State.DRAINING
    await stage.until(lambda: capacity.inflight == 1)
    cut_busy(stage.endpoint(), Reason.DRAIN_DEADLINE)
    assert (await cut.message())[0].status == 503
    assert capacity.inflight == 0


async def test_a_handshake_has_a_place_until_it_is_a_tunnel_and_tunnels_have_a_limit_of_their_own(stage):
    stage.configure({"capacity": {"requests": 1, "tunnels": 2, "queue": 1, "wait": "1m"}})
    await stage.origin()
    capacity = stage.table.services["s"].capacity
    for _ in range(2):
        client = await stage.client()
        client.send(HANDSHAKE)
        wire = await stage.origins[0].accept()
        await wire.head()
        assert (capacity.inflight, capacity.shaking_hands) == (1, 1)
        wire.send(SWITCHED)
        assert (await client.head()).status == 101
        assert (capacity.inflight, capacity.shaking_hands) == (0, 0)
    third = await stage.client()
    third.send(HANDSHAKE)
    assert (await refusal(third))[:2] == (503, "overloaded")
    client.close()
    await stage.until(lambda: stage.endpoint().tunnels == 1)
    third.send(HANDSHAKE)
    wire = await stage.origins[0].accept()
    await wire.head()
    wire.send(SWITCHED)
    assert (await third.head()).status == 101


async def test_idle_connections_make_room_when_connections_are_limited(stage):
    stage.configure({"capacity": {"connections": 2, "queue": 1, "wait": "1m"}})
    a, b = await stage.origin("a"), await stage.origin("b")
    for origin in (a, b):
        origin.serve(OK)
    client = await stage.client()
    for _ in range(2):  # round robin: one idle connection to each
        client.send(GET)
        await client.message()
    assert [len(stage.endpoint(id).idle) for id in "ab"] == [1, 1]
    stage.table.eject("s", "a", 60.0, stage.clock())
    clients = [await stage.client() for _ in range(2)]
    b.serve(lambda wire, head: asyncio.sleep(0))
    held = stage.endpoint("b").idle[0]
    held.close()
    for client in clients:
        client.send(GET)
    await stage.until(lambda: stage.endpoint("b").inflight == 2)
    assert stage.endpoint("a").idle == []
    assert sum(len(stage.endpoint(id).connections) for id in "ab") == 2


async def test_requests_over_the_rate_wait_their_turn_where_they_may(stage):
    stage.configure(
        routes=[
            {"match": {"path": "/"}, "service": "s", "limit": {"rate": "50/s", "burst": 1, "wait": "30ms"}}
        ]
    )
    (await stage.origin()).serve(OK)
    clients = [await stage.client() for _ in range(3)]
    for client in clients:
        client.send(GET)
    answers = [await client.message() for client in clients]
    assert sorted(head.status for head, _ in answers) == [200, 200, 429]
    assert [head.get("retry-after") for head, _ in answers if head.status == 429] == ["1"]


async def test_the_limits_of_route_and_service_hold_together(stage):
    stage.configure(
        {"limit": {"rate": "1/m", "burst": 3, "per": "service"}},
        routes=[
            {"match": {"path": "/a"}, "service": "s", "limit": {"rate": "1/m", "burst": 2}},
            {"match": {"path": "/"}, "service": "s"},
        ],
    )
    (await stage.origin()).serve(OK)
    client = await stage.client()
    seen = []
    for path in (b"/a", b"/a", b"/a", b"/b", b"/b"):
        client.send(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        seen.append((await client.message())[0].status)
    assert seen == [200, 200, 429, 200, 429]


async def test_limits_can_be_changed_while_requests_wait(stage):
    stage.configure({"capacity": {"requests": 1, "queue": 9, "wait": "1m"}})
    await stage.origin()
    ((first, wire),) = await begun(stage)
    second = await stage.client()
    second.send(GET)
    capacity = stage.table.services["s"].capacity
    await stage.until(lambda: capacity.waiting == 1)
    stage.table.set_capacity("s", Capacity())
    third = await stage.client()
    third.send(GET)
    other = await stage.origins[0].accept()
    await other.head()
    wire.send(OK)
    await first.message()
    await wire.head()
    for connection in (wire, other):
        connection.send(OK)
    assert [(await client.message())[1] for client in (second, third)] == [b"ok", b"ok"]
    stage.table.set_service_limits("s", [Limit(rate=1.0, burst=1, per="service")])
    for status in (200, 429):
        third.send(GET)
        if status == 200:
            # The most recently used idle connection, which is one of the two.
            await stage.until(lambda: stage.endpoint().inflight == 1)
            wires = [other, wire]
            heads = [asyncio.ensure_future(w.head()) for w in wires]
            done, pending = await asyncio.wait(heads, return_when=asyncio.FIRST_COMPLETED)
            wires[heads.index(done.pop())].send(OK)
            for task in pending:
                task.cancel()
        assert (await third.message())[0].status == status
    assert [kind for kind, _ in stage.events if kind.endswith("s_changed") or "capacity" in kind] == [
        "capacity_changed",
        "limits_changed",
    ]
