from __future__ import annotations

from pathlib import Path

import pytest

from bench import report
from bench.__main__ import DOCUMENT, choose
from bench.children import BenchError
from bench.compare import Change, checkout
from bench.eviction import Findings, bound, buckets, delay, lines
from bench.load import Outcome
from bench.peers import Place, all_peers
from bench.profile import rows

RATE = report.Metric("rate", "requests/s", decimals=0)
CPU = report.Metric("cpu", "CPU, µs", 1e6)


def test_a_cell_shows_median_spread_and_ratio() -> None:
    assert report.cell([20_000, 18_000, 22_000], RATE, [40_000, 36_000, 44_000]) == "20,000 ±10% ×0.50"
    assert report.cell([1.55e-5], CPU, None) == "15.5"
    assert report.cell([], CPU, [1.0]) == "–"


def test_the_table_is_aligned_and_has_a_row_per_metric() -> None:
    results = {"holdfast": {"rate": [50.0], "cpu": [2e-5]}, "nginx": {"rate": [100.0]}, "no proxy": {}}
    assert report.table(results, [RATE, CPU]).splitlines() == [
        "|            | holdfast | nginx | no proxy |",
        "| ---------- | -------: | ----: | -------: |",
        "| requests/s | 50 ×0.50 |   100 |        – |",
        "| CPU, µs    |     20.0 |     – |        – |",
    ]


def test_without_nginx_there_are_no_ratios() -> None:
    assert "×" not in report.table({"holdfast": {"rate": [50.0, 60.0]}}, [RATE])


def test_failures_and_idle_cores_are_pointed_out() -> None:
    results = {
        "good": {"failed": [0.0, 0.0], "core": [0.97, 0.99]},
        "starved": {"failed": [0.0], "core": [0.70, 0.72, 0.99]},
        "failing": {"failed": [0.0, 3.0], "core": [1.0]},
    }
    starved, failing = report.doubts(results)
    assert starved.startswith("starved: used 72% of its core")
    assert failing == "failing: 3 requests failed."


def test_only_what_is_between_the_markers_is_replaced() -> None:
    document = f"# Title\n\n{report.BEGIN}\n\nold\n\n{report.END}\n\nfoot\n"
    once = report.replace_section(document, "new")
    assert once == f"# Title\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n\nfoot\n"
    assert report.replace_section(once, "new") == once


@pytest.mark.parametrize("document", ["", report.BEGIN, report.END, f"{report.END} {report.BEGIN}"])
def test_a_document_without_both_markers_is_left_alone(document: str) -> None:
    with pytest.raises(BenchError, match="has no"):
        report.replace_section(document, "new")


def test_the_document_has_its_markers() -> None:
    assert "new table" in report.replace_section(DOCUMENT.read_text(), "new table")


def test_every_proxy_is_told_its_ports_and_writes_only_into_its_folder() -> None:
    place = Place(port=1001, admin=1002, http=1003, echo=1004, folder=Path("/nowhere"))
    for peer in all_peers():
        files = peer.files(place)
        text = "\n".join(files.values())
        assert all(str(port) in text for port in (1001, 1002, 1003, 1004)), peer.name
        assert peer.settings, peer.name
        config = Path("/nowhere") / next(iter(files))
        assert any(str(config) in str(word) for word in peer.command(Path("/bin/x"), config)), peer.name


def test_an_unknown_proxy_is_refused_with_those_there_are() -> None:
    with pytest.raises(BenchError, match=r"no such proxy: squid; there are holdfast, nginx"):
        choose(["nginx", "squid"])


def test_a_change_is_certain_only_if_every_round_agrees() -> None:
    assert str(Change.of([100, 100, 100], [110, 120, 105])) == "×1.100 (1.050 to 1.200)"
    assert Change.of([10, 10], [9, 8]).certain
    unclear = Change.of([100, 100, 100], [110, 99, 105])
    assert not unclear.certain
    assert str(unclear).endswith("no clear difference")


def test_a_directory_is_compared_where_it_is_and_a_wrong_revision_is_told(tmp_path: Path) -> None:
    assert checkout(str(tmp_path), tmp_path / "unused") == tmp_path.resolve()
    with pytest.raises(BenchError, match="no-such-thing is neither a directory nor a revision"):
        checkout("no-such-thing", tmp_path)


def test_the_delay_runs_to_the_last_start_after_the_call() -> None:
    assert delay(10.0, [9.0, 9.9, 10.001, 10.004]) == pytest.approx(0.004)
    assert delay(10.0, [9.0, 9.9]) == 0
    assert delay(10.0, []) == 0


METRICS_PAGE = """\
# TYPE holdfast_eviction_delay_seconds histogram
holdfast_eviction_delay_seconds_bucket{kind="gone",le="0.001",registry="embedded"} 150
holdfast_eviction_delay_seconds_bucket{kind="gone",le="0.01",registry="embedded"} 160
holdfast_eviction_delay_seconds_bucket{kind="gone",le="+Inf",registry="embedded"} 160
holdfast_eviction_delay_seconds_bucket{kind="dead",le="0.001",registry="embedded"} 38
holdfast_eviction_delay_seconds_bucket{kind="dead",le="0.01",registry="embedded"} 39
holdfast_eviction_delay_seconds_bucket{kind="dead",le="+Inf",registry="embedded"} 40
# TYPE other_seconds histogram
other_seconds_bucket{le="+Inf"} 7
"""


def test_the_buckets_of_the_metric_are_summed_over_its_labels() -> None:
    found = buckets(METRICS_PAGE)
    assert found == {0.001: 188, 0.01: 199, float("inf"): 200}
    assert bound(found, 0.5) == 0.001
    assert bound(found, 0.99) == 0.01
    assert bound(found, 0.999) == float("inf")
    assert bound(buckets("other 1\n"), 0.5) == float("inf")


def test_the_eviction_report_names_failures_and_a_missing_metric() -> None:
    load = Outcome(latencies=[0.1] * 8, failures=["status 503", "status 503", "connection lost: x"])
    text = "\n".join(lines(Findings([0.0, 0.002, 0.004], [0.0, 0.0, 0.001], load, {})))
    assert "3, 1 followed by no request at all" in text
    assert "p50 2.00   p99 4.00   max 4.00" in text
    assert "no eviction_delay_seconds on the metrics page" in text
    assert "11, failed 3" in text
    assert "2 × status 503" in text


def test_the_profile_is_per_request_and_begins_with_what_takes_longest() -> None:
    found = rows(
        {
            ("~", 0, "<method 'join' of 'bytes' objects>"): (1000, 1000, 0.001, 0.001, {}),
            ("/x/proxy/head.py", 5, "parse"): (1000, 2000, 0.003, 0.004, {}),
        },
        units=1000,
    )
    assert [row.function for row in found] == ["proxy/head.py:5 parse", "<method 'join' of 'bytes' objects>"]
    assert found[0] == pytest.approx(("proxy/head.py:5 parse", 2.0, 3.0, 0.75))
