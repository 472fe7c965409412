"""What the embedded registry knows, in Consul's JSON shapes.

Source: Consul HTTP API, "Health", "Catalog" and "Agent" chapters. There is one node, this process.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from discovery.embedded.definition import CheckStatus, HttpProbe, TcpProbe
from discovery.embedded.kv import Pair
from discovery.embedded.store import Check, Service

NODE = "holdfast"
DATACENTER = "dc1"
_NODE_ID = "00000000-0000-0000-0000-000000000000"

Json = dict[str, Any]


def health_entry(service: Service, node_address: str) -> Json:
    """One element of `/v1/health/service/:service`."""
    return {
        "Node": _node(node_address),
        "Service": agent_service(service)
        | {"CreateIndex": service.create_index, "ModifyIndex": service.modify_index},
        "Checks": [_SERF, *(health_check(service, check) for check in service.checks.values())],
    }


def health_check(service: Service, check: Check) -> Json:
    """One element of `/v1/health/state/:state` and `/v1/agent/checks`."""
    definition = check.definition
    return {
        "Node": NODE,
        "CheckID": definition.id,
        "Name": definition.name,
        "Status": check.status.value,
        "Notes": definition.notes,
        "Output": check.output,
        "ServiceID": service.definition.id,
        "ServiceName": service.definition.name,
        "ServiceTags": list(service.definition.tags),
        "Type": definition.type,
        "Definition": _probe(definition.probe),
        "CreateIndex": check.create_index,
        "ModifyIndex": check.modify_index,
    }


def agent_service(service: Service) -> Json:
    """One value of `/v1/agent/services`."""
    definition = service.definition
    shape: Json = {
        "ID": definition.id,
        "Service": definition.name,
        "Tags": list(definition.tags),
        "Meta": dict(definition.meta),
        "Port": definition.port,
        "Address": definition.address,
        "Weights": {"Passing": definition.passing_weight, "Warning": definition.warning_weight},
        "EnableTagOverride": definition.enable_tag_override,
        "Datacenter": DATACENTER,
    }
    if definition.socket_path:
        shape["SocketPath"] = definition.socket_path
    return shape


def catalog_service(service: Service, node_address: str) -> Json:
    """One element of `/v1/catalog/service/:service`."""
    node, own = _node(node_address), agent_service(service)
    return {
        "ID": node["ID"],
        "Node": node["Node"],
        "Address": node["Address"],
        "Datacenter": DATACENTER,
        "TaggedAddresses": node["TaggedAddresses"],
        "NodeMeta": node["Meta"],
        "ServiceID": own["ID"],
        "ServiceName": own["Service"],
        "ServiceTags": own["Tags"],
        "ServiceAddress": own["Address"],
        "ServicePort": own["Port"],
        "ServiceMeta": own["Meta"],
        "ServiceWeights": own["Weights"],
        "ServiceEnableTagOverride": own["EnableTagOverride"],
        **({"ServiceSocketPath": own["SocketPath"]} if "SocketPath" in own else {}),
        "CreateIndex": service.create_index,
        "ModifyIndex": service.modify_index,
    }


def catalog(services: Iterable[Service]) -> dict[str, list[str]]:
    """`/v1/catalog/services`: every service's tags."""
    tags: dict[str, set[str]] = {"consul": set()}
    for service in services:
        tags.setdefault(service.definition.name, set()).update(service.definition.tags)
    return {name: sorted(found) for name, found in tags.items()}


def passing(service: Service) -> bool:
    """Whether `?passing` keeps it: every check passes."""
    return all(check.status is CheckStatus.PASSING for check in service.checks.values())


def key_value(pair: Pair) -> Json:
    """One element of `/v1/kv/:key`."""
    return {
        "LockIndex": 0,
        "Key": pair.key,
        "Flags": pair.flags,
        "Value": base64.b64encode(pair.value).decode() if pair.value else None,
        "CreateIndex": pair.create_index,
        "ModifyIndex": pair.modify_index,
    }


def agent_self(node_address: str, version: str) -> Json:
    """`/v1/agent/self`."""
    return {
        "Config": {
            "Datacenter": DATACENTER,
            "PrimaryDatacenter": DATACENTER,
            "NodeName": NODE,
            "NodeID": _NODE_ID,
            "Server": True,
            "Version": version,
        },
        "Member": {"Name": NODE, "Addr": node_address, "Status": 1, "Tags": {"role": "holdfast"}},
        "Meta": {},
    }


def _node(address: str) -> Json:
    return {
        "ID": _NODE_ID,
        "Node": NODE,
        "Address": address,
        "Datacenter": DATACENTER,
        "TaggedAddresses": {"lan": address, "wan": address},
        "Meta": {},
        "CreateIndex": 1,
        "ModifyIndex": 1,
    }


_SERF: Mapping[str, Any] = {
    "Node": NODE,
    "CheckID": "serfHealth",
    "Name": "Serf Health Status",
    "Status": "passing",
    "Notes": "",
    "Output": "Agent alive and reachable",
    "ServiceID": "",
    "ServiceName": "",
    "ServiceTags": [],
    "Type": "",
    "Definition": {},
    "CreateIndex": 1,
    "ModifyIndex": 1,
}


def _probe(probe: HttpProbe | TcpProbe | None) -> Json:
    if probe is None:
        return {}
    times = {"Interval": f"{probe.interval:g}s", "Timeout": f"{probe.timeout:g}s"}
    if isinstance(probe, TcpProbe):
        return {"TCP": str(probe.address), **times}
    return {"HTTP": probe.url, "Method": probe.method, **times}
