"""What somebody asks of sessions, settled against what the project, the config and the sender allow; then accepted.

Each function is one unit of the store: what is allowed is read in the transaction that writes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime

from oubliette.config import Config
from oubliette.core import caller_tools
from oubliette.core.model import Json, ProjectRow, SessionRow
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.session import accepting, attenuation, budgets, choices, places, views
from oubliette.session.accepting import Accepted, NewSession
from oubliette.session.limits import check_room
from oubliette.session.requests import MessageArgs, SpawnArgs, TurnArgs
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
    new_workspace_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    """What a workspace would be called that is made for it."""


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
    if principal.kind == "agent":
        args = replace(args, new_session=True)  # what an agent starts is its own, never what somebody else has settled
    if principal.kind == "session":
        caller = attenuation.caller_of(tx, principal.id, order.seconds_left)
        allowed = places.workspaces_of_tree(tx, caller.row.root_id, principal.id)
        args = attenuation.child(caller, args, allowed)
        project_id, workspace_id = args.project_id or project_id, args.workspace_id
    parent = sessions.get(tx, args.parent_id) if args.parent_id is not None else None
    if parent is None:
        places.refuse_without_parent(args)
    else:
        budgets.check_child(tx, parent.root_id)
        made = places.place_for_child(tx, parent, args, order.new_workspace_id, principal.as_json(), order.at)
        workspace_created = workspace_created or made is not None
        workspace_id = made or workspace_id or parent.workspace_id
    project = _require_project(tx, project_id)
    turn = args.turn
    _check_caller(config, principal, project, turn)
    model = choices.choose_model(config, project, turn.model)
    _check_cost(config, principal, project, parent, args, model)
    new = NewSession(
        session_id=order.session_id,
        project_id=project_id,
        workspace_id=workspace_id or project.default_workspace_id,
        principal=principal,
        args=args,
        model=model,
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


def _check_cost(
    config: Config, principal: Principal, project: ProjectRow, parent: SessionRow | None, args: SpawnArgs, model: str
) -> None:
    """A budget is at most what the sender may give, and can be kept."""
    choices.check_cost(config, project, principal, args.max_cost_usd)
    inherited = parent is not None and choices.has_own_cost(config, parent)
    choices.check_priced(config, project, model, explicit=inherited or args.max_cost_usd is not None)


def check_spawn(tx: Tx, config: Config, principal: Principal, project_id: str, args: SpawnArgs) -> None:
    """What would refuse the spawn whatever happens in between. Raises RequestError."""
    project = _require_project(tx, project_id)
    _check_cost(config, principal, project, None, args, choices.choose_model(config, project, args.turn.model))
    if args.turn.caller is not None:
        caller_tools.check_clash(args.turn.caller.caller_id, choices.mcp_servers_of(config, project))
    check_room(tx)


def message(tx: Tx, order: Order, session_id: str, args: MessageArgs) -> tuple[Accepted, Json]:
    """One more turn for that session, with the call's result. Raises RequestError."""
    row = require_session(tx, session_id)
    turn = args.turn
    if order.principal.kind == "session":
        turn = attenuation.message(attenuation.caller_of(tx, order.principal.id, order.seconds_left), row, turn)
    elif order.principal.kind == "agent":
        attenuation.refuse_freedom(tx, order.principal.id, row, turn)
    project = projects.get(tx, row.project_id)
    if project is not None:
        if turn.model is not None:
            choices.choose_model(order.config, project, turn.model)
            own = choices.has_own_cost(order.config, row)
            choices.check_priced(order.config, project, turn.model, explicit=own)
        _check_caller(order.config, order.principal, project, turn)
    accepted = accepting.enqueue(tx, session_id, turn, order.principal, order.at)
    return accepted, views.spawn_result(tx, accepted)


def message_there(tx: Tx, order: Order, project_id: str, args: MessageArgs) -> tuple[Accepted, Json]:
    """One more turn for the one open session of a place; a new session when there is none. Raises RequestError
    ``ambiguous`` with candidates when there are several."""
    fitting = _open_in(tx, project_id, args.workspace_id)
    if not fitting:
        asked = SpawnArgs(args.turn, project_id, args.workspace_id, new_session=True)
        return spawn(tx, order, project_id, args.workspace_id, asked, False)
    if len(fitting) > 1:
        raise RequestError(
            "ambiguous",
            f"{len(fitting)} sessions are open there.",
            hint="Name one with session_id.",
            candidates=fitting[:20],
            field="session_id",
        )
    return message(tx, order, fitting[0], args)


def _open_in(tx: Tx, project_id: str, workspace_id: str | None) -> list[str]:
    """Open root sessions of a place, newest first."""
    _require_project(tx, project_id)
    rows = sessions.open_in_place(tx, project_id, workspace_id)
    return [row.session_id for row in reversed(rows) if row.depth == 0]


def _check_caller(config: Config, principal: Principal, project: ProjectRow, turn: TurnArgs) -> None:
    """Only a client with a token of its own can be called back, and its tools must not be taken for others."""
    if turn.caller is None:
        return
    if principal.kind != "token":
        raise RequestError("permission_denied", "Only a client with a token offers tools.", field="caller_tools")
    caller_tools.check_clash(turn.caller.caller_id, choices.mcp_servers_of(config, project))


def _require_project(tx: Tx, project_id: str) -> ProjectRow:
    project = projects.get(tx, project_id)
    if project is None:
        raise RequestError("not_found", f"There is no project {project_id[:64]!r}.", field="project_id")
    return project
