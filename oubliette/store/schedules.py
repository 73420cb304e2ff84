"""Schedules and their targets: rows, what is due, and what pauses them."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any, Final

from oubliette.core.limits import MAX_SCHEDULES
from oubliette.core.model import Json, rfc3339
from oubliette.core.schedule_rows import PAUSE_TEXTS, PauseReason, ScheduleRow, TargetRow
from oubliette.errors import Limit, RequestError
from oubliette.store import cursors, runs, webhooks
from oubliette.store.codec import Table, from_micros, to_micros
from oubliette.store.database import Tx

TOPIC: Final = "schedules"
"""``Store.hear`` of it: the schedule with that id, or one of its runs, has changed."""

_SCHEDULES = Table("schedules", ScheduleRow)
_TARGETS = Table("schedule_targets", TargetRow)


def insert(tx: Tx, row: ScheduleRow) -> None:
    """Raises RequestError limit_reached."""
    used = tx.rows("SELECT count(*) FROM schedules")[0][0]
    if used >= MAX_SCHEDULES:
        raise RequestError(
            "limit_reached",
            f"There may be {MAX_SCHEDULES} schedules; {used} exist.",
            hint="Delete one with schedule delete, or give one more targets.",
            limit=Limit("schedules", MAX_SCHEDULES, used),
        )
    _SCHEDULES.insert(tx, row)
    tx.tell(TOPIC, row.schedule_id)


def get(tx: Tx, schedule_id: str) -> ScheduleRow | None:
    return _SCHEDULES.find(tx, "WHERE t.schedule_id = ?", schedule_id)


def list_page(
    tx: Tx, *, project_id: str | None = None, limit: int, cursor: str | None = None, bound_to: str = ""
) -> tuple[list[ScheduleRow], str | None]:
    """Newest first. ``project_id``: those with a target in it."""
    filters = ["schedules", project_id, bound_to]
    conditions: list[str] = []
    args: list[Any] = []
    if project_id is not None:
        conditions.append("t.schedule_id IN (SELECT schedule_id FROM schedule_targets WHERE project_id = ?)")
        args.append(project_id)
    if cursor is not None:
        conditions.append("(t.created_at, t.schedule_id) < (?, ?)")
        args += cursors.decode(cursor, filters, (int, str))
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    rows = _SCHEDULES.list(tx, where + "ORDER BY t.created_at DESC, t.schedule_id DESC LIMIT ?", *args, limit + 1)
    return cursors.page(rows, limit, lambda row: (to_micros(row.created_at), row.schedule_id), filters)


def update(tx: Tx, schedule_id: str, **fields: Any) -> bool:
    """Set columns. False: there is none."""
    tx.tell(TOPIC, schedule_id)
    return _SCHEDULES.update(tx, "schedule_id = ?", [schedule_id], fields) == 1


def put(tx: Tx, row: ScheduleRow) -> None:
    """Write a changed row as a whole."""
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "schedule_id"}
    update(tx, row.schedule_id, **fields)


def delete(tx: Tx, schedule_id: str) -> bool:
    """The row with its targets and its history."""
    tx.tell(TOPIC, schedule_id)
    return tx.run("DELETE FROM schedules WHERE schedule_id = ?", schedule_id) == 1


def count(tx: Tx, project_id: str) -> int:
    """How many have a target in the project."""
    found = tx.rows("SELECT count(DISTINCT schedule_id) FROM schedule_targets WHERE project_id = ?", project_id)
    return int(found[0][0])


# --- what is due


def due(tx: Tx, at: datetime) -> list[str]:
    """Those with something to do by then, the longest waiting first."""
    rows = tx.rows("SELECT schedule_id FROM schedules WHERE due_at <= ? ORDER BY due_at, schedule_id", to_micros(at))
    return [row[0] for row in rows]


def next_due(tx: Tx) -> datetime | None:
    """When there is something to do; None: nothing is planned."""
    rows = tx.rows("SELECT due_at FROM schedules WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1")
    return from_micros(rows[0][0]) if rows else None


def active(tx: Tx) -> list[str]:
    """Those that are neither disabled nor paused; ids alone, because a message may be long."""
    rows = tx.rows(
        "SELECT schedule_id FROM schedules WHERE enabled AND paused IS NULL ORDER BY created_at, schedule_id"
    )
    return [row[0] for row in rows]


def accounted_beyond(tx: Tx, at: datetime) -> list[str]:
    """Active ones whose occurrences are accounted for until later than ``at``."""
    rows = tx.rows("SELECT schedule_id FROM schedules WHERE due_at IS NOT NULL AND accounted_until > ?", to_micros(at))
    return [row[0] for row in rows]


def shelve(tx: Tx, schedule_id: str) -> None:
    """Nothing is due of a row that cannot be read: it would be tried for ever."""
    tx.run("UPDATE schedules SET next_at = NULL, due_at = NULL WHERE schedule_id = ?", schedule_id)


# --- targets


def add_target(tx: Tx, row: TargetRow) -> None:
    _TARGETS.insert(tx, row)


def targets(tx: Tx, schedule_id: str) -> list[TargetRow]:
    """In the order in which they were given."""
    return _TARGETS.list(tx, "WHERE t.schedule_id = ? ORDER BY t.position, t.target_id", schedule_id)


def target(tx: Tx, target_id: str) -> TargetRow | None:
    return _TARGETS.find(tx, "WHERE t.target_id = ?", target_id)


def update_target(tx: Tx, target_id: str, **fields: Any) -> bool:
    """Set columns. False: there is none."""
    return _TARGETS.update(tx, "target_id = ?", [target_id], fields) == 1


def remove_target(tx: Tx, target_id: str) -> bool:
    """Its runs stay."""
    return tx.run("DELETE FROM schedule_targets WHERE target_id = ?", target_id) == 1


def projects_of(tx: Tx, schedule_id: str) -> set[str]:
    """The projects of its targets."""
    return {row[0] for row in tx.rows("SELECT project_id FROM schedule_targets WHERE schedule_id = ?", schedule_id)}


def pinned(tx: Tx, session_id: str) -> bool:
    """Whether some target's runs continue that session."""
    return bool(tx.rows("SELECT 1 FROM schedule_targets WHERE session_id = ?", session_id))


