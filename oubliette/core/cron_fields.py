"""The five fields of a cron expression, read strictly: what is wrong is said of the field in which it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

from oubliette.errors import RequestError

MAX_CHARACTERS = 200

MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


@dataclass(frozen=True, slots=True)
class Field:
    """Which values match, in order; ``any``: it was ``*``."""

    values: tuple[int, ...]
    any: bool


@dataclass(frozen=True, slots=True)
class _Kind:
    number: int
    name: str
    low: int
    high: int
    names: dict[str, int]

    @property
    def allowed(self) -> str:
        if not self.names:
            return f"{self.low}-{self.high}"
        named = list(self.names)
        return f"{self.low}-{self.high} or {named[0].upper()}-{named[-1].upper()}"


_KINDS: Final = (
    _Kind(1, "minute", 0, 59, {}),
    _Kind(2, "hour", 0, 23, {}),
    _Kind(3, "day of month", 1, 31, {}),
    _Kind(4, "month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Kind(5, "day of week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)
_SUNDAY = 7
"""Sunday is 0 and, as crontab(5) has it, 7 as well."""


def parse_fields(expr: str) -> tuple[str, tuple[Field, Field, Field, Field, Field]]:
    """The expression in one spelling (macros written out, single spaces), and its fields.

    Raises RequestError invalid_argument with ``field`` cron_expr.
    """
    if len(expr) > MAX_CHARACTERS:
        _refuse(f"may have {MAX_CHARACTERS} characters.")
    text = expr.strip().lower()
    if text.startswith("@"):
        if text not in MACROS:
            why = "the daemon's start is no time" if text == "@reboot" else "there is no such name"
            _refuse(f"{_shown(text)}: {why}.", f"Names: {', '.join(MACROS)}.")
        text = MACROS[text]
    parts = text.split()
    if len(parts) != len(_KINDS):
        names = ", ".join(kind.name for kind in _KINDS)
        more = " There are no seconds and no years." if len(parts) in (6, 7) else ""
        _refuse(f"{_shown(text)} has {len(parts)} fields, not 5.{more}", f"The fields are: {names}.")
    minutes, hours, days, months, weekdays = (_field(kind, part) for kind, part in zip(_KINDS, parts, strict=True))
    weekdays = Field(tuple(sorted({value % _SUNDAY for value in weekdays.values})), weekdays.any)
    return " ".join(parts), (minutes, hours, days, months, weekdays)


def _field(kind: _Kind, part: str) -> Field:
    if part in {"*", "*/1"}:
        return Field(tuple(range(kind.low, kind.high + 1)), any=True)
    values: set[int] = set()
    for item in part.split(","):
        values |= _item(kind, part, item)
    return Field(tuple(sorted(values)), any=False)


def _item(kind: _Kind, part: str, item: str) -> set[int]:
    span, slash, step_text = item.partition("/")
    if span == "*":
        # A week has seven days, though two numbers mean Sunday.
        low, high = kind.low, min(kind.high, 6) if kind.number == 5 else kind.high
        if not slash:
            _refuse_field(kind, part, "* stands alone, or with a step: */2.")
    else:
        first, dash, last = span.partition("-")
        low = _number(kind, part, first)
        high = _number(kind, part, last) if dash else low
        if dash and kind.number == 5 and last == "sun" and low > 0:
            high = _SUNDAY
        if high < low:
            _refuse_field(
                kind, part, f"the range {span} goes backwards.", "Write two ranges with a comma between them."
            )
        if slash and not dash:
            _refuse_field(kind, part, f"a step needs a range or *: {low}-{kind.high}/{step_text[:8]}.")
    if not slash:
        return set(range(low, high + 1))
    if not (step_text.isascii() and step_text.isdigit()) or not 1 <= int(step_text[:6]) <= high - low:
        _refuse_field(kind, part, f"the step {_shown(step_text)} is none of 1-{max(1, high - low)}.")
    return set(range(low, high + 1, int(step_text)))


def _number(kind: _Kind, part: str, text: str) -> int:
    if text in kind.names:
        return kind.names[text]
    if not (text.isascii() and text.isdigit()) or not kind.low <= int(text[:6]) <= kind.high:
        _refuse_field(kind, part, f"{_shown(text)} is none of {kind.allowed}.")
    return int(text[:6])


def _refuse_field(kind: _Kind, part: str, why: str, hint: str = "") -> NoReturn:
    where = f"field {kind.number} of 5 ({kind.name})"
    _refuse(f"{where}: {why}" if why.startswith(_shown(part)) else f"{where}, {_shown(part)}: {why}", hint)


def _refuse(why: str, hint: str = "") -> NoReturn:
    raise RequestError("invalid_argument", f"cron_expr: {why}", hint=hint, field="cron_expr")


def _shown(text: str) -> str:
    """As much of it as fits into a sentence."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
