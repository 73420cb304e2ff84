"""When a cron expression is due: five fields in a time zone, without a clock. Pure.

Daylight saving, stated once. An expression names local times. One that the zone *skips* is due at the first instant
that exists after it (02:30 on the night that goes from 02:00 to 03:00: at 03:00), together with whatever else is due at
that instant: once. One that the zone has *twice* is due the first time only. So every local time is due once at most,
and none is lost; the price is that ``*/15`` rests during the repeated hour.
"""

from __future__ import annotations

import calendar
import copy
import difflib
import zoneinfo
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cron_descriptor import Options, get_description  # type: ignore[import-untyped]  # it has hints, unmarked
from croniter import croniter

from oubliette.core.cron_fields import Field, parse_fields
from oubliette.errors import RequestError

_DAY = timedelta(days=1)
_OF_THE_MACHINE = frozenset({"localtime", "posixrules"})
"""In the database of some machines, and another zone on each."""
_YEARS_COUNTED = 20
"""A gap longer than this is counted from that long ago: a clock that was set wrong must not cost minutes."""
_DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class Cron:
    """A valid expression in its zone. ``weekdays`` count from Sunday, 0.

    ``any_day``, ``any_weekday``: that field is ``*``. When neither is, a date matches when either field does.
    """

    text: str
    timezone: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    any_day: bool
    any_weekday: bool

    @property
    def plain(self) -> str:
        """The same with nothing but numbers, commas and ``*``: what every cron library reads alike."""
        days = "*" if self.any_day else _listed(self.days)
        weekdays = "*" if self.any_weekday else _listed(self.weekdays)
        return f"{_listed(self.minutes)} {_listed(self.hours)} {days} {_listed(self.months)} {weekdays}"


@dataclass(frozen=True, slots=True)
class Due:
    """The occurrences of a stretch of time: how many, the first and the last."""

    count: int
    first: datetime | None = None
    last: datetime | None = None


def parse(expr: str, timezone: str = "UTC") -> Cron:
    """Raises RequestError invalid_argument that says which part of the expression, or that the zone, is wrong."""
    text, fields = parse_fields(expr)
    minutes, hours, days, months, weekdays = fields
    if weekdays.any and not days.any and not _some_date(days.values, months.values):
        raise RequestError(
            "invalid_argument",
            f"cron_expr {text!r} never comes: no {_months_named(months)} has a day {_listed(days.values)}.",
            field="cron_expr",
        )
    zone(timezone)
    return Cron(
        text=text,
        timezone=timezone,
        minutes=minutes.values,
        hours=hours.values,
        days=days.values,
        months=months.values,
        weekdays=weekdays.values,
        any_day=days.any,
        any_weekday=weekdays.any,
    )


@lru_cache(maxsize=256)
def zone(name: str) -> ZoneInfo:
    """Raises RequestError invalid_argument for a name that the time zone database does not have."""
    try:
        if name in _OF_THE_MACHINE:
            raise ValueError(name)
        return ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = _zones()
        near = difflib.get_close_matches(name.lower()[:64], known, n=1)
        raise RequestError(
            "invalid_argument",
            f"There is no time zone {name[:64]!r}.",
            hint=f"Did you mean {known[near[0]]}?" if near else "Names are like Europe/Berlin, America/New_York, UTC.",
            field="timezone",
        ) from None


@lru_cache(maxsize=1)
def _zones() -> Mapping[str, str]:
    """By their names in small letters; kept, because it means to walk through a directory."""
    return {one.lower(): one for one in zoneinfo.available_timezones() - _OF_THE_MACHINE}


@lru_cache(maxsize=512)
def cron_text(expr: str) -> str:
    """A plain reading of a valid expression, for people: ``at 03:00, only on Sunday``."""
    options = Options(locale_code="en_US", use_24hour_time_format=True)
    said: str = get_description(parse_fields(expr)[0], options)
    return said[:1].lower() + said[1:]


