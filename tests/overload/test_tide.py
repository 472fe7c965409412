"""When the heap is given back: once half of a crowd has gone, one look later."""

from __future__ import annotations

import pytest

from proxy.allocator import Tide


@pytest.mark.parametrize(
    ("seen", "times"),
    [
        ((0, 10, 0, 0), 0),
        ((64, 33, 33), 0),
        ((64, 32), 0),
        ((64, 32, 32, 32), 1),
        ((1000, 500, 200, 10, 0, 0), 3),
        ((1000, 0, 1000, 0, 0), 2),
        ((100, 90, 80, 100, 60, 51), 0),
    ],
)
def test_memory_goes_back_when_half_of_a_crowd_has_gone(seen: tuple[int, ...], times: int) -> None:
    done: list[int] = []
    tide = Tide(lambda: done.append(1))
    for connections in seen:
        tide.look(connections)
    assert len(done) == times
