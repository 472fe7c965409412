"""The Kubernetes watcher against a real control plane: its controller, its accounts, its validation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from ruamel.yaml import YAML

from discovery.build import make_watcher
from discovery.kubernetes import KubernetesWatcher
from discovery.kubernetes_api import Api, Expired, access_of
from discovery.model import Instance, RegistryError, Status, Update
from tests.contract.backend import Missing
from tests.discovery.support_control_plane import ADMIN, Cluster, ControlPlane
from tests.discovery.support_kubernetes import ApiServer, endpoint, slice_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
MANIFESTS = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
SOON = 20.0
"""Seconds in which controllers have done their work, whatever the load."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    plane: ControlPlane | None = None
    try:
        try:
            plane = ControlPlane(tmp_path_factory.mktemp("kubernetes"))
            await plane.start()
            plane.control("endpointslice-controller")
        except Missing as missing:
            pytest.skip(str(missing))
        yield plane
    finally:
        if plane is not None:
            await plane.stop()


async def until(stream: AsyncIterator[Update], right: Callable[[Update], bool]) -> tuple[Instance, ...]:
    """The instances of the first update that is as it should be."""
    update: Update | None = None
    try:
        async with asyncio.timeout(SOON):
            async for update in stream:
                if right(update):
                    return update.instances or ()
    except TimeoutError:
        pass
    raise AssertionError(f"it did not come; last was {update}")


def states(update: Update) -> dict[str, Status]:
    return {instance.id: instance.status for instance in update.instances or ()}


async def namespace(cluster: Cluster, name: str) -> str:
    """A namespace of this name; returns its path."""
    await cluster.done("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return f"/api/v1/namespaces/{name}"


async def pod(cluster: Cluster, path: str, name: str, *addresses: str, ready: bool = True) -> None:
    """A pod on a node, as its kubelet tells of it."""
    body = {
        "metadata": {"name": name, "labels": {"app": "chat"}},
        "spec": {
            "nodeName": "node-1",
            "containers": [
                {"name": "chat", "image": "chat", "ports": [{"name": "http", "containerPort": 9001}]}
            ],
        },
    }
    await cluster.done("POST", f"{path}/pods", body)
    status = {
        "phase": "Running",
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
        "conditions": [{"type": "Ready", "status": str(ready)}],
    }
    patch = "application/merge-patch+json"
    await cluster.done("PATCH", f"{path}/pods/{name}/status", {"status": status}, kind=patch)


async def test_what_the_real_controller_writes_is_understood(plane: ControlPlane) -> None:
    cluster = plane.cluster
    path = await namespace(cluster, "release")
    node = {"metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "zone-a"}}}
    await cluster.done("POST", "/api/v1/nodes", node)
    service = {
        "metadata": {"name": "chat", "labels": {"version": "v7", "app.kubernetes.io/name": "chat"}},
        "spec": {
            "selector": {"app": "chat"},
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "web", "port": 80, "targetPort": "http", "appProtocol": "kubernetes.io/ws"}],
        },
    }
    async with aclosing(
        make_watcher(plane.registry(namespace="release")).watch(frozenset({"chat"}))
    ) as stream:
        assert await until(stream, lambda update: update.instances is None) == ()
        await cluster.done("POST", f"{path}/services", service)
        await until(stream, lambda update: update.instances == ())
        await pod(cluster, path, "chat-a", "10.1.0.1", "fd00:1::1")
        await pod(cluster, path, "chat-b", "10.1.0.2", "fd00:1::2", ready=False)
        both = {"chat-a": Status.UP, "chat-b": Status.DOWN}
        found = await until(stream, lambda update: states(update) == both)
        assert [instance.address for instance in found] == ["10.1.0.1:9001", "10.1.0.2:9001"]
        assert found[0].metadata == {"version": "v7", "node": "node-1", "zone": "zone-a", "protocol": "ws"}
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        patch = "application/merge-patch+json"
        await cluster.done("PATCH", f"{path}/pods/chat-b/status", ready, kind=patch)
        await until(stream, lambda update: states(update) == dict.fromkeys(both, Status.UP))
        # No kubelet is there to end it: it stays on its way out.
        await cluster.done("DELETE", f"{path}/pods/chat-a", {"gracePeriodSeconds": 30})
        await until(stream, lambda update: states(update) == {"chat-a": Status.DRAINING, "chat-b": Status.UP})
        await cluster.done("DELETE", f"{path}/pods/chat-a", {"gracePeriodSeconds": 0})
        await until(stream, lambda update: states(update) == {"chat-b": Status.UP})


