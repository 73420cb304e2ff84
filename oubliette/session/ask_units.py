"""The writes about asks: what an agent wants to know, from the pending entry to the one answer that wins."""

from __future__ import annotations

from datetime import datetime

from oubliette.core.model import (
    EventType,
    Json,
    NewEvent,
    Reason,
    RequestKind,
    RequestRow,
    SessionStatus,
    rfc3339,
)
from oubliette.errors import RequestError
from oubliette.session.status import require_session, set_status
from oubliette.store import events, requests
from oubliette.store.database import Tx


def open_request(tx: Tx, session_id: str, number: int, request: RequestRow, at: datetime) -> RequestRow | None:
    """The agent asks: a pending entry, an event, and the session waits.

    Returns the entry that is open now: the given one, or the one of before when the agent repeats itself (after a
    restart). None: it was settled before.
    """
    row = require_session(tx, session_id)
    body: Json = {"request": request_shape(request)}
    types = {
        RequestKind.PERMISSION: EventType.PERMISSION_REQUEST,
        RequestKind.QUESTION: EventType.QUESTION,
        RequestKind.CALLER_TOOL: EventType.CALLER_TOOL_REQUEST,
    }
    event = events.append(
        tx, session_id, NewEvent(types[request.kind], number, body, source=f"ask:{request.agent_ref}", ts=at)
    )
    if event is None:
        known = requests.pending(tx, session_id)
        return next((one for one in known if one.agent_ref == request.agent_ref), None)
    requests.insert(tx, request)
    if row.ending is None and row.open:
        set_status(tx, row, SessionStatus.WAITING, at, Reason(str(request.kind)))
    return request


def pause_for_ask(tx: Tx, session_id: str, kind: RequestKind, at: datetime) -> None:
    """Nobody answered in time and the project wants to be asked: the session rests until somebody does."""
    row = require_session(tx, session_id)
    if row.status is SessionStatus.WAITING and row.ending is None:
        set_status(tx, row, SessionStatus.PAUSED, at, Reason(str(kind)))


def resolve_request(tx: Tx, request_id: str, resolution: Json, at: datetime) -> tuple[bool, RequestRow]:
    """Settle an ask: the first call wins, later ones learn what won. The session goes on when nothing else waits."""
    known = requests.get(tx, request_id)
    if known is None:
        raise RequestError("not_found", f"There is no request {request_id[:64]!r}.", field="request_id")
    stored = {"request_id": request_id, "resolved_at": rfc3339(at), **resolution}
    won, row = requests.resolve(tx, request_id, stored)
    if not won:
        return False, row
    body: Json = {"request": {"request_id": request_id}, "resolution": stored}
    events.append(tx, row.session_id, NewEvent(EventType.REQUEST_RESOLVED, row.turn, body, ts=at))
    session = require_session(tx, row.session_id)
    resting = session.status in (SessionStatus.WAITING, SessionStatus.PAUSED)
    if resting and session.ending is None and not requests.pending(tx, row.session_id):
        set_status(tx, session, SessionStatus.RUNNING, at)
    return True, row


def request_shape(request: RequestRow) -> Json:
    """SHAPES' Request."""
    key = {"permission": "permission", "question": "questions", "caller_tool": "caller_tool"}[str(request.kind)]
    return {
        "request_id": request.request_id,
        "kind": str(request.kind),
        "session_id": request.session_id,
        "turn": request.turn,
        "created_at": rfc3339(request.created_at),
        "expires_at": rfc3339(request.expires_at),
        "on_expiry": request.on_expiry,
        key: request.body if key != "questions" else request.body.get("questions", []),
    }
