"""Sections `register`: how they are written, what is said about wrong ones, and what a change of one is."""

from __future__ import annotations

import pytest

from config.load import ConfigError, read
from config.plan import diff
from config.schema import Config

CONSUL = "registry: {kind: consul}\n"
SHOP = "service: shop, app: ':8000'"


def config(text: str) -> Config:
    return read(text.encode(), source="f.yaml", environ={"HOOK": "https://h/s3cr3t"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"register: {{{SHOP}}}",
            "1:1: register: there is no registry that takes entries (embedded, consul, etcd, nacos)",
        ),
        (
            f"registry: [{{kind: dns, domain: x}}, {{kind: file, path: f}}]\nregister: [{{{SHOP}}}]",
            "2:12: register[0]: there is no registry that takes entries (embedded, consul, etcd, nacos)",
        ),
        (
            f"{CONSUL}register: {{{SHOP}, registry: nacos}}",
            "2:51: register.registry: there is no registry of the kind nacos",
        ),
        (
            f"{CONSUL}register: {{{SHOP}, registry: dns}}",
            "2:51: register.registry: 'dns' is not one of embedded, consul, etcd, nacos",
        ),
        (f"{CONSUL}register: {{service: shop}}", "2:1: register.app: is required"),
        (
            f"{CONSUL}register: {{service: shop, app: '127.0.0.1'}}",
            "2:32: register.app: '127.0.0.1' is not an address; write it as :8080, 127.0.0.1:8080, "
            "[::1]:8080 or unix:/run/x.sock",
        ),
        (
            f"{CONSUL}register: {{{SHOP}, settle: 30s}}",
            "2:49: register.settle: must be less than shutdown, which it is a part of",
        ),
        (
            f"{CONSUL}shutdown: 1s\nregister: {{{SHOP}}}",
            "3:1: register.settle: must be less than shutdown, which it is a part of",
        ),
        (
            f"{CONSUL}register: [{{{SHOP}}}, {{{SHOP}, weight: 1}}]",
            "2:43: register[1]: register[0] enters the same instance",
        ),
        (
            f"{CONSUL}register: {{{SHOP}, ready: {{paht: /x}}}}",
            "2:49: register.ready.paht: is not a known key (did you mean 'path'?)",
        ),
        (
            f"{CONSUL}register: {{{SHOP}, ttl: 500ms}}",
            "2:46: register.ttl: must be at least 1, not '500ms'",
        ),
        (
            f"{CONSUL}register: {{{SHOP}, notify: {{url: hooks.example.com}}}}",
            "2:55: register.notify.url: is not a URL such as https://hooks.example.com/T0/B0/x",
        ),
        (
            f"{CONSUL}register: {{{SHOP}, notify: {{url: 'https://h/', form: slack, secret: x}}}}",
            "2:90: register.notify.secret: only form: dingtalk is signed",
        ),
        (
            f"{CONSUL}register: {{{SHOP}, notify: [{{url: 'https://h/', on: sideways}}]}}",
            "2:74: register.notify[0].on: 'sideways' is not one of up, down",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_and_path(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(text)
    assert str(caught.value).splitlines() == [f"f.yaml:{message}"]


def test_one_section_needs_no_list_and_little_else() -> None:
    (section,) = config(f"{CONSUL}register: {{{SHOP}, ready: {{path: none}}}}").register
    assert (section.service, str(section.app), section.ready.path) == ("shop", ":8000", None)
    assert config(f"{CONSUL}register: none").register == ()


def test_kubernetes_enters_by_itself_what_answers_that_it_is_ready() -> None:
    assert len(config(f"registry: {{kind: kubernetes}}\nregister: {{{SHOP}}}").register) == 1


def test_a_webhooks_url_is_a_secret() -> None:
    text = f"{CONSUL}register: {{{SHOP}, notify: {{url: '${{HOOK}}'}}}}"
    assert "s3cr3t" not in repr(config(text))
    assert "s3cr3t" not in str(config(text).model_dump(mode="json"))


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("weight: 1", "weight: 2", "~ register[shop].weight: 1 -> 2 (live)"),
        ("hooks/a", "hooks/b", "~ register[shop].notify[json].url: changed (live)"),
        ("ttl: 5s", "ttl: 6s", "~ register[shop].ttl: 5s -> 6s (live)"),
    ],
)
def test_a_change_is_one_line(before: str, after: str, line: str) -> None:
    text = f"{CONSUL}register: {{{SHOP}, weight: 1, ttl: 5s, notify: {{url: 'https://hooks/a'}}}}"
    assert [str(change) for change in diff(config(text), config(text.replace(before, after)))] == [line]
