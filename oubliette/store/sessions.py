"""Sessions: rows of the tree. ``last_index`` and ``last_seq`` live beside the events (``event_logs``)."""

# ruff: noqa: S608  # statements are put together from constants and column names; values are always bound

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import apsw

from oubliette import clock
from oubliette.core.model import SessionRow, SessionStatus
from oubliette.errors import RequestError
from oubliette.store import cursors
from oubliette.store.codec import Table, to_micros
from oubliette.store.constraints import broke_foreign_key, broke_unique
from oubliette.store.database import Tx

_SESSIONS = Table(
    "sessions",
    SessionRow,
    source="sessions t JOIN event_logs l ON l.session_key = t.session_key",
    computed={"last_index": "l.last_index", "last_seq": "l.last_seq"},
)
_OPEN = "t.status NOT IN ('completed', 'failed', 'cancelled')"
_BELOW = (
    "WITH RECURSIVE below (session_id) AS (VALUES (?)"
    " UNION SELECT s.session_id FROM sessions s JOIN below b ON s.parent_id = b.session_id)"
    " SELECT session_id FROM below"
)
"""A session's id and those of all its descendants."""


def insert(tx: Tx, row: SessionRow) -> None:
    """With its empty event log. Raises RequestError conflict when the external_id is taken, not_found when its
    workspace or parent is gone."""
    if not tx.rows("SELECT 1 FROM workspaces WHERE workspace_id = ?", row.workspace_id):
        raise RequestError("not_found", "The workspace of this session is gone.")
    try:
        _SESSIONS.insert(tx, row)
    except apsw.ConstraintError as error:
        if broke_foreign_key(error):
            raise RequestError("not_found", "The project or parent of this session is gone.") from error
        if not broke_unique(error, "external_id"):
            raise
        taken = f"A session of this project has the external_id {row.external_id!r}."
        raise RequestError("conflict", taken, field="external_id") from error
    tx.run(
        "INSERT INTO event_logs (session_key, root_key, project_id, root_id)"
        " SELECT t.session_key, r.session_key, t.project_id, t.root_id"
        " FROM sessions t JOIN sessions r ON r.session_id = t.root_id WHERE t.session_id = ?",
        row.session_id,
    )


def get(tx: Tx, session_id: str) -> SessionRow | None:
    return _SESSIONS.find(tx, "WHERE t.session_id = ?", session_id)


def by_external_id(tx: Tx, project_id: str, external_id: str) -> SessionRow | None:
    return _SESSIONS.find(tx, "WHERE t.project_id = ? AND t.external_id = ?", project_id, external_id)


def list_page(
    tx: Tx,
    *,
    project_id: str | None = None,
    workspace_id: str | None = None,
    status: Sequence[SessionStatus] | Literal["open"] | None = None,
    root_id: str | None = None,
    parent_id: str | None = None,
    external_id: str | None = None,
    source: str | None = None,
    below: str | None = None,
    limit: int,
    cursor: str | None = None,
    bound_to: str = "",
) -> tuple[list[SessionRow], str | None]:
    """Newest first. ``below`` narrows to a session and all its descendants; ``bound_to`` is the principal that a
    cursor is good for."""
    equal = {
        "project_id": project_id,
        "workspace_id": workspace_id,
        "root_id": root_id,
        "parent_id": parent_id,
        "external_id": external_id,
        "source": source,
    }
    filters = ["sessions", equal, status, below, bound_to]
    conditions = [f"t.{column} = ?" for column, value in equal.items() if value is not None]
    args: list[Any] = [value for value in equal.values() if value is not None]
    if status == "open":
        conditions.append(_OPEN)
    elif status is not None:
        conditions.append(f"t.status IN ({', '.join('?' * len(status))})")
        args += [SessionStatus(one).value for one in status]
    if below is not None:
        conditions.append(f"t.session_id IN ({_BELOW})")
        args.append(below)
    if cursor is not None:
        conditions.append("(t.created_at, t.session_id) < (?, ?)")
        args += cursors.decode(cursor, filters, (int, str))
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    rows = _SESSIONS.list(tx, where + "ORDER BY t.created_at DESC, t.session_id DESC LIMIT ?", *args, limit + 1)
    return cursors.page(rows, limit, lambda row: (to_micros(row.created_at), row.session_id), filters)


def subtree(tx: Tx, session_id: str) -> list[SessionRow]:
    """The session and all its descendants, depth first, siblings in order of creation."""
    rows = _SESSIONS.list(
        tx,
        f"WHERE t.session_id IN ({_BELOW}) ORDER BY t.created_at DESC, t.session_key DESC",
        session_id,
    )
    children: dict[str | None, list[SessionRow]] = {}
    waiting = []
    for row in rows:
        if row.session_id == session_id:
            waiting.append(row)
        else:
            children.setdefault(row.parent_id, []).append(row)
    ordered = []
    while waiting:
        row = waiting.pop()
        ordered.append(row)
        waiting += children.get(row.session_id, ())
    return ordered


