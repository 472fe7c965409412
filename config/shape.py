"""The schema seen from outside: what may stand where, for messages, the environment, plans and the docs."""

from __future__ import annotations

import types
from dataclasses import dataclass
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from config.schema import Config, Model
from config.units import Quantity


class Kind(Enum):
    """How a value is written."""

    SCALAR = "a single value"
    LIST = "a list"
    MAP = "names of your choice, each with a value"
    SECTION = "a section"


@dataclass(frozen=True, slots=True)
class Shape:
    """What may stand somewhere. `models` has several entries where `kind` chooses between sections."""

    kind: Kind
    type: Any = str
    """Of a scalar: `str`, `int`, an enum, a `Literal`, …"""
    models: tuple[type[Model], ...] = ()
    item: Any = None
    """Annotation of the items of a list or map."""
    quantity: Quantity | None = None
    secret: bool = False
    nullable: bool = False

    @property
    def entry(self) -> Shape:
        """The shape of what a list or map contains."""
        return shape_of(self.item)

    def keys(self, tag: str | None = None) -> tuple[str, ...]:
        """Keys that a section may have; `tag` is the value of `kind` where that chooses."""
        return tuple(dict.fromkeys(key for model in self._chosen(tag) for key in model.model_fields))

    def below(self, step: str | int, tag: str | None = None) -> Shape | None:
        """The shape under a key or index, or None where nothing may stand."""
        match self.kind:
            case Kind.LIST if isinstance(step, str):
                # A single registry is written without its list.
                return self.entry.below(step, tag)
            case Kind.LIST | Kind.MAP:
                return self.entry
            case Kind.SECTION:
                fields = (model.model_fields.get(str(step)) for model in self._chosen(tag))
                field = next((field for field in fields if field is not None), None)
                return None if field is None else shape_of_field(field)
            case Kind.SCALAR:
                return None

    def _chosen(self, tag: str | None) -> tuple[type[Model], ...]:
        return tuple(model for model in self.models if tag in tags_of(model)) or self.models


def tags_of(model: type[Model]) -> tuple[str, ...]:
    """The values of `kind` that choose this model; empty when it has none."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else ()


def shape_of_field(field: FieldInfo) -> Shape:
    """The shape of a model's field."""
    annotation: Any = field.annotation
    for extra in field.metadata:
        annotation = Annotated[annotation, extra]
    return shape_of(annotation)


@cache
def shape_of(annotation: Any) -> Shape:
    """The shape that an annotation of `config.schema` describes."""
    quantity: Quantity | None = None
    nullable = False
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            quantity = next((extra for extra in arguments if isinstance(extra, Quantity)), quantity)
            annotation = arguments[0]
        elif origin in (Union, types.UnionType) and type(None) in arguments:
            nullable = True
            annotation = reduce(or_, (choice for choice in arguments if choice is not type(None)))
        else:
            break
    if origin is tuple:
        return Shape(Kind.LIST, item=arguments[0], nullable=nullable)
    if origin is dict:
        return Shape(Kind.MAP, item=arguments[1], nullable=nullable)
    models = arguments if origin in (Union, types.UnionType) else (annotation,)
    if all(isinstance(model, type) and issubclass(model, Model) for model in models):
        return Shape(Kind.SECTION, models=models, nullable=nullable)
    secret = annotation is SecretStr
    return Shape(Kind.SCALAR, type=annotation, quantity=quantity, secret=secret, nullable=nullable)


ROOT = shape_of(Config)
"""The shape of the whole configuration."""


def choices(shape: Shape) -> tuple[str, ...]:
    """The words that a scalar is limited to; empty when it is not."""
    if get_origin(shape.type) is Literal:
        return tuple(str(choice) for choice in get_args(shape.type))
    if isinstance(shape.type, type) and issubclass(shape.type, Enum):
        return tuple(str(member.value) for member in shape.type)
    return ()
