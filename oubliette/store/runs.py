"""Runs: one row for each occurrence of a schedule's target, and for each gap of missed ones."""

# ruff: noqa: S608  # statements are put together from constants and column names; values are always bound

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from oubliette.core.schedule_rows import RunRow, RunStatus
from oubliette.store import cursors
from oubliette.store.codec import Table, from_micros, to_json, to_micros
from oubliette.store.database import Tx

_RUNS = Table("runs", RunRow)
_OPEN = "t.status IN ('claimed', 'queued', 'running')"


def insert(tx: Tx, row: RunRow) -> bool:
    """Claim the occurrence. False: it, or a gap that it lies in, has its row already."""
    planned = to_micros(row.planned_at)
    if row.trigger == "cron" and tx.rows(
        "SELECT 1 FROM runs WHERE schedule_id = ? AND target_id = ? AND planned_at <= ? AND until >= ?",
        row.schedule_id,
        row.target_id,
        planned,
        planned,
    ):
        return False
    if tx.rows(
        'SELECT 1 FROM runs WHERE schedule_id = ? AND target_id = ? AND planned_at = ? AND "trigger" = ?',
        row.schedule_id,
        row.target_id,
        planned,
        row.trigger,
    ):
        return False
    _RUNS.insert(tx, row)
    return True


def get(tx: Tx, run_id: str) -> RunRow | None:
    return _RUNS.find(tx, "WHERE t.run_id = ?", run_id)


def update(tx: Tx, run_id: str, **fields: Any) -> bool:
    """Set columns. False: there is none."""
    return _RUNS.update(tx, "run_id = ?", [run_id], fields) == 1


def list_page(
    tx: Tx,
    schedule_id: str,
    *,
    project_id: str | None = None,
    status: RunStatus | None = None,
    limit: int,
    cursor: str | None = None,
    bound_to: str = "",
) -> tuple[list[RunRow], str | None]:
    """Newest claim first."""
    filters = ["runs", schedule_id, project_id, status, bound_to]
    conditions, args = ["t.schedule_id = ?"], [schedule_id]
    for column, value in (("project_id", project_id), ("status", status)):
        if value is not None:
            conditions.append(f"t.{column} = ?")
            args.append(str(value))
    bounds: list[Any] = []
    if cursor is not None:
        conditions.append("(t.claimed_at, t.run_id) < (?, ?)")
        bounds = cursors.decode(cursor, filters, (int, str))
    tail = f"WHERE {' AND '.join(conditions)} ORDER BY t.claimed_at DESC, t.run_id DESC LIMIT ?"
    rows = _RUNS.list(tx, tail, *args, *bounds, limit + 1)
    return cursors.page(rows, limit, lambda row: (to_micros(row.claimed_at), row.run_id), filters)


def last_of_target(tx: Tx, target_id: str) -> RunRow | None:
    """Its newest one."""
    return _RUNS.find(tx, "WHERE t.target_id = ? ORDER BY t.claimed_at DESC, t.run_id DESC LIMIT 1", target_id)


def latest_by_hand(tx: Tx, schedule_id: str) -> datetime | None:
    """When the newest run that was asked for by hand was planned."""
    row = _RUNS.find(
        tx, "WHERE t.schedule_id = ? AND t.\"trigger\" = 'manual' ORDER BY t.planned_at DESC LIMIT 1", schedule_id
    )
    return row.planned_at if row is not None else None


def open_of_target(tx: Tx, target_id: str) -> list[RunRow]:
    """Claimed, queued and running ones, in the order in which they were planned."""
    return _RUNS.list(tx, f"WHERE t.target_id = ? AND {_OPEN} ORDER BY t.planned_at, t.run_key", target_id)


