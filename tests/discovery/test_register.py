"""The life of an application's own entry, with registries that come and go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from config.schema import Address, ConsulRegistry
from discovery.build import make_registrar
from discovery.consul_registrar import ConsulRegistrar
from discovery.embedded.definition import CheckStatus
from discovery.embedded.server import RegistryServer
from discovery.embedded.shapes import health_entry
from discovery.entry import instances_of
from discovery.model import Instance, Status
from discovery.register import Registration, State
from discovery.registrar import Registrar
from tests.discovery.conftest import LOOPBACK, until

ME = Instance("chat", "chat-1", "127.0.0.1", 9001, weight=50, metadata={"version": "v2", "zone": "eu"})


def known(registry: RegistryServer) -> tuple[Instance, ...]:
    return instances_of("chat", [health_entry(s, "127.0.0.1") for s in registry.store.instances("chat")])


@asynccontextmanager
async def registered(url: str, instance: Instance = ME, **options: Any) -> AsyncIterator[Registration]:
    registration = Registration(ConsulRegistrar(url, **options), instance)
    try:
        await registration.start()
        yield registration
    finally:
        await registration.deregister()


async def test_an_instance_is_up_in_the_registry_as_soon_as_start_returns(registry: RegistryServer) -> None:
    async with registered(registry.url) as registration:
        assert known(registry) == (ME,)
        assert registration.state is State.REGISTERED


@pytest.mark.parametrize(
    "instance",
    [
        replace(ME, weight=0),
        replace(ME, id="a/b c?d"),
        replace(ME, host="", port=0, path="/run/chat.sock"),
        replace(ME, host="::1"),
        replace(ME, status=Status.DRAINING),
        Instance("chat", "plain", "127.0.0.1", 9001),
    ],
)
async def test_what_is_registered_comes_back_equal(registry: RegistryServer, instance: Instance) -> None:
    async with registered(registry.url, instance):
        assert known(registry) == (instance,)


async def test_heartbeats_keep_it_up_beyond_the_ttl(registry: RegistryServer) -> None:
    statuses: set[str] = set()
    async with registered(registry.url, ttl=0.12):
        for _ in range(60):
            statuses |= {str(i.status) for i in known(registry)}
            await asyncio.sleep(0.01)
    assert statuses == {str(Status.UP)}


async def test_draining_is_told_and_then_leaving(registry: RegistryServer) -> None:
    async with registered(registry.url) as registration:
        assert await registration.drain()
        assert [i.status for i in known(registry)] == [Status.DRAINING]
        assert await registration.deregister()
        assert known(registry) == ()
        assert registration.state is State.ENDED
        assert await registration.deregister()
        assert not await registration.drain()
        assert known(registry) == ()


async def test_weight_and_metadata_can_change(registry: RegistryServer) -> None:
    async with registered(registry.url) as registration:
        changed = replace(ME, weight=7, metadata={"version": "v3"})
        assert await registration.update(changed)
        assert known(registry) == (changed,)
        with pytest.raises(ValueError, match="keeps its service and id"):
            await registration.update(replace(ME, id="other"))


async def test_an_entry_that_the_registry_lost_is_made_again(registry: RegistryServer) -> None:
    async with registered(registry.url, ttl=0.09) as registration:
        await registration.drain()
        registry.store.deregister("chat-1")
        await until(lambda: known(registry) == (replace(ME, status=Status.DRAINING),))


async def test_a_critical_check_is_lifted_by_registering_again(registry: RegistryServer) -> None:
    async with registered(registry.url) as registration:
        registry.store.update_check("service:chat-1", CheckStatus.CRITICAL, "", 0.0)
        assert [i.status for i in known(registry)] == [Status.DOWN]
        await registration.update(replace(ME, weight=51))
        assert known(registry) == (replace(ME, weight=51),)


async def test_it_survives_a_restart_of_the_registry_on_the_same_address() -> None:
    first = RegistryServer()
    address = await first.start(LOOPBACK)
    async with registered(first.url, ttl=0.09) as registration:
        await first.close()
        await until(lambda: registration.state is State.UNKNOWN)
        assert registration.last_error
        second = RegistryServer()
        await second.start(Address(address.host, address.port))
        await until(lambda: known(second) == (ME,))
        await until(lambda: registration.state is State.REGISTERED)
        assert registration.last_error is None
        await registration.deregister()
        assert known(second) == ()
        await second.close()


async def test_a_registry_that_is_away_fails_nothing(unused_tcp_port: int) -> None:
    registration = Registration(ConsulRegistrar(f"http://127.0.0.1:{unused_tcp_port}"), ME)
    assert await registration.start() is False
    assert await registration.drain() is False
    server = RegistryServer()
    await server.start(Address("127.0.0.1", unused_tcp_port))
    await until(lambda: [i.status for i in known(server)] == [Status.DRAINING])
    await server.close()
    assert await registration.deregister() is False
    assert registration.state is State.ENDED


async def test_a_frozen_registry_freezes_nothing() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    registration = Registration(ConsulRegistrar(url, ttl=0.3), ME)
    async with asyncio.timeout(5):
        assert await registration.start() is False
        assert await registration.deregister() is False
    listener.close()


async def test_the_registry_may_do_the_checking(registry: RegistryServer) -> None:
    async def ready(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/readyz", ready)
    async with TestServer(app) as origin:
        url = str(origin.make_url("/readyz"))
        async with registered(registry.url, ttl=0.09, check=url):
            await until(lambda: known(registry) == (ME,))
            registry.store.deregister("chat-1")
            await until(lambda: known(registry) == (ME,))


async def test_a_token_is_sent() -> None:
    tokens: set[str | None] = set()

    async def answer(request: web.Request) -> web.Response:
        tokens.add(request.headers.get("X-Consul-Token"))
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, registered(str(server.make_url("")), token="secret"):
        pass
    assert tokens == {"secret"}


async def test_a_registry_that_refuses_is_asked_again_and_the_reason_is_kept() -> None:
    answers = [403, 500, 200, 200]

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=answers.pop(0) if answers else 200, text="not\nyou")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, registered(str(server.make_url(""))) as registration:
        assert registration.last_error is not None
        assert registration.last_error.endswith("status 403: not you")
        await until(lambda: registration.state is State.REGISTERED)
        assert answers == []


async def test_a_registration_starts_once(registry: RegistryServer) -> None:
    async with registered(registry.url) as registration:
        with pytest.raises(RuntimeError, match="already"):
            await registration.start()


async def test_one_that_never_started_has_nothing_to_end(registry: RegistryServer) -> None:
    assert await Registration(ConsulRegistrar(registry.url), ME).deregister() is False


class Scripted:
    """A registrar that notes every call, and does in each what a test says."""

    kind = "scripted"
    interval = 0.01

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.there = False
        self.slow = asyncio.Event()
        """Makes `register` wait for its being set, when it is clear."""
        self.slow.set()
        self.wrong: list[Exception] = []
        """Raised by the next calls, one by one."""

    async def register(self, instance: Instance) -> None:
        self.calls.append("register")
        self._fail()
        try:
            await self.slow.wait()
        finally:
            self.there = True  # it had been sent, whether anybody waited for the answer or not

    async def beat(self, instance: Instance) -> bool:
        self.calls.append("beat")
        self._fail()
        return self.there

    async def deregister(self, instance: Instance) -> None:
        self.calls.append("deregister")
        self._fail()
        self.there = False

    async def close(self) -> None:
        self.calls.append("close")

    def _fail(self) -> None:
        if self.wrong:
            raise self.wrong.pop(0)


async def test_a_call_that_is_out_ends_before_the_deregistration_that_would_lose_to_it() -> None:
    registrar = Scripted()
    registrar.slow.clear()
    registration = Registration(registrar, ME)
    starting = asyncio.create_task(registration.start())
    await until(lambda: registrar.calls == ["register"])
    leaving = asyncio.create_task(registration.deregister())
    asyncio.get_running_loop().call_later(0.02, registrar.slow.set)
    assert await leaving
    assert registrar.calls == ["register", "deregister", "close"]
    assert not registrar.there
    assert not await starting


async def test_a_deregistration_is_tried_again_within_its_time() -> None:
    registrar = Scripted()
    registration = Registration(registrar, ME)
    await registration.start()
    registrar.wrong = [OSError("no leader"), RuntimeError("what?")]
    assert await registration.deregister()
    assert registrar.calls[-4:] == ["deregister", "deregister", "deregister", "close"]


async def test_a_deregistration_takes_no_longer_than_it_may() -> None:
    class Frozen(Scripted):
        async def deregister(self, instance: Instance) -> None:
            await asyncio.Event().wait()

    registrar: Registrar = Frozen()
    registration = Registration(registrar, ME)
    await registration.start()
    async with asyncio.timeout(1):
        assert not await registration.deregister(within=0.05)


async def test_beats_that_fail_are_counted_and_whoever_wants_to_know_is_told() -> None:
    registrar = Scripted()
    registration = Registration(registrar, ME)
    states: list[State] = []
    registration.on_change = lambda: states.append(registration.state)
    await registration.start()
    registrar.wrong = [ValueError("not what a registrar should raise")]
    await until(lambda: registration.beats_failed == 1 and registration.state is State.REGISTERED)
    registrar.there = False
    await until(lambda: registration.beats_failed == 2 and registrar.there)
    await registration.deregister()
    assert states[0] is State.UNKNOWN
    assert states[-1] is State.ENDED
    assert State.REGISTERED in states


async def test_an_entry_that_is_released_stays() -> None:
    registrar = Scripted()
    registration = Registration(registrar, ME)
    await registration.start()
    await registration.release()
    assert registrar.there
    assert "deregister" not in registrar.calls
    assert registrar.calls[-1] == "close"
    assert await registration.deregister()
    assert registrar.there, "it is somebody else's now"


async def test_a_service_is_entered_under_the_name_that_it_has_there(registry: RegistryServer) -> None:
    section = ConsulRegistry(kind="consul", address=registry.url, names={"chat": "support-chat"}, tag="blue")
    registration = Registration(make_registrar(section, ttl=5.0), ME)
    await registration.start()
    (service,) = registry.store.instances("support-chat")
    assert registration.instance.service == "chat"
    assert health_entry(service, "127.0.0.1")["Service"]["Tags"] == ["blue"]
    await registration.drain()
    assert await registration.deregister()
    assert registry.store.instances("support-chat") == []
