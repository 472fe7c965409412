"""Tries with a limit of their own, and second tries beside a first that takes long."""

from __future__ import annotations

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


def answer(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)


async def scene(stage, retry, **service):
    """Two instances of which the first is asked first, and a client whose request it has got."""
    stage.configure({"retry": retry} | service)
    origins = [await stage.origin("a"), await stage.origin("b")]
    client = await stage.client()
    client.send(GET)
    first = await origins[0].accept()
    await first.head()
    return client, first, origins[1]


async def test_a_try_that_takes_too_long_is_followed_by_the_next(stage):
    client, first, other = await scene(stage, {"timeout": "2s", "on": ["timeout"]})
    stage.clock.advance(2.2)
    second = await other.accept()
    await second.head()
    assert await first.ended()
    second.send(answer(b"b"))
    assert (await client.message())[1] == b"b"
    assert stage.plane.counters.retries == 1
    assert stage.endpoint("a").failures == 1


async def test_the_limit_of_all_tries_counts_from_the_first(stage):
    client, _, other = await scene(
        stage, {"timeout": "2s", "on": ["timeout"], "attempts": 9}, timeout={"response": "3s"}
    )
    stage.clock.advance(2.2)
    await (await other.accept()).head()
    stage.clock.advance(1.0)
    assert (await client.message())[0].status == 504
    assert stage.log.outcomes == [(504, "upstream_timeout")]


async def test_a_request_that_may_have_been_acted_on_is_not_tried_again(stage):
    stage.configure({"retry": {"timeout": "2s", "on": ["timeout"]}})
    client, wire = await stage.pair(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
    await stage.origin("b")
    await wire.head()
    stage.clock.advance(2.2)
    assert (await client.message())[0].status == 504


async def test_the_second_instance_answers_when_the_first_takes_long(stage):
    client, first, other = await scene(stage, {"hedge": "10ms"})
    second = await other.accept()
    assert (await second.head()).line == "GET /x HTTP/1.1"
    second.send(answer(b"b"))
    assert (await client.message())[1] == b"b"
    assert await first.ended()
    assert stage.plane.counters.hedges == 1
    assert (stage.endpoint("a").failed, stage.endpoint("b").failed) == (0, 0)
    client.send(GET)  # the connection of the second try is an ordinary one now
    await (await stage.origins[0].accept()).head()


async def test_the_first_instance_may_still_be_faster(stage):
    client, first, other = await scene(stage, {"hedge": "10ms"})
    second = await other.accept()
    await second.head()
    first.send(answer(b"a"))
    assert (await client.message())[1] == b"a"
    assert await second.ended()
    assert stage.endpoint("b").inflight == 0


async def test_an_answer_in_time_needs_no_second_try(stage):
    client, first, other = await scene(stage, {"hedge": "20ms"})
    first.send(answer(b"a"))
    assert (await client.message())[1] == b"a"
    client.send(GET)
    second = await other.accept()
    await second.head()
    second.send(answer(b"b"))
    assert (await client.message())[1] == b"b"
    assert stage.plane.counters.hedges == 0


async def test_when_the_first_breaks_off_the_second_is_waited_for(stage):
    client, first, other = await scene(stage, {"hedge": "10ms", "on": []})
    second = await other.accept()
    await second.head()
    first.reset()
    await stage.until(lambda: stage.endpoint("a").inflight == 0)
    second.send(answer(b"b"))
    assert (await client.message())[1] == b"b"
    assert stage.endpoint("a").failed == 1


async def test_when_the_second_breaks_off_the_first_goes_on(stage):
    client, first, other = await scene(stage, {"hedge": "10ms", "on": []})
    second = await other.accept()
    await second.head()
    second.reset()
    await stage.until(lambda: stage.endpoint("b").inflight == 0)
    first.send(answer(b"a"))
    assert (await client.message())[1] == b"a"


async def test_a_client_that_goes_ends_both(stage):
    client, first, other = await scene(stage, {"hedge": "10ms"})
    second = await other.accept()
    await second.head()
    client.reset()
    assert await first.ended()
    assert await second.ended()


async def test_second_tries_cost_budget_and_are_not_made_for_what_has_a_body(stage):
    client, first, _ = await scene(stage, {"hedge": "5ms", "budget": 0})
    first.send(answer(b"a"))
    await client.message()
    client.send(b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
    second = await stage.origins[1].accept()
    await second.head()
    second.send(answer(b"b"))
    assert (await client.message())[1] == b"b"
    assert stage.plane.counters.hedges == 0
