"""The writes about asks: what an agent wants to know, from the pending entry to the one answer that wins."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from oubliette.core.events import request_event, request_resolved_event
from oubliette.core.model import (
    Json,
    Reason,
    RequestKind,
    RequestRow,
    SessionRow,
    SessionStatus,
    rfc3339,
)
from oubliette.core.session_state import SessionEvent
from oubliette.errors import RequestError
from oubliette.session.status import move, require_session
from oubliette.store import events, requests
from oubliette.store.database import Tx


def open_request(tx: Tx, session_id: str, request: RequestRow, at: datetime) -> RequestRow | None:
    """The agent asks: a pending entry, an event, and the session waits.

    Returns the entry that is open now: the given one, or the one of before when the agent repeats itself (after a
    restart). None: it was settled before.
    """
    row = require_session(tx, session_id)
    event = events.append(tx, session_id, replace(request_event(request), source=f"ask:{request.agent_ref}", ts=at))
    if event is None:
        known = requests.pending(tx, session_id)
        return next((one for one in known if one.agent_ref == request.agent_ref), None)
    requests.insert(tx, request)
    if row.ending is None and row.open and not _held(row):
        move(tx, row, SessionEvent.ASKED, at, Reason(str(request.kind)))
    return request


def still_pending(tx: Tx, session_id: str, turn: int, at: datetime) -> list[RequestRow]:
    """The agent's asks of that turn that nobody has settled; with any the session waits again."""
    agents = {RequestKind.PERMISSION, RequestKind.QUESTION}
    found = [one for one in requests.pending(tx, session_id) if one.turn == turn and one.kind in agents]
    row = require_session(tx, session_id)
    if found and row.status is SessionStatus.RUNNING and row.ending is None:
        move(tx, row, SessionEvent.ASKED, at, Reason(str(found[-1].kind)))
    return found


def pause_for_ask(tx: Tx, session_id: str, kind: RequestKind, at: datetime) -> None:
    """Nobody answered in time and the project wants to be asked: the session rests until somebody does."""
    row = require_session(tx, session_id)
    if row.status is SessionStatus.WAITING and row.ending is None:
        move(tx, row, SessionEvent.HELD, at, Reason(str(kind)))


def resolve_request(tx: Tx, request_id: str, resolution: Json, at: datetime) -> tuple[bool, RequestRow]:
    """Settle an ask: the first call wins, later ones learn what won. The session goes on when nothing else waits."""
    known = requests.get(tx, request_id)
    if known is None:
        raise RequestError("not_found", f"There is no request {request_id[:64]!r}.", field="request_id")
    stored = {"request_id": request_id, "resolved_at": rfc3339(at), **resolution}
    won, row = requests.resolve(tx, request_id, stored)
    if row is None:
        raise RuntimeError("a request vanished within one unit")
    if not won:
        return False, row
    events.append(tx, row.session_id, replace(request_resolved_event(row, stored), ts=at))
    session = require_session(tx, row.session_id)
    if session.ending is None and not requests.pending(tx, row.session_id):
        if session.status is SessionStatus.WAITING:
            move(tx, session, SessionEvent.ANSWERED, at)
        elif session.status is SessionStatus.PAUSED and not _held(session):
            move(tx, session, SessionEvent.RELEASED, at)
    return True, row


def _held(row: SessionRow) -> bool:
    """By its tree's budget: asks wait behind that, and show when it is released."""
    return row.status is SessionStatus.PAUSED and row.reason is Reason.BUDGET
