"""Moving a session from state to state: the one function that writes a status."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from oubliette.core import session_state
from oubliette.core.model import OPEN_STATUSES, EventType, Json, NewEvent, Reason, SessionRow, SessionStatus
from oubliette.errors import RequestError
from oubliette.store import events, sessions
from oubliette.store.database import Tx


def require_session(tx: Tx, session_id: str) -> SessionRow:
    row = sessions.get(tx, session_id)
    if row is None:
        raise no_session(session_id)
    return row


def no_session(session_id: str) -> RequestError:
    return RequestError(
        "not_found", f"There is no session {session_id[:64]!r}.", hint="See session list.", field="session_id"
    )


def set_status(
    tx: Tx, row: SessionRow, to: SessionStatus, at: datetime, reason: Reason | None = None, **data: Any
) -> SessionRow:
    """Move a session to another state, with its ``status`` event; nothing happens when it is there already."""
    if row.status == to and row.reason == reason:
        return row
    session_state.require_transition(row.status, to)
    change: Json = {"from": str(row.status), "to": str(to)}
    if reason is not None:
        change["reason"] = str(reason)
    body: Json = {"status": change}
    if data:
        body["data"] = data
    ended = None if to in OPEN_STATUSES else at
    sessions.update(tx, row.session_id, status=to, reason=reason, since=at, updated_at=at, ended_at=ended)
    events.append(tx, row.session_id, NewEvent(EventType.STATUS, row.turn or None, body, ts=at))
    return replace(row, status=to, reason=reason, since=at, updated_at=at, ended_at=ended)
