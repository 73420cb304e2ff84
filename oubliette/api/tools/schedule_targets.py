"""Where a schedule runs: what a call says of it, and who may do what to a schedule of several projects.

Writing needs write on every target. Reading needs read on one of them; targets of other projects are then left out. A
schedule of which a caller may read nothing does not exist for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from oubliette.api.tools.fields import invalid, is_id, shown
from oubliette.core import access
from oubliette.core.access import Need
from oubliette.core.limits import MAX_SCHEDULE_TARGETS
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.schedule.requests import TargetArgs
from oubliette.store import projects, schedules, workspaces
from oubliette.store.database import Tx

_MEMBERS: Final = ("project_id", "workspace_id")


def parse_targets(principal: Principal, given: Sequence[Any]) -> list[TargetArgs]:
    """Targets as a caller writes them; ``project_id`` may be left out by a token of one project. Raises RequestError
    invalid_argument or too_large."""
    if not given:
        raise invalid("targets", "must name at least one place: {project_id, workspace_id?}")
    if len(given) > MAX_SCHEDULE_TARGETS:
        raise invalid("targets", f"holds more than {MAX_SCHEDULE_TARGETS}", code="too_large")
    return [_target(principal, number, one) for number, one in enumerate(given, 1)]


def _target(principal: Principal, number: int, one: dict[str, Any]) -> TargetArgs:
    unknown = sorted(name for name in one if name not in _MEMBERS and not name.startswith("_"))
    if unknown:
        raise invalid("targets", f"{number} has no member {shown(unknown[0])}; it takes project_id, workspace_id")
    for name in _MEMBERS:
        value = one.get(name)
        if value is not None and not (isinstance(value, str) and is_id(value)):
            raise invalid("targets", f"{number} has a {name} that is no id: {shown(value)}")
    project_id = one.get("project_id") or principal.scope.project_id
    if project_id is None:
        raise invalid("targets", f"{number} needs a project_id")
    return TargetArgs(project_id, one.get("workspace_id"))


def check_targets(tx: Tx, principal: Principal, action: str, given: Sequence[Any]) -> list[TargetArgs]:
    """Every one of them must be there and the caller's. Raises RequestError; unknown, foreign and deleted look
    alike."""
    targets = parse_targets(principal, given)
    for target in targets:
        project = projects.get(tx, target.project_id)
        try:
            access.check(principal, action, project.project_id if project else None)
        except RequestError as error:
            raise (access.no_such("project") if error.code == "not_found" else error) from None
        if project is None:
            raise access.no_such("project")
        if target.workspace_id is not None:
            workspace = workspaces.get(tx, target.workspace_id)
            if workspace is None or workspace.project_id != project.project_id:
                raise access.no_such("workspace")
    return targets


def check_schedule(tx: Tx, principal: Principal, action: str, schedule_id: str) -> str | None:
    """Raises RequestError not_found (unknown, foreign, deleted) or permission_denied. Returns a project of it that the
    caller may read, when there is one."""
    of = sorted(schedules.projects_of(tx, schedule_id)) if schedules.get(tx, schedule_id) is not None else None
    readable = [project_id for project_id in of or () if _allows(principal, "schedule.get", project_id)]
    if of is None or not (readable or (principal.scope.is_admin and access.may_ever(principal, action))):
        access.check(principal, action, None)  # says what this scope may never do
        raise access.no_such("schedule")
    if access.TABLE[action].need is Need.READ:
        return readable[0] if readable else None
    for project_id in of:
        try:
            access.check(principal, action, project_id)
        except RequestError as error:
            if error.code != "not_found":
                raise
            raise RequestError(
                "permission_denied",
                "This schedule also runs in projects that this token does not reach.",
                hint="Changing it needs write on all of its targets.",
            ) from None
    return readable[0] if readable else None


def _allows(principal: Principal, action: str, project_id: str) -> bool:
    try:
        access.check(principal, action, project_id)
    except RequestError:
        return False
    return True
