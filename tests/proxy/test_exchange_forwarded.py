"""What instances are told of the client, and what clients cannot make them believe."""

from __future__ import annotations

import json
import re
import socket

import pytest

from config.schema import Address

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def seen(stage, fields: bytes, listener=None):
    origin = stage.origins[0] if stage.origins else await stage.origin()
    client = await stage.client(listener)
    client.send(b"GET / HTTP/1.1\r\nHost: shop.example:8080\r\n" + fields + b"\r\n")
    wire = await origin.accept()
    head = await wire.head()
    wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    await client.message()
    return head


async def test_the_client_its_scheme_and_host_are_told(stage):
    head = await seen(stage, b"")
    assert head.all("x-forwarded-for") == ["127.0.0.1"]
    assert head.all("x-forwarded-proto") == ["http"]
    assert head.all("x-forwarded-host") == ["shop.example:8080"]


@pytest.mark.parametrize(
    "name",
    [
        b"X-Forwarded-For",
        b"x-forwarded-proto",
        b"X-FORWARDED-HOST",
        b"X-Forwarded-Port",
        b"Forwarded",
        b"X-Real-IP",
        b"X_Forwarded_For",
        b"X-Forwarded_For",
        b"X_Real_IP",
    ],
)
async def test_an_untrusted_clients_word_is_replaced(stage, name):
    head = await seen(stage, name + b": 6.6.6.6\r\n" + name + b": evil\r\n")
    assert b"6.6.6.6" not in head.raw
    assert b"evil" not in head.raw
    assert head.all("x-forwarded-for") == ["127.0.0.1"]


async def test_a_trusted_proxys_word_is_kept_and_it_joins_the_chain(stage):
    stage.configure(trusted_proxies=["127.0.0.0/8"])
    head = await seen(
        stage,
        b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 127.0.0.2\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: public.example\r\nX-Real-IP: 203.0.113.9\r\n",
    )
    assert head.all("x-forwarded-for") == ["203.0.113.9, 127.0.0.2, 127.0.0.1"]
    assert head.all("x-forwarded-proto") == ["https"]
    assert head.all("x-forwarded-host") == ["public.example"]
    assert head.all("x-real-ip") == ["203.0.113.9"]
    assert stage.log.lines[0][3] == "203.0.113.9"


async def test_a_trusted_proxy_that_says_nothing_is_the_client(stage):
    stage.configure(trusted_proxies=["127.0.0.1"])
    head = await seen(stage, b"")
    assert head.all("x-forwarded-for") == ["127.0.0.1"]
    assert head.all("x-forwarded-proto") == ["http"]
    assert stage.log.lines[0][3] == "127.0.0.1"


async def test_a_trusted_proxy_is_believed_only_as_far_as_it_was_told_by_trusted_ones(stage):
    stage.configure(trusted_proxies=["127.0.0.1", "10.0.0.0/8"])
    await seen(stage, b"X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.1.1.1\r\n")
    assert stage.log.lines[0][3] == "203.0.113.9"


async def test_a_request_id_is_made_and_only_a_trusted_one_is_kept(stage):
    first = await seen(stage, b"X-Request-Id: mine\r\n")
    second = await seen(stage, b"")
    (one,), (two,) = first.all("x-request-id"), second.all("x-request-id")
    assert re.fullmatch("[0-9a-f]{24}", one)
    assert one != two
    stage.configure(trusted_proxies=["127.0.0.1"])
    assert (await seen(stage, b"X-Request-Id: mine\r\n")).all("x-request-id") == ["mine"]
    assert stage.log.lines[2][14] == b"mine"


async def test_a_trace_is_passed_on_or_started(stage):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    head = await seen(stage, b"traceparent: %b\r\ntracestate: a=1\r\n" % trace.encode())
    assert head.all("traceparent") == [trace]
    assert head.all("tracestate") == ["a=1"]
    for nonsense in (b"", b"traceparent: nonsense\r\n"):
        (started,) = (await seen(stage, nonsense)).all("traceparent")
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", started)


async def test_an_ipv6_client_is_told_without_brackets(stage):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    stage.configure(trusted_proxies=["::/64"])
    listener = await stage.listen(address=Address("::1", 0))
    head = await seen(stage, b"X-Forwarded-For: 2001:db8::1\r\n", listener)
    assert head.all("x-forwarded-for") == ["2001:db8::1, ::1"]
    assert stage.log.lines[0][3] == "2001:db8::1"


