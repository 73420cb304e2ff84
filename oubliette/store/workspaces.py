"""Workspaces: the directories in which agents work."""

from __future__ import annotations

from typing import Any

import apsw

from oubliette.core.model import PlaceState, WorkspaceRow
from oubliette.errors import Limit, RequestError
from oubliette.store import cursors
from oubliette.store.codec import Table, to_micros
from oubliette.store.constraints import broke_unique
from oubliette.store.database import Tx

MAX_PER_PROJECT = 100

_WORKSPACES = Table("workspaces", WorkspaceRow)


def insert(tx: Tx, row: WorkspaceRow) -> None:
    """Raises RequestError limit_reached at 100 of a project, conflict when the external_id is taken."""
    used = tx.rows("SELECT count(*) FROM workspaces WHERE project_id = ?", row.project_id)[0][0]
    if used >= MAX_PER_PROJECT:
        raise RequestError(
            "limit_reached",
            f"A project may have {MAX_PER_PROJECT} workspaces; {used} exist.",
            hint="Delete one with workspace delete.",
            limit=Limit("workspaces_per_project", MAX_PER_PROJECT, used),
        )
    try:
        _WORKSPACES.insert(tx, row)
    except apsw.ConstraintError as error:
        if not broke_unique(error, "external_id"):
            raise
        taken = f"A workspace of this project has the external_id {row.external_id!r}."
        raise RequestError("conflict", taken, field="external_id") from error


def get(tx: Tx, workspace_id: str) -> WorkspaceRow | None:
    return _WORKSPACES.find(tx, "WHERE t.workspace_id = ?", workspace_id)


def of_project(tx: Tx, project_id: str) -> list[WorkspaceRow]:
    """All of them, oldest first."""
    return _WORKSPACES.list(tx, "WHERE t.project_id = ? ORDER BY t.created_at, t.workspace_id", project_id)


def in_states(tx: Tx, states: list[PlaceState]) -> list[WorkspaceRow]:
    """All workspaces in one of these states: what a restart has to finish."""
    marks = ", ".join("?" * len(states))
    return _WORKSPACES.list(tx, f"WHERE t.state IN ({marks}) ORDER BY t.created_at", *[state.value for state in states])


def list_page(
    tx: Tx, project_id: str, limit: int, cursor: str | None = None, *, bound_to: str = ""
) -> tuple[list[WorkspaceRow], str | None]:
    """Newest first."""
    filters = ["workspaces", project_id, bound_to]
    where, args = "WHERE t.project_id = ? ", [project_id]
    if cursor is not None:
        where += "AND (t.created_at, t.workspace_id) < (?, ?) "
        args += cursors.decode(cursor, filters, (int, str))
    rows = _WORKSPACES.list(tx, where + "ORDER BY t.created_at DESC, t.workspace_id DESC LIMIT ?", *args, limit + 1)
    return cursors.page(rows, limit, lambda row: (to_micros(row.created_at), row.workspace_id), filters)


def update(tx: Tx, workspace_id: str, **fields: Any) -> bool:
    """Set columns. False: there is none."""
    return _WORKSPACES.update(tx, "workspace_id = ?", [workspace_id], fields) == 1


def delete(tx: Tx, workspace_id: str) -> bool:
    """The row and everything that hangs on it."""
    return tx.run("DELETE FROM workspaces WHERE workspace_id = ?", workspace_id) == 1


def open_sessions(tx: Tx, workspace_id: str) -> int:
    return int(
        tx.rows(
            "SELECT count(*) FROM sessions"
            " WHERE workspace_id = ? AND status NOT IN ('completed', 'failed', 'cancelled')",
            workspace_id,
        )[0][0]
    )
