"""Our occurrences against two other libraries: 10,000 random expressions in random zones around a change of the clock.

Every difference belongs to one of ``KNOWN``; any other one fails.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice, takewhile
from operator import ge
from zoneinfo import ZoneInfo

from croniter import croniter
from cronsim import CronSim

from oubliette.core import cron

EXPRESSIONS = 10_000
MOST = 20
"""Occurrences compared for one expression."""
ZONES = (
    "America/Havana",
    "America/New_York",
    "America/Santiago",
    "America/Sao_Paulo",
    "America/Scoresbysund",
    "America/St_Johns",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Atlantic/Azores",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Europe/Dublin",
    "Europe/London",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Pacific/Norfolk",
    "UTC",
)

KNOWN = {
    "a skipped time": "ours: due at the end of the gap. cronsim, where minute or hour begin with *: not at all",
    "a time that comes twice": "ours: due the first time. cronsim, where minute or hour begin with *: both times",
}
"""Both are Debian's rule for "wildcard jobs". Given the list that a * stands for, cronsim does as we do."""
WHOLE_HOURS = ("America/New_York", "Europe/Berlin", "Europe/Dublin", "Europe/London", "UTC")
"""Where cronsim walks well through wildcards. Elsewhere it loses up to an hour, or never returns: it steps by whole
hours from a midnight, though the zone's clock changes by half an hour, or just then."""


def _changes(zone: ZoneInfo) -> list[datetime]:
    """When the zone's clock changes, 2009 to 2028; the year's beginning where it never does."""
    found = []
    at, end = datetime(2009, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
    while at < end:
        if at.astimezone(zone).utcoffset() != (at + timedelta(hours=6)).astimezone(zone).utcoffset():
            found.append(at + timedelta(hours=3))
        at += timedelta(hours=6)
    return found or [datetime(year, 1, 1, tzinfo=UTC) for year in range(2009, 2028)]


CHANGES = {name: _changes(ZoneInfo(name)) for name in ZONES}


def _expression(chance: random.Random, month: int, day: int) -> str:
    def field(low: int, high: int, star: float) -> str:
        if chance.random() < star:
            return "*"
        kind = chance.random()
        first = chance.randint(low, high - 1)
        last = chance.randint(first + 1, high)
        if kind < 0.3:
            return str(chance.randint(low, high))
        if kind < 0.5:
            return f"{first}-{last}"
        if kind < 0.65:
            return f"{first}-{last}/{chance.randint(1, last - first)}"
        if kind < 0.8:
            return f"*/{chance.randint(2, (high - low) // 2)}"
        return ",".join(str(value) for value in sorted(chance.sample(range(low, high + 1), chance.randint(2, 4))))

    days = str(min(day, 28)) if chance.random() < 0.1 else field(1, 28, 0.7)
    months = str(month) if chance.random() < 0.2 else field(1, 12, 0.8)
    weekdays = chance.choice(["mon-fri", "sun", "7", "5-7", "sat-sun"]) if chance.random() < 0.1 else None
    return f"{field(0, 59, 0.15)} {field(0, 23, 0.3)} {days} {months} {weekdays or field(0, 6, 0.7)}"


@dataclass(frozen=True, slots=True)
class Case:
    """An expression, a stretch of time (ends included) and our occurrences in it."""

    cron: cron.Cron
    zone: ZoneInfo
    begin: datetime
    end: datetime
    ours: list[datetime]


@cache
def _cases() -> list[Case]:
    return list(_made())


def _made() -> Iterator[Case]:
    chance = random.Random(20261123)
    for _ in range(EXPRESSIONS):
        name = chance.choice(ZONES)
        zone = ZoneInfo(name)
        change = chance.choice(CHANGES[name])
        local = change.astimezone(zone)
        parsed = cron.parse(_expression(chance, local.month, local.day), name)
        dense = len(parsed.minutes) * len(parsed.hours) > 60
        around = timedelta(hours=4) if dense else timedelta(hours=50)
        begin, end = change - around + timedelta(seconds=chance.randint(0, 7200)), change + around
        ours = _ours(parsed, begin, end)
        yield Case(parsed, zone, begin, ours[-1] if len(ours) == MOST else end, ours)


def _ours(parsed: cron.Cron, begin: datetime, end: datetime) -> list[datetime]:
    return list(islice(takewhile(partial(ge, end), cron.occurrences(parsed, begin)), MOST))


def _cronsim(case: Case, text: str) -> set[datetime]:
    """Its occurrences in the stretch. Several skipped times are one instant for it too, but said several times."""
    found: set[datetime] = set()
    # It takes SAT-SUN for a range that goes backwards.
    for at in CronSim(text.replace("sat-sun", "6-7").upper(), case.begin.astimezone(case.zone)):
        there = at.astimezone(UTC)
        if there > case.end:
            break
        if there > case.begin:
            found.add(there)
    return found


def _is_end_of_gap(at: datetime, zone: ZoneInfo) -> bool:
    before, after = (at - timedelta(seconds=1)).astimezone(zone), at.astimezone(zone)
    return after.utcoffset() > before.utcoffset()  # type: ignore[operator]  # both zones have one


def test_ten_thousand_expressions_agree_with_cronsim() -> None:
    """Written as lists: a step in a day field restricts it, for us and croniter, so that either field may match. For
    cronsim, as for Debian's cron, both must, if one of them begins with *."""
    assert len(_cases()) == EXPRESSIONS
    for case in _cases():
        assert _cronsim(case, case.cron.plain) == set(case.ours), case
    assert sum(len(case.ours) for case in _cases()) > 50_000


def test_as_written_they_differ_from_cronsim_only_where_we_say_so() -> None:
    seen: Counter[str] = Counter()
    for case in _cases():
        minute, hour, day, _, weekday = case.cron.text.split()
        wild = minute.startswith("*") or hour.startswith("*")
        steps = "/" in day + weekday and "*" not in (day, weekday)
        if case.cron.timezone not in WHOLE_HOURS or steps:
            continue
        for at in _cronsim(case, case.cron.text).symmetric_difference(case.ours):
            assert wild, case
            if at in case.ours:
                assert _is_end_of_gap(at, case.zone), (case, at)
                seen["a skipped time"] += 1
            else:
                assert at.astimezone(case.zone).fold == 1, (case, at)
                seen["a time that comes twice"] += 1
    assert set(seen) == set(KNOWN), "each known difference was met"


def test_without_a_change_of_the_clock_croniter_agrees_with_what_was_written() -> None:
    """The expression as written, not the plain form that we ask croniter about."""
    compared = 0
    for case in _cases()[::4]:
        there = cron.parse(case.cron.text)
        theirs = croniter(case.cron.text, case.begin, ret_type=datetime)
        for at in _ours(there, case.begin, case.end)[:3]:
            assert theirs.get_next(datetime) == at, case.cron.text
            compared += 1
    assert compared > 2_000


def test_counting_a_stretch_agrees_with_walking_through_it() -> None:
    for case in _cases():
        due = cron.due_between(case.cron, case.begin, case.end)
        first, last = (case.ours[0], case.ours[-1]) if case.ours else (None, None)
        assert due == cron.Due(len(case.ours), first, last), case
