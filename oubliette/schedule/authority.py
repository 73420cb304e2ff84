"""Whose rights a schedule's runs have, and whether they still suffice. Each function is a query."""

from __future__ import annotations

from datetime import datetime

from oubliette.core import access
from oubliette.core.access import no_such
from oubliette.core.principals import LOCAL, Principal, Scope
from oubliette.core.schedule_rows import PauseReason, ScheduleRow
from oubliette.errors import RequestError
from oubliette.store import schedules, tokens
from oubliette.store.database import Tx


def of(tx: Tx, principal: Principal) -> str | None:
    """The token that answers for what this principal leaves running; None: the operator, whose own token for the
    command line changes with every start of the daemon. Raises RequestError permission_denied for anybody else."""
    token_id = principal.grant or (principal.id if principal.kind == "token" else None)
    if token_id is None and principal.kind != "local":
        raise RequestError("permission_denied", f"A {principal.kind} may not leave schedules running.")
    row = tokens.get(tx, token_id) if token_id is not None else None
    return None if row is not None and row.kind == "cli" else token_id


def missing(tx: Tx, token_id: str | None, project_id: str, at: datetime) -> PauseReason | None:
    """Why that token's rights do not allow a run in the project; None: they do."""
    if token_id is None:
        return None
    row = tokens.get(tx, token_id)
    if row is None or row.revoked_at is not None:
        return "token_revoked"
    if row.expires_at is not None and row.expires_at <= at:
        return "token_expired"
    holder = Principal("token", row.token_id, row.name, access.parse_scope(row.scope))
    try:
        access.check(holder, "schedule.trigger", project_id)
    except RequestError:
        return "permission_denied"
    return None


def holder(tx: Tx, token_id: str | None) -> Principal:
    """Who answers, as far as it matters what a run may cost: whether an admin does."""
    if token_id is None:
        return LOCAL
    row = tokens.get(tx, token_id)
    scope = access.parse_scope(row.scope) if row is not None else Scope("project")
    return Principal("token", token_id, row.name if row is not None else "", scope)


def seen(tx: Tx, principal: Principal, schedule_id: str, action: str) -> ScheduleRow:
    """The schedule, if the principal may read one of its targets. Raises RequestError not_found."""
    row = schedules.get(tx, schedule_id)
    if row is None:
        raise no_such("schedule")
    places = schedules.projects_of(tx, schedule_id)
    if principal.scope.is_admin or principal.scope.project_id in places:
        access.check(principal, action, principal.scope.project_id)
        return row
    raise no_such("schedule")


def writable(tx: Tx, principal: Principal, schedule_id: str, action: str) -> ScheduleRow:
    """The schedule, if the principal may write to every target. Raises RequestError not_found, permission_denied."""
    row = seen(tx, principal, schedule_id, action)
    if not principal.scope.is_admin and schedules.projects_of(tx, schedule_id) != {principal.scope.project_id}:
        raise RequestError(
            "permission_denied",
            "The schedule has targets in other projects.",
            hint="It needs write access to every one of them.",
        )
    return row
