"""EndpointSlices as instances: which port, which status, one instance for each pod in however many slices.

Source: Kubernetes API, `EndpointSlice` of `discovery.k8s.io/v1`; Kubernetes concepts, "EndpointSlices"
(conditions, duplicate endpoints). No I/O in here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from discovery.labels import instance_from
from discovery.model import Instance, Status

SERVICE_NAME = "kubernetes.io/service-name"
"""Label by which a slice says whose it is."""

_VERSION = "app.kubernetes.io/version"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 section 2.1

_Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ServiceRef:
    """One Service of the cluster; `port` is the name or number of its endpoints' port, or empty."""

    namespace: str
    name: str
    port: str = ""


def service_refs(written: str, namespace: str) -> tuple[ServiceRef, ...]:
    """What `NAME[.NAMESPACE][:PORT]`, or several of them joined by commas, refers to.

    Names that no Service can have are left out: nothing would ever be found, and asking for them is an error.
    """
    found = []
    for part in written.split(","):
        whole, _, port = part.partition(":")
        name, dot, elsewhere = whole.partition(".")
        ref = ServiceRef(elsewhere if dot else namespace, name, port)
        if _LABEL.fullmatch(ref.name) and _LABEL.fullmatch(ref.namespace):
            found.append(ref)
    return tuple(found)


class Told(NamedTuple):
    """What all slices together say of one service."""

    instances: tuple[Instance, ...] | None
    """Sorted by id; None when there is no slice of it (ABSENT)."""
    refused: tuple[str, ...]
    """The slices that cannot be used, each with the reason."""
    usable: bool
    """False when there are slices and none can be used: that says nothing of the instances."""


@dataclass(frozen=True, slots=True)
class _Port:
    name: str
    number: int | None
    """None: any port."""
    protocol: str
    """What is spoken on it, when the Service says."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    pod: str
    """Name of the pod; empty for what is none."""
    host: str
    status: Status
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Slice:
    age: int
    """The resource version: of two slices the one with the larger number was written later."""
    family: str
    ports: tuple[_Port, ...]
    endpoints: tuple[_Endpoint, ...]


class Slices:
    """Every slice of the services that are `wanted`: name here to the Services that make it up.

    `port` chooses where a Service has several ports; `family` is the address type to prefer. One owner, the
    watcher, puts in what the API server says.
    """

    def __init__(self, wanted: Mapping[str, Sequence[ServiceRef]], port: str, family: str) -> None:
        self._wanted = wanted
        self._port = port
        self._family = family
        self._known: dict[tuple[str, str], dict[str, _Slice | str]] = {}
        """By namespace and Service, then by the slice's name; a reason for one that cannot be read."""
        self._owner: dict[tuple[str, str], str] = {}
        """By namespace and name of a slice, the Service it was told of last."""
        self._listed: set[str] = set()
        self._users: dict[tuple[str, str], set[str]] = {}
        for name, refs in wanted.items():
            for ref in refs:
                self._users.setdefault((ref.namespace, ref.name), set()).add(name)

    def namespaces(self) -> dict[str, set[str]]:
        """Where to look, and for which Services."""
        found: dict[str, set[str]] = {}
        for namespace, name in self._users:
            found.setdefault(namespace, set()).add(name)
        return found

    def replace(self, namespace: str, objects: Iterable[_Object]) -> set[str]:
        """Takes all slices of a namespace; returns every name here that it has a part in.

        Raises `ValueError` when one of them has no name.
        """
        gone = [key for key in self._owner if key[0] == namespace]
        for key in gone:
            self._forget(key)
        for item in objects:
            self.put(namespace, item)
        self._listed.add(namespace)
        return {user for (space, _), users in self._users.items() if space == namespace for user in users}

    def put(self, namespace: str, item: _Object) -> set[str]:
        """Takes a slice as it is now; returns the names here whose instances that may change.

        One that cannot be read is left out. Raises `ValueError` when it has no name.
        """
        key, service = _identity(namespace, item)
        changed = self._forget(key)
        if (namespace, service) in self._users:
            self._owner[key] = service
            self._known.setdefault((namespace, service), {})[key[1]] = _read(item)
            changed = changed | self._users[namespace, service]
        return changed

    def remove(self, namespace: str, item: _Object) -> set[str]:
        """The slice is gone; as `put`."""
        key, _ = _identity(namespace, item)
        return self._forget(key)

    def told(self, name: str) -> Told:
        """What they say of a service here.

        Of several slices that tell of one pod the first counts, in this order: by the place of the Service
        among those that make up this one, by address family, and the slice that was written last.
        """
        refs = self._wanted[name]
        slices = [
            (rank, ref, title, piece)
            for rank, ref in enumerate(refs)
            for title, piece in self._known.get((ref.namespace, ref.name), {}).items()
        ]
        spread = len({ref.namespace for ref in refs}) > 1
        found: dict[str, tuple[tuple[int, bool, int], Instance]] = {}
        refused: list[str] = []
        for rank, ref, title, piece in slices:
            port = piece if isinstance(piece, str) else _chosen(piece, ref.port, self._port)
            if isinstance(piece, str) or isinstance(port, str):
                refused.append(f"EndpointSlice {ref.namespace}/{title}: {port}")
                continue
            order = (rank, piece.family != self._family, -piece.age)
            for endpoint in piece.endpoints:
                instance = _instance(name, endpoint, port, ref.namespace if spread else "")
                if instance.id not in found or order <= found[instance.id][0]:
                    found[instance.id] = order, instance
        instances = tuple(found[id][1] for id in sorted(found)) if slices else None
        return Told(instances, tuple(refused), len(refused) < len(slices) or not slices)

    def is_complete(self, name: str) -> bool:
        """Whether every namespace that has a part in it was listed."""
        return self._listed >= {ref.namespace for ref in self._wanted[name]}

    # -- inside -----------------------------------------------------------------------------------------

    def _forget(self, key: tuple[str, str]) -> set[str]:
        service = self._owner.pop(key, None)
        if service is None:
            return set()
        slices = self._known[key[0], service]
        del slices[key[1]]
        if not slices:
            del self._known[key[0], service]
        return self._users[key[0], service]