# --- pausing


def pause(tx: Tx, row: ScheduleRow, reason: PauseReason, at: datetime, text: str | None = None) -> bool:
    """Nothing is due any more and what waits will not run; ``schedule update enabled`` ends it. False: it was."""
    if row.paused is not None:
        return False
    shown: Json = {"reason": reason, "since": rfc3339(at), "text": text or PAUSE_TEXTS[reason]}
    update(tx, row.schedule_id, paused=shown, next_at=None, due_at=None, updated_at=at)
    runs.cancel_waiting(tx, row.schedule_id, reason="paused", at=at)
    about: Json = {"schedule_id": row.schedule_id, "reason": reason}
    for project_id in sorted(projects_of(tx, row.schedule_id)):
        webhooks.add(tx, "schedule.paused", project_id, about, at)
    return True


def pause_for(
    tx: Tx,
    reason: PauseReason,
    at: datetime,
    *,
    token_id: str | None = None,
    project_id: str | None = None,
    workspace_id: str | None = None,
    text: str | None = None,
) -> list[str]:
    """Pause every schedule whose runs have that token's rights, or that has a target there. Returns their ids."""
    found = _SCHEDULES.list(
        tx,
        "WHERE t.paused IS NULL AND (t.authority = ? OR EXISTS (SELECT 1 FROM schedule_targets g"
        " WHERE g.schedule_id = t.schedule_id AND (g.project_id = ? OR g.workspace_id = ?)))"
        " ORDER BY t.created_at, t.schedule_id",
        token_id,
        project_id,
        workspace_id,
    )
    return [row.schedule_id for row in found if pause(tx, row, reason, at, text)]


def project_deleted(tx: Tx, project_id: str, at: datetime) -> None:
    """Its targets go; a schedule that has no other is paused. What waits to run there is cancelled."""
    affected = _SCHEDULES.list(
        tx, "WHERE t.schedule_id IN (SELECT schedule_id FROM schedule_targets WHERE project_id = ?)", project_id
    )
    runs.cancel_waiting(tx, None, project_id=project_id, reason="project_deleted", at=at)
    for row in affected:
        if projects_of(tx, row.schedule_id) == {project_id}:
            pause(tx, row, "project_deleted", at)
        tx.tell(TOPIC, row.schedule_id)
    tx.run("DELETE FROM schedule_targets WHERE project_id = ?", project_id)


def workspace_deleted(tx: Tx, workspace_id: str, at: datetime) -> None:
    """Its schedules are paused; their targets name the project alone from now on, which enabling them accepts. One
    that would then be there twice goes."""
    pause_for(tx, "workspace_deleted", at, workspace_id=workspace_id)
    tx.run(
        "DELETE FROM schedule_targets WHERE workspace_id = ? AND EXISTS (SELECT 1 FROM schedule_targets o WHERE"
        " o.schedule_id = schedule_targets.schedule_id AND o.project_id = schedule_targets.project_id"
        " AND o.workspace_id IS NULL)",
        workspace_id,
    )
    tx.run("UPDATE schedule_targets SET workspace_id = NULL WHERE workspace_id = ?", workspace_id)
