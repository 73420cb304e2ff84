"""Cron expressions: what is refused and how, when they are due, how clock changes are taken."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from oubliette.core import cron
from oubliette.errors import RequestError


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _next(expr: str, after: str, number: int = 1, zone: str = "UTC") -> list[str]:
    found = islice(cron.occurrences(cron.parse(expr, zone), _utc(after)), number)
    return [at.strftime("%Y-%m-%d %H:%M") for at in found]


@pytest.mark.parametrize(
    ("expr", "says"),
    [
        ("60 * * * *", "field 1 of 5 (minute): '60' is none of 0-59."),
        ("* 24 * * *", "field 2 of 5 (hour): '24' is none of 0-23."),
        ("0 0 1,32 * *", "field 3 of 5 (day of month), '1,32': '32' is none of 1-31."),
        ("0 0 0 * *", "field 3 of 5 (day of month): '0' is none of 1-31."),
        ("0 0 * foo *", "field 4 of 5 (month): 'foo' is none of 1-12 or JAN-DEC."),
        ("0 0 * * 8", "field 5 of 5 (day of week): '8' is none of 0-7 or SUN-SAT."),
        ("0 22-2 * * *", "field 2 of 5 (hour), '22-2': the range 22-2 goes backwards."),
        ("5/15 * * * *", "field 1 of 5 (minute), '5/15': a step needs a range or *: 5-59/15."),
        ("*/60 * * * *", "field 1 of 5 (minute), '*/60': the step '60' is none of 1-59."),
        ("0 0 * * *,1", "field 5 of 5 (day of week), '*,1': * stands alone, or with a step: */2."),
        ("0 0 L * *", "field 3 of 5 (day of month): 'l' is none of 1-31."),
        ("1,,2 * * * *", "field 1 of 5 (minute), '1,,2': '' is none of 0-59."),
        ("\u0663 * * * *", "field 1 of 5 (minute): '\u0663' is none of 0-59."),
        ("0 3 * *", "'0 3 * *' has 4 fields, not 5."),
        ("0 0 3 * * *", "'0 0 3 * * *' has 6 fields, not 5. There are no seconds and no years."),
        ("@reboot", "'@reboot': the daemon's start is no time."),
        ("@often", "'@often': there is no such name."),
        ("", "'' has 0 fields, not 5."),
        ("0 " * 200, "may have 200 characters."),
    ],
)
def test_what_is_wrong_is_said_of_the_field_in_which_it_is_wrong(expr: str, says: str) -> None:
    with pytest.raises(RequestError) as refused:
        cron.parse(expr)
    assert refused.value.message == f"cron_expr: {says}"
    assert refused.value.field == "cron_expr"
    assert refused.value.code == "invalid_argument"


def test_a_date_that_never_comes_is_refused_and_one_that_rarely_does_is_not() -> None:
    for expr in ("0 0 30 2 *", "0 0 31 4,6 *", "0 0 30-31 feb *"):
        with pytest.raises(RequestError, match="never comes"):
            cron.parse(expr)
    assert _next("0 0 29 2 *", "2026-01-01", 2) == ["2028-02-29 00:00", "2032-02-29 00:00"]
    assert _next("0 0 31 4 mon", "2026-04-01", 1) == ["2026-04-06 00:00"]


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("localtime", "Names are like"),  # another zone on each machine
        ("europe/berlin", "Did you mean Europe/Berlin?"),
        ("Mars/Olympus", ""),
        ("../../etc/passwd", ""),
        ("/etc/localtime", ""),
        ("", ""),
        ("a\0b", ""),
    ],
)
def test_an_unknown_zone_is_refused_with_the_nearest_one(zone: str, hint: str) -> None:
    with pytest.raises(RequestError) as refused:
        cron.parse("@daily", zone)
    assert refused.value.field == "timezone"
    assert hint in refused.value.hint


def test_names_ranges_and_macros() -> None:
    assert cron.parse("0 9 * JAN,mar Mon-FRI").plain == "0 9 * 1,3 1,2,3,4,5"
    assert cron.parse("0 0 * * fri-sun").weekdays == cron.parse("0 0 * * 5-7").weekdays == (0, 5, 6)
    assert cron.parse("0 0 * * 7").weekdays == (0,)
    assert cron.parse("0 0 * * 5-5").weekdays == (5,)
    assert cron.parse("10-20/5 */8 * * *").plain == "10,15,20 0,8,16 * 1,2,3,4,5,6,7,8,9,10,11,12 *"
    assert cron.parse("@Hourly").text == "0 * * * *"
    assert cron.parse(" 0  3 * *  * ").text == "0 3 * * *"
    assert _next("@weekly", "2026-11-23", 1) == ["2026-11-29 00:00"]
    assert _next("@yearly", "2026-11-23", 1) == ["2027-01-01 00:00"]


def test_either_day_field_may_match_unless_one_is_a_star() -> None:
    assert _next("0 0 13 * fri", "2026-11-01", 3) == ["2026-11-06 00:00", "2026-11-13 00:00", "2026-11-20 00:00"]
    assert _next("0 0 13 * *", "2026-11-01", 1) == ["2026-11-13 00:00"]
    assert _next("0 0 */1 * fri", "2026-11-01", 2) == ["2026-11-06 00:00", "2026-11-13 00:00"]


def test_a_skipped_time_is_due_when_the_gap_ends_and_only_once() -> None:
    # Berlin goes from 02:00 to 03:00 on 29 March 2026, at 01:00 UTC.
    assert _next("30 2 * * *", "2026-03-28 12:00", 2, "Europe/Berlin") == ["2026-03-29 01:00", "2026-03-30 00:30"]
    assert _next("*/20 2 * * *", "2026-03-28 12:00", 2, "Europe/Berlin") == ["2026-03-29 01:00", "2026-03-30 00:00"]
    together = _next("0,30 2,3 * * *", "2026-03-29 00:30", 3, "Europe/Berlin")
    assert together == ["2026-03-29 01:00", "2026-03-29 01:30", "2026-03-30 00:00"]


def test_a_time_that_comes_twice_is_due_the_first_time() -> None:
    # Berlin has 02:00 to 03:00 twice on 25 October 2026, from 00:00 UTC.
    assert _next("30 2 * * *", "2026-10-24 12:00", 2, "Europe/Berlin") == ["2026-10-25 00:30", "2026-10-26 01:30"]
    assert _next("30 2 * * *", "2026-10-25 01:10", 1, "Europe/Berlin") == ["2026-10-26 01:30"]
    rests = _next("*/30 * * * *", "2026-10-25 00:00", 3, "Europe/Berlin")
    assert rests == ["2026-10-25 00:30", "2026-10-25 02:00", "2026-10-25 02:30"]


def test_odd_changes_of_the_clock() -> None:
    # Half an hour (Lord Howe), midnight (Havana), a whole day (Apia skipped 30 December 2011).
    assert _next("15 2 * * *", "2026-10-03 00:00", 1, "Australia/Lord_Howe") == ["2026-10-03 15:30"]
    assert _next("0 0 * * *", "2026-03-07 12:00", 1, "America/Havana") == ["2026-03-08 05:00"]
    assert _next("0 9 * * *", "2011-12-29 18:00", 3, "Pacific/Apia") == [
        "2011-12-29 19:00",
        "2011-12-30 10:00",
        "2011-12-30 19:00",
    ]


def test_occurrences_are_later_than_the_instant_even_by_a_microsecond() -> None:
    daily = cron.parse("0 3 * * *")
    at = _utc("2026-11-23 03:00")
    assert cron.next_after(daily, at) == at + timedelta(days=1)
    assert cron.next_after(daily, at - timedelta(microseconds=1)) == at
    assert cron.due_between(daily, at, at + timedelta(days=1)) == cron.Due(1, *[at + timedelta(days=1)] * 2)
    assert cron.due_between(daily, at, at) == cron.Due(0)
    assert cron.due_between(daily, at, at - timedelta(days=9)) == cron.Due(0)


def test_a_long_gap_is_counted_not_listed() -> None:
    every = cron.parse("* * * * *", "Europe/Berlin")
    begin, end = _utc("2020-01-01"), _utc("2026-01-01")
    started = time.perf_counter()
    due = cron.due_between(every, begin, end)
    assert time.perf_counter() - started < 2
    assert due.last == end
    # Six hours are there twice and are counted once; six are skipped, each of them one instant with what follows.
    assert due.count == (end - begin) // timedelta(minutes=1) - 6 * 60
    assert cron.due_between(every, _utc("1000-01-01"), end).first == end - timedelta(days=365 * 20 - 1) - timedelta(
        minutes=24 * 60 - 1
    )


def test_a_plain_reading() -> None:
    assert cron.cron_text("0 3 * * *") == "at 03:00"
    assert cron.cron_text("*/15 * * * *") == "every 15 minutes"
    assert cron.cron_text("30 9 * * mon-fri") == "at 09:30, Monday through Friday"
    assert cron.cron_text("@hourly") == "every hour"
