"""No secret comes out of a process, whatever goes wrong: each is a canary, and every output is searched."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from config.registries import ConsulRegistry
from discovery.build import make_registrar, make_watcher
from discovery.discreet import secrets_of
from discovery.model import Instance, RegistryError
from tests.integration.stage import Gateway, Stage

MARK = "CANARY"
"""In every secret, and nowhere else."""
SECRETS = {
    "ADMIN": "CANARY-admin/1",
    "STICKY": "CANARY-sticky-2",
    "CONSUL": "CANARY-consul-3",
    "ETCD": "CANARY etcd&4",
    "NACOS": "CANARY nacos+5",
    "KUBERNETES": "CANARY-kubernetes-6",
    "HOOK": "CANARY-hook-7",
    "SIGN": "CANARY-sign-8",
}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield Stage(stack, tmp_path)


async def parrot(request: web.Request) -> web.Response:
    """A server that refuses everything, and quotes what it was told, secrets first."""
    fields = (request.headers.get(name, "") for name in ("X-Consul-Token", "Authorization", "accessToken"))
    said = " ".join((*fields, (await request.read()).decode(), request.path_qs))
    return web.Response(status=403, text=said)


def configuration(server: str, folder: Path, **secrets: str) -> dict[str, object]:
    """One with every secret that there can be."""
    url = f"http://{server}"
    return {
        "admin": {"address": "127.0.0.1:0", "token": secrets["ADMIN"]},
        "state": str(folder / "state"),
        "registry": [
            {"kind": "consul", "address": url, "token": secrets["CONSUL"]},
            {"kind": "etcd", "address": url, "user": "u", "password": secrets["ETCD"]},
            {"kind": "nacos", "transport": "http", "address": url, "user": "u", "password": secrets["NACOS"]},
            {"kind": "kubernetes", "address": url, "namespace": "n", "token": secrets["KUBERNETES"]},
        ],
        "register": {
            "service": "shop",
            "registry": "consul",
            "app": server,
            "address": server,
            "id": "shop-1",
            "ready": {"path": "none"},
            "settle": "100ms",
            "notify": [
                {
                    "url": f"{url}/hook?access_token={secrets['HOOK']}",
                    "form": "dingtalk",
                    "secret": secrets["SIGN"],
                }
            ],
        },
        "services": {
            "web": {
                "sticky": {"by": "cookie", "name": "hf", "key": secrets["STICKY"]},
                "instances": [{"address": server, "id": "a"}],
            },
            "api": {},
        },
        "routes": [{"service": "web"}, {"match": {"path": "/api"}, "service": "api"}],
        "shutdown": "1s",
    }


async def everything(gateway: Gateway, token: str) -> str:
    """What the admin API says."""
    said = []
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        for path in (
            "/v1/status",
            "/v1/services",
            "/v1/services/web/instances",
            "/v1/routes",
            "/v1/config",
            "/v1/sessions",
            "/v1/explain?url=/",
            "/v1/events?follow=false&since=0",
            "/metrics",
            "/openapi.json",
            "/nothing",
        ):
            async with session.get(gateway.admin + path) as answer:
                said.append(f"{path} {answer.status} {answer.headers} {await answer.text()}")
        changed = json.dumps(configuration("127.0.0.1:1", gateway.path.parent, **OTHERS))
        for body in (changed, changed.replace('"token": "', '"token": 1, "tokn": "'), "{" + changed):
            async with session.post(gateway.admin + "/v1/plan", json={"config": body}) as answer:
                said.append(f"plan {answer.status} {await answer.text()}")
        async with session.post(gateway.admin + "/v1/reload") as answer:
            said.append(f"reload {answer.status} {await answer.text()}")
    return "\n".join(said)


OTHERS = {name: f"CANARY-other-{name}" for name in SECRETS}


async def test_no_secret_comes_out_of_a_process(stage: Stage) -> None:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", parrot)
    server = await stage.serve(app)
    gateway = await stage.gateway(**configuration(server, stage.folder, **SECRETS))
    for registry in ("consul", "etcd", "nacos", "kubernetes"):
        await gateway.child.said(rf"registry_failed.*{registry}")
    await gateway.child.said("register_failed")
    admin = ("--admin", gateway.admin)
    outputs = [await everything(gateway, SECRETS["ADMIN"])]
    assert outputs[0].count(" 200 ") >= 10
    assert "**********" in outputs[0]

    # A wrong file: the reload is refused, and the process that is to take over does not start.
    gateway.write(routes=[{"service": "nobody"}], admin={"address": "here", "token": [SECRETS["ADMIN"]]})
    await gateway.child.said("reload_refused")
    for verb in (("upgrade",), ("reload",), ("status",), ("events",), ("plan", "-c", str(gateway.path))):
        environment = {"HOLDFAST_ADMIN_TOKEN": SECRETS["ADMIN"]}
        child = await stage.holdfast(*verb, *admin, environment=environment)
        await child.ended()
        outputs.append(child.output)
    assert "did not take over" in outputs[1]
    wrong = await stage.holdfast("status", *admin, environment={"HOLDFAST_ADMIN_TOKEN": "CANARY-wrong"})
    assert await wrong.ended() == 1
    refused = await stage.holdfast("run", "-c", str(gateway.path))
    assert await refused.ended() == 2

    command = await asyncio.to_thread(Path(f"/proc/{gateway.child.pid}/cmdline").read_text)
    gateway.child._process.terminate()
    await gateway.child.ended()
    outputs += [wrong.output, refused.output, gateway.child.output, command]
    outputs += [
        file.read_text() for file in stage.folder.rglob("*") if file.is_file() and file != gateway.path
    ]
    for output in outputs:
        for line in output.splitlines():
            assert MARK not in line


async def test_secrets_from_the_environment_do_not_come_out_of_a_start_that_fails(stage: Stage) -> None:
    path = stage.folder / "holdfast.yaml"
    path.write_text(
        'admin: {address: ":9", token: "${TOKEN}"}\nregistry: {kind: "${TOKEN}", address: "http://${TOKEN}@h"}\n'
        'listen: [{address: "${TOKEN}"}]\nlimits: {connections: "${TOKEN}"}\n'
    )
    for verb in ("check", "run"):
        child = await stage.holdfast(verb, "-c", str(path), environment={"TOKEN": "CANARY-environment"})
        assert await child.ended() == 2
        assert "${TOKEN}" in child.output
        assert MARK not in child.output


@pytest.mark.parametrize("secret", ["CANARY", "CANARY &/+%", "CANARY 中", "CANARY-" * 40])
async def test_what_a_registry_quotes_is_masked(secret: str) -> None:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", parrot)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        section = ConsulRegistry(kind="consul", address=url, token=secret)  # type: ignore[arg-type]
        with pytest.raises(RegistryError) as failed:
            await anext(aiter(make_watcher(section).watch(frozenset({"web"}))))
        registrar = make_registrar(section, ttl=5.0)
        with pytest.raises(RegistryError) as refused:
            await registrar.register(Instance("web", "a", "127.0.0.1", 1))
        await registrar.close()
    finally:
        await runner.cleanup()
    for error in (failed.value, refused.value):
        assert "status 403" in str(error)
        assert MARK not in str(error)


def test_a_section_without_secrets_needs_no_mask() -> None:
    assert secrets_of(ConsulRegistry(kind="consul")) == ()


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
async def test_what_is_on_disk_is_for_its_owner(stage: Stage) -> None:
    """Whatever the umask is: sockets that let in without a token, and what registries told."""
    before = os.umask(0)
    try:
        gateway = await stage.gateway(
            admin={"address": f"unix:{stage.folder}/admin.sock"},
            registry={"kind": "embedded", "listen": "127.0.0.1:0", "data": str(stage.folder / "data")},
            state=str(stage.folder / "state"),
            services={"web": {}},
            routes=[{"service": "web"}],
        )
    finally:
        os.umask(before)
    async with aiohttp.ClientSession() as session:
        async with session.put(
            f"{gateway.registry}/v1/agent/service/register", json={"Name": "web"}
        ) as answer:
            assert answer.status == 200
        async with session.get(gateway.url) as answer:
            assert answer.status == 503
    await gateway.child.said("instance_added|started")
    gateway.child._process.terminate()
    await gateway.child.ended()
    modes = {
        str(path.relative_to(stage.folder)): stat.S_IMODE(path.stat().st_mode)
        for path in stage.folder.rglob("*")
        if path != gateway.path and not path.is_dir()
    }
    assert {"data/registry.json", "data/lock", "gateway.log"} <= modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o027} == {}
