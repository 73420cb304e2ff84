"""Whether something is a JSON Schema, as far as programs that work on schemas rely on. Pure.

The agent adapts the schemas of all its tools to the model before it looks which of them a session may see: one that it
stumbles over would end the turns of everybody in its process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

_TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_ONE: Final = (
    "additionalProperties",
    "propertyNames",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedProperties",
)
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED: Final = ("anyOf", "oneOf", "allOf", "prefixItems")


def fault(schema: Any) -> str | None:
    """What is wrong with it, as a clause; None: nothing."""
    waiting = [("", schema)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, Mapping):
            return f"{_shown(place)} must be a schema"
        for key, (fits, what) in _KEYWORDS.items():
            if key in one and not fits(one[key]):
                return f"{_shown(place, key)} must be {what}"
        waiting += ((f"{place}.{key}", inner) for key, inner in _inner(one))
    return None


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas in it."""
    for key in _ONE:
        if key in schema:
            yield key, schema[key]
    for key in _NAMED:
        for name, inner in schema.get(key, {}).items():
            yield f"{key}.{name}", inner
    for key in _LISTED:
        for inner in schema.get(key, ()):
            yield key, inner
    items = schema.get("items", True)
    for inner in items if isinstance(items, list) else [items]:
        yield "items", inner


def _shown(place: str, key: str = "") -> str:
    return f"{place}.{key}".strip(".")[-120:] or "it"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)  # older schemas say exclusiveMinimum: true


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_filled_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_type(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str) and one in _TYPES for one in value)
    return isinstance(value, str) and value in _TYPES


_Fits = Callable[[Any], bool]
_KEYWORDS: Final[Mapping[str, tuple[_Fits, str]]] = {
    "type": (_is_type, f"one of {', '.join(sorted(_TYPES))}, or a list of them"),
    "required": (_is_names, "a list of property names"),
    "enum": (_is_filled_list, "a list with something in it"),
    **dict.fromkeys(_NAMED, (_is_object, "an object of schemas")),
    **dict.fromkeys(_LISTED, (_is_filled_list, "a list of schemas")),
    **dict.fromkeys(("title", "description", "format", "pattern", "$ref", "$schema", "$id"), (_is_text, "a string")),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (_is_number, "a number")
    ),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), (_is_number, "a number")
    ),
}
