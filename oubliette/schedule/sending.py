"""The message of a run: to the session that its target has pinned, or to a new one. Part of the unit of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from oubliette.config import Config
from oubliette.core.model import PlaceState, SessionRow, session_id
from oubliette.core.principals import Principal, Scope
from oubliette.core.schedule_rows import Bound, ScheduleRow, TargetRow
from oubliette.errors import RequestError
from oubliette.schedule import authority
from oubliette.session import choices, orders
from oubliette.session.orders import Order
from oubliette.session.requests import MessageArgs, RunBudget, SpawnArgs, TurnArgs
from oubliette.store import projects, schedules, sessions, workspaces
from oubliette.store.database import Tx

PASSES: Final = {
    "limit_reached": "limit",
    "storage_full": "storage",
    "busy": "session_ending",
    "unavailable": "stopping",
}
"""Refusals that pass by themselves, and what a run that waits for that gives as its reason."""


@dataclass(frozen=True, slots=True)
class Ways:
    """What the units of this room need besides rows. ``watch`` is called with each session that gets a run, after the
    commit; ``refusal``: why nothing new may begin at present."""

    config: Config
    fresh_hex: Callable[[int], str]
    watch: Callable[[str], None]
    refusal: RequestError | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """The run's message is in the queue of that session."""

    row: SessionRow
    turn: int
    bound: Bound


def send(tx: Tx, ways: Ways, schedule: ScheduleRow, target: TargetRow, at: datetime) -> Sent:
    """Raises RequestError, after which the caller undoes what was written (``Tx.attempt``)."""
    if ways.refusal is not None:
        raise ways.refusal
    principal = Principal(
        "schedule", schedule.schedule_id, schedule.name, Scope("project", project_id=target.project_id)
    )
    order = Order(ways.config, principal, session_id(at, ways.fresh_hex(8)), at)
    most = schedule.max_cost_microusd
    turn = TurnArgs(
        schedule.message,
        model=schedule.model,
        timeout_minutes=schedule.timeout_minutes,
        run_budget=RunBudget(most / 1_000_000 if most is not None else None),
    )
    resumes = schedule.session_behavior == "resume"
    pinned = _usable(tx, target) if resumes else None
    _check_budget(tx, ways, schedule, target, pinned)
    if pinned is not None:
        if pinned.open and pinned.ending is not None:
            raise RequestError("busy", "The pinned session is being ended.", retryable=True)
        minutes = turn.timeout_minutes or _minutes_of(tx, ways, target)
        asked_again = MessageArgs(replace(turn, timeout_minutes=minutes))
        accepted, _ = orders.message(tx, order, pinned.session_id, asked_again)
        return Sent(accepted.row, accepted.turn.turn, "pinned" if pinned.open else "resumed")
    asked = SpawnArgs(turn, target.project_id, target.workspace_id, new_session=True, title=schedule.name)
    accepted, _ = orders.spawn(tx, order, target.project_id, target.workspace_id, asked, False)
    if resumes:
        schedules.update_target(tx, target.target_id, session_id=accepted.row.session_id)
    replaces = resumes and target.session_id is not None
    return Sent(accepted.row, accepted.turn.turn, "replaced" if replaces else "new")


def _check_budget(tx: Tx, ways: Ways, schedule: ScheduleRow, target: TargetRow, pinned: SessionRow | None) -> None:
    """What a run may cost must still be allowed, and can still be kept: the project's limit and the prices may have
    changed since it was said. Raises RequestError."""
    project = projects.get(tx, target.project_id)
    if project is None or schedule.max_cost_microusd is None:
        return
    choices.check_cost(
        ways.config, project, authority.holder(tx, schedule.authority), schedule.max_cost_microusd / 1_000_000
    )
    alias = schedule.model or (pinned.model if pinned is not None else None)
    choices.check_priced(ways.config, project, alias or choices.choose_model(ways.config, project), explicit=True)


def _minutes_of(tx: Tx, ways: Ways, target: TargetRow) -> float | None:
    """The project's time limit of a turn, said each time: the session has kept that of the run it was made for."""
    project = projects.get(tx, target.project_id)
    return choices.limits_of(ways.config, project)["turn_timeout_seconds"] / 60 if project is not None else None


def _usable(tx: Tx, target: TargetRow) -> SessionRow | None:
    """The pinned session, if it is still there, and where the target wants it."""
    row = sessions.get(tx, target.session_id) if target.session_id is not None else None
    if row is None or row.project_id != target.project_id or target.workspace_id not in (None, row.workspace_id):
        return None
    place = workspaces.get(tx, row.workspace_id)
    gone = place is None or place.state in (PlaceState.DELETING, PlaceState.FAILED)
    return None if gone else row
