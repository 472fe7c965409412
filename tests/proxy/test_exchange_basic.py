"""Requests and answers that go well: what each side sees of the other."""

from __future__ import annotations

import json

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


async def test_a_request_reaches_the_instance_and_its_answer_the_client(stage):
    client, origin = await stage.pair(b"GET /p?q=%20 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a:2\r\n\r\n")
    seen = await origin.head()
    assert seen.line == "GET /p?q=%20 HTTP/1.1"
    assert seen.raw.startswith(b"GET /p?q=%20 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a:2\r\n")
    origin.send(b"HTTP/1.1 201 Made it\r\nX-b: 1\r\nX-B: 2\r\nContent-Length: 3\r\n\r\nabc")
    head, body = await client.message()
    assert head.line == "HTTP/1.1 201 Made it"
    assert head.raw.startswith(b"HTTP/1.1 201 Made it\r\nX-b: 1\r\nX-B: 2\r\nContent-Length: 3\r\n")
    assert body == b"abc"
    assert stage.log.outcomes == [(201, "")]


async def test_a_connection_to_an_instance_is_kept_and_used_again(stage):
    client, origin = await stage.pair(GET)
    for _ in range(3):
        await origin.head()
        origin.send(OK)
        assert (await client.message())[1] == b"ok"
        client.send(GET)
    assert stage.origins[0].accepted == 1


async def test_pipelined_requests_are_answered_in_order(stage):
    async def echo(wire, head):
        body = head.line.encode()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    (await stage.origin("a")).serve(echo)
    (await stage.origin("b")).serve(echo)
    client = await stage.client()
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(200)))
    for n in range(200):
        assert (await client.message())[1] == b"GET /%d HTTP/1.1" % n


async def test_bodies_sent_ahead_do_not_run_into_the_next_request(stage):
    async def echo(wire, head):
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + head.line[6].encode())

    (await stage.origin()).serve(echo)
    client = await stage.client()
    client.send(
        b"POST /0 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
        b"POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
        b"\r\n"
        b"POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
    )
    assert [(await client.message())[1] for _ in range(3)] == [b"0", b"1", b"2"]


async def test_a_head_may_come_byte_by_byte(stage):
    stage.origins.clear()
    (await stage.origin()).serve(OK)
    client = await stage.client()
    for byte in GET:
        client.send(bytes((byte,)))
        await client.writer.drain()
    assert (await client.message())[1] == b"ok"


