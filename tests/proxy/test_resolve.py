"""Names of instances, with a name server that is slow, fails and comes back."""

from __future__ import annotations

import asyncio
import threading

import pytest

from proxy.resolve import FRESH, STALE, Resolver, is_address


class Server:
    """A name server of the test's own: what it knows, how often it was asked, and whether it hangs."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, ...]] = {"a": ("192.0.2.1",), "b": ("192.0.2.2",)}
        self.asked: list[str] = []
        self.free = threading.Event()
        self.free.set()

    def lookup(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        if host != "b":
            assert self.free.wait(30)
        if host not in self.known:
            raise OSError(f"{host} is unknown")
        return self.known[host]


@pytest.fixture
async def scene():
    server, now, seconds = Server(), [1000.0], []
    resolver = Resolver(asyncio.get_running_loop(), lambda: now[0], seconds.append, server.lookup)
    yield server, now, seconds, resolver
    server.free.set()
    resolver.close()


async def test_an_address_is_its_own_and_nobody_is_asked(scene):
    server, _, _, resolver = scene
    for address in ("192.0.2.7", "2001:db8::1", "fe80::1%lo"):
        assert await resolver.resolve(address) == (address,)
    assert server.asked == []
    assert not is_address("name")


async def test_an_answer_is_used_for_a_while_and_asked_for_again_without_waiting(scene):
    server, now, seconds, resolver = scene
    assert await resolver.resolve("a") == ("192.0.2.1",)
    now[0] += FRESH - 0.1
    assert await resolver.resolve("a") == ("192.0.2.1",)
    assert server.asked == ["a"]
    server.known["a"] = ("192.0.2.9",)
    now[0] += 1.0
    assert await resolver.resolve("a") == ("192.0.2.1",)
    await asyncio.gather(*resolver.asking)
    assert await resolver.resolve("a") == ("192.0.2.9",)
    assert server.asked == ["a", "a"]
    assert len(seconds) == 2


async def test_a_slow_name_holds_up_no_other_and_is_asked_for_once(scene):
    server, _, _, resolver = scene
    server.free.clear()
    slow = [asyncio.ensure_future(resolver.resolve("a")) for _ in range(50)]
    assert await resolver.resolve("b") == ("192.0.2.2",)
    assert not any(task.done() for task in slow)
    server.free.set()
    assert set(await asyncio.gather(*slow)) == {("192.0.2.1",)}
    assert sorted(server.asked) == ["a", "b"]


async def test_an_old_answer_is_better_than_none_and_a_very_old_one_is_not(scene):
    server, now, _, resolver = scene
    await resolver.resolve("a")
    del server.known["a"]
    now[0] += STALE - 1.0
    assert await resolver.resolve("a") == ("192.0.2.1",)
    now[0] += 2.0
    with pytest.raises(OSError, match="a is unknown"):
        await resolver.resolve("a")


async def test_who_stops_waiting_does_not_stop_the_others(scene):
    server, _, _, resolver = scene
    server.free.clear()
    first, second = (asyncio.ensure_future(resolver.resolve("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    server.free.set()
    assert await second == ("192.0.2.1",)


async def test_what_is_no_host_name_is_an_error_of_its_own_kind():
    resolver = Resolver(asyncio.get_running_loop(), lambda: 0.0)
    with pytest.raises(OSError, match="not a host name"):
        await resolver.resolve("x" * 80)
    resolver.close()
