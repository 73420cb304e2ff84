"""A message becomes durable: a new session, one resumed, one more in the queue. Each function is a unit of the store.

Every limit that may refuse a message is checked here, in the unit that writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from oubliette.core.events import (
    child_spawned_event,
    status_event,
    system_event,
    turn_queued_event,
)
from oubliette.core.limits import MAX_QUEUED_MESSAGES
from oubliette.core.model import Autonomy, Json, PlaceState, Reasoning, SessionRow, SessionStatus, TurnRow, TurnStatus
from oubliette.core.principals import Principal
from oubliette.core.session_state import SessionEvent
from oubliette.errors import Limit, RequestError
from oubliette.session import budgets, caller_units
from oubliette.session.limits import check_room, check_tree, check_wake, may_wake
from oubliette.session.requests import SpawnArgs, TurnArgs
from oubliette.session.status import move, require_session
from oubliette.store import attachments, events, projects, sessions, turns, workspaces
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
    resumes = not args.new_session and args.parent_id is None
    if resumes and args.external_id is None and args.max_cost_usd is None:
        found = sessions.resumable(tx, new.workspace_id, str(new.principal.scope))
        if found is not None and may_wake(tx, found) and not budgets.is_spent(tx, found.root_id):
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
    # A token never resumes what an agent of the same scope has started.
    made_by = "agent " if new.principal.kind == "agent" else ""
    settings: Json = {"principal_scope": made_by + str(new.principal.scope)}
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
        schedule_id=new.principal.id if new.principal.kind == "schedule" else None,
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
        "run_budget": {"max_cost_usd": args.run_budget.max_cost_usd} if args.run_budget is not None else None,
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
    check_wake(tx, row)
    if args.run_budget is None:
        budgets.check_left(tx, row.root_id)
    if not row.open:
        project = projects.get(tx, row.project_id)
        if project is None or project.state is PlaceState.DELETING:
            raise RequestError("conflict", "The project of this session is being deleted.")
        parent = sessions.get(tx, row.parent_id) if row.parent_id and not row.detached else None
        if parent is not None and parent.open and parent.ending is not None:
            raise RequestError("conflict", "The session above it is being ended.", hint="Send the message again later.")
        check_room(tx)
        sessions.update(tx, session_id, ending=None, error=None)
        events.append(tx, session_id, replace(system_event("reopened"), ts=at))
        row = replace(row, ending=None)
    if args.caller is not None:
        caller_units.declare(tx, row, sender, args.caller, at)
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