async def test_a_response_head_may_come_byte_by_byte(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    for byte in OK:
        origin.send(bytes((byte,)))
        await stage.until(lambda: origin.writer.transport.get_write_buffer_size() == 0)
    assert (await client.message())[1] == b"ok"


async def test_chunks_and_trailers_pass_both_ways(stage):
    client, origin = await stage.pair(
        b"POST / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;ext=1\r\nhello\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n"
    )
    seen = await origin.head()
    assert seen.get("transfer-encoding") == "chunked"
    assert seen.get("te") == "trailers"
    assert await origin.until(b"\r\n\r\n") == b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
    origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n")
    origin.send(b"3\r\nabc\r\n0\r\nX-End: yes\r\n\r\n")
    head = await client.head()
    assert head.get("transfer-encoding") == "chunked"
    assert await client.until(b"\r\n\r\n") == b"3\r\nabc\r\n0\r\nX-End: yes\r\n\r\n"


async def test_a_body_that_ends_with_the_connection_is_chunked_for_http_1_1(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
    head = await client.head()
    assert head.get("transfer-encoding") == "chunked"
    assert head.get("connection") is None
    origin.send(b" more")
    await origin.writer.drain()
    origin.close()
    assert await client.chunks() == b"some more"
    client.send(GET)
    assert (await (await stage.origins[0].accept()).head()).line == "GET / HTTP/1.1"


async def test_an_http_1_0_client_gets_chunks_as_a_body_that_ends_with_the_connection(stage):
    client, origin = await stage.pair(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    seen = await origin.head()
    assert seen.line == "GET / HTTP/1.1"
    assert seen.all("host") == [""]
    origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n")
    head = await client.head()
    assert head.get("transfer-encoding") is None
    assert head.get("connection") == "close"
    assert await client.rest() == b"abc"


async def test_an_http_1_0_client_may_keep_its_connection(stage):
    client, origin = await stage.pair(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: h\r\n\r\n")
    for last in (False, True):
        await origin.head()
        origin.send(OK)
        head, body = await client.message()
        assert (head.get("connection"), body) == ("close" if last else "keep-alive", b"ok")
        client.send(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n")
    assert await client.ended()


async def test_an_http_1_0_instance_is_understood(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
    head, body = await client.message()
    assert (head.line, body) == ("HTTP/1.1 200 OK", b"ok")
    assert await origin.ended()
    client.send(GET)
    again = await stage.origins[0].accept()
    await again.head()
    again.send(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
    await client.message()
    client.send(GET)
    assert (await again.head()).line == "GET / HTTP/1.1"


async def test_connection_close_of_either_side_ends_that_side_only(stage):
    client, origin = await stage.pair(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert (await origin.head()).get("connection") is None
    origin.send(OK)
    head, body = await client.message()
    assert (head.get("connection"), body) == ("close", b"ok")
    assert await client.ended()
    other = await stage.client()
    other.send(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    head, _ = await other.message()
    assert head.get("connection") is None
    assert await origin.ended()
    other.send(GET)
    await stage.origins[0].accept()


async def test_answers_without_a_body_do_not_wait_for_one(stage):
    client, origin = await stage.pair(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    assert (await client.head()).get("content-length") == "1000"
    for status in (204, 304):
        client.send(GET)
        await origin.head()
        origin.send(b"HTTP/1.1 %d X\r\nETag: 1\r\n\r\n" % status)
        head = await client.head()
        assert (head.status, head.get("content-length")) == (status, None)
    client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.head()
    client.send(GET)
    assert (await origin.head()).line == "GET / HTTP/1.1"


async def test_a_body_after_an_answer_to_head_spoils_the_instances_connection_not_the_clients(stage):
    client, origin = await stage.pair(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
    await client.head()
    client.send(GET)
    again = await stage.origins[0].accept()
    await again.head()
    again.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_100_continue_is_asked_for_and_passed_on(stage):
    client, origin = await stage.pair(
        b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert (await origin.head()).get("expect") == "100-continue"
    origin.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert (await client.head()).raw == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abc")
    assert await origin.exactly(3) == b"abc"
    origin.send(OK)
    assert (await client.message())[1] == b"ok"
    client.send(GET)
    assert (await origin.head()).line == "GET / HTTP/1.1"


async def test_a_final_answer_instead_of_100_ends_the_connection_in_order(stage):
    client, origin = await stage.pair(
        b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    await origin.head()
    origin.send(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
    head, body = await client.message()
    assert (head.status, head.get("connection"), body) == (417, "close", b"no")
    assert await client.ended()


async def test_1xx_pass_also_a_100_that_nobody_asked_for(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    assert (await client.head()).raw == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await client.head()).raw == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    origin.send(b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n" + OK)
    assert (await client.head()).get("link") == "</b>"
    assert (await client.message())[1] == b"ok"


async def test_http_1_0_clients_get_no_1xx(stage):
    client, origin = await stage.pair(
        b"POST / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
    )
    await origin.head()
    origin.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK)
    assert (await client.head()).status == 200


async def test_hop_by_hop_fields_end_at_the_proxy_both_ways(stage):
    client, origin = await stage.pair(
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Hop, close, Host\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
        b"Proxy-Connection: x\r\nProxy-Authorization: y\r\nX-Stays: 2\r\n\r\n"
    )
    seen = await origin.head()
    names = [name.lower() for name, _ in seen.fields]
    assert "x-stays" in names and "host" in names
    assert not {"x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "connection"} & set(names)
    origin.send(
        b"HTTP/1.1 200 OK\r\nConnection: X-Mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n"
        b"X-Stays: 3\r\nContent-Length: 0\r\n\r\n"
    )
    head, _ = await client.message()
    assert head.get("x-stays") == "3"
    assert head.get("x-mine") is head.get("keep-alive") is None


async def test_absolute_form_is_made_origin_form_and_names_the_host(stage):
    client, origin = await stage.pair(b"GET http://real:81/p?q HTTP/1.1\r\nHost: other\r\n\r\n")
    seen = await origin.head()
    assert (seen.line, seen.all("host")) == ("GET /p?q HTTP/1.1", ["real:81"])
    assert seen.get("x-forwarded-host") == "real:81"
    origin.send(OK)
    await client.message()
    client.send(b"GET http://real HTTP/1.0\r\n\r\n")
    seen = await origin.head()
    assert (seen.line, seen.all("host")) == ("GET / HTTP/1.1", ["real"])


async def test_an_empty_host_is_passed_on_once(stage):
    _, origin = await stage.pair(b"GET / HTTP/1.1\r\nHost: \r\n\r\n")
    assert (await origin.head()).all("host") == [""]


async def test_options_asterisk_is_forwarded(stage):
    client, origin = await stage.pair(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await origin.head()).line == "OPTIONS * HTTP/1.1"
    origin.send(b"HTTP/1.1 204 No Content\r\nAllow: GET\r\n\r\n")
    assert (await client.head()).get("allow") == "GET"


async def test_a_date_is_added_when_the_instance_gives_none(stage):
    client, origin = await stage.pair(GET)
    await origin.head()
    origin.send(OK)
    assert ((await client.message())[0].get("date") or "").endswith("GMT")
    client.send(GET)
    await origin.head()
    origin.send(b"HTTP/1.1 200 OK\r\nDate: mine\r\nContent-Length: 0\r\n\r\n")
    assert (await client.message())[0].all("date") == ["mine"]


async def test_a_half_closed_client_still_gets_its_answers(stage):
    client, origin = await stage.pair(GET + GET)
    client.finish()
    for _ in range(2):
        await origin.head()
        origin.send(OK)
        assert (await client.message())[1] == b"ok"
    assert await client.ended()


async def test_unix_sockets_on_both_sides(stage):
    origin = await stage.origin(unix=True)
    listener = await stage.listen(address=f"unix:{stage.tmp}/listen.sock")
    client = await stage.client(listener)
    client.send(GET)
    wire = await origin.accept()
    assert (await wire.head()).get("x-forwarded-for") == "unknown"
    wire.send(OK)
    assert (await client.message())[1] == b"ok"


async def test_errors_are_json_with_a_reason_code_and_no_body_for_head(stage):
    client = await stage.client()
    client.send(GET)
    head, body = await client.message()
    assert (head.status, head.get("server"), head.get("retry-after")) == (503, "holdfast", "1")
    assert json.loads(body)["error"] == "no_healthy_instance"
    assert head.get("content-type") == "application/json"
    assert (head.get("date") or "").endswith("GMT")
    client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert int((await client.head()).get("content-length") or 0) > 0
    client.send(GET)
    assert (await client.message())[0].status == 503
    assert stage.log.outcomes == [(503, "no_healthy_instance")] * 3


async def test_nothing_matches_is_404(stage):
    stage.configure(routes=[{"match": {"path": "/only"}, "service": "s"}])
    client = await stage.client()
    client.send(GET)
    head, body = await client.message()
    assert (head.status, json.loads(body)["error"]) == (404, "no_route")
    assert stage.plane.counters.bad_requests == {"no_route": 1}
