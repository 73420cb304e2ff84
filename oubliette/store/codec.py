"""Between rows of a table and the frozen dataclasses of ``core.model``, driven by the dataclass's own types."""

# ruff: noqa: S608  # statements are put together from constants and column names; values are always bound

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from oubliette.store.database import Tx

R = TypeVar("R")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_Convert = Callable[[Any], Any]


def to_micros(at: datetime) -> int:
    """Microseconds since 1970 UTC; ``at`` must be aware."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def to_json(value: Any) -> str:
    """Compact JSON that SQLite can always store: an unpaired surrogate becomes U+FFFD."""
    text = _encode_json(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean(text: str) -> str:
    """``text`` without the unpaired surrogates that SQLite refuses."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Table(Generic[R]):
    """One table (or join) and the dataclass that its rows are.

    ``computed`` names fields that live elsewhere, with the SQL that reads them: they are read, never written here.
    """

    def __init__(
        self, name: str, row_type: type[R], *, source: str | None = None, computed: Mapping[str, str] | None = None
    ) -> None:
        hints = get_type_hints(row_type)
        self.name = name
        self._row_type = row_type
        computed = computed or {}
        self._fields = [item.name for item in fields(row_type)]  # type: ignore[arg-type]  # every R is a dataclass
        self._codecs = {field: _codec_for(hints[field]) for field in self._fields}
        self._decoders = [self._codecs[field][1] for field in self._fields]
        self._stored = [field for field in self._fields if field not in computed]
        columns = ", ".join(computed.get(field, f't."{field}"') for field in self._fields)
        self.select = f"SELECT {columns} FROM {source or name + ' t'} "
        """Ends before ``WHERE``; the table is ``t``."""
        names = ", ".join(f'"{field}"' for field in self._stored)
        self._insert = f"INSERT INTO {name} ({names}) VALUES ({', '.join('?' * len(self._stored))})"

    def insert(self, tx: Tx, row: R, **extra: Any) -> None:
        """Insert a whole row, plus columns that the dataclass does not have. Raises apsw.ConstraintError."""
        values = [self._codecs[field][0](getattr(row, field)) for field in self._stored]
        if not extra:
            tx.run(self._insert, *values)
            return
        names = ", ".join(f'"{field}"' for field in [*self._stored, *extra])
        marks = ", ".join("?" * (len(values) + len(extra)))
        tx.run(f"INSERT INTO {self.name} ({names}) VALUES ({marks})", *values, *extra.values())

    def find(self, tx: Tx, tail: str, *args: Any) -> R | None:
        """The first row of ``select`` + ``tail``."""
        rows = tx.rows(self.select + tail, *args)
        return self.decode(rows[0]) if rows else None

    def list(self, tx: Tx, tail: str, *args: Any) -> list[R]:
        return [self.decode(row) for row in tx.rows(self.select + tail, *args)]

    def update(self, tx: Tx, where: str, args: Sequence[Any], changes: Mapping[str, Any]) -> int:
        """Set columns by field name; returns how many rows. An unknown or computed field is a TypeError."""
        for field in changes:
            if field not in self._stored:
                raise TypeError(f"{self.name} has no column {field!r} to update")
        if not changes:
            return tx.run(f"UPDATE {self.name} SET rowid = rowid WHERE {where}", *args)
        sets = ", ".join(f'"{field}" = ?' for field in changes)
        values = [self._codecs[field][0](value) for field, value in changes.items()]
        return tx.run(f"UPDATE {self.name} SET {sets} WHERE {where}", *values, *args)

    def decode(self, row: Sequence[Any]) -> R:
        values = [
            value if decode is None or value is None else decode(value)
            for decode, value in zip(self._decoders, row, strict=True)
        ]
        return self._row_type(*values)


def _identity(value: Any) -> Any:
    return value


def _text(value: Any) -> Any:
    return value if value is None else clean(value)


def _optional(encode: _Convert) -> _Convert:
    return lambda value: None if value is None else encode(value)


@cache
def _enum_codec(kind: type[StrEnum]) -> tuple[_Convert, _Convert]:
    members = {member.value: member for member in kind}
    return _optional(lambda value: kind(value).value), members.__getitem__


def _codec_for(hint: Any) -> tuple[_Convert, _Convert | None]:
    """How a field of this type is stored and read back; None reads as it is."""
    if get_origin(hint) in {Union, types.UnionType}:
        hint = next(part for part in get_args(hint) if part is not type(None))
    if hint is Any or get_origin(hint) in {dict, list, tuple}:
        return _optional(to_json), json.loads
    if hint is datetime:
        return _optional(to_micros), from_micros
    if hint is bool:
        return _optional(int), bool
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum_codec(hint)
    if hint is str:
        return _text, None
    return _identity, None
