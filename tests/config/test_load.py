"""Files into configurations: values, nulls, anchors, and where each source wins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from config.load import ConfigError, load, read
from config.schema import Balance, Config, OnDrain, Replay

ONE_ROUTE = "services: {shop: {instances: [10.0.0.1:80]}}\nroutes: [{service: shop}]\n"


def config(text: str, environ: Mapping[str, str] | None = None, **overrides: object) -> Config:
    return read(text.encode(), source="test.yaml", environ=environ or {}, overrides=overrides)


def wrong(text: str, environ: Mapping[str, str] | None = None, **overrides: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text, environ, **overrides)
    return str(caught.value).splitlines()


CONTRACT = """
listen:
  - address: ":8080"
    tls: {certificate: c.pem, key: k.pem, client_ca: ca.pem}
    proxy_protocol: true
admin: {address: "127.0.0.1:9900", token: ${HOLDFAST_ADMIN_TOKEN}}
timeout: {header: 10s, body: 30s, keepalive: 75s}
limits: {connections: 10000, request_line: 16KiB, header_bytes: 64KiB, header_count: 100}
trusted_proxies: []
registry: {kind: embedded, listen: "127.0.0.1:8500"}
services:
  chat:
    balance: least_conn
    sticky: {by: cookie, name: hf_chat}
    websocket: {on_drain: migrate, replay: true, ping: 20s, idle: 5m}
    drain: {timeout: 30s, jitter: 5s}
    health: {path: /readyz, interval: 2s, timeout: 1s, healthy: 2, unhealthy: 2}
    outlier: {consecutive_failures: 3, base_ejection: 5s, max_ejected: 50%}
    retry: {attempts: 2, budget: 20%, on: [connect, reset, 502, 503]}
    timeout: {connect: 1s, response: 30s, idle: 60s}
    instances: ["127.0.0.1:9001", {address: "10.0.0.7:80", id: a, weight: 50, metadata: {version: v2}}]
    slow_start: 10s
routes:
  - {match: {path: /}, service: chat, split: {v2: 5}, mirror: {to: v2, share: 10%}, limit: {rate: 100/s}}
