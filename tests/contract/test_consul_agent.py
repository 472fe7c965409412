"""What only a real Consul shows: checks, maintenance, datacenters, tokens, TLS, agents without servers."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from config.registries import RegistryTLS
from discovery.consul import WATCHES, ConsulWatcher
from discovery.consul_registrar import ConsulRegistrar
from discovery.model import DEFAULT_WEIGHT, Instance, RegistryError, Status, Update
from tests.contract.backend import Missing
from tests.contract.consul import Agent
from tests.contract.server import find

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 10.0
TOKEN = "7a3b2f10-0000-4000-8000-000000000001"


@pytest.fixture(scope="module", autouse=True)
def _there() -> None:
    try:
        find("consul")
    except Missing as missing:
        pytest.skip(str(missing))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agent]:
    """As Consul is by default, its limit on connections included."""
    agent = Agent(tmp_path_factory.mktemp("consul"), limits={})
    try:
        await agent.start()
        yield agent
    finally:
        await agent.kill()


async def register(agent: Agent, id: str, service: str, **fields: Any) -> None:
    body = {"ID": id, "Name": service, "Address": "10.0.0.1", "Port": 80, **fields}
    await agent.call("PUT", "/v1/agent/service/register", body)


async def until(stream: AsyncIterator[Update], wanted: Any, service: str | None = None) -> Update:
    """The first update that satisfies `wanted`."""
    async with asyncio.timeout(PATIENCE):
        async for update in stream:
            if (service is None or update.service == service) and wanted(update.instances):
                return update
    raise AssertionError("the watch ended")


def statuses(instances: tuple[Instance, ...] | None) -> list[tuple[Status, int]]:
    return [(instance.status, instance.weight) for instance in instances or ()]


async def refused(watcher: ConsulWatcher, service: str = "chat") -> str:
    """What the watcher complains of."""
    with pytest.raises(RegistryError) as caught:
        async with asyncio.timeout(PATIENCE), aclosing(watcher.watch(frozenset({service}))) as stream:
            async for _ in stream:
                pass
    return str(caught.value)


async def test_checks_weights_tags_and_maintenance(agent: Agent) -> None:
    service = frozenset({"checked"})
    async with aclosing(ConsulWatcher(agent.url).watch(service)) as stream:
        await until(stream, lambda found: found is None)
        await register(
            agent,
            "one",
            "checked",
            Tags=["canary", "zone=eu"],
            Meta={"version": "v2"},
            Weights={"Passing": 10, "Warning": 3},
            Check={"CheckID": "beat", "TTL": "60s"},
        )
        update = await until(stream, lambda found: found)
        # A TTL check that nobody has passed yet is critical.
        assert statuses(update.instances) == [(Status.DOWN, 10)]
        assert update.instances is not None
        assert update.instances[0].metadata == {"version": "v2", "zone": "eu"}
        for what, expected in (
            ("check/pass/beat", (Status.UP, 10)),
            ("check/warn/beat", (Status.UP, 3)),
            ("check/pass/beat", (Status.UP, 10)),
            ("service/maintenance/one?enable=true", (Status.DRAINING, 10)),
            ("service/maintenance/one?enable=false", (Status.UP, 10)),
            ("maintenance?enable=true", (Status.DRAINING, 10)),
            ("check/fail/beat", (Status.DOWN, 10)),
            ("check/pass/beat", (Status.DRAINING, 10)),
            ("maintenance?enable=false", (Status.UP, 10)),
        ):
            await agent.call("PUT", f"/v1/agent/{what}")
            await until(stream, lambda found, expected=expected: statuses(found) == [expected])
        await agent.call("PUT", "/v1/agent/service/deregister/one")
        await until(stream, lambda found: found == ())


async def test_one_id_on_two_nodes_is_two_instances(agent: Agent) -> None:
    for number in (1, 2):
        await agent.call(
            "PUT",
            "/v1/catalog/register",
            {
                "Node": f"n{number}",
                "Address": f"10.1.0.{number}",
                "Service": {"ID": "same", "Service": "twice", "Port": 80},
            },
        )
    async with aclosing(ConsulWatcher(agent.url).watch(frozenset({"twice"}))) as stream:
        update = await until(stream, lambda found: len(found) == 2)
    assert [(i.id, i.host, i.weight) for i in update.instances or ()] == [
        ("same@n1", "10.1.0.1", DEFAULT_WEIGHT),
        ("same@n2", "10.1.0.2", DEFAULT_WEIGHT),
    ]


async def test_only_instances_with_the_tag_are_seen(agent: Agent) -> None:
    await register(agent, "with", "tagged", Tags=["holdfast"])
    await register(agent, "without", "tagged")
    async with aclosing(ConsulWatcher(agent.url, tag="holdfast").watch(frozenset({"tagged"}))) as stream:
        update = await until(stream, lambda found: found)
        assert [i.id for i in update.instances or ()] == ["with"]
        await register(agent, "without", "tagged", Tags=["holdfast"])
        await until(stream, lambda found: [i.id for i in found] == ["with", "without"])


async def test_a_datacenter_that_is_not_there_is_an_error(agent: Agent) -> None:
    await register(agent, "here", "local")
    async with aclosing(ConsulWatcher(agent.url, datacenter="dc1").watch(frozenset({"local"}))) as stream:
        await until(stream, lambda found: found)
    assert "No path to datacenter" in await refused(ConsulWatcher(agent.url, datacenter="mars"))


async def test_the_hundredth_and_thirtieth_service_is_followed_as_closely(agent: Agent) -> None:
    names = [f"s{number:03}" for number in range(WATCHES + 20)]
    registrar = ConsulRegistrar(agent.url, ttl=60.0)
    try:
        last = Instance(names[-1], "last", "10.0.0.1", 80)
        await registrar.register(last)
        async with aclosing(ConsulWatcher(agent.url).watch(frozenset(names))) as stream:
            await until(stream, lambda found: found, names[-1])
            await register(agent, "new", names[-2])
            await until(stream, lambda found: found, names[-2])
            await agent.call("PUT", f"/v1/agent/check/fail/service:{last.id}")
            await until(stream, lambda found: statuses(found)[0][0] is Status.DOWN, names[-1])
            await registrar.deregister(last)
            await until(stream, lambda found: found == (), names[-1])
    finally:
        await registrar.close()


async def test_an_agent_without_servers_has_no_empty_sets(tmp_path: Path) -> None:
    alone = Agent(tmp_path, server=False, bootstrap_expect=0)
    try:
        await alone.begin()
        complaint = await refused(ConsulWatcher(alone.url))
        assert "No known Consul servers" in complaint
    finally:
        await alone.kill()


async def test_without_a_leader_an_answer_is_an_error_or_known_to_be_old(tmp_path: Path) -> None:
    # By default questions are held for 7 s before they are told that there is no leader.
    quick = {"raft_multiplier": 1, "rpc_hold_timeout": "200ms"}
    agents: list[Agent] = []
    try:
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            others = [f"127.0.0.1:{agent.serf}" for agent in agents]
            name = "tests" if number == 0 else f"other{number}"
            agents.append(
                Agent(folder, bootstrap_expect=3, node_name=name, retry_join=others, performance=quick)
            )
            await agents[-1].begin()
        asked, *rest = agents
        await asked.ready()
        await register(asked, "one", "chat")
        stale = ConsulWatcher(asked.url, stale=True, wait=0.2)
        async with aclosing(stale.watch(frozenset({"chat"}))) as stream:
            assert (await until(stream, lambda found: found)).behind == 0.0
        for other in rest:
            await other.kill()
        async with asyncio.timeout(PATIENCE), aclosing(stale.watch(frozenset({"chat"}))) as stream:
            async for update in stream:
                assert [instance.id for instance in update.instances or ()] == ["one"]
                if update.behind >= 5.0:
                    break
        assert "No cluster leader" in await refused(ConsulWatcher(asked.url))
    finally:
        for agent in agents:
            await agent.kill()


# -- who may read, and how ----------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Agent, RegistryTLS]]:
    """An agent that wants certificates and tokens, and the certificates for it."""
    folder = tmp_path_factory.mktemp("locked")
    for command in ("ca create", "cert create -server -dc dc1", "cert create -cli -dc dc1"):
        await asyncio.to_thread(
            subprocess.run,
            [find("consul"), "tls", *command.split()],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    tls = RegistryTLS(
        ca=str(folder / "consul-agent-ca.pem"),
        certificate=str(folder / "dc1-cli-consul-0.pem"),
        key=str(folder / "dc1-cli-consul-0-key.pem"),
    )
    agent = Agent(
        folder,
        tls=tls,
        ca_file=tls.ca,
        cert_file=str(folder / "dc1-server-consul-0.pem"),
        key_file=str(folder / "dc1-server-consul-0-key.pem"),
        verify_incoming_https=True,
        acl={"enabled": True, "default_policy": "deny", "tokens": {"master": TOKEN, "agent": TOKEN}},
    )
    agent.headers["X-Consul-Token"] = TOKEN
    try:
        await agent.start()
        await register(agent, "one", "chat")
        yield agent, tls
    finally:
        await agent.kill()


async def test_a_token_and_certificates_open_it(locked: tuple[Agent, RegistryTLS]) -> None:
    agent, tls = locked
    for name in (None, "server.dc1.consul"):
        named = tls.model_copy(update={"server_name": name})
        watcher = ConsulWatcher(agent.url, tls=named, token=TOKEN)
        async with aclosing(watcher.watch(frozenset({"chat"}))) as stream:
            await until(stream, lambda found: [i.id for i in found] == ["one"])
    registrar = ConsulRegistrar(agent.url, tls=tls, token=TOKEN)
    await registrar.register(Instance("chat", "two", "10.0.0.2", 80))
    await registrar.close()


async def test_a_wrong_token_is_an_error_and_no_empty_set(locked: tuple[Agent, RegistryTLS]) -> None:
    agent, tls = locked
    wrong = "00000000-0000-4000-8000-000000000000"
    assert "ACL not found" in await refused(ConsulWatcher(agent.url, tls=tls, token=wrong))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ca": None}, "CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        ({"certificate": None, "key": None}, "(?i)certificate"),
        ({"server_name": "another.example"}, "not valid for 'another.example'"),
        ({"ca": "/nowhere/ca.pem"}, "tls.ca: /nowhere/ca.pem: No such file"),
    ],
)
async def test_wrong_certificates_are_errors_that_say_what_is_wrong(
    locked: tuple[Agent, RegistryTLS], changes: dict[str, str | None], complaint: str
) -> None:
    agent, tls = locked
    watcher = ConsulWatcher(agent.url, tls=tls.model_copy(update=changes), token=TOKEN)
    assert re.search(complaint, await refused(watcher))
