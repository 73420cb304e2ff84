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
    child_spawned_event,
    completion_event,
    status_event,
    system_event,
    turn_queued_event,
    turn_started_event,
)
from oubliette.core.limits import MAX_QUEUED_MESSAGES
from oubliette.core.model import (
    Autonomy,
    EventType,
    Json,
    NewEvent,
    Outcome,
    PlaceState,
    Principal,
    Reason,
    Reasoning,
    SessionRow,
    SessionStatus,
    TurnRow,
    TurnStatus,
)
from oubliette.core.session_state import SessionEvent
from oubliette.errors import Limit, RequestError
from oubliette.session.ask_units import resolve_request
from oubliette.session.limits import check_room, check_tree
from oubliette.session.requests import SpawnArgs, TurnArgs
from oubliette.session.status import move, require_session
from oubliette.store import attachments, events, model_requests, projects, requests, sessions, turns, workspaces
from oubliette.store.attachments import AttachmentRow
from oubliette.store.database import Tx

TITLE_LENGTH = 80


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a spawn decided before its unit runs: identities, the chosen model and limits."""

    session_id: str
    project_id: str
    workspace_id: str
    principal: Principal
    args: SpawnArgs
    model: str
    autonomy: Autonomy
    reasoning: Reasoning
    limits: Json
    at: datetime


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message that is now durable: its session, its turn, and whether the session is new or was resumed."""

    row: SessionRow
    turn: TurnRow
    created: bool
    resumed: bool
    queue_position: int
    workspace_created: bool = False


def spawn(tx: Tx, new: NewSession) -> Accepted:
    """A new session with its first turn queued, or an idle one of the same place and kind of caller resumed."""
    project = projects.get(tx, new.project_id)
    if project is None or project.state in (PlaceState.DELETING, PlaceState.FAILED):
        raise RequestError("not_found", f"There is no usable project {new.project_id!r}.", field="project_id")
    workspace = workspaces.get(tx, new.workspace_id)
    if workspace is None or workspace.project_id != new.project_id:
        raise RequestError("not_found", f"There is no workspace {new.workspace_id!r}.", field="workspace_id")
    if workspace.state in (PlaceState.DELETING, PlaceState.FAILED):
        raise RequestError("conflict", f"The workspace is {workspace.state}.", field="workspace_id")
    args = new.args
    if not args.new_session and args.parent_id is None and args.external_id is None:
        found = sessions.resumable(tx, new.workspace_id, str(new.principal.scope))
        if found is not None:
            accepted = enqueue(tx, found.session_id, args.turn, new.principal, new.at)
            return replace(accepted, resumed=True)
    if args.external_id is not None:
        taken, _ = sessions.list_page(tx, project_id=new.project_id, external_id=args.external_id, limit=1)
        if taken:
            raise RequestError(
                "conflict",
                f"external_id {args.external_id!r} belongs to another session of the project.",
                field="external_id",
                candidates=[taken[0].session_id],
            )
    check_room(tx)
    parent = require_session(tx, args.parent_id) if args.parent_id else None
    if parent is not None:
        if parent.ending is not None or not parent.open:
            raise RequestError("conflict", "The parent is being ended or has ended.", field="parent_id")
        if parent.project_id != new.project_id:
            raise RequestError("conflict", "A tree stays in one project.", field="project_id")
        check_tree(tx, parent)
    root_id = parent.root_id if parent else new.session_id
    settings: Json = {"principal_scope": str(new.principal.scope)}
    turn_settings = overrides_of(args.turn)
    for key in ("system", "tools_allowed", "tools_disallowed", "timeout_minutes"):
        if key in turn_settings:
            settings[key] = turn_settings.pop(key)
    if args.context is not None:
        settings["context"] = args.context
    row = SessionRow(
        session_id=new.session_id,
        project_id=new.project_id,
        workspace_id=new.workspace_id,
        root_id=root_id,
        depth=parent.depth + 1 if parent else 0,
        title=args.title or title_of(args.turn.message),
        created_by=new.principal.as_json(),
        status=SessionStatus.STARTING,
        since=new.at,
        model=new.model,
        autonomy=new.autonomy,
        reasoning=new.reasoning,
        created_at=new.at,
        updated_at=new.at,
        parent_id=args.parent_id,
        external_id=args.external_id,
        source=args.source,
        detached=args.detach,
        settings=settings,
        limits=new.limits,
    )
    sessions.insert(tx, row)
    workspaces.update(tx, new.workspace_id, last_session_at=new.at)
    if parent is not None:
        spawned = child_spawned_event(None, row.session_id, row.title)
        events.append(tx, parent.session_id, replace(spawned, ts=new.at))
    events.append(tx, row.session_id, replace(status_event(None, row.status), ts=new.at))
    accepted = enqueue(tx, row.session_id, args.turn, new.principal, new.at, overrides=turn_settings)
    return replace(accepted, created=True)


