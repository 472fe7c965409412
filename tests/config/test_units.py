"""The written forms of values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.units import (
    Address,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
    write_duration,
    write_rate,
    write_share,
    write_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("3ms", 0.003),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("7d", 604800),
        ("1.5s", 1.5),
        ("0", 0),
        ("2.5", 2.5),
        (" 10s ", 10),
        (4, 4),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_read_as_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "10x",
        "10 s",
        "-1s",
        "1s2",
        "1e3",
        "ten",
        "٣s",
        True,
        None,
        [],
        -1,
        float("inf"),
        float("nan"),
    ],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_a_duration_longer_than_ten_years_is_refused() -> None:
    assert parse_duration("3650d") == 3650 * 86400
    with pytest.raises(ValueError, match="ten years"):
        parse_duration("3651d")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("64KiB", 65536),
        ("1.5MiB", 1572864),
        ("1MB", 10**6),
        ("2 GiB", 2 << 30),
        (7, 7),
        ("0B", 0),
    ],
)
def test_a_size_is_read_as_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "1KB", "1kib", "-1", -1, 1.5, True, None])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_a_size_too_large_for_a_float_stays_exact() -> None:
    assert parse_size("9007199254740993KiB") == 9007199254740993 << 10


@pytest.mark.parametrize(
    ("text", "share"), [("20%", 0.2), ("0.2", 0.2), (".5", 0.5), ("100%", 1), (0, 0), ("7 %", 0.07)]
)
def test_a_share_is_read_as_a_fraction(text: object, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "%", "101%", "1.1", "-5%", 2, True, None, float("nan")])
def test_what_is_no_share_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="share"):
        parse_share(text)


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", 100), ("30/m", 0.5), ("36/h", 0.01), ("5", 5), (2.5, 2.5)]
)
def test_a_rate_is_read_as_events_a_second(text: object, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0/s", "0", "/s", "1/d", "-1/s", True, None, float("inf")])
def test_what_is_no_rate_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate(text)


@given(st.floats(0, 3e8))
def test_a_written_duration_reads_as_the_same(seconds: float) -> None:
    assert parse_duration(write_duration(seconds)) == seconds


@given(st.integers(0, 1 << 70))
def test_a_written_size_reads_as_the_same(size: int) -> None:
    assert parse_size(write_size(size)) == size


@given(st.floats(0, 1))
def test_a_written_share_reads_as_the_same(share: float) -> None:
    assert parse_share(write_share(share)) == share


@given(st.floats(0, 1e12, exclude_min=True))
def test_a_written_rate_reads_as_the_same(rate: float) -> None:
    assert parse_rate(write_rate(rate)) == rate


@given(st.integers(1, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
def test_a_duration_is_written_in_at_most_as_many_characters_as_it_was_given(count: int, unit: str) -> None:
    seconds = count / 1000 if unit == "ms" else count * {"s": 1, "m": 60, "h": 3600}[unit]
    if seconds <= 3e8:
        assert len(write_duration(float(seconds))) <= len(f"{count}{unit}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "250ms"), (75, "75s"), (60, "1m"), (5400, "90m"), (86400, "1d"), (1e-7, "0.0000001s")],
)
def test_durations_are_written_as_people_write_them(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (512, "512"), (65536, "64KiB"), (10**6, "1MB"), (1500, "1500")]
)
def test_sizes_are_written_as_people_write_them(size: int, text: str) -> None:
    assert write_size(size) == text


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        (":8080", "", 8080, ""),
        ("127.0.0.1:0", "127.0.0.1", 0, ""),
        ("[::1]:80", "::1", 80, ""),
        ("a-b.example_x:65535", "a-b.example_x", 65535, ""),
        ("unix:/run/x.sock", "", 0, "/run/x.sock"),
    ],
)
def test_an_address_is_read_and_written_back(text: str, host: str, port: int, path: str) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.path) == (host, port, path)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8080",
        "host",
        "host:",
        "host:x",
        "host:65536",
        "::1:80",
        "[::x]:80",
        "[]:80",
        "unix:",
        "a b:1",
        "http://a:1",
        8080,
        None,
        "unix:a\0b",
    ],
)
def test_what_is_no_address_is_refused_in_the_same_words(text: object) -> None:
    with pytest.raises(ValueError, match="is not an address; write it as"):
        Address.parse(text)


def test_a_socket_path_longer_than_the_kernel_takes_is_refused() -> None:
    assert Address.parse("unix:/" + "x" * 106).path
    with pytest.raises(ValueError, match="107 bytes"):
        Address.parse("unix:/" + "x" * 107)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (":80", "127.0.0.1:80", True),
        ("0.0.0.0:80", ":80", True),
        ("[::]:80", "10.0.0.1:80", True),
        ("localhost:80", "127.0.0.1:80", True),
        ("10.0.0.1:80", "10.0.0.2:80", False),
        (":80", ":81", False),
        (":0", ":0", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("unix:/a", ":80", False),
    ],
)
def test_addresses_overlap_when_both_cannot_be_listened_on(one: str, other: str, overlap: bool) -> None:
    assert Address.parse(one).overlaps(Address.parse(other)) is overlap
    assert Address.parse(other).overlaps(Address.parse(one)) is overlap


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x", True),
        (":1", False),
        ("0.0.0.0:1", False),
        ("db:1", False),
    ],
)
def test_only_this_machine_reaches_a_loopback_address(text: str, loopback: bool) -> None:
    assert Address.parse(text).is_loopback is loopback