def children(tx: Tx, session_id: str) -> list[SessionRow]:
    """Its direct children, oldest first."""
    return _SESSIONS.list(tx, "WHERE t.parent_id = ? ORDER BY t.created_at, t.session_key", session_id)


def ancestors(tx: Tx, session_id: str) -> list[str]:
    """Its own id, its parent's, … the root's."""
    rows = tx.rows(
        "WITH RECURSIVE above (session_id, parent_id) AS ("
        " SELECT session_id, parent_id FROM sessions WHERE session_id = ?"
        " UNION ALL SELECT s.session_id, s.parent_id FROM sessions s JOIN above a ON s.session_id = a.parent_id)"
        " SELECT session_id FROM above",
        session_id,
    )
    return [row[0] for row in rows]


def children_counts(tx: Tx, session_id: str) -> dict[str, int]:
    """``total`` and ``open`` of its direct children."""
    total, still_open = tx.rows(
        f"SELECT count(*), coalesce(sum({_OPEN}), 0) FROM sessions t WHERE t.parent_id = ?", session_id
    )[0]
    return {"total": total, "open": still_open}


def update(tx: Tx, session_id: str, **fields: Any) -> bool:
    """Set columns; ``updated_at`` is now unless given. False: there is none."""
    fields.setdefault("updated_at", clock.now())
    return _SESSIONS.update(tx, "session_id = ?", [session_id], fields) == 1


def open_roots(tx: Tx) -> list[SessionRow]:
    return _SESSIONS.list(tx, f"WHERE t.parent_id IS NULL AND {_OPEN} ORDER BY t.created_at, t.session_id")


def open_all(tx: Tx) -> list[SessionRow]:
    """Every open session, parents before their children."""
    return _SESSIONS.list(tx, f"WHERE {_OPEN} ORDER BY t.depth, t.created_at, t.session_id")


def open_count(tx: Tx) -> int:
    return int(tx.rows(f"SELECT count(*) FROM sessions t WHERE {_OPEN}")[0][0])


def resumable(tx: Tx, workspace_id: str, scope: str) -> SessionRow | None:
    """The newest settled root session of the workspace: open, idle, not ending, nothing queued or asked, not pinned
    by a schedule, and made by a principal of exactly this scope (``settings.principal_scope``)."""
    return _SESSIONS.find(
        tx,
        "WHERE t.workspace_id = ? AND t.status = 'idle' AND t.ending IS NULL AND t.parent_id IS NULL"
        " AND t.schedule_id IS NULL AND t.settings ->> '$.principal_scope' = ?"
        " AND t.created_by ->> '$.kind' IN ('token', 'local')"
        " AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.session_id = t.session_id AND turns.status <> 'done')"
        " AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.session_id = t.session_id AND resolution IS NULL)"
        " ORDER BY t.created_at DESC, t.session_id DESC LIMIT 1",
        workspace_id,
        scope,
    )


def tree_counts(tx: Tx, root_id: str) -> dict[str, int]:
    """``total``, ``open``, one count for each of ``starting running waiting paused idle failed``, ``max_depth``."""
    counts = dict.fromkeys(("total", "open", "starting", "running", "waiting", "paused", "idle", "failed"), 0)
    deepest = 0
    for status, number, depth in tx.rows(
        "SELECT status, count(*), max(depth) FROM sessions WHERE root_id = ? GROUP BY status", root_id
    ):
        counts["total"] += number
        counts["open"] += 0 if status in {"completed", "failed", "cancelled"} else number
        if status in counts:
            counts[status] += number
        deepest = max(deepest, depth)
    return {**counts, "max_depth": deepest}


def by_agent_id(tx: Tx, project_id: str, workspace_id: str | None, agent_session_id: str) -> SessionRow | None:
    """The session that the agent of that place knows by this id; ``workspace_id`` None: the project's shared place."""
    return _SESSIONS.find(
        tx,
        "WHERE t.agent_session_id = ? AND t.project_id = ? AND (? IS NULL OR t.workspace_id = ?)",
        agent_session_id,
        project_id,
        workspace_id,
        workspace_id,
    )


def open_in_place(tx: Tx, project_id: str, workspace_id: str | None) -> list[SessionRow]:
    """Open sessions that live in that place, oldest first."""
    # The pluses keep SQLite to the index of open sessions: a project has many more that have ended.
    return _SESSIONS.list(
        tx,
        f"WHERE +t.project_id = ? AND (? IS NULL OR +t.workspace_id = ?) AND {_OPEN}"
        " ORDER BY +t.created_at, t.session_id",
        project_id,
        workspace_id,
        workspace_id,
    )


def delete(tx: Tx, session_id: str) -> bool:
    """The row with its turns, events and requests. Raises RequestError conflict while it has children."""
    try:
        return tx.run("DELETE FROM sessions WHERE session_id = ?", session_id) == 1
    except apsw.ConstraintError as error:
        if not broke_foreign_key(error):
            raise
        raise RequestError("conflict", "The session still has children.", hint="Delete them first.") from error
