"""What the text under each field of the schema says; read from the source when somebody asks.

Pydantic can do it while the classes are made, which costs every start of the process 20 ms.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from functools import cache

from config import register, registries, schema


@cache
def descriptions() -> Mapping[str, Mapping[str, str]]:
    """Model name to field name to its text, on one line."""
    trees = (ast.parse(inspect.getsource(module)) for module in (register, registries, schema))
    models = (node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    return {model.name: _fields(model) for model in models}


def _fields(model: ast.ClassDef) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, below in zip(model.body, model.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found
