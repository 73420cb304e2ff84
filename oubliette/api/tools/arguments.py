"""From the JSON a client sent to an action's arguments, or one clear sentence about the first thing wrong with it."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from oubliette.api.tools.fields import Args, Doc, Only, Spellings, check_json, check_number, invalid, shown
from oubliette.core import limits
from oubliette.errors import RequestError

Kind = Literal["string", "integer", "number", "boolean", "array", "object"]
A = TypeVar("A", bound=Args)

_ARTICLES: Final[Mapping[Kind, str]] = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "an array",
    "object": "an object",
}
_MAX_ARGUMENTS: Final = 200


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One argument as the schema and the checks see it. ``kinds`` has several for ``string or array``."""

    name: str
    kinds: tuple[Kind, ...]
    item: Kind | None
    choices: tuple[str, ...]
    needed: bool
    nullable: bool
    doc: str
    only: Literal["admin", "tokens", "agents"] | None
    spellings: Mapping[str, str]


@lru_cache(maxsize=256)
def field_specs(model: type[Args]) -> Mapping[str, FieldSpec]:
    """The arguments of a model, in their order."""
    return {name: _spec(name, info) for name, info in model.model_fields.items()}


def _spec(name: str, info: FieldInfo) -> FieldSpec:
    kinds: list[Kind] = []
    item: Kind | None = None
    choices: tuple[str, ...] = ()
    for annotation in _alternatives(info.annotation):
        kind = _kind(annotation)
        kinds.append(kind)
        if kind == "array":
            item = _kind(_alternatives(get_args(annotation)[0])[0])
        if get_origin(annotation) is Literal:
            choices = tuple(str(choice) for choice in get_args(annotation))
        elif isinstance(annotation, type) and issubclass(annotation, StrEnum):
            choices = tuple(str(choice) for choice in annotation)
    doc = next((m.text for m in info.metadata if isinstance(m, Doc)), "")
    only = next((m.who for m in info.metadata if isinstance(m, Only)), None)
    nullable = type(None) in get_args(info.annotation)
    spellings = next((m.meanings for m in info.metadata if isinstance(m, Spellings)), {})
    return FieldSpec(name, tuple(kinds), item, choices, info.is_required(), nullable, doc, only, spellings)


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union without None, ``Annotated`` peeled off."""
    if hasattr(annotation, "__metadata__"):
        return _alternatives(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for part in get_args(annotation) if part is not type(None) for found in _alternatives(part)]
    return [annotation]


def _kind(annotation: Any) -> Kind:
    origin = get_origin(annotation)
    if origin is Literal or (isinstance(annotation, type) and issubclass(annotation, str)):
        return "string"
    if annotation is bool:
        return "boolean"
    if annotation is int:
        return "integer"
    if annotation is float:
        return "number"
    if origin is list:
        return "array"
    if origin is dict:
        return "object"
    raise TypeError(f"an argument of type {annotation!r} has no place in a flat schema")


def as_arguments(raw: object) -> dict[str, Any]:
    """The arguments object of a call: an object with few and readable names; ``_``-prefixed ones are dropped."""
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise invalid("arguments", "must be a JSON object")
    if len(raw) > _MAX_ARGUMENTS:
        raise invalid("arguments", f"has more than {_MAX_ARGUMENTS} members")
    return {str(name): value for name, value in raw.items() if not str(name).startswith("_")}


def parse(tool: str, action: str, model: type[A], given: Mapping[str, Any], *, hidden: Collection[str] = ()) -> A:
    """Check and convert the arguments of one action. Raises RequestError naming the field.

    ``hidden``: arguments that this caller is not told of.
    """
    specs = field_specs(model)
    what = f"{tool} {action}".strip()
    values: dict[str, Any] = {}
    for name, value in given.items():
        spec = specs.get(name)
        if spec is None:
            raise _unknown(what, name, [one for one in specs if one not in hidden])
        if value is not None:
            values[name] = _converted(spec, value)
        elif model.keeps_null and spec.nullable:
            values[name] = None
    for spec in specs.values():
        if spec.needed and spec.name not in values:
            raise RequestError("invalid_argument", f"{what} needs {spec.name}.", field=spec.name, hint=_hint(spec))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False, include_context=True)[0], specs) from None


def _hint(spec: FieldSpec) -> str:
    return f"{spec.name}: {spec.doc}." if spec.doc else ""


def _unknown(what: str, name: str, known: Sequence[str]) -> RequestError:
    near = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(known)}."
    return RequestError(
        "invalid_argument", f"{what} has no argument {shown(name)}.", field=shown(name).strip("'"), hint=hint
    )


def _converted(spec: FieldSpec, value: Any) -> Any:
    """The value as one of the field's kinds; exact JSON text is taken for numbers, arrays and objects."""
    if isinstance(value, str) and "string" not in spec.kinds:
        value = _from_text(spec, value)
    kind = next((k for k in spec.kinds if _is(k, value)), None)
    if kind is None:
        wanted = " or ".join(_ARTICLES[k] for k in spec.kinds)
        raise invalid(spec.name, f"must be {wanted}, not {_called(value)}", hint=_hint(spec))
    if kind == "integer":
        check_number(value, spec.name)
        return int(value)
    if kind == "number":
        check_number(value, spec.name)
    if kind in ("array", "object"):
        check_json(value, spec.name, limits.MAX_BODY_BYTES)
    if kind == "array" and spec.item is not None:
        for position, part in enumerate(value):
            if not _is(spec.item, part):
                raise invalid(
                    spec.name,
                    f"must hold {_plural(spec.item)}; item {position + 1} is {_called(part)}",
                    hint=_hint(spec),
                )
    if kind == "string" and spec.spellings:
        value = spec.spellings.get(value, value)
    if kind == "string" and spec.choices and value not in spec.choices:
        raise invalid(spec.name, f"must be one of {', '.join(spec.choices)}, not {shown(value)}")
    return value


def _from_text(spec: FieldSpec, value: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(value, parse_constant=refuse)
    except (ValueError, RecursionError):
        wanted = " or ".join(_ARTICLES[k] for k in spec.kinds)
        raise invalid(spec.name, f"must be {wanted}, not the text {shown(value)}", hint=_hint(spec)) from None


def _is(kind: Kind, value: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            whole = isinstance(value, float) and value.is_integer()
            return (isinstance(value, int) or whole) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)


def _called(value: object) -> str:
    """What a JSON value is called in a sentence."""
    if value is None:
        return "null"
    for kind in ("boolean", "integer", "number", "string", "array", "object"):
        if _is(kind, value):
            return _ARTICLES[kind] if kind != "boolean" else "a boolean"
    return "something else"


def _plural(kind: Kind) -> str:
    return {"string": "strings", "object": "objects"}.get(kind, f"{kind}s")


def _explained(error: ErrorDetails, specs: Mapping[str, FieldSpec]) -> RequestError:
    """One sentence from pydantic's first complaint; everything but bounds was checked before."""
    path: Sequence[int | str] = error["loc"]
    name = str(path[0]) if path else "arguments"
    bounds = error.get("ctx", {})
    sentences = {
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be more than {gt}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be less than {lt}",
        "too_short": "must hold at least {min_length}",
        "too_long": "must hold at most {max_length}",
    }
    sentence = sentences.get(error["type"])
    reason = sentence.format(**bounds) if sentence else f"is not right: {error['msg']}"
    return invalid(name, reason, hint=_hint(specs[name]) if name in specs else "")
