"""A configuration back into the form that people write: `10s`, `64KiB`, `20%`, secrets masked."""

from __future__ import annotations

from enum import Enum

from config.schema import Address, Config, Model
from config.shape import Shape, shape_of_field

MASK = "***"


def as_written(config: Config) -> dict[str, object]:
    """Plain data, as of JSON, that loads to an equal `Config` but for its secrets."""
    return _section(config, brief=False)


def value_written(value: object, shape: Shape, *, brief: bool = False) -> object:
    """As `as_written`, of one value whose place has `shape`; `brief` leaves out what has its default."""
    if value is None:
        return None
    if shape.secret:
        return MASK
    if shape.quantity is not None:
        return shape.quantity.write(value)
    match value:
        case Model():
            return _section(value, brief=brief)
        case tuple():
            return [value_written(item, shape.entry, brief=brief) for item in value]
        case dict():
            return {key: value_written(item, shape.entry, brief=brief) for key, item in value.items()}
        case Enum():
            return value.value
        case Address():
            return str(value)
    return value


def _section(section: Model, *, brief: bool) -> dict[str, object]:
    return {
        name: value_written(value, shape_of_field(field), brief=brief)
        for name, field in type(section).model_fields.items()
        if (value := getattr(section, name)) != field.get_default(call_default_factory=True) or not brief
    }
