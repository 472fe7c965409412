"""A configuration is text that somebody wrote: it must not stop the process, and not tell what is secret."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from config.load import ConfigError, read
from proxy.cli.commands import cli

SECRET = "CANARY-7x9-secret"
BASE = 'services: {web: {instances: ["127.0.0.1:1"]}}\nroutes: [{service: web}]\n'
REGISTER = BASE + "registry: {kind: consul}\n"


def complaints(text: str, **environ: str) -> str:
    """Everything that is said about a wrong configuration."""
    with pytest.raises(ConfigError) as refused:
        read(text.encode(), source="holdfast.yaml", environ=environ)
    return str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: '${A:-" + "a" * 50_000 + "'",
        "a: '" + ("${A:-" + "a" * 500) * 100 + "'",
        "a: '" + "${A:-a${B}$${C:-d}" * 3_000 + "'",
        "a: '${" + "A" * 50_000 + "'",
        "a: '" + "${A:-${B:-" * 5_000 + "'",
    ],
    ids=["a long default", "many long defaults", "nested ones", "a long name", "without ends"],
)
def test_a_reference_that_does_not_end_costs_no_time(text: str) -> None:
    began = time.process_time()
    complaints(text)
    # Some 10 ms; trying all ways to split it takes longer than the world exists.
    assert time.process_time() - began < 5.0


@pytest.mark.parametrize(
    "text",
    [
        BASE + f"registry: {{kind: consul, address: 'http://u:{SECRET}@consul:8500'}}",
        BASE + f"registry: {{kind: consul, address: 'http://consul:8500/?token={SECRET}'}}",
        BASE + f"registry: {{kind: etcd, address: ['http://u:{SECRET}@etcd:2379']}}",
        BASE + f"registry: {{kind: nacos, address: 'http://u:{SECRET}@n:8848/nacos'}}",
        BASE + f"registry: {{kind: kubernetes, address: 'https://u:{SECRET}@k:6443'}}",
        BASE + f"registry: {{kind: etcd, password: {SECRET}}}",
        BASE + f"registry: {{kind: etcd, user: a, password: [{SECRET}]}}",
        BASE + f"admin: {SECRET}",
        BASE + f"admin: {{token: [{SECRET}]}}",
        BASE + f"admin: {{token: {{{SECRET}: 1}}}}",
        BASE + f"admin: {{tokn: {SECRET}}}",
        BASE + f'admin: {{token: "{SECRET}',
        BASE + f"admin: {{token: {SECRET}: x}}",
        BASE + f"admin: {{token: {SECRET}, token: {SECRET}}}",
        BASE + f"admin: {{address: ':99999', token: {SECRET}}}",
        REGISTER + f"register: {{service: a, app: ':1', notify: 'https://h/{SECRET}'}}",
        REGISTER + f"register: {{service: a, app: ':1', notify: {{url: 'ftp://h/{SECRET}'}}}}",
        REGISTER + f"register: {{service: a, app: ':1', notify: {{url: 'https://h/{SECRET}', form: z}}}}",
        REGISTER + f"register: {{service: a, app: ':1', notify: {{url: 'https://h', secret: [{SECRET}]}}}}",
        BASE.replace("{instances", f"{{sticky: {{by: cooky, name: x, key: {SECRET}}}, instances"),
        BASE.replace("{instances", f"{{sticky: {{by: cookie, name: 'a b', key: {SECRET}}}, instances"),
    ],
)
def test_no_complaint_quotes_a_secret_that_stands_in_the_file(text: str) -> None:
    assert SECRET not in complaints(text)


@pytest.mark.parametrize(
    "name", ["HOLDFAST_LIMITS", "HOLDFAST_ADMIN__TOKENN", "HOLDFAST_ADMIN__TOKEN__X", "HOLDFAST_REGISTRY"]
)
def test_no_complaint_quotes_a_secret_of_the_environment(name: str) -> None:
    assert SECRET not in complaints(BASE, **{name: SECRET})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--registry", f"ftp://u:{SECRET}@127.0.0.1:1"),
        ("--bus", f"redis://u:{SECRET}@127.0.0.1:1"),
        ("--store", f"nothing://u:{SECRET}@127.0.0.1:1/x"),
    ],
)
def test_the_chat_does_not_quote_a_url_that_it_refuses(
    arguments: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    from chat.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["--port", "0", *arguments])
    assert ended.value.code == 2
    said = "".join(capfd.readouterr())
    assert arguments[0].strip("-") in said or "store" in said
    assert SECRET not in said


def test_check_tells_no_secret_as_json_either(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.yaml"
    path.write_text(BASE + f"registry: {{kind: consul, address: 'http://u:{SECRET}@consul:8500'}}")
    done = CliRunner().invoke(cli, ["check", "-c", str(path), "--json"])
    assert done.exit_code == 2
    assert [problem["path"] for problem in json.loads(done.stdout)["problems"]] == ["registry.address"]
    assert SECRET not in done.output
