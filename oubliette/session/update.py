"""Changing a session while it lives: what it is called, how it works on, what its tree may use. One unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from oubliette.config import Config
from oubliette.core.budget import MICROUSD, Account, LimitName, microusd
from oubliette.core.events import system_event
from oubliette.core.model import Autonomy, Json, ProjectRow, Reasoning, SessionRow, SessionStatus
from oubliette.core.principals import Principal
from oubliette.core.session_state import SessionEvent
from oubliette.errors import Limit, RequestError
from oubliette.project.settings import check_settings, effective_limits
from oubliette.session import budgets, choices, units
from oubliette.session.status import move, require_session
from oubliette.store import budgets as budget_rows
from oubliette.store import events, projects, sessions, turns
from oubliette.store.database import Tx

TREE_LIMITS = (
    "max_cost_usd",
    "max_tokens_per_session",
    "max_agents_per_session",
    "max_active_sessions",
    "max_recursion_depth",
)
"""Limits that a tree has for itself; the others are its project's."""

Release = Callable[[Tx, str, datetime], None]


@dataclass(frozen=True, slots=True)
class UpdateArgs:
    """What is to change; None leaves it. ``limits`` by name, None in it means the project's own again."""

    session_id: str
    title: str | None = None
    model: str | None = None
    autonomy: Autonomy | None = None
    reasoning: Reasoning | None = None
    timeout_minutes: float | None = None
    limits: Mapping[str, Any] | None = None
    drop_queued: bool = False


def update(tx: Tx, config: Config, principal: Principal, args: UpdateArgs, at: datetime, release: Release) -> Json:
    """Change all of it or nothing. ``release`` frees a held tree whose raised limit its next request fits in.

    Raises RequestError: not_found, invalid_argument, permission_denied (a limit above what the caller may give).
    """
    row = require_session(tx, args.session_id)
    project = projects.get(tx, row.project_id)
    if project is None:
        raise RequestError("not_found", "The project of this session is gone.")
    changed: Json = {
        name: value
        for name, value in (("title", args.title), ("autonomy", args.autonomy), ("reasoning", args.reasoning))
        if value is not None
    }
    if args.model is not None:
        changed["model"] = choices.choose_model(config, project, args.model)
        choices.check_priced(config, project, args.model, explicit=choices.has_own_cost(config, row))
    if args.timeout_minutes is not None:
        changed["settings"] = {**row.settings, "timeout_minutes": args.timeout_minutes}
    if changed:
        sessions.update(tx, row.session_id, updated_at=at, **changed)
        row = replace(row, **changed)
    if args.limits:
        _set_limits(tx, config, project, principal, row, args.limits, at)
        if _fits_now(tx, row.root_id):
            release(tx, row.root_id, at)
    dropped = _drop(tx, row, at) if args.drop_queued else None
    return _result(tx, row.session_id, dropped)


def _set_limits(
    tx: Tx,
    config: Config,
    project: ProjectRow,
    principal: Principal,
    row: SessionRow,
    asked: Mapping[str, Any],
    at: datetime,
) -> None:
    if row.depth > 0:
        raise RequestError(
            "invalid_argument",
            "Limits are those of a whole tree.",
            hint=f"Change them on its root, {row.root_id}.",
            field="limits",
            candidates=[row.root_id],
        )
    if principal.kind in ("session", "agent"):
        raise RequestError("permission_denied", "An agent may not change limits.", field="limits")
    new = _checked(config, project, row, asked)
    ceiling = effective_limits(config, project.settings)
    for name, value in new.items():
        most, now = ceiling.get(name), row.limits.get(name)
        if principal.scope.is_admin or most is None or (value is not None and value <= max(most, now or 0)):
            continue
        raise RequestError(
            "permission_denied",
            f"{name} of a session may be at most the project's, which is {most:g}.",
            hint="An admin may set more, here or for the project.",
            field="limits",
            limit=Limit(name, most, now if now is not None else most),
        )
    before = {name: row.limits.get(name) for name in new}
    money, run_limit = new.get("max_cost_usd"), budget_rows.get(tx, row.session_id).run_limit_microusd
    of_the_run = microusd(money) if money is not None and run_limit is not None else run_limit
    if before == new and of_the_run == run_limit:
        return
    for one in sessions.subtree(tx, row.session_id):
        limits = {name: value for name, value in {**one.limits, **new}.items() if value is not None}
        sessions.update(tx, one.session_id, limits=limits, updated_at=at)
    if run_limit is not None and of_the_run != run_limit:
        budget_rows.set_run_limit(tx, row.session_id, of_the_run)
        before["max_cost_usd"] = run_limit / MICROUSD
    data = {"limits": _present(new), "before": _present(before), "by": principal.as_json()}
    events.append(tx, row.session_id, replace(system_event("limits_changed", data=data), ts=at))


def _present(limits: Json) -> Json:
    return {name: value for name, value in limits.items() if value is not None}


def _checked(config: Config, project: ProjectRow, row: SessionRow, asked: Mapping[str, Any]) -> Json:
    """The new values; what goes back to the project's is looked up."""
    for name in asked:
        if name not in TREE_LIMITS:
            raise RequestError(
                "invalid_argument",
                f"limits.{str(name)[:64]} is no limit of a session.",
                hint=f"There are: {', '.join(TREE_LIMITS)}.",
                field="limits",
            )
    checked: Json = check_settings(config, {"limits": dict(asked)})["limits"]
    if checked.get("max_cost_usd") is not None:
        choices.check_priced(config, project, row.model, explicit=True)
    own = effective_limits(config, project.settings)
    return {name: own.get(name) if value is None else value for name, value in checked.items()}


def _fits_now(tx: Tx, root_id: str) -> bool:
    """Whether what a held tree's next request takes is there now, as far as its tree is concerned."""
    held = budget_rows.get(tx, root_id).held
    if held is None:
        return False
    name = LimitName(held["name"])
    if name is LimitName.DAY_COST:
        return False
    account: Account | None = budgets.remaining(tx, root_id).get(name)
    if account is None:
        return True
    needed = microusd(held["needed"]) if name.is_money else held["needed"]
    return bool(account.limit - account.used >= needed)


def _drop(tx: Tx, row: SessionRow, at: datetime) -> int:
    dropped = units.drop_queued(tx, row.session_id, at)
    row = require_session(tx, row.session_id)
    waits_for_nothing = row.open and row.ending is None and turns.running(tx, row.session_id) is None
    if dropped and waits_for_nothing and row.status is not SessionStatus.IDLE:
        move(tx, row, SessionEvent.SETTLED, at)
    return dropped


def _result(tx: Tx, session_id: str, dropped: int | None) -> Json:
    row = require_session(tx, session_id)
    shape: Json = {
        "session_id": row.session_id,
        "project_id": row.project_id,
        "root_id": row.root_id,
        "title": row.title,
        "status": str(row.status),
        "model": row.model,
        "autonomy": str(row.autonomy),
        "reasoning": str(row.reasoning),
        "limits": row.limits,
    }
    if row.reason is not None:
        shape["reason"] = str(row.reason)
    if "timeout_minutes" in row.settings:
        shape["timeout_minutes"] = row.settings["timeout_minutes"]
    if dropped is not None:
        shape["dropped"] = dropped
    return shape
