from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.children import BenchError, Cores, await_answer, child, free_ports, tail
from bench.measure import family

HERE = frozenset(os.sched_getaffinity(0))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_ports_differ_and_can_be_listened_on() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20


def test_the_proxys_core_is_not_shared_where_there_are_two() -> None:
    cores = Cores.of_machine()
    assert len(cores.proxy) == 1
    assert cores.proxy <= HERE
    assert cores.load <= HERE
    if len(HERE) > 1:
        assert not cores.proxy & cores.load


def test_a_child_ends_with_its_block_even_if_that_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        child(["sleep", "600"], cores=HERE, log=log) as process,
    ):
        assert alive(process.pid)
        raise RuntimeError("on purpose")
    assert process.returncode is not None
    assert not alive(process.pid)


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(inner.pid, flush=True)\n"
        "inner.wait()\n"
    )
    log = tmp_path / "log"
    with child([sys.executable, "-c", code], cores=HERE, log=log, grace=0.05) as process:
        while not log.read_text().endswith("\n"):
            assert process.poll() is None
        inner = int(log.read_text())
    assert process.returncode == -9
    assert not alive(process.pid)
    # Nobody of ours waits for it: it is gone when the system has taken it away.
    until = time.monotonic() + 10
    while alive(inner):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_child_runs_on_the_cores_it_is_given(tmp_path: Path) -> None:
    core = min(HERE)
    log = tmp_path / "log"
    code = "import os; print(os.sched_getaffinity(0))"
    with child([sys.executable, "-c", code], cores=frozenset({core}), log=log) as process:
        process.wait(10)
    assert log.read_text().strip() == str({core})


def test_a_program_that_ends_early_is_told_with_what_it_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (port,) = free_ports(1)
    code = "import sys; sys.exit('no such directive')"
    told = pytest.raises(BenchError, match="status 1 before it answered: no such directive")
    with child([sys.executable, "-c", code], cores=HERE, log=log) as process, told:
        await_answer(process, port, log=log)


def test_a_program_that_never_listens_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (port,) = free_ports(1)
    told = pytest.raises(BenchError, match=r"no answer within 0 s: \(no output\)")
    with child(["sleep", "600"], cores=HERE, log=log) as process, told:
        await_answer(process, port, log=log, limit=0.05)


def test_an_answer_with_the_wanted_status_is_enough(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "bench.origin", "echo", str(port)]
    with child(command, cores=HERE, log=log, cwd=Path(__file__).parents[2]) as process:
        await_answer(process, port, log=log, status=400)
        assert family(process.pid, []) == [process.pid]


def test_the_benchmark_refuses_an_unknown_proxy_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--only", "squid"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert done.stderr.startswith("bench: no such proxy: squid")


def test_the_end_of_a_log_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a" * 100 + "the end\n")
    assert tail(log, 7) == "the end"
    assert tail(tmp_path / "none") == "(no output)"
