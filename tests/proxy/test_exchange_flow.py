"""Slow clients and instances: memory stays bounded, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNK = 1 << 16
BOUND = 1 << 20
"""What the proxy may buffer for one side: its transport's high-water mark and a few reads beyond it."""


async def refused(wire) -> tuple[int, str]:
    head, body = await wire.message()
    return head.status, json.loads(body)["error"]


async def lazy_client(stage, request: bytes):
    """A client with small buffers that sends a request and then reads only when it is asked to."""
    listener = await stage.listen()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await stage.plane.loop.sock_connect(sock, (listener.address.host, listener.address.port))
    wire = await stage.client(sock=sock)
    wire.writer.transport.pause_reading()
    await stage.until(lambda: stage.plane.clients)
    (downstream,) = stage.plane.clients
    wire.far = downstream.transport.get_extra_info("socket")
    wire.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    wire.send(request)
    return wire


def sip(wire) -> bytes:
    """Take a little of what has come, past the stream."""
    try:
        with socket.socket(fileno=os.dup(wire.writer.get_extra_info("socket").fileno())) as sock:
            return sock.recv(4096)
    except BlockingIOError:
        return b""


async def read_all(wire) -> bytes:
    """Read again, as fast as possible, to the end."""
    wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    wire.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    wire.writer.transport.resume_reading()
    return await wire.rest()


async def pour(writer, total: int) -> int:
    """Send until the other side's backpressure holds for a while; the bytes that went off."""
    sent = 0
    while sent < total:
        writer.write(b"x" * CHUNK)
        sent += CHUNK
        try:
            async with asyncio.timeout(0.2):
                await writer.drain()
        except TimeoutError:
            break
    return sent


def sides(stage):
    (client,) = stage.plane.clients
    return client.transport.get_write_buffer_size()


async def test_an_instance_has_to_wait_for_a_client_that_does_not_read(stage):
    origin = await stage.origin()
    client = await lazy_client(stage, GET)
    wire = await origin.accept()
    await wire.head()
    total = 32 << 20
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % total)
    sent = await pour(wire.writer, total)
    assert sent < total
    assert sides(stage) < BOUND
    # It reads after all, and gets everything.
    remaining = total - sent
    reading = asyncio.ensure_future(read_all(client))
    wire.writer.write(b"x" * remaining)
    _, _, body = (await drained(stage, reading)).partition(b"\r\n\r\n")
    assert len(body) == total


async def drained(stage, reading) -> bytes:
    """Let the response come, then the client connection end by the keep-alive timeout."""
    await stage.until(lambda: stage.log.outcomes and not sides(stage))
    stage.clock.advance(76)
    return await reading


async def test_a_client_has_to_wait_for_an_instance_that_does_not_read(stage):
    origin = await stage.origin()
    client = await stage.client()
    total = 64 << 20
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % total)
    wire = await origin.accept()
    wire.writer.transport.pause_reading()
    sent = await pour(client.writer, total)
    assert sent < total
    (upstream,) = stage.endpoint().connections
    assert upstream.transport.get_write_buffer_size() < BOUND
    wire.writer.transport.resume_reading()
    client.writer.write(b"x" * (total - sent))
    await wire.head()
    for _ in range(total // CHUNK):
        await wire.exactly(CHUNK)
    wire.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_an_instance_that_never_reads_the_body_times_out(stage):
    stage.configure({"timeout": {"response": "10s"}}, timeout={"body": "30s"})
    origin = await stage.origin()
    client = await stage.client()
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 64000000\r\n\r\n")
    wire = await origin.accept()
    wire.writer.transport.pause_reading()
    await pour(client.writer, 64_000_000)
    stage.clock.advance(11)
    assert await refused(client) == (504, "upstream_timeout")


async def test_a_stopped_client_is_told_408_only_when_it_is_its_own_fault(stage):
    stage.configure({"timeout": {"response": "10m"}}, timeout={"body": "30s"})
    origin = await stage.origin()
    client = await stage.client()
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 64000000\r\n\r\n")
    wire = await origin.accept()
    wire.writer.transport.pause_reading()
    sent = await pour(client.writer, 64_000_000)
    stage.clock.advance(31)
    stage.clock.advance(31)
    assert stage.log.outcomes == []
    wire.writer.transport.resume_reading()
    await wire.head()
    await wire.exactly(sent)
    (upstream,) = stage.endpoint().connections
    await stage.until(lambda: not upstream.transport.get_write_buffer_size())
    for _ in range(3):
        stage.clock.advance(31)
    assert await refused(client) == (408, "body_timeout")


async def test_a_pipelining_client_that_does_not_read_gets_no_further_answers(stage):
    origin = await stage.origin()
    answered = 0

    async def answer(wire, head):
        nonlocal answered
        answered += 1
        # Each fits into one write: the pause never falls into the middle of an answer.
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000)

    origin.serve(answer)
    client = await lazy_client(stage, GET * 400)
    await stage.until(lambda: answered)
    for _ in range(50):
        await asyncio.sleep(0.002)
    assert answered < 100
    assert sides(stage) < BOUND
    reading = asyncio.ensure_future(read_all(client))
    await stage.until(lambda: answered == 400 and len(stage.log.lines) == 400)
    await stage.until(lambda: not sides(stage))
    stage.clock.advance(76)
    assert (await reading).count(b"HTTP/1.1 200 OK") == 400


