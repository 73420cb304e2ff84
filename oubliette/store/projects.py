"""Projects: settings and state."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from oubliette import clock
from oubliette.core.model import Json, PlaceState, ProjectRow
from oubliette.errors import Limit, RequestError
from oubliette.store import cursors, schedules
from oubliette.store.codec import Table, to_micros
from oubliette.store.database import Tx

MAX_PROJECTS = 1_000

_PROJECTS = Table("projects", ProjectRow)


def insert(tx: Tx, row: ProjectRow) -> None:
    """Raises RequestError limit_reached at 1,000 projects."""
    used = tx.rows("SELECT count(*) FROM projects")[0][0]
    if used >= MAX_PROJECTS:
        raise RequestError(
            "limit_reached",
            f"There may be {MAX_PROJECTS} projects; {used} exist.",
            hint="Delete one with project delete.",
            limit=Limit("projects", MAX_PROJECTS, used),
        )
    _PROJECTS.insert(tx, row)


def get(tx: Tx, project_id: str) -> ProjectRow | None:
    return _PROJECTS.find(tx, "WHERE t.project_id = ?", project_id)


def by_name(tx: Tx, name: str) -> list[ProjectRow]:
    """All of that name (names need not be unique), newest first."""
    return _PROJECTS.list(tx, "WHERE t.name = ? ORDER BY t.created_at DESC, t.project_id DESC", name)


def in_states(tx: Tx, states: list[PlaceState]) -> list[ProjectRow]:
    """All projects in one of these states, oldest first: what a restart has to finish."""
    marks = ", ".join("?" * len(states))
    return _PROJECTS.list(tx, f"WHERE t.state IN ({marks}) ORDER BY t.created_at", *[state.value for state in states])


def list_page(
    tx: Tx,
    *,
    project_id: str | None = None,
    name_contains: str | None = None,
    limit: int,
    cursor: str | None = None,
    bound_to: str = "",
) -> tuple[list[ProjectRow], str | None]:
    """Newest first. ``project_id`` narrows to one project (a project token's view)."""
    filters = ["projects", project_id, name_contains, bound_to]
    conditions: list[str] = []
    args: list[Any] = []
    if project_id is not None:
        conditions.append("t.project_id = ?")
        args.append(project_id)
    if name_contains is not None:
        conditions.append("instr(lower(t.name), lower(?)) > 0")
        args.append(name_contains)
    if cursor is not None:
        conditions.append("(t.created_at, t.project_id) < (?, ?)")
        args += cursors.decode(cursor, filters, (int, str))
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    rows = _PROJECTS.list(tx, where + "ORDER BY t.created_at DESC, t.project_id DESC LIMIT ?", *args, limit + 1)
    return cursors.page(rows, limit, lambda row: (to_micros(row.created_at), row.project_id), filters)


def update(tx: Tx, project_id: str, **fields: Any) -> bool:
    """Set columns; ``updated_at`` is now unless given. False: there is none."""
    fields.setdefault("updated_at", clock.now())
    return _PROJECTS.update(tx, "project_id = ?", [project_id], fields) == 1


def set_state(tx: Tx, project_id: str, state: PlaceState, error: Json | None, at: datetime) -> bool:
    return update(tx, project_id, state=state, error=error, updated_at=at)


def delete(tx: Tx, project_id: str) -> bool:
    """The row and everything that hangs on it: workspaces, containers, sessions with turns, events and requests."""
    return tx.run("DELETE FROM projects WHERE project_id = ?", project_id) == 1


def counts(tx: Tx, project_id: str) -> dict[str, int]:
    """``workspaces``, ``sessions``, ``open`` (sessions), ``schedules``."""
    workspaces = tx.rows("SELECT count(*) FROM workspaces WHERE project_id = ?", project_id)[0][0]
    sessions, still_open = tx.rows(
        "SELECT count(*), coalesce(sum(status NOT IN ('completed', 'failed', 'cancelled')), 0)"
        " FROM sessions WHERE project_id = ?",
        project_id,
    )[0]
    return {
        "workspaces": workspaces,
        "sessions": sessions,
        "open": still_open,
        "schedules": schedules.count(tx, project_id),
    }
