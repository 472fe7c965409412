"""The wheel against the plain truth: who is due when."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.timers import NEVER, Wheel

TICK = 0.1


class Timed:
    def __init__(self, act=None) -> None:
        self.deadline = self.due = NEVER
        self.fired = 0
        self.act = act

    def on_deadline(self) -> None:
        self.fired += 1
        if self.act:
            self.act()


class WheelModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.wheel = Wheel(lambda: self.now, TICK)
        self.timed = [Timed() for _ in range(4)]
        self.expected = [NEVER] * 4
        self.fired = [0] * 4

    which = st.integers(0, 3)

    @rule(n=which, after=st.floats(0, 30))
    def set(self, n: int, after: float) -> None:
        self.expected[n] = self.now + after
        self.wheel.set(self.timed[n], self.expected[n])

    @rule(n=which, after=st.floats(0, 30))
    def put_off(self, n: int, after: float) -> None:
        """What every request does: the deadline moves later without the wheel's being told."""
        if self.expected[n] != NEVER:
            self.expected[n] += after
            self.timed[n].deadline = self.expected[n]

    @rule(n=which)
    def cancel(self, n: int) -> None:
        self.wheel.cancel(self.timed[n])
        self.expected[n] = NEVER

    @rule(n=which)
    def forget(self, n: int) -> None:
        self.timed[n].deadline = self.expected[n] = NEVER

    @rule(seconds=st.one_of(st.floats(0, 0.5), st.floats(0, 100)))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.wheel.advance()

    @invariant()
    def nobody_is_early_and_nobody_later_than_two_ticks(self) -> None:
        for n, timed in enumerate(self.timed):
            if timed.fired > self.fired[n]:
                assert timed.fired == self.fired[n] + 1
                assert self.expected[n] <= self.now
                self.fired[n], self.expected[n] = timed.fired, NEVER
            else:
                assert self.expected[n] == NEVER or self.expected[n] > self.now - 2 * TICK


WheelModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWheel = WheelModel.TestCase


def test_what_is_served_may_cancel_and_set_others_that_are_due_in_the_same_moment():
    now = 0.0
    wheel = Wheel(lambda: now, TICK)
    members: list[Timed] = []

    def first_come() -> None:
        for other in members:
            if not other.fired:
                wheel.cancel(other)

    members += [Timed(first_come) for _ in range(5)]
    for member in members:
        wheel.set(member, 0.05)
    now = 10.0
    wheel.advance()
    assert sum(member.fired for member in members) == 1
    again = Timed()
    again.act = lambda: wheel.set(again, now + 1.0) if again.fired < 3 else None
    wheel.set(again, now)
    for _ in range(100):
        now += 0.1
        wheel.advance()
    assert again.fired == 3


async def test_it_ticks_by_itself_until_it_is_stopped():
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop.time, 0.005)
    fired = asyncio.Event()
    wheel.start(loop)
    timed = Timed(fired.set)
    wheel.set(timed, loop.time() + 0.01)
    async with asyncio.timeout(2):
        await fired.wait()
    wheel.stop()
    assert timed.due == NEVER
