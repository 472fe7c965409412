"""The JSON Schema of the configuration, for editors and for `holdfast schema`."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from config.descriptions import descriptions
from config.schema import Config, Model
from config.shape import Kind, shape_of_field
from config.written import value_written

_VARIABLE = {"$ref": "#/$defs/Variable"}
_NULL = {"type": "null"}
_OF_THE_FIELD = ("default", "examples", "title")


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what a file may contain, with `${VARIABLES}` and short forms."""
    made = Config.model_json_schema()
    for name, definition in (("Config", made), *made["$defs"].items()):
        if (model := _models().get(name)) is not None:
            _document(definition, model)
    variable = {"type": "string", "pattern": r"\$\{", "description": "Filled in from the environment."}
    made["$defs"]["Variable"] = variable
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "holdfast"}


def _models() -> dict[str, type[Model]]:
    return {model.__name__: model for model in Model.__subclasses__() if model.__name__ in descriptions()}


def _document(definition: dict[str, Any], model: type[Model]) -> None:
    for name, field in model.model_fields.items():
        given = definition["properties"][name]
        made = _written(given, optional=not field.is_required())
        if (default := _default(field)) is not None:
            made["default"] = default
        if "examples" in given:
            made["examples"] = given["examples"]
        made["description"] = descriptions()[model.__name__].get(name, "")
        definition["properties"][name] = made


def _default(field: FieldInfo) -> object:
    shape = shape_of_field(field)
    if field.is_required() or shape.kind is not Kind.SCALAR:
        return None
    return value_written(field.default, shape)


def _written(field: dict[str, Any], *, optional: bool) -> dict[str, Any]:
    """The schema of a field as people may write it: with variables, and empty where there is a default."""
    choices = _choices(field)
    if optional and _NULL not in choices:
        choices.append(_NULL)
    return {"anyOf": choices} if len(choices) > 1 else dict(choices[0])


def _choices(field: dict[str, Any]) -> list[dict[str, Any]]:
    if "anyOf" in field:
        given = [choice for each in field["anyOf"] for choice in _choices(each)]
    else:
        given = _alternatives(
            {key: field[key] for key in field if key not in ("default", "examples", "title")}
        )
    return [choice for number, choice in enumerate(given) if choice not in given[:number]]


def _alternatives(field: dict[str, Any]) -> list[dict[str, Any]]:
    inner = dict(field)
    for below in ("items", "additionalProperties"):
        if isinstance(inner.get(below), dict):
            inner[below] = _written(inner[below], optional=False)
    reference = inner.get("$ref", "").removeprefix("#/$defs/")
    is_words = reference and reference not in _models()
    match inner.get("type"):
        case "string" if not {"pattern", "enum", "const"} & inner.keys():
            # An unquoted 1.10 is text to us, and a number to whoever reads the file by this schema.
            return [inner, {"type": ["number", "boolean"]}]
        case "integer" | "number" | "boolean" | "string" if "const" not in inner:
            return [inner, _VARIABLE]
    return [inner, _VARIABLE] if is_words or "enum" in inner else [inner]
