"""The types of tool arguments: what a text, a line, an id, a number may be, and how a property is described.

Validators raise RequestError themselves, so that what the caller reads is one sentence that names the field.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from oubliette.core import limits
from oubliette.errors import RequestError

_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BREAKS: Final = frozenset("\u0085\u2028\u2029")


@dataclass(frozen=True, slots=True)
class Doc:
    """What a property says about itself in the tool's schema."""

    text: str


@dataclass(frozen=True, slots=True)
class Spellings:
    """Values that are understood and not listed, and what they mean."""

    meanings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Only:
    """Who may use a property: ``admin`` principals, ``tokens`` (everybody but agents), or ``agents``."""

    who: Literal["admin", "tokens", "agents"]


class Args(BaseModel):
    """Arguments of one action. A field without a default is one that the action needs."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    keeps_null: ClassVar[bool] = False
    """Whether null says something here (back to the default); elsewhere it is as if the argument were not there."""

    detail: Annotated[Literal["brief", "full"], Doc("full = the whole record")] = "brief"
    max_chars: Annotated[
        int,
        Field(ge=500, le=limits.MAX_RESULT_CHARACTERS),
        Doc(f"longest answer [{limits.RESULT_CHARACTERS}]"),
    ] = limits.RESULT_CHARACTERS


class WriteArgs(Args):
    """Arguments of an action that changes something: a retry with the same key changes it once."""

    request_key: Annotated[
        Annotated[str, AfterValidator(lambda v, info: _line(v, info, limits.MAX_REQUEST_KEY_CHARACTERS))] | None,
        Doc("any string: a retry with it returns the first result"),
    ] = None


def invalid(field: str | None, reason: str, *, code: str = "invalid_argument", hint: str = "") -> RequestError:
    """The one sentence about a wrong argument."""
    return RequestError(code, f"{field} {reason}" if field else reason, hint=hint, field=field)


def shown(value: object, length: int = 60) -> str:
    """Somebody else's text inside a sentence of ours: printable ASCII, quoted, short."""
    text = value if isinstance(value, str) else repr(value)
    cut = text if len(text) <= length else text[:length] + "…"
    return "'" + cut.encode("unicode_escape", "backslashreplace").decode("ascii") + "'"


def _encodable(value: str, field: str | None) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise invalid(field, "contains a lone surrogate, which is not text") from None


def _line(value: str, info: ValidationInfo, max_characters: int) -> str:
    field = info.field_name
    if len(value) > max_characters:
        raise invalid(
            field, f"is longer than {max_characters} characters ({len(value):,} were given)", code="too_large"
        )
    _encodable(value, field)
    for character in value:
        if character in _BIDI:
            raise invalid(field, f"contains the direction control U+{ord(character):04X}")
        if character in _BREAKS or unicodedata.category(character) == "Cc":
            raise invalid(field, f"contains the control character U+{ord(character):04X}; it is one line of text")
    if not value.strip():
        raise invalid(field, "must not be empty")
    return value


def _text(value: str, info: ValidationInfo, max_bytes: int) -> str:
    field = info.field_name
    size = len(value) if len(value) > max_bytes else len(_encodable(value, field))
    if size > max_bytes:
        raise invalid(field, f"is longer than {size_words(max_bytes)} ({size:,} bytes were given)", code="too_large")
    if "\0" in value:
        raise invalid(field, "contains a NUL character")
    if not value.strip():
        raise invalid(field, "must not be empty")
    return value


def is_id(value: str) -> bool:
    """Whether it could be an id of ours."""
    return len(value) <= limits.MAX_ID_CHARACTERS and _ID.fullmatch(value) is not None


def _identifier(value: str, info: ValidationInfo) -> str:
    if not is_id(value):
        raise invalid(info.field_name, f"is not an id: {shown(value)}")
    return value


def _cursor(value: str, info: ValidationInfo) -> str:
    if len(value) > limits.MAX_CURSOR_CHARACTERS or not value.isascii() or not value.isprintable():
        raise invalid(info.field_name, "is not a cursor that this daemon made", code="invalid_cursor")
    return value


def _json(value: Any, info: ValidationInfo) -> Any:
    check_json(value, info.field_name or "value", limits.MAX_JSON_ARGUMENT_BYTES)
    return value


def size_words(size: int) -> str:
    for unit, factor in (("MiB", limits.MIB), ("KiB", limits.KIB)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"


def check_json(value: Any, field: str, max_bytes: int) -> None:
    """A free-form JSON argument: not deep, finite numbers, encodable text, not large."""
    pending = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if depth > limits.MAX_ARGUMENT_DEPTH:
            raise invalid(field, f"is nested deeper than {limits.MAX_ARGUMENT_DEPTH} levels")
        if isinstance(item, str):
            _encodable(item, field)
            if "\0" in item:
                raise invalid(field, "contains a NUL character")
        elif isinstance(item, bool) or item is None:
            continue
        elif isinstance(item, int | float):
            check_number(item, field)
        elif isinstance(item, Mapping):
            pending.extend((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            pending.extend((part, depth + 1) for part in item)
    size = len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())
    if size > max_bytes:
        raise invalid(field, f"is larger than {size_words(max_bytes)} of JSON", code="too_large")


def check_number(value: float, field: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise invalid(field, "is not a finite number")
    if abs(value) > 1 << 53:
        raise invalid(field, "is too large a number")


Line = Annotated[str, AfterValidator(lambda v, info: _line(v, info, limits.MAX_LINE_CHARACTERS))]
ExternalId = Annotated[str, AfterValidator(lambda v, info: _line(v, info, limits.MAX_EXTERNAL_ID_CHARACTERS))]
Url = Annotated[str, AfterValidator(lambda v, info: _line(v, info, limits.MAX_URL_CHARACTERS))]
PathText = Annotated[str, AfterValidator(lambda v, info: _line(v, info, limits.MAX_PATH_CHARACTERS))]
Message = Annotated[str, AfterValidator(lambda v, info: _text(v, info, limits.MAX_MESSAGE_BYTES))]
SystemText = Annotated[str, AfterValidator(lambda v, info: _text(v, info, limits.MAX_SYSTEM_BYTES))]
ContextText = Annotated[str, AfterValidator(lambda v, info: _text(v, info, limits.MAX_CONTEXT_BYTES))]
Description = Annotated[str, AfterValidator(lambda v, info: _text(v, info, limits.MAX_DESCRIPTION_BYTES))]
Command = Annotated[str, AfterValidator(lambda v, info: _text(v, info, limits.MAX_COMMAND_BYTES))]
Secret = Annotated[str, AfterValidator(lambda v, info: _line(v, info, limits.MAX_PATH_CHARACTERS))]
Id = Annotated[str, AfterValidator(_identifier)]
Cursor = Annotated[str, AfterValidator(_cursor)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_json)]
Lines = Annotated[list[Line], Field(max_length=limits.MAX_LIST_ITEMS)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=limits.MAX_LIST_ITEMS)]
PageSize = Annotated[int, Field(ge=1, le=limits.MAX_PAGE)]
WaitSeconds = Annotated[float, Field(ge=0, le=limits.MAX_WAIT_WITH_PROGRESS_SECONDS)]
