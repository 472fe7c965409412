"""The manifests in deploy/kubernetes: they load, ask for no more than is needed, and end pods in order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config.load import read
from config.registries import KubernetesRegistry
from config.schema import Config
from config.units import parse_duration
from proxy.cli.commands import cli
from tests.docs.conftest import ROOT, documents

ENVIRONMENT = {"HOLDFAST_ADMIN_TOKEN": "a-token", "STICKY_KEY": "a-key"}
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
EXAMPLES = [path for path in MANIFESTS if path.name != "rbac.yaml"]

Document = dict[str, Any]


def of_kind(path: Path, kind: str) -> list[Document]:
    return [document for document in documents(path) if document["kind"] == kind]


def pods(path: Path) -> Iterator[tuple[Document, Document, Config]]:
    """The pods with holdfast in them: their specification, that of its container, and its configuration."""
    maps = {document["metadata"]["name"]: document for document in of_kind(path, "ConfigMap")}
    for document in of_kind(path, "Deployment"):
        spec = document["spec"]["template"]["spec"]
        for container in chain(spec.get("initContainers", ()), spec["containers"]):
            if container["name"] == "holdfast":
                (name,) = (volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume)
                text = maps[name]["data"]["holdfast.yaml"]
                yield spec, container, read(text.encode(), source=path.name, environ=ENVIRONMENT)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_document_says_what_it_is_and_whose(path: Path) -> None:
    found = [(document["apiVersion"], document["kind"]) for document in documents(path)]
    assert found
    assert all("/" in version or version == "v1" for version, _ in found)
    assert all(document["metadata"]["labels"]["app.kubernetes.io/name"] for document in documents(path))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_configuration_loads_and_follows_the_cluster(path: Path) -> None:
    (found,) = pods(path)
    registries = found[2].registry
    assert found[2].routes
    assert [type(registry) for registry in registries] == [KubernetesRegistry]
    assert registries[0].address is None  # type: ignore[union-attr]


def test_the_account_may_read_endpoint_slices_and_nothing_else() -> None:
    path = ROOT / "deploy/kubernetes/rbac.yaml"
    (account,) = of_kind(path, "ServiceAccount")
    (role,) = of_kind(path, "Role")
    (binding,) = of_kind(path, "RoleBinding")
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
    ]
    assert account["automountServiceAccountToken"] is False
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [account["metadata"]["name"]]
    for example in EXAMPLES:
        for spec, _, _ in pods(example):
            assert spec["serviceAccountName"] == account["metadata"]["name"]
            assert spec["automountServiceAccountToken"] is True


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_probes_ask_the_admin_port_for_what_they_are_for(path: Path) -> None:
    for _, container, config in pods(path):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["admin"] == config.admin.address.port
        wanted = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        for probe, target in wanted.items():
            assert container[probe]["httpGet"] == {"path": target, "port": "admin"}
        # A start may take longer than the liveness probe would allow.
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 20


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_pod_has_the_time_to_leave_in_order(path: Path) -> None:
    for spec, container, config in pods(path):
        needed = config.shutdown
        if hook := container.get("lifecycle", {}).get("preStop"):
            program, verb, *options = hook["exec"]["command"]
            assert program == "holdfast"
            assert CliRunner().invoke(cli, [verb, "--help"]).exit_code == 0
            needed += parse_duration(options[options.index("--settle") + 1])
        assert spec["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_no_hook_is_a_sleep(path: Path) -> None:
    assert "sleep" not in path.read_text(encoding="utf-8")