async def test_the_role_of_the_manifest_is_enough_and_its_lack_is_said(plane: ControlPlane) -> None:
    cluster = plane.cluster
    path = await namespace(cluster, "roles")
    await cluster.write(slice_of("chat", "chat-1", endpoint("a", "10.0.0.1")), "roles")
    account, *rules = manifest("rbac.yaml")
    await cluster.done("POST", f"{path}/serviceaccounts", account)
    said = await cluster.done("POST", f"{path}/serviceaccounts/holdfast/token", {"spec": {}})
    section = plane.registry(namespace="roles", token=said["status"]["token"])
    stream = KubernetesWatcher(section).watch(frozenset({"chat"}))
    with pytest.raises(RegistryError, match=r"system:serviceaccount:roles:holdfast.* cannot list resource"):
        await anext(stream)
    for item in rules:
        for subject in item.get("subjects", ()):
            subject["namespace"] = "roles"
        kind = item["kind"].lower() + "s"
        await cluster.done("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/roles/{kind}", item)
    async with asyncio.timeout(SOON):
        while True:
            try:
                async with aclosing(KubernetesWatcher(section).watch(frozenset({"chat"}))) as stream:
                    assert states(await anext(stream)) == {"a": Status.UP}
                    await cluster.write(slice_of("chat", "chat-1", endpoint("b", "10.0.0.2")), "roles")
                    assert states(await anext(stream)) == {"b": Status.UP}
                break
            except RegistryError:
                # The authorizer has its rules from a watch of its own.
                await asyncio.sleep(0.05)


async def test_a_token_that_is_none_is_refused(plane: ControlPlane) -> None:
    stream = KubernetesWatcher(plane.registry(token="wrong")).watch(frozenset({"chat"}))
    with pytest.raises(RegistryError, match=r"the token is not accepted .status 401."):
        await anext(stream)


async def test_what_was_compacted_away_has_expired_for_watches_and_for_lists(plane: ControlPlane) -> None:
    cluster = plane.cluster
    await namespace(cluster, "compact")
    for number in range(3):
        await cluster.write(slice_of("chat", f"chat-{number}", endpoint("a", "10.0.0.1")), "compact")
    path = "/apis/discovery.k8s.io/v1/namespaces/compact/endpointslices"
    page = await cluster.done("GET", f"{path}?limit=1")
    await cluster.write(slice_of("chat", "chat-1", endpoint("b", "10.0.0.2")), "compact")
    await plane.compact()
    # The server remembers by itself what it has seen; the next one does not.
    await plane.kill()
    await plane.begin()
    section = plane.registry(namespace="compact")
    async with aiohttp.ClientSession() as session:
        api = Api(session, access_of(section, {}, MANIFESTS), 5.0)
        with pytest.raises(Expired):
            async with aclosing(api.watch("compact", "", page["metadata"]["resourceVersion"], 5)) as stream:
                await anext(stream)
    status, said = await cluster.call("GET", f"{path}?limit=1&continue={page['metadata']['continue']}")
    assert (status, said["reason"]) == (410, "Expired")


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.name)
async def test_the_server_accepts_the_manifests_to_the_letter(plane: ControlPlane, path: Path) -> None:
    places = {
        "Deployment": "/apis/apps/v1",
        "PodDisruptionBudget": "/apis/policy/v1",
        "Role": "/apis/rbac.authorization.k8s.io/v1",
        "RoleBinding": "/apis/rbac.authorization.k8s.io/v1",
    }
    for item in manifest(path.name):
        group, kind = places.get(item["kind"], "/api/v1"), item["kind"].lower() + "s"
        assert item["apiVersion"] == group.partition("/apis/")[2] or item["apiVersion"] == "v1"
        where = f"{group}/namespaces/default/{kind}?dryRun=All&fieldValidation=Strict"
        if item["kind"] == "RoleBinding":
            # kubectl says it of itself.
            item["subjects"][0]["namespace"] = "default"
        await plane.cluster.done("POST", where, item)


