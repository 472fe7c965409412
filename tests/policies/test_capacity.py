"""Places, and who waits for one."""

from __future__ import annotations

import pytest

from config import schema
from config.schema import Adaptive
from proxy.capacity import Capacity, Entry
from proxy.gradient import Gradient


class Somebody:
    def called(self) -> None:
        """Told by whoever gives the place back."""


def capacity(**limits: object) -> Capacity:
    return Capacity(schema.Capacity.model_validate(limits))


def enter(places: Capacity, count: int, tunnels: int = 0, *, handshake: bool = False) -> list[Entry]:
    return [places.enter(Somebody(), tunnels, handshake=handshake) for _ in range(count)]


def test_without_a_limit_everybody_has_a_place() -> None:
    places = capacity()
    assert places.unlimited
    assert set(enter(places, 100)) == {Entry.ADMITTED}


def test_who_finds_no_place_waits_and_who_finds_none_there_is_refused() -> None:
    places = capacity(requests=2, queue=1)
    assert enter(places, 4) == [Entry.ADMITTED, Entry.ADMITTED, Entry.QUEUED, Entry.REFUSED]
    assert (places.inflight, places.waiting) == (2, 1)


def test_a_place_goes_to_who_has_waited_longest() -> None:
    places = capacity(requests=1, queue=9)
    first, second, third = Somebody(), Somebody(), Somebody()
    enter(places, 1)
    for waiter in (first, second, third):
        assert places.enter(waiter, 0, handshake=False) is Entry.QUEUED
    assert places.step_out(second)
    assert not places.step_out(second)
    assert places.leave(0, handshake=False) == [first]
    assert places.inflight == 1
    assert places.leave(0, handshake=False) == [third]
    assert places.leave(0, handshake=False) == []
    assert (places.inflight, places.waiting) == (0, 0)


def test_nobody_overtakes_who_waits() -> None:
    places = capacity(requests=2, queue=9)
    enter(places, 3)
    places.reconfigure(schema.Capacity(requests=3, queue=9))
    assert enter(places, 1) == [Entry.QUEUED]
    assert len(places.leave(0, handshake=False)) == 2


def test_tunnels_and_handshakes_count_together_and_a_handshake_beyond_does_not_wait() -> None:
    places = capacity(tunnels=3, queue=9)
    assert enter(places, 2, tunnels=2, handshake=True) == [Entry.ADMITTED, Entry.REFUSED]
    assert enter(places, 1, tunnels=2) == [Entry.ADMITTED]
    places.leave(3, handshake=True)
    assert places.shaking_hands == 0


def test_connections_are_what_requests_and_tunnels_need() -> None:
    places = capacity(connections=3, queue=1)
    assert enter(places, 3, tunnels=1) == [Entry.ADMITTED, Entry.ADMITTED, Entry.QUEUED]
    assert places.leave(2, handshake=False) == []
    assert len(places.call_up(1)) == 1


def feed(gradient: Gradient, latency: float, start: float, windows: int, inflight: int = 10_000) -> int:
    for window in range(windows):
        for sample in range(20):
            gradient.observe(latency, inflight, start + window + sample / 19.99)
    return gradient.limit


def test_the_limit_grows_while_answers_take_as_long_as_usual_and_shrinks_when_they_do_not() -> None:
    gradient = Gradient(Adaptive(max=200))
    grown = feed(gradient, 0.010, 0.0, 150)
    assert grown == 200
    shrunk = feed(gradient, 0.100, 150.0, 15)
    assert shrunk < grown / 2
    assert feed(gradient, 0.010, 165.0, 60) > shrunk


def test_the_limit_keeps_its_bounds() -> None:
    gradient = Gradient(Adaptive(min=5, max=30))
    assert feed(gradient, 0.010, 0.0, 100) == 30
    for step in range(30):
        assert 5 <= feed(gradient, 0.01 * 2.0**step, 100.0 + step, 1) <= 30


def test_nothing_is_learnt_far_from_the_limit() -> None:
    gradient = Gradient(Adaptive())
    assert feed(gradient, 0.010, 0.0, 50, inflight=1) == 20


def test_adaptive_and_fixed_limits_hold_both() -> None:
    places = capacity(requests=15, adaptive=True)
    assert (places.limit, places.unlimited) == (15, False)
    places.reconfigure(schema.Capacity.model_validate({"adaptive": {"min": 5, "max": 8}}))
    assert places.limit == 8


@pytest.mark.parametrize("limits", [{"requests": 1}, {"tunnels": 1}, {"connections": 1}, {"adaptive": True}])
def test_any_limit_makes_it_limited(limits: dict[str, object]) -> None:
    assert not capacity(**limits).unlimited
