"""The schedule is the seed's, and keeps its own rules."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.schedule import CALM, LONGEST, schedule

INSTANCES = ("a", "b", "c")


@given(seed=st.integers(), seconds=st.floats(20.0, 600.0))
def test_one_thing_has_one_fault_at_a_time_and_one_instance_is_always_well(seed: int, seconds: float) -> None:
    faults = schedule(random.Random(seed), seconds, INSTANCES, "registry")
    assert faults == schedule(random.Random(seed), seconds, INSTANCES, "registry")
    for fault in faults:
        assert 0.0 < fault.start < fault.end <= fault.start + LONGEST < seconds - CALM + 1e-9
        others = [f for f in faults if f is not fault and f.start < fault.end and fault.start < f.end]
        assert fault.target not in {other.target for other in others}
        at_its_start = {f.target for f in faults if f.start <= fault.start < f.end}
        assert set(INSTANCES) - at_its_start


def test_a_long_run_has_every_kind_of_fault_for_instances_and_registry() -> None:
    faults = schedule(random.Random(1), 3600.0, INSTANCES, "registry")
    assert len({(fault.kind, fault.target == "registry") for fault in faults}) == 14
