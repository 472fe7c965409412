"""The embedded registry's state machine, without sockets and with time as an argument."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from discovery.embedded.definition import CheckStatus, check_definition, service_definition
from discovery.embedded.shapes import passing
from discovery.embedded.store import Expiry, Store, UnknownIdError
from discovery.embedded.topics import CHECKS, SERVICES, Kind, Topic

CHAT = Topic(Kind.SERVICE, "chat")


def define(service_id: str = "a", name: str = "chat", **fields: Any) -> Any:
    body = {"ID": service_id, "Name": name, "Address": "127.0.0.1", "Port": 9001, **fields}
    return service_definition(body)


def with_ttl(service_id: str = "a", ttl: str = "10s", **check: Any) -> Any:
    return define(service_id, Check={"TTL": ttl, "Status": "passing", **check})


def calls(store: Store, topic: Topic) -> list[int]:
    """Grows by the index at each notification of the topic."""
    seen: list[int] = []
    store.topics.subscribe(topic, lambda: seen.append(store.topics.index))
    return seen


def test_a_registered_instance_is_found_by_its_service() -> None:
    store = Store()
    store.register(define("a"), 0)
    store.register(define("b"), 0)
    store.register(define("c", "other"), 0)
    assert [s.definition.id for s in store.instances("chat")] == ["a", "b"]
    assert store.instances("unheard-of") == []


def test_registering_the_same_again_changes_no_index_and_wakes_nobody() -> None:
    store = Store()
    store.register(with_ttl(), 0)
    index, woken = store.index(CHAT), calls(store, CHAT)
    store.register(with_ttl(), 5)
    assert store.index(CHAT) == index
    assert woken == []


def test_a_change_in_another_service_moves_neither_the_index_nor_the_waiters() -> None:
    store = Store()
    store.register(define("a"), 0)
    index, woken = store.index(CHAT), calls(store, CHAT)
    store.register(define("x", "other"), 0)
    store.deregister("x")
    assert (store.index(CHAT), woken) == (index, [])


def test_the_index_of_a_service_does_not_go_back_when_its_last_instance_leaves() -> None:
    store = Store()
    store.register(define("a"), 0)
    before = store.index(CHAT)
    store.deregister("a")
    gone = store.index(CHAT)
    store.register(define("a"), 0)
    assert before < gone < store.index(CHAT)


def test_one_registration_with_checks_is_one_notification() -> None:
    store = Store()
    woken = calls(store, CHAT)
    store.register(with_ttl(), 0)
    assert len(woken) == 1


def test_a_ttl_without_status_begins_critical() -> None:
    store = Store()
    store.register(define(Check={"TTL": "10s"}), 0)
    assert store.check("service:a").status is CheckStatus.CRITICAL


def test_a_heartbeat_renews_the_ttl_and_wakes_nobody() -> None:
    store = Store()
    store.register(with_ttl(), 0)
    woken = calls(store, CHAT)
    store.update_check("service:a", CheckStatus.PASSING, "fine", 9)
    assert store.expire(18.9) == []
    assert store.check("service:a").status is CheckStatus.PASSING
    assert woken == []


def test_a_ttl_that_runs_out_turns_critical_exactly_then() -> None:
    store = Store()
    store.register(with_ttl(), 0)
    assert store.expire(9.999) == []
    assert store.expire(10) == [Expiry("a", "service:a", deregistered=False)]
    assert store.check("service:a").status is CheckStatus.CRITICAL
    assert store.check("service:a").output == "TTL expired"


def test_critical_for_too_long_deregisters_the_service() -> None:
    store = Store()
    store.register(with_ttl(DeregisterCriticalServiceAfter="60s"), 0)
    store.expire(10)
    assert store.next_deadline == 70
    assert store.expire(69.9) == []
    assert store.expire(70) == [Expiry("a", "service:a", deregistered=True)]
    assert store.instances("chat") == []
    assert store.next_deadline is None


def test_a_ttl_check_that_was_never_passed_is_deregistered_too() -> None:
    store = Store()
    store.register(define(Check={"TTL": "10s", "DeregisterCriticalServiceAfter": "15s"}), 0)
    store.expire(10)
    assert store.expire(15) == [Expiry("a", "service:a", deregistered=True)]


def test_recovery_stops_the_clock_of_deregistration() -> None:
    store = Store()
    store.register(with_ttl(DeregisterCriticalServiceAfter="20s"), 0)
    store.expire(10)
    store.update_check("service:a", CheckStatus.PASSING, "", 25)
    assert store.expire(34.9) == []
    assert store.expire(35) == [Expiry("a", "service:a", deregistered=False)]


def test_registering_again_does_not_lift_a_critical_check() -> None:
    store = Store()
    store.register(with_ttl(), 0)
    store.expire(10)
    store.register(with_ttl(), 11)
    assert store.check("service:a").status is CheckStatus.CRITICAL


def test_registering_again_and_again_keeps_one_timer() -> None:
    store = Store()
    for second in range(1000):
        store.register(with_ttl(ttl="10s"), second / 100)
        store.expire(second / 100)
    assert len(store._timers) == 1


def test_replacing_checks_drops_those_that_are_not_named() -> None:
    store = Store()
    store.register(define(Checks=[{"CheckID": "x", "TTL": "5s"}, {"CheckID": "y", "TTL": "5s"}]), 0)
    store.set_maintenance("a", True, "", 0)
    store.register(define(Check={"CheckID": "y", "TTL": "5s"}), 0)
    assert "x" in store.service("a").checks
    store.register(define(Check={"CheckID": "y", "TTL": "5s"}), 0, replace_checks=True)
    assert set(store.service("a").checks) == {"y", "_service_maintenance:a"}


def test_a_check_id_of_another_service_is_refused_and_nothing_changes() -> None:
    store = Store()
    store.register(define("a", Check={"CheckID": "mine", "TTL": "5s"}), 0)
    index = store.topics.index
    with pytest.raises(ValueError, match="belongs to service a"):
        store.register(define("b", Check={"CheckID": "mine", "TTL": "5s"}), 0)
    assert store.topics.index == index
    assert [s.definition.id for s in store.services] == ["a"]


def test_maintenance_adds_and_removes_a_critical_check() -> None:
    store = Store()
    store.register(define(), 0)
    store.set_maintenance("a", True, "new disk", 0)
    check = store.check("_service_maintenance:a")
    assert (check.status, check.definition.notes) == (CheckStatus.CRITICAL, "new disk")
    assert not passing(store.service("a"))
    store.set_maintenance("a", False, "", 0)
    store.set_maintenance("a", False, "", 0)
    assert store.service("a").checks == {}


def test_an_instance_that_changes_its_service_leaves_the_old_one() -> None:
    store = Store()
    store.register(define("a", "old"), 0)
    old, new, names = (calls(store, t) for t in (Topic(Kind.SERVICE, "old"), CHAT, SERVICES))
    store.register(define("a", "chat"), 0)
    assert store.instances("old") == []
    assert len(store.instances("chat")) == 1
    assert (len(old), len(new), len(names)) == (1, 1, 1)


def test_unknown_ids_are_named_in_the_error() -> None:
    store = Store()
    with pytest.raises(UnknownIdError, match='Unknown service ID "nope"'):
        store.deregister("nope")
    with pytest.raises(UnknownIdError, match='Unknown check ID "nope"'):
        store.update_check("nope", CheckStatus.PASSING, "", 0)


def test_after_a_pause_of_the_process_everybody_has_the_whole_time_again() -> None:
    store = Store()
    store.register(with_ttl("a"), 0)
    store.register(with_ttl("b", ttl="20s", DeregisterCriticalServiceAfter="5s"), 0)
    store.update_check("service:b", CheckStatus.CRITICAL, "", 1)
    store.renew(100)
    assert store.expire(104.9) == []
    assert store.expire(105) == [Expiry("b", "service:b", deregistered=True)]
    assert store.expire(109.9) == []
    assert [e.service_id for e in store.expire(110)] == ["a"]


def test_a_check_can_be_added_to_and_removed_from_a_service() -> None:
    store = Store()
    store.register(define(), 0)
    service_id, check = check_definition({"Name": "extra", "ServiceID": "a", "TTL": "3s"})
    store.add_check(service_id, check, 0)
    assert store.check("extra").definition.ttl == 3
    store.remove_check("extra")
    assert store.service("a").checks == {}


def test_keys_wake_only_those_who_watch_them_or_a_prefix() -> None:
    store = Store()
    exact, prefix, other = (
        calls(store, topic)
        for topic in (Topic(Kind.KEY, "app/x"), Topic(Kind.PREFIX, "app/"), Topic(Kind.KEY, "app/xy"))
    )
    store.kv.put("app/x", b"1")
    assert (len(exact), len(prefix), len(other)) == (1, 1, 0)


def test_check_and_set_obeys_the_modify_index() -> None:
    kv = Store().kv
    assert kv.put("k", b"1", cas=0)
    assert not kv.put("k", b"2", cas=0)
    index, pair = kv.get("k")
    assert pair is not None
    assert kv.put("k", b"2", cas=index)
    assert not kv.put("k", b"3", cas=index)
    assert not kv.delete("k", cas=index)
    assert kv.delete("k", cas=kv.get("k")[0])
    assert kv.get("k")[1] is None


def test_a_deletion_moves_the_index_of_the_key_and_of_its_prefixes_only() -> None:
    kv = Store().kv
    kv.put("app/x", b"1")
    kv.put("web/y", b"1")
    app, web = kv.under("app/")[0], kv.under("web/")[0]
    kv.delete("app/x")
    assert kv.under("app/")[0] > app
    assert kv.get("app/x")[0] > app
    assert kv.under("web/")[0] == web


def test_forgotten_deletions_never_move_an_index_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery.embedded.kv.TOMBSTONES", 2)
    kv = Store().kv
    for name in "abcd":
        kv.put(name, b"1")
    indexes = []
    for name in "abcd":
        kv.delete(name)
        indexes.append(kv.get("a")[0])
    assert indexes == sorted(indexes)
    assert kv.get("never")[0] == indexes[-1]


class StoreMachine(RuleBasedStateMachine):
    """Whatever happens: indexes only grow, a changed answer means a grown index, and nobody is missed."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.now = 0.0
        self.alive: dict[str, tuple[str, float | None]] = {}
        self.seen: dict[str, tuple[int, object]] = {}
        self.woken: set[str] = set()
        for name in ("chat", "other"):
            self.store.topics.subscribe(Topic(Kind.SERVICE, name), lambda n=name: self.woken.add(n))

    @rule(target=ids, number=st.integers(0, 3), name=st.sampled_from(["chat", "other"]), ttl=st.booleans())
    def register(self, number: int, name: str, ttl: bool) -> str:
        service_id = f"i{number}"
        check = {"TTL": "5s", "Status": "passing", "DeregisterCriticalServiceAfter": "7s"}
        self.store.register(define(service_id, name, **({"Check": check} if ttl else {})), self.now)
        return service_id

    @rule(service_id=ids, status=st.sampled_from(CheckStatus))
    def update(self, service_id: str, status: CheckStatus) -> None:
        try:
            self.store.update_check(f"service:{service_id}", status, "", self.now)
        except UnknownIdError:
            assert all(f"service:{service_id}" not in s.checks for s in self.store.services)

    @rule(service_id=ids, enable=st.booleans())
    def maintain(self, service_id: str, enable: bool) -> None:
        if any(s.definition.id == service_id for s in self.store.services):
            self.store.set_maintenance(service_id, enable, "", self.now)

    @rule(service_id=consumes(ids))
    def deregister(self, service_id: str) -> None:
        if any(s.definition.id == service_id for s in self.store.services):
            self.store.deregister(service_id)

    @rule(seconds=st.floats(0, 6))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.store.expire(self.now)

    @invariant()
    def indexes_tell_of_every_change(self) -> None:
        for name in ("chat", "other"):
            index = self.store.index(Topic(Kind.SERVICE, name))
            answer = [
                (s.definition, [(c.definition, c.status) for c in s.checks.values()])
                for s in self.store.instances(name)
            ]
            if name in self.seen:
                old_index, old_answer = self.seen[name]
                assert index >= old_index
                if answer != old_answer:
                    assert index > old_index
                    assert name in self.woken
            assert index <= self.store.index(CHECKS) <= self.store.topics.index
            self.seen[name] = index, answer
        self.woken.clear()

    @invariant()
    def nothing_is_overdue(self) -> None:
        deadline = self.store.next_deadline
        assert deadline is None or deadline > self.now
        for service in self.store.services:
            for check in service.checks.values():
                if check.status is not CheckStatus.CRITICAL and check.definition.ttl is not None:
                    assert check.deadline is not None
                    assert self.now < check.deadline <= self.now + check.definition.ttl


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
