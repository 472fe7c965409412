"""What may be sent again, and how often."""

from __future__ import annotations

import pytest

from config.schema import Retry
from proxy.retry import IDEMPOTENT, Budget, Failure, may_retry

POLICY = Retry.model_validate({"attempts": 2, "on": ["connect", "reset", "timeout", 502, 503]})
SILENT = Retry.model_validate({"attempts": 2, "on": []})


def allowed(
    failure: Failure,
    *,
    policy: Retry = POLICY,
    method: bytes = b"GET",
    attempt: int = 0,
    body_sent: bool = False,
    reused: bool = False,
    status: int = 0,
) -> bool:
    return may_retry(
        policy, failure, method=method, attempt=attempt, body_sent=body_sent, reused=reused, status=status
    )


def test_the_idempotent_methods_are_those_of_the_rfc() -> None:
    assert frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"}) == IDEMPOTENT


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PATCH", b"BREW"])
def test_a_connect_failure_is_repeated_for_every_method(method: bytes) -> None:
    assert allowed(Failure.CONNECT, method=method)
    assert not allowed(Failure.CONNECT, method=method, policy=SILENT)


@pytest.mark.parametrize(
    ("method", "expected"), [(b"GET", True), (b"DELETE", True), (b"POST", False), (b"get", False)]
)
def test_a_reset_and_a_status_are_repeated_for_idempotent_methods_only(method: bytes, expected: bool) -> None:
    assert allowed(Failure.RESET, method=method) is expected
    assert allowed(Failure.RESET, method=method, reused=True) is expected
    assert allowed(Failure.STATUS, method=method, status=503) is expected


def test_only_the_named_statuses_are_repeated() -> None:
    assert [
        status for status in (200, 404, 500, 502, 503, 504) if allowed(Failure.STATUS, status=status)
    ] == [502, 503]


def test_a_reset_is_repeated_when_the_policy_says_so() -> None:
    assert not allowed(Failure.RESET, policy=SILENT)
    assert not allowed(Failure.RESET, policy=Retry(attempts=0))


def test_a_stale_pooled_connection_is_repeated_whatever_the_policy_says() -> None:
    assert allowed(Failure.RESET, policy=SILENT, reused=True)
    assert allowed(Failure.RESET, policy=Retry(attempts=0, on=()), reused=True)
    assert not allowed(Failure.RESET, policy=Retry(attempts=0, on=()), reused=True, attempt=1)
    assert not allowed(Failure.CONNECT, policy=SILENT, reused=True)


@pytest.mark.parametrize("failure", list(Failure))
def test_a_body_that_has_left_cannot_be_sent_again(failure: Failure) -> None:
    assert not allowed(failure, body_sent=True, reused=True, status=503)


@pytest.mark.parametrize("failure", list(Failure))
def test_attempts_are_counted(failure: Failure) -> None:
    found = [allowed(failure, attempt=attempt, reused=True, status=503) for attempt in range(4)]
    assert found == [True, True, False, False]


def spend(budget: Budget, now: float, tries: int = 1000) -> int:
    return sum(budget.take(now) for _ in range(tries))


def test_a_quiet_service_has_a_floor_of_three_a_second() -> None:
    assert spend(Budget(0.2), 100.0) == 30


def test_a_busy_service_has_its_share_besides() -> None:
    budget = Budget(0.2)
    for _ in range(1000):
        budget.request(100.0)
    assert spend(budget, 100.0) == 230


def test_no_share_means_no_retries() -> None:
    budget = Budget(0.0)
    budget.request(100.0)
    assert spend(budget, 100.0) == 0


def test_what_is_older_than_the_window_is_forgotten() -> None:
    budget = Budget(0.5)
    for _ in range(100):
        budget.request(100.0)
    assert spend(budget, 105.0) == 80
    # The requests leave the window first, then the retries; nothing is left of either in the end.
    assert spend(budget, 110.9) == 0
    assert spend(budget, 111.0) == 0
    assert spend(budget, 116.0) == 30


def test_a_long_silence_clears_the_window() -> None:
    budget = Budget(0.5)
    for _ in range(1000):
        budget.request(100.0)
    assert spend(budget, 10_000.0) == 30
    assert spend(budget, 1e9) == 30


def test_a_steady_failure_multiplies_the_load_by_no_more_than_the_share() -> None:
    budget = Budget(0.2)
    retries = 0
    for step in range(60_000):
        now = 500.0 + step / 1000
        budget.request(now)
        retries += budget.take(now)
    assert retries / 60_000 == pytest.approx(0.2, abs=0.005)
