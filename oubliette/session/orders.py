"""What somebody asks of sessions, settled against what the project, the config and the sender allow; then accepted.

Each function is one unit of the store: what is allowed is read in the transaction that writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from oubliette.config import Config
from oubliette.core.model import Json, Principal, ProjectRow
from oubliette.errors import RequestError
from oubliette.session import accepting, attenuation, choices, views
from oubliette.session.accepting import Accepted, NewSession
from oubliette.session.limits import check_room
from oubliette.session.requests import MessageArgs, SpawnArgs
from oubliette.session.status import require_session
from oubliette.store import projects, sessions
from oubliette.store.database import Tx


@dataclass(frozen=True, slots=True)
class Order:
    """Who asks, when, and what a new session would be called.

    ``seconds_left``: of the running turn of a session that asks; None where that is unknown or nobody's.
    """

    config: Config
    principal: Principal
    session_id: str
    at: datetime
    seconds_left: float | None = None


def spawn(
    tx: Tx,
    order: Order,
    project_id: str,
    workspace_id: str | None,
    args: SpawnArgs,
    workspace_created: bool,
) -> tuple[Accepted, Json]:
    """A new session, or one resumed, with the call's result. Raises RequestError."""
    principal, config = order.principal, order.config
    if principal.kind == "session":
        args = attenuation.child(attenuation.caller_of(tx, principal.id, order.seconds_left), args)
        project_id, workspace_id = args.project_id or project_id, args.workspace_id
    parent = sessions.get(tx, args.parent_id) if args.parent_id is not None else None
    project = _require_project(tx, project_id)
    turn = args.turn
    new = NewSession(
        session_id=order.session_id,
        project_id=project_id,
        workspace_id=workspace_id or project.default_workspace_id,
        principal=principal,
        args=args,
        model=choices.choose_model(config, project, turn.model),
        autonomy=choices.choose_autonomy(config, project, turn.autonomy),
        reasoning=choices.choose_reasoning(config, project, turn.reasoning),
        limits={
            **(parent.limits if parent is not None else choices.limits_of(config, project)),
            **({"max_cost_usd": args.max_cost_usd} if args.max_cost_usd is not None else {}),
        },
        at=order.at,
    )
    accepted = replace(accepting.spawn(tx, new), workspace_created=workspace_created)
    return accepted, views.spawn_result(tx, accepted)


def check_spawn(tx: Tx, config: Config, project_id: str, args: SpawnArgs) -> None:
    """What would refuse the spawn whatever happens in between. Raises RequestError."""
    choices.choose_model(config, _require_project(tx, project_id), args.turn.model)
    check_room(tx)


def message(tx: Tx, order: Order, session_id: str, args: MessageArgs) -> tuple[Accepted, Json]:
    """One more turn for that session, with the call's result. Raises RequestError."""
    row = require_session(tx, session_id)
    turn = args.turn
    if order.principal.kind == "session":
        turn = attenuation.message(attenuation.caller_of(tx, order.principal.id, order.seconds_left), row, turn)
    if turn.model is not None:
        project = projects.get(tx, row.project_id)
        if project is not None:
            choices.choose_model(order.config, project, turn.model)
    accepted = accepting.enqueue(tx, session_id, turn, order.principal, order.at)
    return accepted, views.spawn_result(tx, accepted)


def open_in(tx: Tx, project_id: str, workspace_id: str | None) -> list[str]:
    """Open root sessions of a place, newest first."""
    _require_project(tx, project_id)
    rows = sessions.open_in_place(tx, project_id, workspace_id)
    return [row.session_id for row in reversed(rows) if row.depth == 0]


def _require_project(tx: Tx, project_id: str) -> ProjectRow:
    project = projects.get(tx, project_id)
    if project is None:
        raise RequestError("not_found", f"There is no project {project_id[:64]!r}.", field="project_id")
    return project