async def test_a_client_that_reads_nothing_for_too_long_is_cut_off(stage):
    origin = await stage.origin()
    await lazy_client(stage, GET)
    wire = await origin.accept()
    await wire.head()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
    await pour(wire.writer, 64_000_000)
    stage.clock.advance(31)  # its kernel has taken something since the first look
    stage.clock.advance(31)
    await stage.until(lambda: not stage.plane.clients)
    assert stage.log.outcomes == [(200, "client_stalled")]
    assert await wire.ended()


async def test_a_client_that_reads_slowly_is_not(stage):
    origin = await stage.origin()
    client = await lazy_client(stage, GET)
    wire = await origin.accept()
    await wire.head()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
    await pour(wire.writer, 64_000_000)
    for _ in range(5):
        # Little enough that our own buffer does not move: only the kernel's does.
        for _ in range(4):
            sip(client)
            await asyncio.sleep(0.01)
        stage.clock.advance(31)
    assert stage.plane.clients
    assert stage.log.outcomes == []
    stage.clock.advance(31)
    stage.clock.advance(31)
    await stage.until(lambda: not stage.plane.clients)


async def test_the_last_answer_reaches_a_client_that_takes_its_time(stage):
    origin = await stage.origin()
    client = await lazy_client(stage, b"GET / HTTP/1.0\r\nHost: h\r\n\r\n")
    wire = await origin.accept()
    await wire.head()
    size = 8 << 20
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    for _ in range(size // CHUNK):
        wire.send(b"x" * CHUNK)
    total = b""
    async with asyncio.timeout(10):
        while not stage.log.outcomes:
            total += sip(client)
            await asyncio.sleep(0)
    assert sides(stage) > 0
    stage.clock.advance(5)  # longer than one lingers for clients that still send
    total += await read_all(client)
    assert len(total.partition(b"\r\n\r\n")[2]) == size


async def test_a_client_that_never_takes_the_last_answer_does_not_stay_for_ever(stage):
    origin = await stage.origin()
    await lazy_client(stage, GET)
    wire = await origin.accept()
    await wire.head()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
    await pour(wire.writer, 64_000_000)
    wire.reset()
    # The broken answer is flushed first, which this client does not let happen.
    await asyncio.sleep(0.01)
    stage.clock.advance(31)
    stage.clock.advance(31)
    await stage.until(lambda: not stage.plane.clients)


# -- clients that dawdle -------------------------------------------------------------------------------------


async def test_a_head_that_takes_too_long_is_408(stage):
    client = await stage.client()
    for _ in range(9):
        client.send(b"X" if _ else b"GET / HTTP/1.1\r\nX")
        await asyncio.sleep(0.001)
        stage.clock.advance(1)
    client.send(b"X")
    await asyncio.sleep(0.005)
    stage.clock.advance(1.5)
    assert await refused(client) == (408, "header_timeout")
    assert await client.ended()


async def test_the_header_clock_starts_with_the_first_byte_not_with_the_connection(stage):
    (await stage.origin()).serve(OK)
    client = await stage.client()
    await stage.until(lambda: stage.plane.clients)
    stage.clock.advance(60)
    client.send(GET)
    assert (await client.message())[1] == b"ok"


async def test_an_idle_connection_ends_silently(stage):
    (await stage.origin()).serve(OK)
    fresh, used = await stage.client(), await stage.client()
    used.send(GET)
    await used.message()
    stage.clock.advance(74)
    await stage.until(lambda: len(stage.plane.clients) == 2)
    stage.clock.advance(2)
    assert await fresh.ended()
    assert await used.ended()
    assert len(stage.log.outcomes) == 1


async def test_a_body_that_stops_coming_is_408_and_cuts_the_instance(stage):
    client, origin = await stage.pair(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab")
    await origin.head()
    for byte in b"cde":
        stage.clock.advance(25)
        client.send(bytes((byte,)))
        await origin.until(bytes((byte,)))
    stage.clock.advance(31)
    assert await refused(client) == (408, "body_timeout")
    assert await origin.ended()
    assert stage.endpoint().failed == 0


async def test_a_thousand_empty_lines_cost_nothing_and_mean_nothing(stage):
    (await stage.origin()).serve(OK)
    client = await stage.client()
    started = time.process_time()
    client.send(b"\r\n" * 500_000 + GET)
    assert (await client.message())[1] == b"ok"
    assert time.process_time() - started < 1.0


async def test_a_head_that_trickles_is_refused_at_the_limit_of_its_fields(stage):
    stage.configure(limits={"header_count": 10})
    client = await stage.client()
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: 1\r\n" * 10)
    assert await refused(client) == (431, "head_too_large")


async def test_bytes_sent_ahead_of_an_answer_are_bounded(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    sent = await pour(client.writer, 64 << 20)
    assert sent < 64 << 20
    (downstream,) = stage.plane.clients
    assert len(downstream._buffer) < BOUND
    origin.send(OK)
    assert (await client.message())[1] == b"ok"
    assert (await refused(client))[0] in (400, 414)


async def test_a_flood_of_pipelined_requests_is_bounded_also_while_it_is_answered(stage):
    (await stage.origin()).serve(b"HTTP/1.1 204 No Content\r\n\r\n")
    client = await stage.client()
    reading = asyncio.ensure_future(client.reader.read())
    client.send(GET * 500_000)
    await stage.until(lambda: len(stage.log.lines) > 200)
    (downstream,) = stage.plane.clients
    ahead = downstream.exchange._rest if downstream.exchange is not None else b""
    assert len(downstream._buffer) + len(ahead) < BOUND
    reading.cancel()


async def test_a_body_behind_much_that_was_sent_ahead_is_read(stage):
    (await stage.origin()).serve(OK)
    client = await stage.client()
    ahead, size = 4000, 300_000
    client.send(GET * ahead + b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
    client.send(b"x" * size + GET)
    for _ in range(ahead + 2):
        assert (await client.message())[1] == b"ok"


# -- instances that dawdle -----------------------------------------------------------------------------------


async def test_an_instance_that_does_not_answer_in_time_is_504_and_not_retried(stage):
    stage.configure({"timeout": {"response": "10s"}})
    first, second = await stage.origin("a"), await stage.origin("b")
    client = await stage.client()
    client.send(GET)
    wire = await first.accept()
    await wire.head()
    stage.clock.advance(9)
    stage.clock.advance(2)
    assert await refused(client) == (504, "upstream_timeout")
    assert await wire.ended()
    assert (second.accepted, stage.endpoint("a").failed) == (0, 1)


async def test_the_response_clock_starts_at_the_end_of_the_request(stage):
    stage.configure({"timeout": {"response": "10s"}})
    client, origin = await stage.pair(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na")
    await origin.until(b"a")
    stage.clock.advance(20)
    client.send(b"b")
    await origin.until(b"b")
    stage.clock.advance(9)
    origin.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_a_long_answer_has_no_time_limit(stage):
    stage.configure({"timeout": {"response": "10s", "idle": "5s"}})
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.head()
    for _ in range(5):
        stage.clock.advance(100)
        origin.send(b"5\r\nevent\r\n")
        assert await client.until(b"event\r\n") == b"5\r\nevent\r\n"
    origin.send(b"0\r\n\r\n")
    assert await client.until(b"0\r\n\r\n")


async def test_an_answer_that_stops_coming_is_broken_off(stage):
    stage.configure({"timeout": {"read": "10s"}})
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await client.head()
    assert await client.exactly(4) == b"half"
    stage.clock.advance(11)  # something has come since the clock was started
    stage.clock.advance(11)
    assert await client.rest() == b""
    assert await origin.ended()
    assert stage.log.outcomes == [(200, "upstream_timeout")]
    assert stage.endpoint().failed == 1


async def test_an_answer_that_goes_on_slowly_is_not(stage):
    stage.configure({"timeout": {"read": "10s"}})
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
    await client.head()
    for _ in range(6):
        origin.send(b"x")
        assert await client.exactly(1) == b"x"
        stage.clock.advance(9)
    assert stage.log.outcomes == [(200, "")]
    assert stage.endpoint().idle  # the limit of the body does not go on for the idle connection


async def test_a_silent_instance_is_not_blamed_while_the_client_is_the_one_that_waits(stage):
    stage.configure({"timeout": {"read": "10s"}}, timeout={"body": "10m"})
    client, origin = await stage.pair(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na")
    await origin.until(b"a")
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
    await client.head()
    for _ in range(5):
        stage.clock.advance(11)
    client.send(b"b")
    await origin.until(b"b")
    origin.send(b"lf")
    assert await client.exactly(4) == b"half"


async def test_answers_flow_while_the_request_still_does(stage):
    client, origin = await stage.pair(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.head()
    for _ in range(3):
        client.send(b"4\r\nping\r\n")
        assert await origin.until(b"ping\r\n") == b"4\r\nping\r\n"
        origin.send(b"4\r\npong\r\n")
        assert await client.until(b"pong\r\n") == b"4\r\npong\r\n"
    client.send(b"0\r\n\r\n")
    await origin.until(b"0\r\n\r\n")
    origin.send(b"0\r\n\r\n")
    await client.until(b"0\r\n\r\n")
    client.send(GET)
    assert (await origin.head()).line == "GET / HTTP/1.1"


async def test_a_connection_that_carried_trailers_carries_nothing_more(stage):
    origin = await stage.origin()
    client = await stage.client()
    client.send(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nhi\r\n0\r\nX-Sum: 1\r\nAuthorization: Bearer x\r\nX-Request-Id: mine\r\n\r\n"
    )
    first = await origin.accept()
    await first.head()
    assert await first.until(b"\r\n\r\n") == b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n"
    first.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (await client.message())[0].status == 200
    assert await first.ended()
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    second = await origin.accept()
    await second.head()
    second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (await client.message())[0].status == 200