async def test_a_unix_sockets_peer_has_no_address_and_is_never_trusted(stage):
    stage.configure(trusted_proxies=["0.0.0.0/0", "::/0"])
    listener = await stage.listen(address=f"unix:{stage.tmp}/in.sock")
    head = await seen(stage, b"X-Forwarded-For: 6.6.6.6\r\n", listener)
    assert head.all("x-forwarded-for") == ["unknown"]


async def test_a_sticky_cookie_is_set_once_and_honoured(stage):
    stage.configure({"sticky": {"by": "cookie", "name": "hf"}, "balance": "round_robin"})
    for id in ("a", "b", "c"):
        (await stage.origin(id)).serve(
            b"HTTP/1.1 200 OK\r\nX-Who: %b\r\nSet-Cookie: app=1\r\nContent-Length: 0\r\n\r\n" % id.encode()
        )
    client = await stage.client()
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    head, _ = await client.message()
    who = head.get("x-who")
    app, cookie = head.all("set-cookie")
    assert app == "app=1"
    assert re.fullmatch("hf=[A-Za-z0-9_-]{22}; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax", cookie)
    pair = cookie.split(";")[0].encode()
    for _ in range(6):
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\nCookie: x=y; " + pair + b"\r\n\r\n")
        head, _ = await client.message()
        assert (head.get("x-who"), head.all("set-cookie")) == (who, ["app=1"])
    stage.apply(*(o.instance for o in stage.origins if o.id != who))
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\nCookie: " + pair + b"\r\n\r\n")
    head, _ = await client.message()
    assert head.get("x-who") != who
    assert len(head.all("set-cookie")) == 2


async def test_a_limited_route_answers_429_with_retry_after(stage):
    stage.configure(
        routes=[{"match": {"path": "/"}, "service": "s", "limit": {"rate": "1/s", "burst": 1}}],
    )
    (await stage.origin()).serve(OK)
    client = await stage.client()
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
    assert (await client.message())[0].status == 200
    head, body = await client.message()
    assert (head.status, head.get("retry-after")) == (429, "1")
    assert b"rate_limited" in body
    stage.clock.advance(1)
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.message())[0].status == 200


async def test_a_limited_client_is_told_apart_by_what_a_trusted_proxy_says(stage):
    stage.configure(
        routes=[{"match": {"path": "/"}, "service": "s", "limit": {"rate": "1/m", "burst": 1}}],
        trusted_proxies=["127.0.0.1"],
    )
    (await stage.origin()).serve(OK)
    client = await stage.client()
    statuses = []
    for address in (b"203.0.113.1", b"203.0.113.2", b"203.0.113.1"):
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: " + address + b"\r\n\r\n")
        statuses.append((await client.message())[0].status)
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize("trusted", [True, False])
async def test_via_is_added_behind_those_that_are_there_when_it_has_a_name(stage, trusted):
    stage.configure(via="edge", trusted_proxies=["127.0.0.1"] if trusted else [])
    _, origin = await stage.pair(
        b"GET / HTTP/1.1\r\nHost: h\r\nVia: 1.0 a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    )
    assert (await origin.head()).all("via") == ["1.0 a", "1.1 edge"]


async def test_without_a_name_there_is_no_via(stage):
    _, origin = await stage.pair(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await origin.head()).all("via") == []


@pytest.mark.parametrize("trusted", [True, False])
async def test_who_may_not_say_who_it_is_may_not_say_what_it_asked_for_either(stage, trusted):
    stage.configure(trusted_proxies=["127.0.0.1"] if trusted else [])
    _, origin = await stage.pair(
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Original-URL: /admin\r\nX_Rewrite_URL: /admin\r\n\r\n"
    )
    head = await origin.head()
    told = [head.get("x-original-url"), head.get("x_rewrite_url")]
    assert told == (["/admin", "/admin"] if trusted else [None, None])


@pytest.mark.parametrize("target", ["/a/../s", "/a%2Fb", "/a/./b", "/a;b/c"])
async def test_a_path_that_every_reading_routes_alike_goes_on_as_it_came(stage, target):
    _, origin = await stage.pair(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target.encode())
    assert (await origin.head()).line == f"GET {target} HTTP/1.1"


async def test_a_path_that_two_readers_route_differently_is_400(stage):
    stage.configure(
        routes=[{"match": {"path": "/admin"}, "service": "s"}, {"match": {"path": "/"}, "service": "s"}]
    )
    origin = await stage.origin()
    client = await stage.client()
    client.send(b"GET /public/../admin HTTP/1.1\r\nHost: h\r\n\r\n")
    head, body = await client.message()
    assert (head.status, json.loads(body)["error"]) == (400, "bad_request")
    assert not origin.accepted
