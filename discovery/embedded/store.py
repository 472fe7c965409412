"""The embedded registry's services and checks as a state machine: pure and synchronous, time is an argument.

The server, the in-memory watcher and the tests call it; it does no I/O and starts no timer. `now` is always a
reading of the same monotonic clock, in seconds. Indexes follow Consul's rules ("Blocking Queries"): one
counter for everything, and for each service the count of its own last change, so that a change in another
service wakes nobody.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from discovery.embedded.definition import CheckDefinition, CheckStatus, HttpProbe, ServiceDefinition, TcpProbe
from discovery.embedded.kv import KeyValue
from discovery.embedded.topics import CHECKS, SERVICES, Kind, Topic, Topics

MAINTENANCE = "_service_maintenance:"
"""The check that maintenance mode adds is called so, followed by the service id."""


class UnknownIdError(LookupError):
    """There is no service or check with that id. The message is for the caller of the API."""


@dataclass(slots=True)
class Check:
    """A check and what it says. Changed by `Store` only."""

    definition: CheckDefinition
    status: CheckStatus
    create_index: int
    modify_index: int
    output: str = ""
    deadline: float | None = None
    """When it turns critical unless it is told otherwise; TTL checks only."""
    critical_since: float | None = None
    timer: float | None = None
    """When the store looks at it next; it may be early, never late."""


@dataclass(slots=True)
class Service:
    """A registered instance and its checks by id. Changed by `Store` only."""

    definition: ServiceDefinition
    create_index: int
    modify_index: int
    checks: dict[str, Check] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Expiry:
    """Something that time did: a check ran out, or (`deregistered`) its service was removed for it."""

    service_id: str
    check_id: str
    deregistered: bool


class Store:
    """Everything the embedded registry knows. One thread, one owner."""

    def __init__(self, index: int = 1) -> None:
        """`index` is where counting begins; a process that begins above its predecessor's last one wakes
        those who still wait with the old."""
        self.topics = Topics(index)
        self.kv = KeyValue(self.topics)
        self._services: dict[str, Service] = {}
        self._owner: dict[str, str] = {}
        self._members: dict[str, dict[str, Service]] = {}
        self._names: dict[str, int] = {}
        self._extinct = self._catalog = self._any = index
        self._pending: dict[Topic, None] = {}
        self._timers: list[tuple[float, str]] = []

    # -- reading ----------------------------------------------------------------------------------------

    @property
    def services(self) -> Iterator[Service]:
        """Every instance of every service, by time of registration."""
        return iter(self._services.values())

    def service(self, service_id: str) -> Service:
        """Raises `UnknownIdError`."""
        try:
            return self._services[service_id]
        except KeyError:
            raise UnknownIdError(
                f'Unknown service ID "{service_id}". '
                "Ensure that the service ID is passed, not the service name."
            ) from None

    def check(self, check_id: str) -> Check:
        """Raises `UnknownIdError`."""
        try:
            return self._services[self._owner[check_id]].checks[check_id]
        except KeyError:
            raise UnknownIdError(
                f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.'
            ) from None

    def instances(self, name: str) -> list[Service]:
        """The instances of the service called `name`; empty also when there is no such service."""
        return list(self._members.get(name, {}).values())

    def index(self, topic: Topic) -> int:
        """The index of the last change of `topic`, to wait on for the next one."""
        match topic.kind:
            case Kind.SERVICE:
                return self._names.get(topic.name, self._extinct)
            case Kind.SERVICES:
                return self._catalog
            case Kind.CHECKS:
                return self._any
            case Kind.KEY:
                return self.kv.get(topic.name)[0]
            case Kind.PREFIX:
                return self.kv.under(topic.name)[0]

    def probes(self) -> dict[str, HttpProbe | TcpProbe]:
        """The checks that somebody has to run, by check id."""
        return {
            check_id: check.definition.probe
            for service in self._services.values()
            for check_id, check in service.checks.items()
            if check.definition.probe is not None
        }

    # -- services ---------------------------------------------------------------------------------------

    def register(self, definition: ServiceDefinition, now: float, *, replace_checks: bool = False) -> None:
        """Adds an instance or changes it. The same definition again is no change, but renews its TTLs.

        A check that exists already keeps its status. Checks that the new definition lacks stay, unless
        `replace_checks`. Raises `ValueError` when a check id belongs to another service.
        """
        for check in definition.checks:
            if self._owner.get(check.id, definition.id) != definition.id:
                raise ValueError(
                    f"check {check.id} belongs to service {self._owner[check.id]}; choose another CheckID"
                )
        bare = replace(definition, checks=())
        service = self._services.get(definition.id)
        if service is None:
            index = self.topics.advance()
            service = self._services[definition.id] = Service(bare, index, index)
            self._members.setdefault(bare.name, {})[bare.id] = service
            self._touch(bare.name, index, catalog=True)
        elif service.definition != bare:
            self._change(service, bare)
        for check in definition.checks:
            self._put_check(service, check, now)
        if replace_checks:
            kept = {check.id for check in definition.checks}
            for check_id in [i for i in service.checks if i not in kept and not i.startswith(MAINTENANCE)]:
                self._drop_check(service, check_id)
        self._publish()

    def deregister(self, service_id: str) -> None:
        """Removes an instance and its checks. Raises `UnknownIdError`."""
        service = self.service(service_id)
        del self._services[service_id]
        for check_id in service.checks:
            del self._owner[check_id]
        self._leave(service, self.topics.advance())
        self._publish()

    def set_maintenance(self, service_id: str, enable: bool, reason: str, now: float) -> None:
        """Enters or leaves maintenance mode. Raises `UnknownIdError`."""
        service = self.service(service_id)
        check_id = MAINTENANCE + service_id
        if enable:
            notes = reason or "Maintenance mode is enabled for this service, but no reason was provided."
            self._put_check(service, CheckDefinition(check_id, "Service Maintenance Mode", notes=notes), now)
        elif check_id in service.checks:
            self._drop_check(service, check_id)
        self._publish()

    # -- checks -----------------------------------------------------------------------------------------

    def add_check(self, service_id: str, definition: CheckDefinition, now: float) -> None:
        """Adds a check to a service, or changes it. Raises `UnknownIdError`, `ValueError`."""
        service = self.service(service_id)
        if self._owner.get(definition.id, service_id) != service_id:
            raise ValueError(f"check {definition.id} belongs to service {self._owner[definition.id]}")
        self._put_check(service, definition, now)
        self._publish()

    def remove_check(self, check_id: str) -> None:
        """Raises `UnknownIdError`."""
        self.check(check_id)
        service = self._services[self._owner[check_id]]
        self._drop_check(service, check_id)
        self._publish()

    def update_check(self, check_id: str, status: CheckStatus, output: str, now: float) -> None:
        """What a check says now. The same status again renews a TTL and wakes nobody.

        Raises `UnknownIdError`.
        """
        check = self.check(check_id)
        check.output = output
        self._arm(check, now)
        self._set_status(self._services[self._owner[check_id]], check, status, now)

    # -- time -------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When `expire` should be called next; None while nothing can run out."""
        return self._timers[0][0] if self._timers else None

    def expire(self, now: float) -> list[Expiry]:
        """Does what is due: TTLs that ran out turn critical, what was critical too long is deregistered."""
        done: list[Expiry] = []
        while self._timers and self._timers[0][0] <= now:
            at, check_id = heapq.heappop(self._timers)
            service = self._services.get(self._owner.get(check_id, ""))
            if service is None or (check := service.checks[check_id]).timer != at:
                continue
            check.timer = None
            if (due := _reap_at(check)) is not None and due <= now:
                self.deregister(service.definition.id)
                done.append(Expiry(service.definition.id, check_id, deregistered=True))
                continue
            if check.deadline is not None and check.deadline <= now:
                check.deadline = None
                if check.status is not CheckStatus.CRITICAL:
                    check.output = "TTL expired"
                    self._set_status(service, check, CheckStatus.CRITICAL, now)
                    done.append(Expiry(service.definition.id, check_id, deregistered=False))
            self._schedule(check)
        return done

    def renew(self, now: float) -> None:
        """Begins every deadline anew: after a pause of this process, in which nobody could be heard."""
        self._timers.clear()
        for service in self._services.values():
            for check in service.checks.values():
                check.timer = None
                if check.critical_since is not None:
                    check.critical_since = now
                if check.deadline is not None and check.definition.ttl is not None:
                    check.deadline = now + check.definition.ttl
                self._schedule(check)

    # -- saving -----------------------------------------------------------------------------------------

    def restore(self, services: list[Service], index: int, now: float) -> None:
        """Takes over what was saved, before anybody subscribed. Each TTL begins anew, as the grace to call.

        The index goes on from `index`, so that it does not go backwards for those who waited.
        """
        self.topics.index = max(self.topics.index, index)
        self._extinct = self._catalog = self._any = self.topics.index
        for service in services:
            self._services[service.definition.id] = service
            self._members.setdefault(service.definition.name, {})[service.definition.id] = service
            self._names[service.definition.name] = self.topics.index
            for check in service.checks.values():
                self._owner[check.definition.id] = service.definition.id
                check.critical_since = now if check.status is CheckStatus.CRITICAL else None
                if check.status is not CheckStatus.CRITICAL:
                    self._arm(check, now)
                self._schedule(check)

    # -- inside -----------------------------------------------------------------------------------------

    def _change(self, service: Service, definition: ServiceDefinition) -> None:
        old, index = service.definition, self.topics.advance()
        if old.name != definition.name:
            self._leave(service, index)
            self._members.setdefault(definition.name, {})[definition.id] = service
        service.definition = definition
        service.modify_index = index
        self._touch(
            definition.name, index, catalog=(old.name, old.tags) != (definition.name, definition.tags)
        )

    def _put_check(self, service: Service, definition: CheckDefinition, now: float) -> None:
        check = service.checks.get(definition.id)
        if check is None:
            index = self.topics.advance()
            check = Check(definition, definition.status, index, index)
            check.critical_since = now if check.status is CheckStatus.CRITICAL else None
            service.checks[definition.id] = check
            self._owner[definition.id] = service.definition.id
            self._touch(service.definition.name, index)
        elif check.definition != definition:
            check.definition = definition
            check.modify_index = self.topics.advance()
            check.deadline = None
            self._touch(service.definition.name, check.modify_index)
        self._arm(check, now)
        self._schedule(check)

    def _drop_check(self, service: Service, check_id: str) -> None:
        del service.checks[check_id]
        del self._owner[check_id]
        self._touch(service.definition.name, self.topics.advance())

    def _set_status(self, service: Service, check: Check, status: CheckStatus, now: float) -> None:
        if status is check.status:
            return
        check.status = status
        check.critical_since = now if status is CheckStatus.CRITICAL else None
        check.modify_index = self.topics.advance()
        self._schedule(check)
        self._touch(service.definition.name, check.modify_index)
        self._publish()

    def _arm(self, check: Check, now: float) -> None:
        """Starts a TTL anew. A timer that is set already notices on its own that it came too early."""
        if check.definition.ttl is not None:
            check.deadline = now + check.definition.ttl
            self._schedule(check)

    def _schedule(self, check: Check) -> None:
        due = [at for at in (check.deadline, _reap_at(check)) if at is not None]
        if due and (check.timer is None or min(due) < check.timer):
            check.timer = min(due)
            heapq.heappush(self._timers, (check.timer, check.definition.id))

    def _leave(self, service: Service, index: int) -> None:
        """Takes an instance from its service. With the last one the service's own index is forgotten;
        the index of the last extinction stands for it."""
        name = service.definition.name
        self._touch(name, index, catalog=True)
        del self._members[name][service.definition.id]
        if not self._members[name]:
            del self._members[name], self._names[name]
            self._extinct = index

    def _touch(self, name: str, index: int, *, catalog: bool = False) -> None:
        self._names[name] = self._any = index
        self._pending |= {Topic(Kind.SERVICE, name): None, CHECKS: None}
        if catalog:
            self._catalog = index
            self._pending[SERVICES] = None

    def _publish(self) -> None:
        """Tells what the finished change touched; a change that touched nothing wakes nobody."""
        topics, self._pending = tuple(self._pending), {}
        self.topics.publish(*topics)


def _reap_at(check: Check) -> float | None:
    if check.critical_since is None or check.definition.deregister_after is None:
        return None
    return check.critical_since + check.definition.deregister_after