def occurrences(cron: Cron, after: datetime) -> Iterator[datetime]:
    """The occurrences later than ``after`` (aware), in UTC, one by one, for as long as they are asked for."""
    there = zone(cron.timezone)
    # Local times before this one cannot be later instants: what is skipped moves forward, what comes twice back.
    local = after.astimezone(there).replace(tzinfo=None)
    times = copy.copy(_parsed(cron.plain))
    times.set_current(local - timedelta(minutes=1))
    last = after
    while True:
        found = _instant(times.get_next(datetime), there)
        if found > last:
            last = found
            yield found


@lru_cache(maxsize=512)
def _parsed(plain: str) -> croniter:
    """Copied before use: it keeps its place."""
    return croniter(plain, datetime(2026, 1, 1))


def next_after(cron: Cron, instant: datetime) -> datetime:
    """The first occurrence later than ``instant`` (aware), in UTC."""
    return next(occurrences(cron, instant))


def due_between(cron: Cron, after: datetime, until: datetime) -> Due:
    """The occurrences later than ``after``, up to and including ``until``; counted by days, never listed."""
    after = max(after, until - timedelta(days=365 * _YEARS_COUNTED))
    if until <= after:
        return Due(0)
    there = zone(cron.timezone)
    times = [hour * 60 + minute for hour in cron.hours for minute in cron.minutes]
    count, first, last = 0, None, None
    # One day around both ends: at a change of the clock the local date may go back.
    for day in _days(after.astimezone(there).date() - _DAY, until.astimezone(there).date() + _DAY):
        if not _matches(cron, day):
            continue
        if _plain_day(day, there):
            low, high = (
                bisect_right(times, _minutes(after, day, there)),
                bisect_right(times, _minutes(until, day, there)),
            )
            if low < high:
                found = _instant(_at(day, times[low]), there)
                count += high - low - (found == last)
                first, last = first or found, _instant(_at(day, times[high - 1]), there)
            continue
        for minute in times:
            found = _instant(_at(day, minute), there)
            if after < found <= until and found != last:
                count += 1
                first, last = first or found, found
    return Due(count, first, last)


def _days(first: date, last: date) -> Iterator[date]:
    return (first + timedelta(days=number) for number in range((last - first).days + 1))


def _minutes(instant: datetime, day: date, there: ZoneInfo) -> float:
    """Where an instant lies in a local day on which the clock does not change: before it negative, after it beyond."""
    local = instant.astimezone(there).replace(tzinfo=None)
    return (local - datetime.combine(day, time())) / timedelta(minutes=1)


def _at(day: date, minute: int) -> datetime:
    return datetime.combine(day, time(minute // 60, minute % 60))


def _matches(cron: Cron, day: date) -> bool:
    if day.month not in cron.months:
        return False
    by_day, by_weekday = day.day in cron.days, day.isoweekday() % 7 in cron.weekdays
    return by_day and by_weekday if cron.any_day or cron.any_weekday else by_day or by_weekday


def _plain_day(day: date, there: ZoneInfo) -> bool:
    """Whether the zone's clock does not change on that local day, nor at either end of it."""
    edges = [datetime.combine(one, time(), tzinfo=there) for one in (day, day + _DAY)]
    return len({edge.replace(fold=fold).utcoffset() for edge in edges for fold in (0, 1)}) == 1


def _instant(local: datetime, there: ZoneInfo) -> datetime:
    """When a local time is due: the first of two, or the end of the gap that it lies in."""
    early = local.replace(tzinfo=there)
    late = early.replace(fold=1)
    first, second = early.astimezone(UTC), late.astimezone(UTC)
    if first <= second:
        return first
    # In a gap fold 0 reads with the offset before it: a later instant than fold 1. Between the two the clock changes.
    old = second.astimezone(there).utcoffset()
    before, after = second, first
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
        if middle.astimezone(there).utcoffset() == old:
            before = middle
        else:
            after = middle
    return after


def _some_date(days: tuple[int, ...], months: tuple[int, ...]) -> bool:
    return min(days) <= max(_DAYS_IN_MONTH[month - 1] for month in months)


def _months_named(months: Field) -> str:
    return " or ".join(calendar.month_name[month] for month in months.values)


def _listed(values: tuple[int, ...]) -> str:
    return ",".join(str(value) for value in values)
