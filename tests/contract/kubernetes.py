"""Kubernetes: EndpointSlices as its controller writes them, in a double and, if there is one, a real server.

Nobody registers in Kubernetes: pods are seen by their cluster. What kubelet and controllers do is done here
by hand, over the API: instances with equal labels share slices of up to 100 endpoints.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.registries import KubernetesRegistry
from discovery.kubernetes import KubernetesWatcher
from discovery.model import DEFAULT_WEIGHT, Instance, Status, Watcher
from tests.contract.backend import Backend
from tests.contract.server import free_ports
from tests.discovery.support_control_plane import Cluster, ControlPlane
from tests.discovery.support_kubernetes import SERVICE_NAME, ApiServer

FULL = 100
"""Endpoints in one slice, as the controller fills them."""


class _Kubernetes(Backend):
    """What both have in common."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._slices: dict[str, tuple[str, dict[str, str], dict[str, Instance]]] = {}
        """By name of the slice: its service, the labels, and the instances by id."""
        self._down: set[tuple[str, str]] = set()

    @property
    @abstractmethod
    def cluster(self) -> Cluster:
        """What is written to."""

    async def put(self, instance: Instance, *, brief: bool = False) -> None:
        self._down.discard((instance.service, instance.id))
        former = self._home(instance)
        title = self._place(instance)
        await self._write(title)
        if former is not None and former != title:
            # As when a pod changes its slice: for a moment it is in both.
            self._slices[former][2].pop(instance.id)
            await self._write(former)

    async def put_many(self, instances: Sequence[Instance]) -> None:
        for title in dict.fromkeys([self._place(instance) for instance in instances]):
            await self._write(title)

    async def remove(self, instance: Instance) -> None:
        title = self._home(instance)
        assert title is not None
        self._slices[title][2].pop(instance.id)
        await self._write(title)

    async def crash(self, instance: Instance) -> None:
        """The kubelet's probe fails; the pod stays."""
        self._down.add((instance.service, instance.id))
        title = self._home(instance)
        assert title is not None
        await self._write(title)

    async def forget(self) -> None:
        """As when somebody changes the selectors of all Services."""
        for title, (_, _, instances) in self._slices.items():
            if instances:
                instances.clear()
                await self._write(title)

    def _home(self, instance: Instance) -> str | None:
        found = self._slices.items()
        return next((t for t, (s, _, i) in found if s == instance.service and instance.id in i), None)

    def _place(self, instance: Instance) -> str:
        """The slice that the instance belongs into, with it in it."""
        labels = {key: value for key, value in instance.metadata.items() if key != "zone"}
        if instance.weight != DEFAULT_WEIGHT:
            labels["weight"] = str(instance.weight)
        kind = hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()[:5]
        for number in range(1000):
            title = f"{instance.service}-{kind}-{number}"
            instances = self._slices.setdefault(title, (instance.service, labels, {}))[2]
            if len(instances) < FULL or instance.id in instances:
                instances[instance.id] = instance
                return title
        raise AssertionError("too many instances")

    async def _write(self, title: str) -> None:
        service, labels, instances = self._slices[title]
        ports = sorted({instance.port for instance in instances.values()})
        await self.cluster.write(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": title, "labels": {**labels, SERVICE_NAME: service}},
                "addressType": "IPv4",
                "endpoints": [self._endpoint(instance) for instance in instances.values()] or None,
                "ports": [{"name": "", "port": port, "protocol": "TCP"} for port in ports] or None,
            }
        )

    def _endpoint(self, instance: Instance) -> dict[str, Any]:
        serving = (instance.service, instance.id) not in self._down
        terminating = instance.status is Status.DRAINING
        ready = serving and not terminating
        return {
            "addresses": [instance.host],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": instance.id, "uid": instance.id},
            **({"zone": zone} if (zone := instance.metadata.get("zone")) else {}),
        }


class KubernetesDouble(_Kubernetes):
    """The double of `tests.discovery.support_kubernetes`, in this process."""

    name = "kubernetes-double"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = ApiServer()
        self._port = 0
        self._running = False

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.server.url)

    async def start(self) -> None:
        (self._port,) = free_ports(1)
        await self.restart()

    async def stop(self) -> None:
        await self.server.stop()

    def watcher(self) -> Watcher:
        return KubernetesWatcher(self.section(), grace=1.0)

    def section(self) -> KubernetesRegistry:
        return KubernetesRegistry(kind="kubernetes", address=self.server.url, wait=1.0)

    async def kill(self) -> None:
        self._running = False
        await self.server.stop()

    async def restart(self) -> None:
        if not self._running:
            await self.server.start(self._port)
            self._running = True

    async def freeze(self) -> None:
        self.server.freeze()

    async def thaw(self) -> None:
        self.server.thaw()


class Kubernetes(_Kubernetes):
    """A real kube-apiserver over a real etcd."""

    name = "kubernetes"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._plane: ControlPlane | None = None

    @property
    def plane(self) -> ControlPlane:
        assert self._plane is not None
        return self._plane

    @property
    def cluster(self) -> Cluster:
        return self.plane.cluster

    async def start(self) -> None:
        self._plane = ControlPlane(self.folder)
        await self._plane.start()

    async def stop(self) -> None:
        if self._plane is not None:
            await self._plane.stop()

    def watcher(self) -> Watcher:
        return KubernetesWatcher(self.section(), grace=2.0)

    def section(self) -> KubernetesRegistry:
        return self.plane.registry(wait=1.0)

    async def kill(self) -> None:
        await self.plane.kill()

    async def restart(self) -> None:
        if not self.plane.running:
            await self.plane.begin()

    async def freeze(self) -> None:
        self.plane.freeze()

    async def thaw(self) -> None:
        self.plane.thaw()


BACKENDS = (KubernetesDouble, Kubernetes)
