"""The flat schemas of a tool: what models and clients read before they call.

Flat on purpose (CONTRACT §4): model providers reject composition at the root, so what each action needs is said in
the descriptions and checked by us.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from oubliette.api.tools.arguments import FieldSpec, field_specs
from oubliette.api.tools.fields import Args, WriteArgs
from oubliette.core.model import Json
from oubliette.core.principals import Principal

if TYPE_CHECKING:
    from oubliette.api.tools.registry import Action

_ERROR: Final[Json] = {"type": "object"}


_LAST: Final = frozenset({*Args.model_fields, *WriteArgs.model_fields})
"""What every action takes comes after what makes it this action."""


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool as one principal sees it."""

    name: str
    description: str
    input: Json
    output: Json
    read_only: bool
    destructive: bool


def usable(only: Literal["admin", "tokens", "agents"] | None, principal: Principal) -> bool:
    """Whether a parameter marked ``only`` is for this principal."""
    match only:
        case None:
            return True
        case "admin":
            return principal.scope.is_admin
        case "tokens":
            return principal.kind != "session"
        case "agents":
            return principal.kind in {"session", "agent"}


def input_schema(actions: Sequence[Action], principal: Principal) -> Json:
    """One object for all actions: ``action`` and the union of their properties."""
    properties: dict[str, Json] = {}
    if actions[0].name:
        properties["action"] = {"type": "string", "enum": [action.name for action in actions]}
    users: dict[str, list[str]] = {}
    specs: dict[str, FieldSpec] = {}
    for action in actions:
        for spec in field_specs(action.args).values():
            if usable(spec.only, principal):
                known = specs.setdefault(spec.name, spec)
                if (known.kinds, known.item) != (spec.kinds, spec.item):
                    raise TypeError(f"{action.key} gives {spec.name} another type than the actions before it")
                users.setdefault(spec.name, []).append(action.name + ("*" if spec.needed else ""))
    for name in sorted(specs, key=lambda name: name in _LAST):
        who = "writes: " if name == "request_key" else _who(users[name], actions)
        properties[name] = _property(specs[name], who)
    schema: Json = {"type": "object", "properties": properties}
    if "action" in properties:
        schema["required"] = ["action"]
    return schema


def _who(users: Sequence[str], actions: Sequence[Action]) -> str:
    """``spawn*, message: `` - a star where the action needs it."""
    if not actions[0].name:
        return ""
    plain = {name.rstrip("*") for name in users}
    others = [action.name for action in actions if action.name not in plain]
    if not others and not any(name.endswith("*") for name in users):
        return ""
    if len(others) <= 2 < len(users) and not any(name.endswith("*") for name in users):
        return f"all but {', '.join(others)}: "
    return ", ".join(users) + ": "


def _property(spec: FieldSpec, who: str) -> Json:
    shape: Json = {"type": spec.kinds[0] if len(spec.kinds) == 1 else list(spec.kinds)}
    if spec.choices:
        shape["enum"] = list(spec.choices)
    if spec.item is not None:
        shape["items"] = {"type": spec.item}
    description = (who + spec.doc).strip().removesuffix(":")
    if description:
        shape["description"] = description
    return shape


def output_schema(results: Iterable[type[BaseModel] | Mapping[str, Json]]) -> Json:
    """Every property that a result of this tool may have, none of them required; ``error`` among them."""
    properties: dict[str, Json] = {}
    for result in results:
        shapes = result if isinstance(result, Mapping) else _shapes(result)
        for name, shape in shapes.items():
            known = properties.setdefault(name, shape)
            if known != shape:
                properties[name] = {}
    properties["error"] = _ERROR
    return {"type": "object", "properties": properties}


def _shapes(model: type[BaseModel]) -> Mapping[str, Json]:
    return {info.alias or name: _shape(info.annotation) for name, info in model.model_fields.items()}


def _shape(annotation: Any) -> Json:
    """The JSON type of a field, one level deep: what is inside objects is documented, not declared."""
    if hasattr(annotation, "__metadata__"):
        return _shape(annotation.__origin__)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _shape(parts[0]) if len(parts) == 1 else {}
    if origin is Literal or annotation is datetime:
        return {"type": "string"}
    if origin in (list, tuple, Sequence):
        return {"type": "array"}
    if origin in (dict, Mapping):
        return {"type": "object"}
    for python, kind in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(annotation, type) and issubclass(annotation, python):
            return {"type": kind}
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return {"type": "string"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"type": "object"}
    return {}
