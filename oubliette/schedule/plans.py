"""What is due next, worked out for all schedules at once: at the start, and when the wall clock was put right. Each
function is one unit of the store. A schedule that cannot be planned is paused, and keeps nobody else from running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from oubliette.core import cron
from oubliette.core.schedule_rows import RunStatus, ScheduleRow
from oubliette.errors import OublietteError, RequestError
from oubliette.log import get_logger
from oubliette.schedule import due
from oubliette.store import runs, schedules
from oubliette.store.database import Tx

log = get_logger(__name__)

AHEAD: Final = timedelta(days=1)
"""A clock that goes back by more was wrong before: schedules begin anew at what it says now."""
_INSTANT = timedelta(microseconds=1)


def plan_anew(tx: Tx, at: datetime) -> None:
    """What is due next, by the time zones as this version knows them."""
    for schedule_id in schedules.active(tx):
        _planned(tx, schedule_id, at, _plan)


def begin_anew(tx: Tx, at: datetime) -> None:
    """Schedules that are accounted for until long after now: the clock was wrong, and has been put right."""
    for schedule_id in schedules.accounted_beyond(tx, at + AHEAD):
        _planned(tx, schedule_id, at, _begin)


def pause_invalid(tx: Tx, schedule_id: str, at: datetime, error: Exception) -> None:
    """What is due of the schedule cannot be worked out. Whoever looks at it must see that."""
    what = f"What is due of it cannot be worked out: {type(error).__name__}: {error}"
    row = schedules.get(tx, schedule_id)
    if row is not None:
        schedules.pause(tx, row, "invalid", at, error.message if isinstance(error, RequestError) else what)


def _planned(tx: Tx, schedule_id: str, at: datetime, how: Callable[[Tx, ScheduleRow, datetime], None]) -> None:
    def plan(tx: Tx) -> None:
        row = schedules.get(tx, schedule_id)
        if row is not None:
            how(tx, row, at)

    try:
        tx.attempt(plan)
    except Exception as error:
        if not tx.intact:
            raise
        if not isinstance(error, OublietteError):
            log.exception("a schedule could not be planned", schedule=schedule_id)
        pause_if_readable(tx, schedule_id, at, error)


def pause_if_readable(tx: Tx, schedule_id: str, at: datetime, error: Exception) -> None:
    """``pause_invalid``; a row that cannot even be read is logged, and left to whoever mends the database."""
    try:
        tx.attempt(partial(pause_invalid, schedule_id=schedule_id, at=at, error=error))
    except Exception:
        if not tx.intact:
            raise
        log.exception("a schedule that cannot be planned could not be paused", schedule=schedule_id)
        schedules.shelve(tx, schedule_id)


def _plan(tx: Tx, row: ScheduleRow, at: datetime) -> None:
    planned = due.upcoming(row)
    if planned != {"next_at": row.next_at, "due_at": row.due_at}:
        schedules.update(tx, row.schedule_id, **planned)


def _begin(tx: Tx, row: ScheduleRow, at: datetime) -> None:
    log.warning("the clock went back; a schedule begins anew", schedule=row.schedule_id)
    _take_back(tx, row, at)
    schedules.update(tx, row.schedule_id, accounted_until=at, **due.upcoming(replace(row, accounted_until=at)))


def _take_back(tx: Tx, row: ScheduleRow, at: datetime) -> None:
    """What was said to be missed and is yet to come was not missed: else a gap of years would swallow it all."""
    expression = cron.parse(row.cron_expr, row.timezone)
    for run in runs.planned_beyond(tx, row.schedule_id, at):
        if run.status is not RunStatus.MISSED:
            continue  # it ran, however wrong the clock was
        if run.planned_at > at:
            runs.forget(tx, run.run_id)
            continue
        found = cron.due_between(expression, run.planned_at - _INSTANT, at)
        until = found.last if found.count > 1 else None
        known = {"claimed_at": at, "ended_at": at}
        runs.update(tx, run.run_id, missed_count=max(1, found.count), until=until, **known)
