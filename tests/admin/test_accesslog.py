"""The access log: its lines, its files, and that it holds nobody up."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.model import Instance
from proxy.accesslog import BATCH, AccessLog, Line
from proxy.endpoint import Endpoint

ROUTE: Any = SimpleNamespace(name="web-2", service=SimpleNamespace(name="web"))
ENDPOINT = Endpoint(Instance("web", "w/1", "127.0.0.1", 1, metadata={"version": "v2"}), 100, 0.0, b"")


def line(**changed: Any) -> Line:
    facts: dict[str, Any] = {
        "finished": 100.5,
        "started": 100.25,
        "head_at": 100.375,
        "client": "192.0.2.1",
        "method": b"GET",
        "target": b"/x?y=1",
        "host": b"example.com",
        "route": ROUTE,
        "endpoint": ENDPOINT,
        "status": 200,
        "reason": "",
        "bytes_in": 3,
        "bytes_out": 500,
        "attempts": 1,
        "request_id": b"abc",
        "protocol": "http",
        "user_agent": b"curl/8",
    }
    assert changed.keys() <= facts.keys()
    return tuple({**facts, **changed}.values())  # type: ignore[return-value]


def open_log(path: Path | str) -> AccessLog:
    return AccessLog(str(path), wall=lambda: 1700000100.0, monotonic=lambda: 100.0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_bytes().splitlines()]


def test_a_line_says_everything_about_a_request(tmp_path):
    path = tmp_path / "access.log"
    log = open_log(path)
    log.append(line())
    log.close()
    assert lines(path) == [
        {
            "time": "2023-11-14T22:15:00.500Z",
            "client": "192.0.2.1",
            "method": "GET",
            "target": "/x?y=1",
            "host": "example.com",
            "route": "web-2",
            "service": "web",
            "instance": "w/1",
            "version": "v2",
            "status": 200,
            "reason": None,
            "bytes_in": 3,
            "bytes_out": 500,
            "duration_ms": 250.0,
            "response_ms": 125.0,
            "attempts": 1,
            "request_id": "abc",
            "protocol": "http",
            "user_agent": "curl/8",
        }
    ]


def test_what_is_not_there_is_null(tmp_path):
    path = tmp_path / "access.log"
    log = open_log(path)
    log.append(
        line(route=None, endpoint=None, head_at=-1.0, request_id=b"", user_agent=b"", reason="bad_request")
    )
    log.close()
    [found] = lines(path)
    absent = ("route", "service", "instance", "version", "response_ms", "request_id", "user_agent")
    assert [found[name] for name in absent] == [None] * 7
    assert found["reason"] == "bad_request"


@given(target=st.binary(max_size=60), agent=st.binary(min_size=1, max_size=60), host=st.binary(max_size=20))
def test_whatever_clients_send_a_line_is_one_line_of_json_that_holds_it(target, agent, host):
    log = AccessLog(None)
    text = log._format(line(target=target, user_agent=agent, host=host), 0.0)
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    found = json.loads(text)
    assert found["target"].encode("latin-1") == target
    assert found["user_agent"].encode("latin-1") == agent
    assert found["host"].encode("latin-1") == host


def test_an_instance_that_is_registered_anew_is_named_as_it_is_now():
    log = AccessLog(None)
    endpoint = Endpoint(Instance("web", "w", metadata={"version": "v1"}), 1, 0.0, b"")
    assert json.loads(log._format(line(endpoint=endpoint), 0.0))["version"] == "v1"
    endpoint.instance = Instance("web", "w", metadata={"version": "v2"})
    assert json.loads(log._format(line(endpoint=endpoint), 0.0))["version"] == "v2"


def test_names_are_remembered_only_up_to_a_bound(monkeypatch):
    monkeypatch.setattr("proxy.accesslog._NAMES", 8)
    log = AccessLog(None)
    for number in range(100):
        endpoint = Endpoint(Instance("web", f"w{number}"), 1, 0.0, b"")
        assert json.loads(log._format(line(endpoint=endpoint), 0.0))["instance"] == f"w{number}"
        assert len(log._known) <= 8


def test_without_a_path_nothing_is_written_or_kept():
    log = AccessLog(None)
    assert not log.enabled
    log.append(line())
    log.flush()
    log.reopen()
    log.close()
    assert (log.lines, log.dropped) == (0, 0)


def test_a_full_batch_goes_to_the_writer_by_itself(tmp_path):
    log = open_log(tmp_path / "access.log")
    for _ in range(BATCH):
        log.append(line())
    assert log.lines == BATCH
    log.close()
    assert len(lines(tmp_path / "access.log")) == BATCH


def test_a_file_is_added_to_and_not_readable_by_everybody(tmp_path):
    path = tmp_path / "access.log"
    for _ in range(2):
        log = open_log(path)
        log.append(line())
        log.close()
    assert len(lines(path)) == 2
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        open_log(tmp_path / "missing" / "access.log")


def test_after_reopen_lines_go_to_a_new_file_of_the_same_name(tmp_path):
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    log = open_log(path)
    log.append(line(status=201))
    log.flush()
    path.rename(moved)
    log.reopen()
    _until(path.exists)
    log.append(line(status=202))
    log.close()
    assert [found["status"] for found in [*lines(moved), *lines(path)]] == [201, 202]


def test_a_reopen_that_fails_goes_on_with_the_old_file(tmp_path, caplog):
    folder = tmp_path / "logs"
    folder.mkdir()
    log = open_log(folder / "access.log")
    folder.rename(tmp_path / "moved")
    log.reopen()
    _until(lambda: "cannot reopen" in caplog.text)
    log.append(line())
    log.close()
    assert len(lines(tmp_path / "moved" / "access.log")) == 1
    assert log.dropped == 0


def test_a_blocked_reader_holds_nobody_up_and_what_is_lost_is_counted(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = open_log(fifo)
        total = 400 * BATCH
        for _ in range(total):
            log.append(line())
        assert log.dropped > 0
        assert log.lines + log.dropped == total
        log.close(timeout=0.05)
    finally:
        os.close(reader)
    _until(lambda: all(thread.name != "access-log" for thread in threading.enumerate()))


def test_a_reader_that_goes_away_costs_lines_and_one_warning(tmp_path, caplog):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = open_log(fifo)
    os.close(reader)
    for _ in range(3):
        log.append(line())
        log.flush()
    log.close()
    assert log.dropped == 3
    assert caplog.text.count("cannot write the access log") == 1


def test_a_dash_is_standard_output(capfd):
    log = AccessLog("-")
    log.append(line(status=299))
    log.close()
    assert json.loads(capfd.readouterr().out)["status"] == 299


def _until(holds: Any) -> None:
    """Wait for the writer's thread to have done something."""
    tick = threading.Event()
    for _ in range(500):
        if holds():
            return
        tick.wait(0.01)
    raise AssertionError("it did not happen")
