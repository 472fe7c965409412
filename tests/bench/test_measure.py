from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import Stat, cpu_seconds, family, memory, percentile, ratio, spread

TICK = 1 / os.sysconf("SC_CLK_TCK")


def test_stat_is_read_behind_a_name_with_spaces_and_parentheses() -> None:
    text = "4242 (a ) b (c) S 17 4242 4242 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 1 0 12345 0 0"
    stat = Stat.parse(text)
    assert stat.parent == 17
    assert stat.cpu == pytest.approx(300 * TICK)


def test_family_is_the_root_with_all_descendants_and_nobody_else() -> None:
    parents = [(1, 0), (10, 1), (11, 10), (12, 10), (13, 12), (20, 1)]
    assert sorted(family(10, parents)) == [10, 11, 12, 13]


def test_family_of_a_process_that_is_gone_is_that_pid_alone() -> None:
    assert family(99, [(1, 0)]) == [99]


def test_a_childs_memory_and_cpu_count_for_its_parent() -> None:
    code = "import sys, time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass\n"
    code += "block = bytearray(b'x' * (32 << 20)); print('ready', flush=True); sys.stdin.read()"
    before_cpu, before_memory = cpu_seconds(os.getpid()), memory(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert cpu_seconds(os.getpid()) - before_cpu >= 0.1 - 2 * TICK
        assert memory(os.getpid()) - before_memory > 30 << 20
        child.stdin.close()


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_percentile_is_a_value_that_enough_others_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_spread_is_half_the_range_over_the_median() -> None:
    assert spread([90, 100, 130]) == pytest.approx(0.2)
    assert spread([5]) == 0
    assert spread([-1, 0, 1]) == 0


def test_ratio_is_taken_within_each_round() -> None:
    # The machine was half as fast in the second round; the two differ by the same factor in both.
    assert ratio([50, 25, 50], [100, 50, 100]) == 0.5


def test_ratio_needs_a_base_other_than_zero() -> None:
    assert ratio([1.0, 2.0], [0.0, 4.0]) == 0.5
    assert ratio([1.0], [0.0]) is None
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])
