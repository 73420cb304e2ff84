"""JSON objects on one line, and dataclasses made from them with every value checked."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any, Callable, Dict, Tuple, Type

Json = Dict[str, Any]

VARIABLES_LIMIT = 4096
SIZES_LIMIT = 64


class ProtocolError(Exception):
    """The peer sent something that is not of this protocol."""


def encode_object(value: Json) -> bytes:
    """One line, newline included. ASCII only: file names and arguments may hold lone surrogates, which survive so."""
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def parse_object(line: bytes) -> Json:
    """Raises ProtocolError for anything but one JSON object."""
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a line of JSON: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise ProtocolError("not a JSON object")
    return value


def build(kind: Type[Any], told: Json) -> Any:
    """A dataclass from an object; keys that it does not have are ignored. Raises ProtocolError."""
    values = {}
    for item in fields(kind):
        if item.name in told:
            try:
                values[item.name] = CHECKS[str(item.type)](told[item.name])
            except ValueError as error:
                raise ProtocolError(f"{kind.__name__}.{item.name} is not {error}") from None
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ProtocolError(f"{kind.__name__} without {item.name}")
    return kind(**values)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _text(value: Any) -> str:
    if isinstance(value, str) and "\0" not in value:
        return value
    raise ValueError("a text")


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62:
        return value
    raise ValueError("an integer")


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12:
        return float(value)
    raise ValueError("a number")


def _texts(value: Any) -> Tuple[str, ...]:
    if isinstance(value, list):
        return tuple(_text(item) for item in value)
    raise ValueError("a list of texts")


def _variables(value: Any) -> Dict[str, str]:
    if isinstance(value, dict) and len(value) <= VARIABLES_LIMIT and all(key and "=" not in key for key in value):
        return {_text(key): _text(item) for key, item in value.items()}
    raise ValueError("an object of variables")


def _sizes(value: Any) -> Dict[str, int]:
    if isinstance(value, dict) and len(value) <= SIZES_LIMIT:
        return {_text(key): _whole(item) for key, item in value.items()}
    raise ValueError("an object of sizes")


CHECKS: Dict[str, Callable[[Any], Any]] = {
    "str": _text,
    "bool": _truth,
    "int": _whole,
    "float": _number,
    "Tuple[str, ...]": _texts,
    "Dict[str, str]": _variables,
    "Dict[str, int]": _sizes,
}
"""By a field's annotation, as it is spelled in its class (annotations are strings there). Raises ValueError."""
