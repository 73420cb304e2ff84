"""Workspaces: the directories in which agents work."""

from __future__ import annotations

import json
from collections.abc import Collection
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
            hint="An operator deletes some with workspace delete, once their sessions are ended; "
            "a child can also work in its parent's (workspace: parent).",
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
    tx: Tx,
    project_id: str | None,
    limit: int,
    cursor: str | None = None,
    *,
    ids: Collection[str] | None = None,
    bound_to: str = "",
) -> tuple[list[WorkspaceRow], str | None]:
    """Newest first; ``project_id`` None: of all projects. ``ids`` narrows to these; the cursor outlives a change of
    them."""
    filters = ["workspaces", project_id, ids is not None, bound_to]
    conditions: list[str] = []
    args: list[Any] = []
    if project_id is not None:
        conditions.append("t.project_id = ?")
        args.append(project_id)
    if ids is not None:
        conditions.append("t.workspace_id IN (SELECT value FROM json_each(?))")
        args.append(json.dumps(sorted(ids)))
    if cursor is not None:
        conditions.append("(t.created_at, t.workspace_id) < (?, ?)")
        args += cursors.decode(cursor, filters, (int, str))
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    rows = _WORKSPACES.list(tx, where + "ORDER BY t.created_at DESC, t.workspace_id DESC LIMIT ?", *args, limit + 1)
    return cursors.page(rows, limit, lambda row: (to_micros(row.created_at), row.workspace_id), filters)


def made_by_tree(tx: Tx, root_id: str) -> list[tuple[str, str]]:
    """(workspace_id, session_id) for each workspace that a session of that tree has made."""
    rows = tx.rows(
        "SELECT w.workspace_id, s.session_id FROM sessions s JOIN workspaces w"
        " ON w.project_id = s.project_id AND w.created_by ->> '$.id' = s.session_id"
        " WHERE s.root_id = ? AND w.created_by ->> '$.kind' IN ('session', 'agent')",
        root_id,
    )
    return [(row[0], row[1]) for row in rows]


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
