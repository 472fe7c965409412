"""Clients and instances that break off, lie, or are not there."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from discovery.model import Instance, Status
from proxy.errors import Reason
from proxy.upstream import connect

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"


async def refused(wire) -> tuple[int, str]:
    head, body = await wire.message()
    return head.status, json.loads(body)["error"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -- instances that break off --------------------------------------------------------------------------------


async def test_an_instance_that_closes_within_a_length_breaks_the_clients_message(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    origin.close()
    assert (await client.head()).status == 200
    assert await client.rest() == b"half"
    assert stage.log.outcomes == [(200, "upstream_reset")]
    assert stage.endpoint().failed == 1


async def test_an_instance_that_closes_within_chunks_breaks_the_clients_message(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    origin.close()
    await client.head()
    assert await client.rest() == b"4\r\nhalf\r\n"
    assert stage.log.outcomes == [(200, "upstream_reset")]


async def test_a_reset_within_a_body_that_ends_with_the_connection_is_no_clean_end(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    await client.head()
    assert await client.until(b"half\r\n") == b"4\r\nhalf\r\n"
    origin.reset()
    assert await client.rest() == b""
    assert stage.log.outcomes == [(200, "upstream_reset")]


@pytest.mark.parametrize("framing", [b"", b"Transfer-Encoding: chunked\r\n"])
async def test_an_http_1_0_client_sees_a_reset_where_only_the_end_tells_completeness(stage, framing):
    client, origin = await stage.pair(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n")
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + (b"4\r\nhalf\r\n" if framing else b"half"))
    await client.head()
    assert await client.exactly(4) == b"half"
    origin.reset()
    with pytest.raises(ConnectionResetError):
        await client.rest()


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000,
    ],
)
async def test_a_malformed_answer_is_502_and_never_passed_on(stage, garbage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(garbage)
    assert await refused(client) == (502, "upstream_invalid")
    assert await origin.ended()
    assert stage.endpoint().failed == 1
    client.send(GET)
    again = await stage.origins[0].accept()
    await again.head()
    again.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_broken_chunks_of_an_instance_break_the_clients_message(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n")
    await client.head()
    await client.until(b"good\r\n")
    origin.send(b"zz\r\n")
    assert await client.rest() == b""
    assert stage.log.outcomes == [(200, "upstream_invalid")]


async def test_an_unasked_101_is_502(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert await refused(client) == (502, "upstream_invalid")


# -- retries -------------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_tried_on_another_instance(stage):
    origin = await stage.origin("b")
    origin.serve(OK)
    stage.apply(Instance("s", "a", "127.0.0.1", free_port()), origin.instance)
    client = await stage.client()
    for _ in range(4):
        client.send(POST)
        assert (await client.message())[0].status == 200
    retries = stage.plane.counters.retries
    assert 0 < retries == stage.plane.counters.upstream_connect_failures == stage.endpoint("a").failed
    assert {line[13] for line in stage.log.lines} == {1, 2}


async def test_when_all_connections_are_refused_the_client_is_told_so(stage):
    stage.apply(Instance("s", "a", "127.0.0.1", free_port()))
    client = await stage.client()
    client.send(POST)
    assert await refused(client) == (502, "connect_failed")
    client.send(GET)
    assert await refused(client) == (502, "connect_failed")


async def test_a_host_that_cannot_be_a_name_is_a_failed_connection(stage):
    stage.apply(Instance("s", "a", "x" * 80 + ".example", 80), Instance("s", "b", "127.0.0.1", 1 << 17))
    client = await stage.client()
    client.send(GET)
    assert await refused(client) == (502, "connect_failed")


async def test_an_instance_that_does_not_accept_in_time_is_504(stage):
    stage.configure({"timeout": {"connect": "50ms"}, "retry": {"attempts": 0}})
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = full.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(where)
        stage.apply(Instance("s", "a", *where))
        client = await stage.client()
        client.send(GET)
        assert await refused(client) == (504, "connect_timeout")
        for filler in fillers:
            filler.close()


async def test_a_get_on_a_stale_connection_is_sent_again(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(OK)
    await client.message()
    client.send(GET)
    await origin.head()
    origin.reset()
    again = await stage.origins[0].accept()
    await again.head()
    again.send(OK)
    assert (await client.message())[1] == b"ok"
    assert stage.endpoint().failed == 0


async def test_a_post_on_a_stale_connection_is_not(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(OK)
    await client.message()
    client.send(POST)
    await origin.exactly(10)
    origin.close()
    assert await refused(client) == (502, "upstream_reset")
    assert stage.origins[0].accepted == 1


async def test_a_reset_before_the_answer_is_tried_elsewhere_for_get_with_the_body_kept(stage):
    first, second = await stage.origin("a"), await stage.origin("b")
    client = await stage.client()
    client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n")
    wire = await first.accept()
    await wire.until(b"body\r\n")
    wire.reset()
    other = await second.accept()
    assert await other.until(b"body\r\n")
    client.send(b"3\r\nend\r\n0\r\n\r\n")
    assert await other.until(b"0\r\n\r\n") == b"3\r\nend\r\n0\r\n\r\n"
    other.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_a_body_too_large_to_keep_is_not_sent_again(stage):
    first, _ = await stage.origin("a"), await stage.origin("b")
    client = await stage.client()
    client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
    wire = await first.accept()
    await wire.head()
    await wire.exactly(100_000)
    wire.reset()
    assert await refused(client) == (502, "upstream_reset")


async def test_half_a_response_head_is_no_stale_connection(stage):
    stage.configure({"retry": {"on": []}})
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(OK)
    await client.message()
    client.send(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200")
    await origin.writer.drain()
    origin.close()
    assert await refused(client) == (502, "upstream_reset")


async def test_after_early_hints_nothing_is_retried(stage):
    first, _ = await stage.origin("a"), await stage.origin("b")
    client = await stage.client()
    client.send(GET)
    wire = await first.accept()
    await wire.head()
    wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    assert (await client.head()).status == 103
    wire.close()
    assert await refused(client) == (502, "upstream_reset")


async def test_a_503_is_tried_elsewhere_when_the_policy_names_it(stage):
    stage.configure({"retry": {"on": ["503"]}})
    (await stage.origin("a")).serve(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    (await stage.origin("b")).serve(OK)
    client = await stage.client()
    client.send(GET)
    assert (await client.message())[0].status == 200
    client.send(GET)
    assert (await client.message())[0].status == 200
    statuses = set()
    for _ in range(2):
        client.send(POST)
        statuses.add((await client.message())[0].status)
    assert statuses == {200, 503}


async def test_the_budget_bounds_retries(stage):
    (await stage.origin("a")).serve(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    (await stage.origin("b")).serve(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    stage.configure({"retry": {"on": ["503"], "attempts": 5, "budget": "10%"}})
    client = await stage.client()
    for _ in range(100):
        client.send(GET)
        assert (await client.message())[0].status == 503
    assert 30 <= stage.plane.counters.retries <= 40


async def test_an_answer_that_nobody_else_could_give_is_passed_on_whatever_the_policy_says(stage):
    stage.configure({"retry": {"on": ["503"]}})
    (await stage.origin("a")).serve(b"HTTP/1.1 503 Busy\r\nX-Why: a\r\nContent-Length: 0\r\n\r\n")
    client = await stage.client()
    client.send(GET)
    head, _ = await client.message()
    assert (head.status, head.get("x-why")) == (503, "a")
    assert stage.plane.counters.retries == 0


async def test_without_a_budget_nothing_is_retried(stage):
    stage.configure({"retry": {"budget": 0}})
    origin = await stage.origin("b")
    origin.serve(OK)
    stage.apply(Instance("s", "a", "127.0.0.1", free_port()), origin.instance)
    client = await stage.client()
    outcomes = set()
    for _ in range(2):
        client.send(GET)
        outcomes.add((await client.message())[0].status)
    assert outcomes == {200, 502}


# -- clients that break off ----------------------------------------------------------------------------------


async def test_an_instance_notices_at_once_that_its_client_has_gone(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    client.reset()
    assert await origin.ended()
    assert stage.log.outcomes == [(499, "client_gone")]
    assert stage.endpoint().failed == 0


async def test_a_client_that_goes_in_the_middle_of_an_answer_takes_the_instance_along(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await client.head()
    client.reset()
    assert await origin.ended()
    assert stage.log.outcomes == [(200, "client_gone")]


async def test_a_client_that_ends_within_its_body_is_answered_400_and_the_instance_cut(stage):
    client, origin = await stage.pair(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf")
    await origin.head()
    assert await origin.exactly(4) == b"half"
    client.finish()
    assert await refused(client) == (400, "bad_request")
    assert await client.ended()
    assert await origin.ended()


async def test_a_client_that_resets_within_its_body_cuts_the_instance(stage):
    client, origin = await stage.pair(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    await origin.head()
    client.reset()
    assert await origin.ended()


async def test_a_client_that_goes_while_a_connection_is_made_wastes_nothing(stage):
    origin = await stage.origin()
    client = await stage.client()
    client.send(GET)
    await stage.until(lambda: stage.endpoint().inflight)
    client.reset()
    await origin.accept()
    await stage.until(lambda: not stage.endpoint().inflight and not stage.plane.tasks)
    # Kept for somebody else, or closed when the request had been sent on it already.
    await stage.until(lambda: len(stage.endpoint().connections) == len(stage.endpoint().idle) <= 1)


async def test_broken_chunks_of_a_client_are_400_and_close_both_sides(stage):
    client, origin = await stage.pair(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    await origin.head()
    client.send(b"zz\r\n")
    assert await refused(client) == (400, "bad_request")
    assert await client.ended()
    assert await origin.ended()


@pytest.mark.parametrize(
    ("request_bytes", "outcome"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", (400, "bad_request")),
        (b"GET / HTTP/1.1\nHost: h\n\n", (400, "bad_request")),
        (b"\x16\x03\x01\x02\x00", (400, "bad_request")),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", (505, "unsupported_version")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505, "unsupported_version")),
        (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n", (417, "expectation_failed")),
        (b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", (405, "method_not_allowed")),
        (b"GET /" + b"x" * 20_000, (414, "request_line_too_long")),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", (414, "request_line_too_long")),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 70_000, (431, "head_too_large")),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: 1\r\n" * 100 + b"\r\n", (431, "head_too_large")),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: 1\r\n" * 200, (431, "head_too_large")),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", (501, "unsupported_coding")),
    ],
)
async def test_what_cannot_be_accepted_is_refused_and_the_connection_closed(stage, request_bytes, outcome):
    client = await stage.client()
    client.send(request_bytes)
    head, body = await client.message()
    assert (head.status, json.loads(body)["error"]) == outcome
    assert head.get("connection") == "close"
    assert await client.ended()
    assert stage.log.outcomes == [outcome]


async def test_405_says_which_methods_there_are(stage):
    client = await stage.client()
    client.send(b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n")
    assert "GET" in ((await client.message())[0].get("allow") or "")


async def test_a_malformed_request_behind_a_good_one_does_not_disturb_its_answer(stage):
    client, origin = await stage.pair(GET + b"nonsense\r\n\r\n")
    await origin.head()
    origin.send(OK)
    assert (await client.message())[1] == b"ok"
    assert await refused(client) == (400, "bad_request")
    assert await client.ended()


async def test_an_early_answer_arrives_whole_although_the_body_keeps_coming(stage):
    client, origin = await stage.pair(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
    await origin.head()
    origin.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 200000\r\n\r\n" + b"n" * 200_000)

    async def keep_sending() -> None:
        for _ in range(100):
            client.send(b"x" * 10_000)
            await asyncio.sleep(0)

    sending = asyncio.ensure_future(keep_sending())
    head, body = await client.message()
    assert (head.status, len(body)) == (413, 200_000)
    await sending
    assert await client.rest() == b""  # an orderly end, no reset
    client.finish()
    assert await origin.ended()


async def test_a_client_that_keeps_sending_after_the_last_answer_is_cut_off_in_time(stage):
    client = await stage.client()
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
    assert (await client.message())[0].status == 503
    assert await client.rest() == b""
    client.send(b"x" * 1000)
    stage.clock.advance(3)
    await stage.until(lambda: not stage.plane.clients)


# -- more clients than there may be --------------------------------------------------------------------------


async def test_more_connections_than_allowed_are_answered_503(stage):
    stage.configure(limits={"connections": 2})
    (await stage.origin()).serve(OK)
    clients = [await stage.client() for _ in range(2)]
    for client in clients:
        client.send(GET)
        await client.message()
    late = await stage.client()
    assert await refused(late) == (503, "too_many_connections")
    assert await late.ended()
    assert stage.plane.counters.connections_refused == 1
    late.close()
    clients[0].close()
    await stage.until(lambda: stage.plane.counters.connections_open == 1)
    client = await stage.client()
    client.send(GET)
    assert (await client.message())[0].status == 200


async def test_tunnels_count_as_connections(stage):
    stage.configure(limits={"connections": 1})
    client, origin = await stage.pair(
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    )
    await origin.head()
    origin.send(b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    await client.head()
    late = await stage.client()
    assert await refused(late) == (503, "too_many_connections")


async def test_connections_are_refused_while_the_proxy_shuts_down_and_the_last_answers_say_close(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    stage.plane.draining = True
    late = await stage.client()
    assert await refused(late) == (503, "draining")
    origin.send(OK)
    head, body = await client.message()
    assert (head.get("connection"), body) == ("close", b"ok")
    assert await client.ended()


# -- instances that leave ------------------------------------------------------------------------------------


async def test_an_eviction_lets_requests_finish_and_starts_nothing_new(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    endpoint = stage.endpoint()
    idle = await stage.client()
    idle.send(GET)
    second = await stage.origins[0].accept()
    await second.head()
    second.send(OK)
    await idle.message()
    assert len(endpoint.idle) == 1
    stage.apply()
    assert await second.ended()
    idle.send(GET)
    assert await refused(idle) == (503, "no_healthy_instance")
    origin.send(OK)
    assert (await client.message())[1] == b"ok"
    assert await origin.ended()
    assert (endpoint.inflight, len(endpoint.connections)) == (0, 0)
    assert stage.origins[0].accepted == 2


@pytest.mark.parametrize("status", [Status.DRAINING, Status.DOWN])
async def test_an_instance_that_leaves_while_a_connection_to_it_is_made_gets_no_request(
    stage, status, monkeypatch
):
    open_gate = asyncio.Event()

    async def gated(*arguments):
        await open_gate.wait()
        return await connect(*arguments)

    monkeypatch.setattr("proxy.exchange.connect", gated)
    origin = await stage.origin("a")
    client = await stage.client()
    client.send(POST)
    await stage.until(lambda: stage.endpoint().inflight)
    other = await stage.origin("b")
    stage.mark(origin, status)
    open_gate.set()
    wire = await other.accept()
    await wire.until(b"body")
    wire.send(OK)
    assert (await client.message())[1] == b"ok"
    assert await (await origin.accept()).ended()
    assert stage.endpoint("a").failed == 0


async def test_the_drain_deadline_ends_what_has_not_been_answered(stage):
    stage.configure({"drain": {"timeout": "50ms", "jitter": 0}})
    client, origin = await stage.pair(GET)
    await origin.head()
    stage.mark(stage.origins[0], Status.DRAINING)
    assert await refused(client) == (503, "drain_deadline")
    assert await origin.ended()


async def test_at_the_end_of_the_proxy_what_has_no_answer_gets_503_and_a_line(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    late = await stage.client()
    late.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    half = await stage.origins[0].accept()
    await half.head()
    half.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    await late.head()
    idle = await stage.client()
    await stage.until(lambda: len(stage.plane.clients) == 3)
    stage.plane.draining = True
    for connection in tuple(stage.plane.clients):
        connection.cut(Reason.DRAINING)
    assert await refused(client) == (503, "draining")
    assert await late.rest() == b"half"
    assert await idle.ended()
    assert await origin.ended()
    assert sorted(stage.log.outcomes) == [(200, "draining"), (503, "draining")]


# -- the pool ------------------------------------------------------------------------------------------------


async def test_no_more_idle_connections_are_kept_than_configured(stage):
    stage.configure({"pool": {"idle": 1}})
    (await stage.origin()).serve(OK)
    clients = [await stage.client() for _ in range(3)]
    for client in clients:
        client.send(GET)
    for client in clients:
        await client.message()
    assert len(stage.endpoint().idle) <= 1
    await stage.until(lambda: len(stage.endpoint().connections) == len(stage.endpoint().idle))


async def test_an_idle_connection_is_closed_after_its_time(stage):
    stage.configure({"timeout": {"idle": "5s"}})
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(OK)
    await client.message()
    stage.clock.advance(4)
    assert stage.endpoint().idle
    stage.clock.advance(2)
    assert not stage.endpoint().idle
    assert await origin.ended()


async def test_the_idle_time_of_a_connection_does_not_run_on_while_a_body_is_coming(stage):
    stage.configure({"timeout": {"idle": "5s"}}, timeout={"body": "60s"})
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(OK)
    await client.message()
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo")
    await origin.until(b"bo")
    stage.clock.advance(10)
    client.send(b"dy")
    await origin.exactly(2)
    origin.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_data_on_an_idle_connection_spoils_it(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(OK)
    await client.message()
    origin.send(b"HTTP/1.1 408 Timeout\r\n\r\n")
    await stage.until(lambda: not stage.endpoint().idle)
    client.send(GET)
    again = await stage.origins[0].accept()
    await again.head()
    again.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_bytes_behind_an_answer_are_never_taken_for_the_next_one(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    assert (await client.message())[1] == b"ok"
    assert await origin.ended()
    client.send(GET)
    again = await stage.origins[0].accept()
    await again.head()
    again.send(OK)
    assert (await client.message())[1] == b"ok"
