"""What is due of a schedule at a moment: which occurrence runs, which are missed. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from oubliette.core import cron
from oubliette.core.cron import Cron, Due
from oubliette.core.model import Json
from oubliette.core.schedule_rows import ScheduleRow

GRACE = timedelta(seconds=60)
"""An occurrence that is taken up later than this after it was due was missed: the daemon was off, its host asleep."""
_INSTANT = timedelta(microseconds=1)
_APART = timedelta(seconds=1)
"""What jitter leaves at least between an occurrence and the next."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """Everything up to ``until``: the occurrence to run, if any, and how many before it that run stands for; and the
    gap of missed ones, if it has a row of its own."""

    until: datetime
    run: datetime | None = None
    stands_for: int = 0
    gap: Due | None = None


def account(row: ScheduleRow, at: datetime, expression: Cron | None = None) -> Accounting | None:
    """None: nothing is due. However long the daemon was off, at most one occurrence runs."""
    expression = expression or cron.parse(row.cron_expr, row.timezone)
    found = cron.due_between(expression, row.accounted_until, at)
    if found.last is not None and due_at(row, expression, found.last) > at:
        found = cron.due_between(expression, row.accounted_until, found.last - _INSTANT)
    if found.last is None:
        return None
    late = at - due_at(row, expression, found.last) > GRACE
    if row.misfire == "once":
        return Accounting(found.last, found.last, found.count - 1)
    if late:
        return Accounting(found.last, gap=found)
    if found.count == 1:
        return Accounting(found.last, found.last)
    missed = cron.due_between(expression, row.accounted_until, found.last - _INSTANT)
    return Accounting(found.last, found.last, gap=missed)


def upcoming(row: ScheduleRow, expression: Cron | None = None) -> Json:
    """``next_at`` and ``due_at`` of a schedule as it is now: the columns to write."""
    if not row.active:
        return {"next_at": None, "due_at": None}
    expression = expression or cron.parse(row.cron_expr, row.timezone)
    planned = cron.next_after(expression, row.accounted_until)
    return {"next_at": planned, "due_at": due_at(row, expression, planned)}


def due_at(row: ScheduleRow, expression: Cron, planned: datetime) -> datetime:
    """When an occurrence is taken up: at its time, or a while later that is always the same for it.

    Never as late as the next one, so that they keep their order.
    """
    if not row.jitter_seconds:
        return planned
    most = min(timedelta(seconds=row.jitter_seconds), cron.next_after(expression, planned) - planned - _APART)
    digest = hashlib.sha256(f"{row.schedule_id} {planned.isoformat()}".encode()).digest()
    return planned + max(timedelta(), most) * (int.from_bytes(digest[:8]) / 2**64)