def _identity(namespace: str, item: _Object) -> tuple[tuple[str, str], str]:
    meta = item.get("metadata") if isinstance(item, dict) else None
    name = meta.get("name") if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or not isinstance(name, str) or not name:
        raise ValueError("an EndpointSlice without a name")
    labels = meta.get("labels")
    service = labels.get(SERVICE_NAME) if isinstance(labels, dict) else None
    return (namespace, name), service if isinstance(service, str) else ""


def _read(item: _Object) -> _Slice | str:
    try:
        return _slice(item)
    except ValueError as error:
        return str(error)
    except (LookupError, TypeError, AttributeError) as error:
        return f"not an EndpointSlice: {type(error).__name__}: {error}"


def _slice(item: _Object) -> _Slice:
    meta, family = item["metadata"], item["addressType"]
    if family not in ("IPv4", "IPv6", "FQDN"):
        raise ValueError(f"unknown address type {family!r}")
    version = str(meta.get("resourceVersion") or "")
    labels = _labels(meta["labels"])
    return _Slice(
        # Versions are decimal numbers that grow in every server; compared only to choose between slices.
        int(version) if version.isascii() and version.isdigit() else 0,
        family,
        tuple(_port(port) for port in item.get("ports") or () if (port.get("protocol") or "TCP") == "TCP"),
        tuple(_endpoint(endpoint, labels) for endpoint in item.get("endpoints") or ()),
    )


def _labels(labels: Mapping[str, Any]) -> dict[str, str]:
    """A Service's labels are on its slices too. Those without a prefix become metadata."""
    kept = {key: str(value) for key, value in labels.items() if "/" not in key}
    if _VERSION in labels:
        kept.setdefault("version", str(labels[_VERSION]))
    return kept


def _port(port: _Object) -> _Port:
    number = port.get("port")
    if number is not None and not (type(number) is int and 0 < number <= 65535):
        raise ValueError(f"port {number!r}")
    protocol = str(port.get("appProtocol") or "").removeprefix("kubernetes.io/")
    return _Port(str(port.get("name") or ""), number, protocol)


def _endpoint(endpoint: _Object, labels: Mapping[str, str]) -> _Endpoint:
    # All addresses of one endpoint lead to the same; controllers write one.
    host = (endpoint["addresses"] or [None])[0]
    if not isinstance(host, str) or not host:
        raise ValueError(f"an endpoint with the address {host!r}")
    metadata = dict(labels)
    for key, value in (("zone", endpoint.get("zone")), ("node", endpoint.get("nodeName"))):
        if value:
            metadata[key] = str(value)
    if zones := [str(zone["name"]) for zone in (endpoint.get("hints") or {}).get("forZones") or ()]:
        metadata["for_zones"] = ",".join(zones)
    target = endpoint.get("targetRef") or {}
    pod = str(target["name"]) if target.get("kind") == "Pod" else ""
    return _Endpoint(pod, host, _status(endpoint.get("conditions") or {}), metadata)


def _status(conditions: _Object) -> Status:
    """Unknown (`ready` absent) means ready.

    A pod that terminates drains, whether it still serves or not: applications announce their end by failing
    their readiness probe, and what they hold must leave in order, not as after a crash. One that is not ready
    without terminating has failed its check, like a critical one in Consul: no new work, its WebSockets act
    at once, and the guard judges when most of a service is lost so.
    """
    if conditions.get("terminating") is True:
        return Status.DRAINING
    return Status.DOWN if conditions.get("ready") is False else Status.UP


def _chosen(piece: _Slice, exact: str, preferred: str) -> _Port | str:
    """The port to connect to, or why there is none. `exact` must be met; `preferred` counts where there is a
    choice. A number need not be offered. A slice without endpoints needs none, and often has none."""
    if not piece.endpoints:
        return _Port("", None, "")
    asked = exact or preferred
    if not exact and len(piece.ports) == 1 and piece.ports[0].number is not None:
        return piece.ports[0]
    if asked.isascii() and asked.isdigit() and 0 < int(asked) <= 65535:
        same = [port for port in piece.ports if port.number == int(asked)]
        return (same or [_Port("", int(asked), "")])[0]
    for port in piece.ports:
        if asked and port.name == asked and port.number is not None:
            return port
    offered = ", ".join(f"{port.name or 'unnamed'} {port.number or ''}".strip() for port in piece.ports)
    return f"{f'no port {asked!r}' if asked else '`port` is not set'}; TCP ports: {offered or 'none'}"


def _instance(service: str, endpoint: _Endpoint, port: _Port, namespace: str) -> Instance:
    number = port.number or 0
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    name = endpoint.pod or f"{host}:{number}"
    metadata = endpoint.metadata
    if port.protocol and "protocol" not in metadata:
        metadata = {**metadata, "protocol": port.protocol}
    return instance_from(
        service,
        f"{name}.{namespace}" if namespace else name,
        endpoint.host,
        number,
        metadata,
        status=endpoint.status,
    )