async def test_the_double_says_what_the_real_server_says(plane: ControlPlane) -> None:
    await namespace(plane.cluster, "shop")
    double = ApiServer()
    double.tokens = {ADMIN: "admin", "other": "other"}
    double.rules = {("admin", verb, "shop") for verb in ("list", "watch", "create", "update", "delete")}
    await double.start()
    try:
        said, real = await asyncio.gather(conversation(Cluster(double.url)), conversation(plane.cluster))
    finally:
        await double.stop()
    assert said == real


async def conversation(cluster: Cluster) -> list[Any]:
    """What is answered to everything that the double can do, without what differs by chance."""
    path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
    chosen = "labelSelector=kubernetes.io%2Fservice-name+in+%28chat%2Csearch%29"
    found: list[Any] = []

    async def ask(method: str, query: str = "", body: Any = None, **options: str) -> Any:
        status, said = await cluster.call(method, path + query, body, **options)
        found.append((method, query.partition("=")[0], status, essence(said)))
        return said

    for service in ("chat", "orders", "search"):
        for number in range(2):
            item = slice_of(service, f"{service}-{number}", endpoint(f"{service}-{number}", "10.0.0.1"))
            await ask("POST", "", item)
    await ask("POST", "", slice_of("chat", "chat-0"))
    await ask("PUT", "/none", slice_of("chat", "none"))
    await ask("DELETE", "/none")
    first = await ask("GET", f"?{chosen}&limit=3")
    # Written between two pages: they are of one moment all the same.
    await ask("PUT", "/search-1", slice_of("search", "search-1"))
    await ask("GET", f"?{chosen}&limit=3&continue={first['metadata']['continue']}")
    await ask("GET", f"?{chosen}", token="nobody")
    await ask("GET", "?watch=1", token="nobody")

    start = first["metadata"]["resourceVersion"]
    query = f"?watch=1&allowWatchBookmarks=true&timeoutSeconds=3&resourceVersion={start}&{chosen}"
    watch = asyncio.create_task(cluster.call("GET", path + query))
    await ask("PUT", "/chat-0", slice_of("chat", "chat-0", endpoint("chat-0", "10.0.0.2")))
    await ask("PUT", "/chat-1", slice_of("orders", "chat-1"))
    await ask("PUT", "/orders-0", slice_of("chat", "orders-0"))
    await ask("PUT", "/orders-1", slice_of("orders", "orders-1"))
    await ask("DELETE", "/orders-1")
    await ask("DELETE", "/chat-0")
    status, said = await watch
    events = [json.loads(line) for line in said.splitlines()]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(versions)
    # How many bookmarks come is the server's affair; that one comes before the end is what counts.
    kinds = [event["type"] for event in events]
    found += [status, "BOOKMARK" in kinds, essence([e for e in events if e["type"] != "BOOKMARK"])]
    found.append(essence(next(event for event in events if event["type"] == "BOOKMARK")))
    return found


def essence(said: Any) -> Any:
    """Without versions, ids and times, and without what is empty."""
    if isinstance(said, list):
        return [essence(item) for item in said]
    if not isinstance(said, dict):
        return said
    chance = {"resourceVersion", "uid", "creationTimestamp", "managedFields", "continue", "details"}
    kept = {key: essence(value) for key, value in said.items() if key not in chance}
    return {key: value for key, value in kept.items() if value not in (None, "", [], {})}


def manifest(name: str) -> list[Any]:
    return list(YAML(typ="safe").load_all((MANIFESTS / name).read_text(encoding="utf-8")))
