"""What registrars may send, and what they are told when it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from config.schema import Address
from discovery.embedded.definition import HttpProbe, TcpProbe, check_definition, service_definition


def test_keys_are_found_whatever_their_case_and_underscores() -> None:
    body = {"name": "chat", "id": "a", "check": {"ttl": "10s", "deregister_critical_service_after": "1m"}}
    definition = service_definition(body)
    assert (definition.name, definition.id) == ("chat", "a")
    assert definition.checks[0].ttl == 10
    assert definition.checks[0].deregister_after == 60


def test_the_id_defaults_to_the_name_and_check_ids_to_the_service() -> None:
    one = service_definition({"Name": "chat", "Check": {"TTL": "1s"}})
    two = service_definition({"Name": "chat", "Checks": [{"TTL": "1s"}, {"TTL": "2s"}]})
    assert one.id == "chat"
    assert [check.id for check in one.checks] == ["service:chat"]
    assert [check.id for check in two.checks] == ["service:chat:1", "service:chat:2"]


def test_http_and_tcp_checks_are_read_with_their_times() -> None:
    checks = [
        {"HTTP": "http://127.0.0.1:1/ready", "Interval": "2s", "Timeout": "500ms", "Header": {"X": ["1"]}},
        {"TCP": "127.0.0.1:2", "Interval": "1s"},
    ]
    http, tcp = (check.probe for check in service_definition({"Name": "x", "Checks": checks}).checks)
    assert http == HttpProbe("http://127.0.0.1:1/ready", "GET", (("X", "1"),), "", 2.0, 0.5, True)
    assert tcp == TcpProbe(Address("127.0.0.1", 2), 1.0, 10.0)


WRONG: list[tuple[Any, str]] = [
    ([], "must be a JSON object"),
    ({}, "Missing service name"),
    ({"Name": 5}, "Name must be a string"),
    ({"Name": "x" * 513}, "longer than 512"),
    ({"Name": "a\nb"}, "cannot be printed"),
    ({"Name": "x", "Port": "80"}, "Port must be an integer"),
    ({"Name": "x", "Port": 65536}, "from 0 to 65535"),
    ({"Name": "x", "Port": True}, "Port must be an integer"),
    ({"Name": "x", "Tags": "a"}, "Tags must be a list of strings"),
    ({"Name": "x", "Meta": {"a": 1}}, "Meta must be an object with string values"),
    ({"Name": "x", "Meta": {str(n): "" for n in range(65)}}, "more than 64"),
    ({"Name": "x", "Meta": {"k": "v" * 513}}, "at most 512"),
    ({"Name": "x", "Weights": {"Passing": 0}}, "Passing must be an integer from 1"),
    ({"Name": "x", "Check": {"TTL": 10}}, "has no unit"),
    ({"Name": "x", "Check": {"TTL": "10"}}, "has no unit"),
    ({"Name": "x", "Check": {"TTL": "soon"}}, "is not a duration"),
    ({"Name": "x", "Check": {"TTL": "1ms"}}, "at least"),
    ({"Name": "x", "Check": {"TTL": "1s", "Status": "fine"}}, "passing, warning or critical"),
    ({"Name": "x", "Check": {"Name": "c"}}, "one of TTL, HTTP and TCP must be given"),
    ({"Name": "x", "Check": {"TTL": "1s", "TCP": "a:1", "Interval": "1s"}}, "give only one"),
    ({"Name": "x", "Check": {"HTTP": "http://a/"}}, "needs an Interval"),
    ({"Name": "x", "Check": {"HTTP": "ftp://a/", "Interval": "1s"}}, "http or https"),
    ({"Name": "x", "Check": {"HTTP": "file:///etc/passwd", "Interval": "1s"}}, "http or https"),
    ({"Name": "x", "Check": {"TCP": "nowhere", "Interval": "1s"}}, "is not an address"),
    ({"Name": "x", "Check": {"Args": ["sh"], "Interval": "1s"}}, "args checks are not run here"),
    ({"Name": "x", "Check": {"GRPC": "a:1", "Interval": "1s"}}, "grpc checks are not run here"),
    ({"Name": "x", "Checks": [{"CheckID": "c", "TTL": "1s"}] * 2}, "the same CheckID"),
]


@pytest.mark.parametrize(("body", "message"), WRONG)
def test_a_wrong_service_is_refused_with_a_message(body: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        service_definition(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"ServiceID": "a", "TTL": "1s"}, "Missing check name"),
        ({"Name": "c", "TTL": "1s"}, "Missing ServiceID"),
        ({"Name": "c", "ServiceID": "a"}, "one of TTL, HTTP and TCP"),
    ],
)
def test_a_wrong_check_is_refused_with_a_message(body: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_definition(body)