def at_work(tx: Tx, session_ids: Collection[str] | None = None) -> list[RunRow]:
    """Claimed and running ones: those that a session has. ``session_ids``: only of these sessions."""
    if session_ids is None:
        # Named, because SQLite would rather read all runs that there ever were than sort a few.
        return _RUNS.list(tx, f"INDEXED BY runs_open WHERE {_OPEN} AND t.session_id IS NOT NULL ORDER BY t.run_key")
    return _RUNS.list(
        tx,
        f"WHERE {_OPEN} AND t.session_id IN (SELECT value FROM json_each(?)) ORDER BY t.run_key",
        to_json(sorted(session_ids)),
    )


def waiting(tx: Tx) -> list[RunRow]:
    """Queued ones, in the order in which they were planned."""
    return _RUNS.list(tx, f"WHERE {_OPEN} AND t.status = 'queued' ORDER BY t.planned_at, t.run_key")


def cancel_waiting(tx: Tx, schedule_id: str | None, *, reason: str, at: datetime, project_id: str | None = None) -> int:
    """End what is queued and was not asked for by hand: of a schedule, or all that would run in a project."""
    return tx.run(
        # The first condition is the index's own: with it only open runs are looked at, not all that there were.
        "UPDATE runs SET status = 'cancelled', reason = ?, ended_at = ?"
        " WHERE status IN ('claimed', 'queued', 'running') AND status = 'queued'"
        " AND ((schedule_id = ? AND \"trigger\" = 'cron') OR project_id = ?)",
        reason,
        to_micros(at),
        schedule_id,
        project_id,
    )


def left_open(tx: Tx, session_ids: Collection[str] | None = None) -> list[str]:
    """Open sessions (of these, of all) that were made for one run, which is over and was the last thing in them."""
    # Of all: the first condition is that of the index of open sessions.
    which = "s.status NOT IN ('completed', 'failed', 'cancelled')"
    args = []
    if session_ids is not None:
        which, args = "s.session_id IN (SELECT value FROM json_each(?))", [to_json(sorted(session_ids))]
    rows = tx.rows(
        # CROSS JOIN: these sessions first, and then their runs, never all that there were.
        "SELECT s.session_id FROM sessions s CROSS JOIN runs r ON r.session_id = s.session_id AND r.turn = s.turn"
        f" WHERE {which} AND s.status = 'idle' AND s.ending IS NULL"
        " AND s.schedule_id IS NOT NULL AND s.parent_id IS NULL AND r.ended_at IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM schedule_targets g WHERE g.session_id = s.session_id)",
        *args,
    )
    return [row[0] for row in rows]


def planned_beyond(tx: Tx, schedule_id: str, at: datetime) -> list[RunRow]:
    """Those by the clock that were planned for later than ``at``, gaps that reach beyond it included."""
    return _RUNS.list(
        tx,
        "WHERE t.schedule_id = ? AND t.\"trigger\" = 'cron' AND (t.planned_at > ? OR t.until > ?) ORDER BY t.run_key",
        schedule_id,
        to_micros(at),
        to_micros(at),
    )


def latest_planned(tx: Tx, schedule_id: str, at: datetime) -> datetime | None:
    """The newest occurrence up to ``at`` that has its row."""
    found = tx.rows(
        "SELECT max(coalesce(until, planned_at)) FROM runs"
        " WHERE schedule_id = ? AND \"trigger\" = 'cron' AND coalesce(until, planned_at) <= ?",
        schedule_id,
        to_micros(at),
    )[0][0]
    return from_micros(found) if found is not None else None


def forget(tx: Tx, run_id: str) -> None:
    """As if there had been no such occurrence."""
    tx.run("DELETE FROM runs WHERE run_id = ?", run_id)


def prune(tx: Tx, schedule_id: str, keep: int) -> int:
    """Keep the newest of a schedule, and what is open. Returns how many went."""
    return tx.run(
        "DELETE FROM runs WHERE schedule_id = ? AND ended_at IS NOT NULL AND (claimed_at, run_id) <="
        " (SELECT claimed_at, run_id FROM runs WHERE schedule_id = ? ORDER BY claimed_at DESC, run_id DESC"
        " LIMIT 1 OFFSET ?)",
        schedule_id,
        schedule_id,
        keep,
    )