"""


def test_the_configuration_of_the_contract_is_read_whole() -> None:
    made = config(CONTRACT, {"HOLDFAST_ADMIN_TOKEN": "t0k"})
    chat = made.services["chat"]
    assert made.admin.token is not None
    assert made.admin.token.get_secret_value() == "t0k"
    assert made.listen[0].tls is not None
    assert made.listen[0].tls.client_ca == "ca.pem"
    assert made.limits.header_bytes == 65536
    assert (chat.websocket.on_drain, chat.websocket.replay, chat.websocket.ping) == (
        OnDrain.MIGRATE,
        Replay(),
        20.0,
    )
    assert chat.retry.on == ("connect", "reset", 502, 503)
    assert chat.instances is not None
    assert [instance.id for instance in chat.instances] == ["127.0.0.1:9001", "a"]
    assert [limit.rate for limit in made.routes[0].limit] == [100]


def test_no_file_and_an_empty_file_are_the_defaults() -> None:
    for empty in ("", "# nothing\n", "---\n", "\ufeff"):
        assert config(empty) == Config()
    assert load(None, environ={}) == Config()


def test_json_is_read_as_yaml_is(tmp_path: Path) -> None:
    data = {"services": {"\U0001f600": {"instances": ["a:1"]}}, "routes": [{"service": "\U0001f600"}]}
    path = tmp_path / "c.json"
    path.write_text(json.dumps(data, indent="\t"))
    assert list(load(path, environ={}).services) == ["\U0001f600"]


def test_what_looks_like_another_type_is_text_where_text_is_wanted() -> None:
    instance_text = "{address: 'a:1', id: 007, metadata: {version: 1.10, zone: on, x: null}}"
    text = f"services: {{a: {{instances: [{instance_text}]}}}}"
    problems = wrong(text)
    assert problems == ["test.yaml:1:93: services.a.instances[0].metadata.x: needs a value"]
    made = config(text.replace(", x: null", ", x: 'null'"))
    assert made.services["a"].instances is not None
    instance = made.services["a"].instances[0]
    assert instance.id == "007"
    assert instance.metadata == {"version": "1.10", "zone": "on", "x": "null"}


@pytest.mark.parametrize("empty", ["", "~", "null", "NULL"])
def test_a_key_without_value_keeps_its_default(empty: str) -> None:
    assert config(f"admin: {empty}\nlimits:\n  connections: {empty}\nlisten: {empty}\n") == Config()


@pytest.mark.parametrize("off", ["none", "null", "~"])
def test_none_switches_a_section_off(off: str) -> None:
    made = config(
        "services:\n  a:\n    instances: [a:1]\n"
        f"    sticky: {off}\n    health: {off}\n    outlier: {off}\n"
        f"routes: [{{service: a, split: {off}, mirror: {off}, limit: {off}}}]\nregistry: {off}\n"
        f"access_log: {{path: {off}}}\n"
    )
    service, route = made.services["a"], made.routes[0]
    assert (service.sticky, service.health, service.outlier) == (None, None, None)
    assert (route.split, route.mirror, route.limit, made.registry) == (None, None, (), ())
    assert made.access_log.path is None
    assert config("access_log: none").access_log.path is None


def test_a_single_registry_and_a_single_method_need_no_list() -> None:
    made = config("registry: {kind: consul}\nservices: {a: {}}\nroutes: [{service: a, match: {method: get}}]")
    assert made.registry[0].kind == "consul"
    assert made.routes[0].match.method == ("GET",)


def test_anchors_aliases_and_merge_keys_work() -> None:
    made = config(
        "registry: {kind: embedded}\n"
        "services:\n"
        "  a: &base\n    balance: p2c\n    drain: {timeout: 7s}\n"
        "  b:\n    <<: *base\n    balance: ewma\n"
        "  c:\n    <<: [{slow_start: 3s}, *base]\n"
        "  d: *base\n"
    )
    assert [service.balance for service in made.services.values()] == [
        Balance.P2C,
        Balance.EWMA,
        Balance.P2C,
        Balance.P2C,
    ]
    assert [service.drain.timeout for service in made.services.values()] == [7, 7, 7, 7]
    assert made.services["c"].slow_start == 3


def test_routes_without_a_name_are_called_after_their_service() -> None:
    made = config(
        "services: {a: {instances: [a:1]}}\nroutes: [{service: a}, {service: a, name: a}, {service: a}]"
    )
    assert [route.name for route in made.routes] == ["a-2", "a", "a-3"]


def test_an_instance_without_host_is_on_this_machine_and_one_without_port_is_refused() -> None:
    assert config("services: {a: {instances: [':81']}}").services["a"].instances
    assert wrong("services: {a: {instances: ['x:0']}}") == [
        "test.yaml:1:28: services.a.instances[0]: 'x:0' has no port to connect to"
    ]


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.yaml"
    path.write_text("timeout: {header: 2s, body: 2s, keepalive: 2s}\n")
    environ = {"HOLDFAST_TIMEOUT__BODY": "3s", "HOLDFAST_TIMEOUT__KEEPALIVE": "3s"}
    made = load(path, environ=environ, overrides={"timeout": {"keepalive": "4s"}})
    assert (made.timeout.header, made.timeout.body, made.timeout.keepalive) == (2, 3, 4)
    assert made.shutdown == Config().shutdown


def test_the_command_line_replaces_lists_and_merges_sections() -> None:
    made = config(
        ONE_ROUTE + "listen: [{address: ':1'}, {address: ':2'}]\nadmin: {token: t}\n",
        listen=[{"address": ":3"}],
        admin={"address": ":9"},
        limits={"connections": 5},
    )
    assert [str(listen.address) for listen in made.listen] == [":3"]
    assert str(made.admin.address) == ":9"
    assert made.admin.token is not None
    assert made.limits.connections == 5


def test_a_mistake_on_the_command_line_says_so() -> None:
    assert wrong("", admin={"adress": ":9"}, limits={"connections": 0}) == [
        "command line: admin.adress: is not a known key (did you mean 'address'?)",
        "command line: limits.connections: must be at least 1, not 0",
    ]


def test_a_file_that_cannot_be_read_is_a_problem_like_any_other(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "gone.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            load(path, environ={})
        assert str(caught.value) == f"{path}: cannot be read: {reason}"
        assert caught.value.problems[0].place.source == str(path)


def test_what_has_no_meaning_without_the_file_is_not_reported_beside_a_broken_one() -> None:
    assert len(wrong("a: [", {"HOLDFAST_ROUTES__0__SERVICE": "x"})) == 1
