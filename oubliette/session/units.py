"""The writes of the session layer: each function is one unit of the store, all or nothing.

Every limit, claim, single-winner check and state change of a session happens here, in the unit that writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from oubliette.core.events import (
    child_ended_event,
    completion_event,
    system_event,
    turn_started_event,
)
from oubliette.core.model import (
    EventType,
    Json,
    NewEvent,
    Outcome,
    Reason,
    SessionRow,
    TurnRow,
    TurnStatus,
)
from oubliette.core.session_state import SessionEvent
from oubliette.session import budgets
from oubliette.session.ask_units import resolve_request
from oubliette.session.status import move, require_session
from oubliette.store import changes, events, model_requests, requests, sessions, turns
from oubliette.store.changes import ChangeRow
from oubliette.store.database import Tx


def begin_turn(tx: Tx, session_id: str, message_id: str, at: datetime) -> tuple[SessionRow, TurnRow] | None:
    """Claim the next queued turn: from now on it runs. None: nothing is queued, or the session is being ended."""
    row = require_session(tx, session_id)
    if row.ending is not None or not row.open:
        return None
    turn = turns.next_queued(tx, session_id)
    if turn is None:
        return None
    if "run_budget" in turn.overrides:
        budgets.begin_run(tx, row.root_id, turn.overrides["run_budget"])
    event = events.append(tx, session_id, replace(turn_started_event(turn.turn, turn.prompt), ts=at))
    first = event.index if event else None
    turns.update(
        tx,
        session_id,
        turn.turn,
        status=TurnStatus.RUNNING,
        started_at=at,
        first_index=first,
        agent_message_id=message_id,
    )
    started = replace(turn, status=TurnStatus.RUNNING, started_at=at, first_index=first, agent_message_id=message_id)
    return row, started


def agent_accepts(tx: Tx, session_id: str, agent_session_id: str, at: datetime) -> SessionRow:
    """The agent has a session for this one and is about to get the prompt."""
    row = require_session(tx, session_id)
    if row.agent_session_id != agent_session_id:
        sessions.update(tx, session_id, agent_session_id=agent_session_id)
        row = replace(row, agent_session_id=agent_session_id)
    if row.ending is None and row.open and not budgets.paused(row):
        row = budgets.pause_if_held(tx, move(tx, row, SessionEvent.TURN_STARTED, at), at)
    return row


def append_events(tx: Tx, session_id: str, new: Sequence[NewEvent]) -> None:
    for event in new:
        events.append(tx, session_id, event)


def note_container(tx: Tx, project_id: str, workspace_id: str | None, code: str, data: Json, at: datetime) -> None:
    """A ``system`` event for every session of the place that has a turn running (``workspace_id`` None: all of the
    project's workspaces)."""
    for row in sessions.open_in_place(tx, project_id, workspace_id):
        turn = turns.running(tx, row.session_id)
        if turn is not None:
            events.append(tx, row.session_id, replace(system_event(code, turn=turn.turn, data=data or None), ts=at))


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended, for the one unit that says so."""

    outcome: Outcome
    final_text: str = ""
    files: Sequence[Json] = ()
    files_truncated: bool = False
    error: Json | None = None
    tree_before: str | None = None
    tree_after: str | None = None
    reason: Reason | None = None
    changes: Sequence[ChangeRow] = ()
    """What ``session diff`` shows later."""
    results: Sequence[Json] = ()
    """What lies in the session's results folder: [{path, bytes}]."""


def finish_turn(tx: Tx, session_id: str, number: int, end: TurnEnd, at: datetime) -> None:
    """The turn is over: open asks are settled, files and one completion follow, the session rests or goes on."""
    turn = turns.get(tx, session_id, number)
    if turn is None or turn.status is TurnStatus.DONE:
        return
    for pending in requests.pending(tx, session_id):
        if pending.turn == number:
            resolve_request(tx, pending.request_id, {"how": "cancelled", "accepted": False}, at)
    files: Json = {"files": list(end.files)}
    if end.files_truncated:
        files["files_truncated"] = True
    if end.files:
        events.append(tx, session_id, NewEvent(EventType.FILES, number, files, ts=at))
    usage = model_requests.turn_usage(tx, session_id, number)
    completion = completion_event(number, end.outcome, text=end.final_text, usage=usage, error=end.error)
    completed = events.append(tx, session_id, replace(completion, ts=at))
    turns.update(
        tx,
        session_id,
        number,
        status=TurnStatus.DONE,
        outcome=end.outcome,
        ended_at=at,
        last_index=completed.index if completed else None,
        final_text=end.final_text,
        files=list(end.files),
        error=end.error,
        tree_before=end.tree_before,
        tree_after=end.tree_after,
        results=list(end.results),
    )
    for change in end.changes:
        changes.keep(tx, change)
    sessions.update(tx, session_id, updated_at=at)
    row = require_session(tx, session_id)  # settling the asks has moved it
    if row.ending is None and row.open and turns.queued_count(tx, session_id) == 0:
        move(tx, row, SessionEvent.SETTLED, at, end.reason)
    budgets.rest(tx, row.root_id, at)


def drop_queued(tx: Tx, session_id: str, at: datetime, outcome: Outcome = Outcome.CANCELLED) -> int:
    """Every waiting message ends unheard. Returns how many."""
    dropped = 0
    while (turn := turns.next_queued(tx, session_id)) is not None:
        turns.update(tx, session_id, turn.turn, status=TurnStatus.DONE, outcome=outcome, ended_at=at)
        dropped += 1
    return dropped


def mark_ending(tx: Tx, session_id: str, how: Literal["completed", "cancelled"], at: datetime) -> list[SessionRow]:
    """Step one of ending a subtree: from this commit everything of these sessions is refused.

    Returns the sessions this call took hold of, leaves last; empty when all of it had ended or is ending already. What
    was detached is left alone, with all below it, unless it is cancelled.
    """
    taken = []
    apart: set[str | None] = set()
    for row in sessions.subtree(tx, session_id):
        detached = row.detached and row.session_id != session_id
        if how == "completed" and (detached or row.parent_id in apart):
            apart.add(row.session_id)
            continue
        if not row.open or row.ending is not None:
            continue
        sessions.update(tx, row.session_id, ending=how, updated_at=at)
        drop_queued(tx, row.session_id, at)
        taken.append(replace(row, ending=how))
    return taken


def finish_sessions(tx: Tx, ids: Sequence[str], at: datetime, asked_id: str) -> None:
    """Step three: outcomes, leaves first. A turn that nobody could finish by now is finished here."""
    rows = [row for row in (sessions.get(tx, one) for one in ids) if row is not None]
    for row in sorted(rows, key=lambda r: -r.depth):
        if not row.open:
            continue
        running = turns.running(tx, row.session_id)
        if running is not None:
            finish_turn(tx, row.session_id, running.turn, TurnEnd(Outcome.CANCELLED), at)
        happened = SessionEvent.COMPLETED if row.ending == "completed" else SessionEvent.CANCELLED
        reason = None if row.session_id == asked_id else Reason.ENDED_BY_PARENT
        current = require_session(tx, row.session_id)
        status = move(tx, current, happened, at, reason).status
        if row.parent_id is not None:
            last = turns.get(tx, row.session_id, row.turn)
            outcome = str(last.outcome) if last and last.outcome and row.ending == "completed" else str(status)
            events.append(
                tx,
                row.parent_id,
                replace(child_ended_event(None, row.session_id, row.title, outcome), ts=at),
            )


def deadline_of(row: SessionRow, turn: TurnRow | None) -> timedelta:
    """How long this turn may work: the message's own limit, the session's, the tree's; at most what its sender had."""
    said = {**row.settings, **(turn.overrides if turn is not None else {})}
    seconds = float(row.limits.get("turn_timeout_seconds", 3600))
    if said.get("timeout_minutes") is not None:
        seconds = float(said["timeout_minutes"]) * 60
    if said.get("at_most_minutes") is not None:
        seconds = min(seconds, float(said["at_most_minutes"]) * 60)
    return timedelta(seconds=seconds)
