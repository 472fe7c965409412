"""The OpenAPI 3.1 description, made from the same table as the router."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

from pydantic import TypeAdapter

from proxy.admin.models import ErrorView, ReadyView
from proxy.admin.operation import Operation, Parameter

_Mode = Literal["validation", "serialization"]


def describe(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The description as JSON can say it."""
    refs, components = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "holdfast admin API",
            "version": version,
            "description": "Looks at and changes a running proxy. Every change is logged as an event.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # With a token configured it is needed; without one the API answers on loopback and unix sockets.
        "security": [{"token": []}, {}],
    }


def _schemas(operations: Sequence[Operation]) -> tuple[dict[tuple[Any, str], Any], dict[str, Any]]:
    inputs: list[tuple[Any, _Mode, TypeAdapter[Any]]] = [
        (ErrorView, "serialization", TypeAdapter(ErrorView)),
        (ReadyView, "serialization", TypeAdapter(ReadyView)),
    ]
    for operation in operations:
        if operation.answer is not None:
            inputs.append((operation.answer, "serialization", TypeAdapter(operation.answer)))
        if operation.order is not None:
            inputs.append((operation.order, "validation", TypeAdapter(operation.order)))
    unique = {(str(kind), mode): (str(kind), mode, adapter) for kind, mode, adapter in inputs}
    refs, document = TypeAdapter.json_schemas(
        list(unique.values()), ref_template="#/components/schemas/{model}"
    )
    return {(key, mode): schema for (key, mode), schema in refs.items()}, document.get("$defs", {})


def _operation(operation: Operation, refs: dict[tuple[Any, str], Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": refs[str(ErrorView), "serialization"]}}
    content: dict[str, Any] = {operation.media: {"schema": {"type": "string"}}}
    if operation.answer is not None:
        content["application/json"] = {"schema": refs[str(operation.answer), "serialization"]}
    responses: dict[str, Any] = {
        str(operation.status): {"description": operation.summary, "content": content},
        "default": {"description": "Refused.", "content": error},
    }
    for status in sorted({*operation.refusals, *_common(operation)}):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": error}
    if operation.path == "/readyz":
        ready = refs[str(ReadyView), "serialization"]
        responses["503"]["content"] = {"application/json": {"schema": ready}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.name,
        "responses": responses,
    }
    if operation.parameters:
        described["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.order is not None:
        described["requestBody"] = {
            "required": operation.order_needed,
            "content": {"application/json": {"schema": refs[str(operation.order), "validation"]}},
        }
    if operation.public:
        described["security"] = []
    return described


def _common(operation: Operation) -> set[int]:
    statuses = set() if operation.public else {401, 403}
    if operation.method != "GET":
        statuses |= {403, 415}
    if operation.order is not None:
        statuses |= {400, 413}
    return statuses


def _parameter(parameter: Parameter) -> dict[str, Any]:
    kind: dict[str, Any] = {"type": parameter.type}
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required,
        "schema": {"type": "array", "items": kind} if parameter.many else kind,
    }
