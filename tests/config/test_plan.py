"""What changes between two configurations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.load import read
from config.plan import Change, Effect, diff, effects
from config.schema import Config
from config.written import MASK, as_written

BASE = """
admin: {token: s3cr3t}
listen: [{address: ":8080"}]
registry: {kind: embedded}
services:
  chat:
    drain: {timeout: 30s}
    instances: [a:1, {address: "b:1", id: b, weight: 5}]
  shop: {}
routes:
  - {service: chat, match: {path: /ws}}
  - {service: shop, split: {stable: 90, canary: 10}}
"""


def config(text: str) -> Config:
    return read(text.encode(), source="f.yaml", environ={})


def lines(old: str, new: str) -> list[str]:
    return [str(change) for change in diff(config(old), config(new))]


def changed(before: str, after: str) -> list[str]:
    assert before in BASE
    return lines(BASE, BASE.replace(before, after))


def test_equal_configurations_have_no_difference_however_they_are_written() -> None:
    assert lines(BASE, BASE) == []
    assert changed("timeout: 30s", "timeout: 0.5m") == []
    assert changed("/ws}}", "/ws}, name: chat}") == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("30s", "10s", ["~ services.chat.drain.timeout: 30s -> 10s (live)"]),
        ("weight: 5", "weight: 50", ["~ services.chat.instances[b].weight: 5 -> 50 (live)"]),
        ("b:1", "c:1", ["~ services.chat.instances[b].address: b:1 -> c:1 (drains)"]),
        ("[a:1, ", "[", ['- services.chat.instances[a:1]: {"address": "a:1", "id": "a:1"} (drains)']),
        ("[a:1, ", "[a:1, c:1, ", ['+ services.chat.instances[c:1]: {"address": "c:1", "id": "c:1"} (live)']),
        ("  shop: {}", "  shop: {health: {path: /x}}", ['+ services.shop.health: {"path": "/x"} (live)']),
        (
            "stable: 90, canary: 10",
            "stable: 90, canary: 20",
            ["~ routes[shop].split.canary: 10 -> 20 (live)"],
        ),
        ("stable: 90, canary: 10", "stable: 90", ["- routes[shop].split.canary: 10 (live)"]),
        (
            "{path: /ws}",
            "{path: /x, method: [GET]}",
            [
                "~ routes[chat].match.path: /ws -> /x (live)",
                '~ routes[chat].match.method: [] -> ["GET"] (live)',
            ],
        ),
        (
            ":8080",
            ":80",
            [
                '- listen[:8080]: {"address": ":8080"} (needs restart)',
                '+ listen[:80]: {"address": ":80"} (needs restart)',
            ],
        ),
        (
            "kind: embedded",
            "kind: embedded, listen: ':85'",
            ["~ registry[embedded].listen: 127.0.0.1:8500 -> :85 (needs restart)"],
        ),
        (
            "registry: {kind: embedded}",
            "registry: {kind: consul}",
            [
                '- registry[embedded]: {"kind": "embedded"} (needs restart)',
                '+ registry[consul]: {"kind": "consul"} (needs restart)',
            ],
        ),
        (
            "admin: {",
            "limits: {header_bytes: 1MiB, connections: 5}\nadmin: {",
            [
                "~ limits.connections: 10000 -> 5 (live)",
                "~ limits.header_bytes: 64KiB -> 1MiB (new connections)",
            ],
        ),
    ],
)
def test_a_difference_is_one_line_with_what_it_does(before: str, after: str, expected: list[str]) -> None:
    assert changed(before, after) == expected


def test_a_service_that_goes_is_drained() -> None:
    new = BASE.replace("  shop: {}\n", "").replace(
        "  - {service: shop, split: {stable: 90, canary: 10}}\n", ""
    )
    assert lines(BASE, new) == [
        "- services.shop: {} (drains)",
        '- routes[shop]: {"name": "shop", "service": "shop", "split": {"stable": 90, "canary": 10}} (live)',
    ]


def test_the_order_of_routes_is_a_difference() -> None:
    routes = BASE[BASE.index("routes:") :].splitlines()
    new = BASE.replace("\n".join(routes[1:]), "\n".join(reversed(routes[1:])))
    assert lines(BASE, new) == ['~ routes (order): ["chat", "shop"] -> ["shop", "chat"] (live)']


def test_a_changed_secret_is_a_difference_that_shows_neither_value() -> None:
    old, new = config(BASE), config(BASE.replace("s3cr3t", "0ther"))
    assert diff(old, new) == [Change("admin.token", MASK, MASK, Effect.LIVE)]
    assert lines(BASE, BASE.replace("s3cr3t", "0ther")) == ["~ admin.token: changed (live)"]
    sticky = "shop: {sticky: {by: cookie, name: c, key: s3cr3t}}"
    assert "s3cr3t" not in "".join(changed("shop: {}", sticky))


def test_two_registries_of_a_kind_are_told_apart() -> None:
    two = "registry: [{kind: file, path: /a}, {kind: file, path: /b}]"
    assert lines(two, two.replace("/b", "/c")) == ["~ registry[file 2].path: /b -> /c (needs restart)"]


@given(st.data())
def test_a_written_configuration_loads_to_an_equal_one(data: st.DataObject) -> None:
    durations = st.floats(0.001, 1e6)
    made = Config.model_validate(
        {
            "listen": [{"address": f":{data.draw(st.integers(1, 65535))}"}],
            "timeout": {"header": data.draw(durations), "keepalive": data.draw(durations)},
            "limits": {"header_bytes": data.draw(st.integers(1, 1 << 40))},
            "registry": {"kind": data.draw(st.sampled_from(["embedded", "consul"]))},
            "services": {
                "a": {
                    "retry": {"budget": data.draw(st.floats(0, 1)), "on": ["reset", 503]},
                    "sticky": data.draw(st.sampled_from([None, {"by": "ip"}])),
                    "instances": [{"address": "[::1]:1", "metadata": {"version": "1.10"}}],
                }
            },
            "routes": [{"service": "a", "limit": {"rate": data.draw(st.floats(1e-3, 1e6))}}],
        }
    )
    again = Config.model_validate(as_written(made))
    assert again == made
    assert diff(made, again) == []


def test_every_rule_of_the_documentation_is_about_a_place_that_exists() -> None:
    rules = dict(effects())
    assert rules["listen"] == "needs restart"
    assert rules[""] == "live"
