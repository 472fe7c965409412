"""Copies of requests: they reach the other version, and the client sees nothing of them."""

from __future__ import annotations

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def mirrored(stage, share="100%"):
    route = {
        "match": {"path": "/"},
        "service": "s",
        "split": {"v1": 1, "v2": 0},
        "mirror": {"to": "v2", "share": share},
    }
    stage.configure(routes=[route])


async def two_versions(stage):
    live = await stage.origin("live", metadata={"version": "v1"})
    trial = await stage.origin("trial", metadata={"version": "v2"})
    return live, trial


async def test_a_copy_with_its_body_reaches_the_other_version(stage):
    mirrored(stage)
    live, trial = await two_versions(stage)
    live.serve(OK)
    client = await stage.client()
    client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
    head, body = await client.message()
    assert (head.status, body) == (200, b"ok")
    copy = await trial.accept()
    head, body = await copy.message()
    assert head.raw.startswith(b"POST /x HTTP/1.1")
    assert body == b"hello"
    copy.send(OK)
    await stage.until(lambda: stage.plane.copies == 0)


async def test_an_answer_to_a_copy_goes_nowhere_and_its_connection_is_used_again(stage):
    mirrored(stage)
    live, trial = await two_versions(stage)
    live.serve(OK)
    trial.serve(b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nbad")
    client = await stage.client()
    for _ in range(3):
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        head, body = await client.message()
        assert (head.status, body) == (200, b"ok")
        await stage.until(lambda: stage.plane.copies == 0)
    assert len(stage.endpoint("trial").connections) == 1
    assert stage.endpoint("trial").inflight == 0


async def test_a_version_that_hangs_is_sent_only_so_many_copies(stage):
    mirrored(stage)
    live, _ = await two_versions(stage)
    live.serve(OK)
    client = await stage.client()
    for _ in range(80):
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.message())[0].status == 200
    assert stage.plane.copies == 64
    stage.clock.advance(31)
    await stage.until(lambda: stage.plane.copies == 0)


async def test_no_request_is_copied_with_a_share_of_nothing(stage):
    mirrored(stage, "0%")
    live, _ = await two_versions(stage)
    live.serve(OK)
    client = await stage.client()
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.message())[0].status == 200
    assert stage.endpoint("trial").connections == set()
