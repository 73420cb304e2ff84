"""Moving a session from state to state: the one function that writes a status."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from oubliette.core.events import status_event
from oubliette.core.model import OPEN_STATUSES, Json, Reason, SessionRow
from oubliette.core.session_state import SessionEvent, transition
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


def move(
    tx: Tx,
    row: SessionRow,
    happened: SessionEvent,
    at: datetime,
    reason: Reason | None = None,
    *,
    data: Json | None = None,
) -> SessionRow:
    """Let something happen to a session's status, with its ``status`` event (``data`` goes into it); no event when
    nothing changes."""
    to = transition(row.status, happened)
    if row.status == to and reason in (None, row.reason):
        return row
    ended = None if to in OPEN_STATUSES else at
    sessions.update(tx, row.session_id, status=to, reason=reason, since=at, updated_at=at, ended_at=ended)
    event = status_event(row.status, to, reason, turn=row.turn or None, data=data)
    events.append(tx, row.session_id, replace(event, ts=at))
    return replace(row, status=to, reason=reason, since=at, updated_at=at, ended_at=ended)
