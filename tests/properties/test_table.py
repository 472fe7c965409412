"""The table under every sequence of what registries, checks, traffic and operators can say."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from config.schema import Config
from discovery.model import Instance, Status, Update
from proxy.endpoint import TRANSITIONS, Endpoint, State
from proxy.table import Cause, Table

ids = st.sampled_from("abcd")
instances = st.builds(
    lambda id, port, weight, status, version: Instance(
        "s", id, "127.0.0.1", port, weight=weight, status=status, metadata={"version": version}
    ),
    ids,
    st.sampled_from((1, 2)),
    st.sampled_from((0, 1, 100)),
    st.sampled_from(Status),
    st.sampled_from(("v1", "v2")),
)


def config(checked: bool, outlier: bool = True, panic: float = 0.0) -> Config:
    service: dict[str, object] = {"panic": panic, "outlier": {"consecutive_failures": 2} if outlier else None}
    service["health"] = {"healthy": 2, "unhealthy": 2} if checked else None
    return Config.model_validate(
        {"services": {"s": service}, "routes": [{"match": {"path": "/"}, "service": "s"}]}
    )


class TableModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.events: list[str] = []
        self.table = Table(lambda kind, **_: self.events.append(kind), key=b"k")
        self.table.configure(config(False), self.now)
        self.leases: list[tuple[Endpoint, object]] = []
        self.gone: set[Endpoint] = set()
        self.said: dict[str, Instance] = {}

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        return self.table.services["s"].endpoints

    @rule(found=st.lists(instances, max_size=5))
    def registry(self, found: list[Instance]) -> None:
        before = dict(self.endpoints)
        departures = self.table.apply(Update("s", tuple(found), self.now), self.now)
        self.said = {instance.id: instance for instance in found}
        assert set(self.endpoints) == set(self.said)
        for id, endpoint in before.items():
            now = self.endpoints.get(id)
            if now is not endpoint:
                assert now is None or now.instance.address != endpoint.instance.address
                self.gone.add(endpoint)
                assert any(d.endpoint is endpoint and d.cause is Cause.GONE for d in departures)

    @rule()
    def the_same_again(self) -> None:
        pool, events = self.table.services["s"].pool, len(self.events)
        assert self.table.apply(Update("s", tuple(self.said.values()), self.now), self.now) == []
        assert self.table.services["s"].pool is pool
        assert len(self.events) == events

    @rule(checked=st.booleans(), outlier=st.booleans(), panic=st.sampled_from((0.0, 0.5, 1.0)))
    def reload(self, checked: bool, outlier: bool, panic: float) -> None:
        before = dict(self.endpoints)
        self.table.configure(config(checked, outlier, panic), self.now)
        assert self.endpoints == before

    @rule(id=ids, passed=st.booleans())
    def check(self, id: str, passed: bool) -> None:
        if id in self.endpoints:
            self.table.health(self.endpoints[id], passed, self.now)

    @rule(id=ids)
    def begin(self, id: str) -> None:
        if id in self.endpoints:
            endpoint = self.endpoints[id]
            self.leases.append((endpoint, endpoint.enter(self.now)))

    @rule(which=st.integers(0, 9), failed=st.booleans())
    def end(self, which: int, failed: bool) -> None:
        if self.leases:
            endpoint, lease = self.leases.pop(which % len(self.leases))
            lease.exit(self.now, failed=failed, latency=0.01)
            if failed:
                self.table.failed(endpoint, self.now)

    @rule(id=ids, act=st.sampled_from(("drain", "undrain")))
    def operate(self, id: str, act: str) -> None:
        if id in self.endpoints:
            getattr(self.table, act)("s", id, self.now)

    @rule(id=ids, weight=st.sampled_from((None, 0, 5)))
    def weigh(self, id: str, weight: int | None) -> None:
        if id in self.endpoints:
            self.table.set_weight("s", id, weight, self.now)

    @rule(id=ids, seconds=st.sampled_from((1.0, 30.0)))
    def eject(self, id: str, seconds: float) -> None:
        if id in self.endpoints:
            self.table.eject("s", id, seconds, self.now)

    @rule(seconds=st.sampled_from((0.5, 5.0, 60.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        upcoming = self.table.expire(self.now)
        out = [e.ejected_until for e in self.endpoints.values() if e.state is State.EJECTED]
        assert upcoming == min(out, default=None)
        assert all(until > self.now for until in out)

    @invariant()
    def only_who_may_be_given_work_is_in_the_pool(self) -> None:
        pool = self.table.services["s"].pool
        weighted = [e for e in self.endpoints.values() if e.weight > 0]
        wanted = [e for e in weighted if e.state is State.READY]
        maybe_alive = (State.READY, State.UNHEALTHY, State.EJECTED)
        alive = [e for e in weighted if e.state in maybe_alive and e.instance.status is not Status.DOWN]
        state = self.table.services["s"]
        assert state.panicking is (len(wanted) < state.config.panic * len(alive))
        sure = [e for e in wanted if e.instance.status is not Status.DOUBTFUL]
        assert set(pool.ready) == set(alive if state.panicking else sure or wanted)
        assert {e for e in self.endpoints.values() if e.available} == set(pool.ready)
        assert not any(e.available for e in self.gone)
        assert pool.versions == {e.instance.version for e in pool.ready}

    @invariant()
    def who_is_gone_stays_gone(self) -> None:
        assert all(endpoint.state is State.GONE for endpoint in self.gone)
        assert all(endpoint.state is not State.GONE for endpoint in self.endpoints.values())

    @invariant()
    def what_registry_and_operator_say_holds(self) -> None:
        for id, endpoint in self.endpoints.items():
            override = self.table.overridden(endpoint)
            drained = override is not None and override.draining
            leaving = endpoint.instance.status is Status.DRAINING or drained
            assert (endpoint.state is State.DRAINING) is leaving
            assert endpoint.instance == self.said[id]
            if endpoint.instance.status is Status.DOWN:
                assert endpoint.state is not State.READY
            if override is not None and override.weight is not None:
                assert endpoint.weight == override.weight

    @invariant()
    def work_under_way_is_counted(self) -> None:
        for endpoint in {*self.endpoints.values(), *self.gone}:
            assert endpoint.inflight == sum(held is endpoint for held, _ in self.leases)


TableModel.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestTable = TableModel.TestCase


def test_every_state_can_be_left_for_good_and_gone_is_the_end():
    assert TRANSITIONS[State.GONE] == {}
    for state, moves in TRANSITIONS.items():
        assert state is State.GONE or State.GONE in moves.values()
    reached = {State.STARTING} | {after for moves in TRANSITIONS.values() for after in moves.values()}
    assert reached == set(State)
