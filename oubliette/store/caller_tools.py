"""The tools that callers have declared for their sessions: one row for each caller of a session."""

# ruff: noqa: S608  # statements are put together from constants; values are always bound

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from oubliette.core.model import Json, RequestRow
from oubliette.store.codec import Table, from_micros, to_micros
from oubliette.store.database import Tx


@dataclass(frozen=True, slots=True)
class CallerToolsRow:
    """``tools`` as declared: {name, description, input_schema}. ``principal_id`` is the token that declared them."""

    session_id: str
    caller_id: str
    principal_id: str
    tools: list[Json]
    declared_at: datetime

    def tool(self, name: str) -> Json | None:
        return next((tool for tool in self.tools if tool["name"] == name), None)


_ROWS = Table("caller_tools", CallerToolsRow)
_REQUESTS = Table("requests", RequestRow)
_OPEN = "SELECT session_id FROM sessions WHERE +project_id = ? AND status NOT IN ('completed', 'failed', 'cancelled')"
"""The plus keeps SQLite to the index of open sessions: a project has many more that have ended."""


def put(tx: Tx, row: CallerToolsRow) -> None:
    """In place of what that caller of the session had declared before."""
    delete(tx, row.session_id, row.caller_id)
    _ROWS.insert(tx, row)


def delete(tx: Tx, session_id: str, caller_id: str) -> None:
    tx.run("DELETE FROM caller_tools WHERE session_id = ? AND caller_id = ?", session_id, caller_id)


def get(tx: Tx, session_id: str, caller_id: str) -> CallerToolsRow | None:
    return _ROWS.find(tx, "WHERE t.session_id = ? AND t.caller_id = ?", session_id, caller_id)


def of_session(tx: Tx, session_id: str) -> list[CallerToolsRow]:
    return _ROWS.list(tx, "WHERE t.session_id = ? ORDER BY t.caller_id", session_id)


def of_principal(tx: Tx, principal_id: str) -> list[CallerToolsRow]:
    return _ROWS.list(tx, "WHERE t.principal_id = ? ORDER BY t.session_id, t.caller_id", principal_id)


def in_place(tx: Tx, project_id: str, workspace_id: str | None, caller_id: str) -> list[CallerToolsRow]:
    """Of the open sessions of a workspace (None: of the project), the newest declaration first."""
    where = "" if workspace_id is None else " AND +workspace_id = ?"
    return _ROWS.list(
        tx,
        f"WHERE t.caller_id = ? AND t.session_id IN ({_OPEN}{where}) ORDER BY t.declared_at DESC, t.session_id",
        caller_id,
        project_id,
        *([] if workspace_id is None else [workspace_id]),
    )


def caller_ids(tx: Tx, project_id: str, workspace_id: str | None = None) -> list[str]:
    """Everybody who has tools in an open session of the project, or of one workspace of it."""
    where = "" if workspace_id is None else " AND +workspace_id = ?"
    found = tx.rows(
        f"SELECT DISTINCT caller_id FROM caller_tools WHERE session_id IN ({_OPEN}{where}) ORDER BY caller_id",
        project_id,
        *([] if workspace_id is None else [workspace_id]),
    )
    return [caller_id for (caller_id,) in found]


def ended_principals(tx: Tx, at: datetime) -> tuple[list[str], datetime | None]:
    """Those who have declared tools and whose token is gone, revoked or expired; when the next other one expires."""
    ended, expiries = [], []
    for principal_id, gone, expires_at in tx.rows(
        "SELECT DISTINCT c.principal_id, t.token_id IS NULL OR t.revoked_at IS NOT NULL, t.expires_at"
        " FROM caller_tools c LEFT JOIN tokens t ON t.token_id = c.principal_id"
    ):
        if gone or (expires_at is not None and expires_at <= to_micros(at)):
            ended.append(principal_id)
        elif expires_at is not None:
            expiries.append(expires_at)
    return ended, from_micros(min(expiries)) if expiries else None


def pending_calls(tx: Tx, session_id: str | None = None) -> list[RequestRow]:
    """Calls that nobody has answered yet, oldest first: of one session, or all."""
    where = "" if session_id is None else " AND +t.session_id = ?"
    return _REQUESTS.list(
        tx,
        f"WHERE t.kind = 'caller_tool' AND t.resolution IS NULL{where} ORDER BY t.created_at, t.request_id",
        *([] if session_id is None else [session_id]),
    )