def title_of(message: str) -> str:
    """The first words of a message, one line."""
    line = " ".join(message.split())
    printable = "".join(c for c in line if c.isprintable())
    return printable if len(printable) <= TITLE_LENGTH else printable[: TITLE_LENGTH - 1].rstrip() + "…"


def overrides_of(args: TurnArgs) -> Json:
    """The overrides of a message as its turn row keeps them; what was not given is absent."""
    given = {
        "model": args.model,
        "autonomy": args.autonomy,
        "reasoning": args.reasoning,
        "tools_allowed": list(args.tools_allowed) if args.tools_allowed is not None else None,
        "tools_disallowed": list(args.tools_disallowed) if args.tools_disallowed is not None else None,
        "system": args.system,
        "timeout_minutes": args.timeout_minutes,
        "at_most_minutes": args.at_most_minutes,
    }
    return {key: value for key, value in given.items() if value is not None}


def enqueue(
    tx: Tx, session_id: str, args: TurnArgs, sender: Principal, at: datetime, *, overrides: Json | None = None
) -> Accepted:
    """One more message for a session, behind those that wait; opens the session again when it was not open."""
    row = require_session(tx, session_id)
    if row.ending is not None and row.open:
        raise RequestError("conflict", "The session is being ended.", hint="Send the message again when it has ended.")
    waiting = turns.queued_count(tx, session_id)
    if waiting >= MAX_QUEUED_MESSAGES:
        raise RequestError(
            "queue_full",
            f"{MAX_QUEUED_MESSAGES} messages wait already.",
            hint="Wait for some, or drop them with session update drop_queued.",
            retryable=True,
            limit=Limit("queued_messages", MAX_QUEUED_MESSAGES, waiting),
        )
    if not row.open:
        project = projects.get(tx, row.project_id)
        if project is None or project.state is PlaceState.DELETING:
            raise RequestError("conflict", "The project of this session is being deleted.")
        check_room(tx)
        sessions.update(tx, session_id, ending=None, error=None)
        events.append(tx, session_id, replace(system_event("reopened"), ts=at))
        row = replace(row, ending=None)
    row = move(tx, row, SessionEvent.MESSAGED, at)
    number = row.turn + 1
    turn = TurnRow(
        session_id=session_id,
        turn=number,
        status=TurnStatus.QUEUED,
        sender=sender.as_json(),
        prompt=args.message,
        queued_at=at,
        overrides=overrides if overrides is not None else overrides_of(args),
    )
    turns.insert(tx, turn)
    files = [AttachmentRow(one.filename, one.content_type, one.data) for one in args.attachments]
    attachments.insert(tx, session_id, number, files)
    sessions.update(tx, session_id, turn=number, updated_at=at)
    queued = turn_queued_event(number, args.message, args.request_key)
    event = events.append(tx, session_id, replace(queued, ts=at))
    busy = turns.running(tx, session_id) is not None
    row = replace(row, turn=number, last_index=event.index if event else row.last_index)
    return Accepted(row, turn, created=False, resumed=False, queue_position=waiting + (1 if busy else 0))


def begin_turn(tx: Tx, session_id: str, message_id: str, at: datetime) -> tuple[SessionRow, TurnRow] | None:
    """Claim the next queued turn: from now on it runs. None: nothing is queued, or the session is being ended."""
    row = require_session(tx, session_id)
    if row.ending is not None or not row.open:
        return None
    turn = turns.next_queued(tx, session_id)
    if turn is None:
        return None
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
    if row.ending is None and row.open:
        row = move(tx, row, SessionEvent.TURN_STARTED, at)
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
    )
    sessions.update(tx, session_id, updated_at=at)
    row = require_session(tx, session_id)  # settling the asks has moved it
    if row.ending is None and row.open and turns.queued_count(tx, session_id) == 0:
        move(tx, row, SessionEvent.SETTLED, at, end.reason)


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
