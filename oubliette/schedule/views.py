"""Schedules and runs as clients see them: SHAPES objects from rows. Every function is a query."""

from __future__ import annotations

from datetime import datetime
from itertools import islice

from oubliette.core import cron
from oubliette.core.model import Json, rfc3339
from oubliette.core.schedule_rows import RunRow, RunStatus, ScheduleRow, TargetRow
from oubliette.errors import RequestError
from oubliette.schedule import owners
from oubliette.session.views import cut
from oubliette.store import model_requests, runs, schedules, sessions
from oubliette.store.database import Tx

NEXT_RUNS = 3
LISTED_MESSAGE = 2_000
"""Characters of a message in lists."""
OUTPUT = 4_000
"""Characters of the final text that a run keeps."""


def schedule_view(
    tx: Tx, row: ScheduleRow, at: datetime, *, project_id: str | None = None, listed: bool = False
) -> Json:
    """SHAPES' Schedule. ``project_id``: with the targets of that project alone. ``listed``: the message cut."""
    targets = [one for one in schedules.targets(tx, row.schedule_id) if project_id in (None, one.project_id)]
    shape: Json = {
        "schedule_id": row.schedule_id,
        "name": row.name,
        "cron_expr": row.cron_expr,
        "timezone": row.timezone,
        "enabled": row.enabled,
        "overlap_behavior": row.overlap_behavior,
        "session_behavior": row.session_behavior,
        "misfire": row.misfire,
        "jitter_seconds": row.jitter_seconds,
        "pause_after_failures": row.pause_after_failures,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
        "created_by": row.created_by,
        "consecutive_failures": max((one.consecutive_failures for one in targets), default=0),
        "targets": [_target_view(tx, one) for one in targets],
    }
    shape.update(cut("message", row.message, LISTED_MESSAGE) if listed else {"message": row.message})
    for name, value in (("model", row.model), ("timeout_minutes", row.timeout_minutes), ("paused", row.paused)):
        if value is not None:
            shape[name] = value
    if row.max_cost_microusd is not None:
        shape["max_cost_usd"] = round(row.max_cost_microusd / 1_000_000, 6)
    if row.last_run_at is not None:
        shape["last_run_at"] = rfc3339(row.last_run_at)
    try:
        shape["cron_text"] = cron.cron_text(row.cron_expr)
        if row.active:
            planned = cron.occurrences(cron.parse(row.cron_expr, row.timezone), max(row.accounted_until, at))
            shape["next_runs"] = [rfc3339(one) for one in islice(planned, NEXT_RUNS)]
    except RequestError:
        # Its zone is unknown to this version: it is paused as ``invalid`` at the next start, and shown meanwhile.
        shape["next_runs"] = []
    if row.next_at is not None:
        shape["next_run_at"] = rfc3339(row.next_at)
    notice = owners.notice_of(tx, row, at)
    if notice is not None:
        shape["notice"] = notice
    return shape


def _target_view(tx: Tx, row: TargetRow) -> Json:
    shape: Json = {"target_id": row.target_id, "project_id": row.project_id}
    for name in ("workspace_id", "session_id"):
        value = getattr(row, name)
        if value is not None:
            shape[name] = value
    last = runs.last_of_target(tx, row.target_id)
    if last is not None:
        shape["last_run"] = run_view(tx, last)
    return shape


def run_view(tx: Tx, row: RunRow) -> Json:
    """SHAPES' Run. ``usage`` of one that is at work is what it has used so far."""
    shape: Json = {
        "run_id": row.run_id,
        "schedule_id": row.schedule_id,
        "target_id": row.target_id,
        "project_id": row.project_id,
        "trigger": row.trigger,
        "planned_at": rfc3339(row.planned_at),
        "claimed_at": rfc3339(row.claimed_at),
        "status": str(row.status),
    }
    for name in ("workspace_id", "reason", "session_id", "session", "turn", "output", "usage", "error"):
        value = getattr(row, name)
        if value is not None:
            shape[name] = value
    for name in ("started_at", "ended_at", "until"):
        moment = getattr(row, name)
        if moment is not None:
            shape[name] = rfc3339(moment)
    if row.missed_count:
        shape["missed_count"] = row.missed_count
    if row.output is not None and row.output_bytes is not None and len(row.output.encode()) < row.output_bytes:
        shape |= {"output_truncated": True, "output_bytes": row.output_bytes}
    if row.status is RunStatus.RUNNING:
        shape["usage"] = usage_of(tx, row)
    return shape


def usage_of(tx: Tx, row: RunRow) -> Json:
    """What its session's tree has used since the run started."""
    session = sessions.get(tx, row.session_id) if row.session_id is not None else None
    root_id = session.root_id if session is not None else row.session_id or ""
    since = row.started_at or row.claimed_at
    return model_requests.run_usage(tx, row.project_id, root_id, since).as_json()
