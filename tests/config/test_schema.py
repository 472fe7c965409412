"""The schema as others see it: JSON Schema, reference, example, and the cost of importing it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from config.descriptions import descriptions
from config.json_schema import schema
from config.load import load, read
from config.schema import Config, Match, Model, Service, StaticInstance, Sticky

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "holdfast.example.yaml"


def fits(value: Any, rule: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """Whether `value` fits the keywords of JSON Schema that ours consists of."""
    known = {"anyOf", "oneOf", "$ref", "type", "const", "enum", "pattern", "minLength", "minimum", "maximum"}
    known |= {"exclusiveMinimum", "items", "properties", "required", "additionalProperties", "discriminator"}
    known |= {"title", "description", "default", "examples", "format", "writeOnly", "$defs", "$schema"}
    known |= {"maxItems", "minItems", "propertyNames"}
    assert rule.keys() <= known, rule.keys() - known
    if "$ref" in rule:
        return fits(value, root["$defs"][rule["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in rule and not any(fits(value, choice, root) for choice in rule["anyOf"]):
        return False
    if "oneOf" in rule and sum(fits(value, choice, root) for choice in rule["oneOf"]) != 1:
        return False
    if "const" in rule and value != rule["const"]:
        return False
    if "enum" in rule and value not in rule["enum"]:
        return False
    kinds = rule.get("type", [])
    if kinds and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, str) and "pattern" in rule and not re.search(rule["pattern"], value):
        return False
    if isinstance(value, (int, float)) and value < rule.get("minimum", value):
        return False
    if isinstance(value, list):
        return all(fits(item, rule.get("items", {}), root) for item in value)
    if isinstance(value, dict) and rule.get("type") == "object":
        properties, more = rule.get("properties", {}), rule.get("additionalProperties", True)
        return all(key in value for key in rule.get("required", ())) and all(
            fits(item, properties[key], root)
            if key in properties
            else more is not False and fits(item, more, root)
            for key, item in value.items()
        )
    return True


def _is(value: Any, kind: str) -> bool:
    python: dict[str, Any] = {
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "array": list,
    }
    python |= {"object": dict, "null": type(None)}
    return isinstance(value, python[kind]) and (kind == "boolean" or not isinstance(value, bool))


def yaml(text: str) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)


VALID = [
    "{}",
    "listen:\nadmin: null",
    "services: {a: {instances: [a:1, {address: 'b:1', metadata: {version: 1.10, b: true}}], sticky: none}}",
    "registry: {kind: consul, wait: 10s}",
    "registry: [{kind: embedded}, {kind: file, path: x}]",
    "limits: {connections: '${N}', header_bytes: 64KiB, request_line: 8192}",
    "shutdown: 1.5\ntimeout: {header: '${T:-5s}'}",
    "access_log: none",
    "routes: [{service: a, match: {method: GET}, split: none, limit: {rate: 5/m}}]",
    "services: {a: {balance: '${B}', retry: {on: [connect, 502], budget: 0.2}, websocket: {on_drain: wait}}}",
]
INVALID = [
    "shutdwon: 1s",
    "limits: {connections: many}",
    "shutdown: soon",
    "registry: {kind: zookeeper}",
    "services: {a: {balance: fair}}",
    "services: {a: {retry: {on: [500]}}}",
    "listen: [{}]",
    "listen: [{address: 8080}]",
    "routes: [{match: {path: /}}]",
]


@pytest.mark.parametrize("text", VALID)
def test_the_json_schema_accepts_what_may_be_written(text: str) -> None:
    made = schema()
    assert fits(yaml(text), made, made)


@pytest.mark.parametrize("text", INVALID)
def test_the_json_schema_refuses_what_is_wrong(text: str) -> None:
    made = schema()
    assert not fits(yaml(text), made, made)


def test_the_json_schema_accepts_the_example() -> None:
    made = schema()
    # Outside of quotes a default with a colon is not YAML to others.
    text = re.sub(r"(\$\{[^}]*\})", r'"\1"', EXAMPLE.read_text())
    assert fits(yaml(text), made, made)


def test_the_json_schema_documents_every_key_and_writes_defaults_as_people_do() -> None:
    made = json.loads(json.dumps(schema()))
    models = [definition for definition in made["$defs"].values() if "properties" in definition]
    keys = [(name, key) for model in [made, *models] for name, key in model["properties"].items()]
    assert len(keys) > 80
    assert [name for name, key in keys if not key.get("description")] == []
    assert made["properties"]["shutdown"]["default"] == "30s"
    assert made["$defs"]["Limits"]["properties"]["header_bytes"]["default"] == "64KiB"


def test_every_field_of_every_section_is_described() -> None:
    def all_of(model: type[Model]) -> list[type[Model]]:
        return [model, *(below for each in model.__subclasses__() for below in all_of(each))]

    ours = [model for model in all_of(Model) if model.__module__ == "config.schema"]
    missing = [
        f"{model.__name__}.{name}"
        for model in ours
        for name in model.model_fields
        if name not in descriptions()[model.__name__]
    ]
    assert (len(ours) > 20, missing) == (True, [])


def test_the_reference_is_what_the_script_prints_now() -> None:
    script = ROOT / "scripts" / "configuration_reference.py"
    printed = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert (ROOT / "docs" / "configuration.md").read_text() == printed, "make docs"


def test_the_example_loads_with_nothing_set_and_with_everything_set() -> None:
    bare = load(EXAMPLE, environ={})
    assert [route.name for route in bare.routes] == ["chat", "preview", "shop", "chat-2"]
    full = load(EXAMPLE, environ={"LISTEN": ":80", "HOLDFAST_ADMIN_TOKEN": "t", "STICKY_KEY": "k"})
    sticky = full.services["chat"].sticky
    assert sticky is not None
    assert (str(full.listen[0].address), full.admin.token, sticky.key) == (
        ":80",
        SecretStr("t"),
        SecretStr("k"),
    )


def test_the_example_shows_every_section() -> None:
    text = EXAMPLE.read_text()
    keys = [key for model in (Config, Service) for key in model.model_fields]
    assert [key for key in keys if f"{key}:" not in text and key != "hash_on"] == []


def test_the_examples_of_the_reference_load() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        read(block.encode(), source="docs", environ={"STICKY_KEY": "k"})


def test_every_number_with_a_unit_reads_in_the_schema_as_it_does_here() -> None:
    from config.units import DURATION, RATE, SHARE, SIZE

    for quantity in (DURATION, RATE, SHARE, SIZE):
        for example in quantity.examples:
            assert re.search(quantity.pattern, example)
            assert quantity.parse(quantity.write(quantity.parse(example))) == quantity.parse(example)


def test_sections_made_in_code_are_checked_as_those_of_a_file_are() -> None:
    with pytest.raises(ValidationError, match="needs a name"):
        Sticky.model_validate({"by": "cookie"})
    with pytest.raises(ValidationError, match="cannot be given together with path"):
        Match(path="/", path_exact="/")
    with pytest.raises(ValidationError, match="there is no service 'b'"):
        Config.model_validate({"services": {"a": {}}, "routes": [{"service": "b"}]})
    assert StaticInstance.model_validate("a:1").id == "a:1"


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().shutdown = 1.0


def test_loading_imports_nothing_that_is_not_needed_for_it() -> None:
    code = "import sys, config.load; print([m for m in %r if m in sys.modules])"
    late = [
        "ruamel.yaml",
        "watchfiles",
        "difflib",
        "config.descriptions",
        "config.json_schema",
        "config.plan",
        "asyncio",
    ]
    printed = subprocess.run(
        [sys.executable, "-c", code % late], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout.strip() == "[]"
