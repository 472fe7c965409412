"""The runtime state of one instance: one state machine, its counts, and the leases that move them.

Synchronous and without I/O. Only `proxy.table` moves the state; only a `Lease` moves the in-flight count and
the latency average; only `proxy.upstream` touches `idle` and `connections`, only `proxy.session` `tunnels`.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, Protocol

from discovery.model import Instance, Status


class State(Enum):
    """What an endpoint may be given."""

    STARTING = "starting"
    """Known, but its first health check has not passed yet."""
    READY = "ready"
    """Gets new work."""
    UNHEALTHY = "unhealthy"
    """Its check failed or its registry calls it critical: nothing new."""
    EJECTED = "ejected"
    """Taken out for a time because of what real traffic said, or by an operator."""
    DRAINING = "draining"
    """Leaving: keeps what it has, gets nothing new."""
    GONE = "gone"
    """Deregistered. Ends when its last lease is over; never comes back as this object."""


class Event(Enum):
    """What can happen to an endpoint."""

    PASS = "pass"
    FAIL = "fail"
    EJECT = "eject"
    RETURN = "return"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    REMOVE = "remove"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.STARTING: {
        Event.PASS: State.READY,
        Event.FAIL: State.UNHEALTHY,
        Event.EJECT: State.EJECTED,
        Event.DRAIN: State.DRAINING,
        Event.REMOVE: State.GONE,
    },
    State.READY: {
        Event.FAIL: State.UNHEALTHY,
        Event.EJECT: State.EJECTED,
        Event.DRAIN: State.DRAINING,
        Event.REMOVE: State.GONE,
    },
    State.UNHEALTHY: {
        Event.PASS: State.READY,
        Event.EJECT: State.EJECTED,
        Event.DRAIN: State.DRAINING,
        Event.REMOVE: State.GONE,
    },
    # It must sit its time out: a passing check says nothing of what made it fail real traffic.
    State.EJECTED: {
        Event.FAIL: State.UNHEALTHY,
        Event.RETURN: State.STARTING,
        Event.DRAIN: State.DRAINING,
        Event.REMOVE: State.GONE,
    },
    # Back from a drain it is not believed until it passes a check again.
    State.DRAINING: {Event.UNDRAIN: State.STARTING, Event.REMOVE: State.GONE},
    State.GONE: {},
}
"""The next state for each event; an event that a state does not list changes nothing."""

_LATENCY_TAU = 10.0
"""Seconds in which an old latency loses 63 % of its weight in the peak EWMA."""


class Connection(Protocol):
    """What an endpoint knows of an open upstream connection."""

    def abort(self) -> None:
        """Close it at once; whatever it carries is broken off."""


class Endpoint:
    """One instance as the data plane sees it. Outlives registry updates that leave its address alone."""

    __slots__ = (
        "available",
        "bytes_in",
        "bytes_out",
        "connections",
        "ejected_until",
        "ejections",
        "failed",
        "fails",
        "failures",
        "finished",
        "identity",
        "idle",
        "inflight",
        "instance",
        "latency",
        "latency_at",
        "messages_in",
        "messages_out",
        "passes",
        "ready_at",
        "silences",
        "slow_start",
        "state",
        "token",
        "tunnels",
        "tunnels_total",
        "warm_at",
        "weight",
    )

    def __init__(self, instance: Instance, weight: int, slow_start: float, token: bytes) -> None:
        self.instance = instance
        self.identity = f"{instance.service}/{instance.id}".encode()
        """Stable name for hashing."""
        self.token = token
        """What a sticky cookie calls it; empty when the service is not sticky by cookie."""
        self.weight = weight
        """Configured share after overrides; 0: nothing new. Owner: Table."""
        self.slow_start = slow_start
        self.state = State.STARTING
        """Owner: Table."""
        self.available = False
        """Whether the pool has it, so that something may start on it. Owner: Table."""
        self.ready_at = 0.0
        """Clock reading of the last change to READY. Owner: Table."""
        self.warm_at = 0.0
        """When the slow-start ramp is over. Owner: Table."""
        self.ejected_until = 0.0
        self.ejections = 0
        """Ejections so far; each makes the next one longer. Owner: Table."""
        self.passes = 0
        self.fails = 0
        self.silences = 0
        """Active checks in a row; of the failed ones those without any answer. Owner: Table."""
        self.failures = 0
        """Failed exchanges in a row. Owner: leases."""
        self.inflight = 0
        """Requests and tunnels under way. Owner: leases."""
        self.finished = 0
        self.failed = 0
        """Totals. Owner: leases."""
        self.latency = 0.0
        self.latency_at = 0.0
        """Peak EWMA of response times in seconds, and when it was last moved. Owner: leases."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.messages_in = 0
        self.messages_out = 0
        """Tunnel payload from clients (in) and from the instance (out). Owner: tunnels."""
        self.tunnels = 0
        self.tunnels_total = 0
        """Live tunnels, and all there ever were. Owner: session."""
        self.idle: list[Connection] = []
        self.connections: set[Connection] = set()
        """Pooled and all open connections. Owner: upstream."""

    def weight_at(self, now: float) -> float:
        """Effective weight: during slow start it grows linearly from a tenth to the full weight."""
        # A reload may take slow start away while the ramp is under way.
        if now >= self.warm_at or self.slow_start <= 0.0:
            return float(self.weight)
        grown = 1.0 - (self.warm_at - now) / self.slow_start
        return self.weight * max(0.1, grown)

    def enter(self, now: float) -> Lease:
        """Begin one request or tunnel on this endpoint; the lease must be ended by `Lease.exit`."""
        self.inflight += 1
        return Lease(self, now)

    def save(self) -> dict[str, Any]:
        """Everything but its connections, as plain values, for `load` in another process."""
        instance = self.instance
        described: dict[str, Any] = {
            "id": instance.id,
            "host": instance.host,
            "port": instance.port,
            "path": instance.path,
            "weight": instance.weight,
            "status": instance.status.value,
            "metadata": dict(instance.metadata),
            "state": self.state.value,
        }
        return described | {name: getattr(self, name) for name in _SAVED}

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` gave."""
        self.state = State(saved["state"])
        for name in _SAVED:
            setattr(self, name, saved[name])

    def __repr__(self) -> str:
        return (
            f"<Endpoint {self.identity.decode()} at {self.instance.address}: {self.state.value}, "
            f"weight {self.weight}, {self.inflight} in flight, {len(self.idle)} idle connections>"
        )


_SAVED = (
    "ready_at",
    "warm_at",
    "ejected_until",
    "ejections",
    "passes",
    "fails",
    "silences",
    "failures",
    "finished",
    "failed",
    "latency",
    "latency_at",
    "bytes_in",
    "bytes_out",
    "messages_in",
    "messages_out",
    "tunnels_total",
)
"""What outlives the process. What is in flight does not: it stays, or is counted again where it goes."""


def instance_from(service: str, saved: dict[str, Any]) -> Instance:
    """The instance of an endpoint that `Endpoint.save` described."""
    facts = {name: saved[name] for name in ("id", "host", "port", "path", "weight", "metadata")}
    return Instance(service, status=Status(saved["status"]), **facts)


class Lease:
    """One request's or tunnel's hold on an endpoint. Leaving it records what happened, exactly once."""

    __slots__ = ("endpoint", "started")

    def __init__(self, endpoint: Endpoint, now: float) -> None:
        self.endpoint: Endpoint | None = endpoint
        self.started = now

    def exit(self, now: float, *, failed: bool, latency: float = -1.0) -> None:
        """End it. `latency` is seconds to the response head; negative when there was none to measure.

        `failed` is for what the instance did wrong; a client that went away is not a failure.
        """
        endpoint = self.endpoint
        if endpoint is None:
            return
        self.endpoint = None
        endpoint.inflight -= 1
        endpoint.finished += 1
        if failed:
            endpoint.failed += 1
            endpoint.failures += 1
            return
        if latency < 0.0:
            return
        endpoint.failures = 0
        # Peak EWMA (Finagle): a slow answer counts at once, a fast one only with time.
        if latency >= endpoint.latency:
            endpoint.latency = latency
        else:
            weight = math.exp(-(now - endpoint.latency_at) / _LATENCY_TAU)
            endpoint.latency = endpoint.latency * weight + latency * (1.0 - weight)
        endpoint.latency_at = now
