"""What a call is about, looked up in the store, and whether its principal may: asked once, before any handler."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from oubliette.api.tools.fields import Args, invalid
from oubliette.api.tools.schedule_targets import check_schedule, check_targets
from oubliette.core import access
from oubliette.core.model import ProjectRow, SessionRow, WorkspaceRow
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.session import places
from oubliette.store import projects, requests, sessions, workspaces
from oubliette.store.database import Tx

if TYPE_CHECKING:
    from oubliette.api.services import Services


class Target(StrEnum):
    """Which arguments name what a call is about."""

    NONE = "none"
    """Nothing, or everything that the principal may see."""
    PROJECT = "project"
    """``project_id``, or the project of ``workspace_id``, or the principal's own."""
    LISTED = "listed"
    """The same, but none of them means: everything that the principal may see."""
    SESSION = "session"
    SESSIONS = "sessions"
    SESSION_OR_PROJECT = "session or project"
    SESSION_OR_SELF = "session or self"
    """``session_id``; an agent means itself when it names none."""
    SESSION_OR_LISTED = "session or listed"
    """The same, but a token that names none means what it means with ``LISTED``."""
    WORKSPACE = "workspace"
    """``session_id``, or a workspace as with ``PROJECT``; an agent means its own when it names none."""
    REQUEST = "request"
    SCHEDULE = "schedule"
    """``schedule_id``, and for a change the new ``targets`` as well."""
    TARGETS = "targets"
    """All of ``targets``."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a call is about. ``project`` and ``workspace`` are set when the arguments led there."""

    project_id: str | None = None
    project: ProjectRow | None = None
    workspace: WorkspaceRow | None = None
    sessions: tuple[SessionRow, ...] = ()
    target: str | None = None
    """The id that the audit log names."""

    @property
    def session(self) -> SessionRow:
        return self.sessions[0]


NOWHERE: Final = Place()


async def locate(services: Services, principal: Principal, action: str, target: Target, args: Args) -> Place:
    """Find the target and ask the permission table. Raises RequestError not_found or permission_denied."""
    return await services.store.read(
        partial(find, principal=principal, action=action, target=target, wanted=args.model_dump(include=_NAMING))
    )


_NOT_ON_ITSELF: Final = frozenset(
    {"session.message", "session.wait", "session.merge", "session.interrupt", "session.end", "session.cancel"}
)
"""What a session does to those below it: one that waits for itself never wakes, one that messages itself never ends,
and one that merges itself writes where its parent works."""
_SESSION_TARGETS: Final = frozenset(
    {
        Target.SESSION,
        Target.SESSIONS,
        Target.SESSION_OR_PROJECT,
        Target.SESSION_OR_SELF,
        Target.SESSION_OR_LISTED,
        Target.WORKSPACE,
    }
)
_NOT_IN_OWN_TREE: Final = frozenset({"session.answer", "session.update", "caller_tool_response"})
"""What an agent's scope does not bring it: to answer asks of its own tree, or to raise that tree's limits."""
_NAMING: Final = {
    "project_id",
    "workspace_id",
    "session_id",
    "session_ids",
    "request_id",
    "schedule_id",
    "targets",
}


def find(tx: Tx, principal: Principal, action: str, target: Target, wanted: dict[str, object]) -> Place:
    """The query behind ``locate``; one reader for all lookups of a call."""
    if target is Target.SESSION_OR_PROJECT and principal.kind == "session":
        target = Target.SESSION
    if target in (Target.SCHEDULE, Target.TARGETS):
        return _schedule(tx, principal, action, wanted)
    own = principal.scope.session_id
    if own is not None:
        wanted = {**wanted, **_meant(tx, target, own, wanted)}
    if target is Target.SESSIONS and own is not None and not (wanted.get("session_ids") or wanted.get("session_id")):
        access.check(principal, action, principal.scope.project_id, session_in_subtree=True)
        return Place(principal.scope.project_id, sessions=tuple(sessions.children(tx, own)), target=own)
    session_ids = _session_ids(tx, action, target, wanted)
    if session_ids:
        noun = "request" if target is Target.REQUEST else "session"
        rows = tuple(_session(tx, principal, action, one, noun) for one in session_ids)
        return Place(rows[0].project_id, sessions=rows, target=session_ids[0])
    if target is Target.NONE:
        access.check(principal, action, None)
        return NOWHERE
    return _project(tx, principal, action, target, wanted)


def _schedule(tx: Tx, principal: Principal, action: str, wanted: dict[str, object]) -> Place:
    schedule_id, targets = wanted.get("schedule_id"), wanted.get("targets")
    project_id = None
    if schedule_id is not None:
        project_id = check_schedule(tx, principal, action, str(schedule_id))
    if isinstance(targets, list):
        project_id = check_targets(tx, principal, action, targets)[0].project_id
    return Place(project_id, target=str(schedule_id or project_id))


def _meant(tx: Tx, target: Target, own: str, wanted: dict[str, object]) -> dict[str, object]:
    """What an agent means where it names nothing: itself, its own workspace."""
    if any(wanted.get(name) is not None for name in ("session_id", "workspace_id", "project_id")):
        return {}
    if target in (Target.SESSION_OR_SELF, Target.SESSION_OR_LISTED):
        return {"session_id": own}
    row = sessions.get(tx, own) if target is Target.WORKSPACE else None
    return {"workspace_id": row.workspace_id} if row is not None else {}


def _session_ids(tx: Tx, action: str, target: Target, wanted: dict[str, object]) -> list[str]:
    if target is Target.REQUEST:
        request = requests.get(tx, str(wanted.get("request_id")))
        # An unknown one is looked for like any other: the answer must not tell it from a foreign one.
        return [request.session_id if request is not None else ""]
    if target in _SESSION_TARGETS:
        named = wanted.get("session_ids") or wanted.get("session_id")
        if isinstance(named, list):
            return list(dict.fromkeys(str(one) for one in named))
        if named is not None:
            return [str(named)]
        if target in (Target.SESSION, Target.SESSIONS, Target.SESSION_OR_SELF):
            name = "session_ids" if target is Target.SESSIONS else "session_id"
            raise invalid(name, f"is needed by {action.replace('.', ' ')}")
    return []


def _session(tx: Tx, principal: Principal, action: str, session_id: str, noun: str) -> SessionRow:
    row = sessions.get(tx, session_id)
    own = principal.scope.session_id
    below = row is not None and own is not None and own in sessions.ancestors(tx, session_id)
    try:
        access.check(principal, action, row.project_id if row is not None else None, session_in_subtree=below)
    except RequestError as error:
        raise (access.no_such(noun) if error.code == "not_found" else error) from None
    if row is None:
        raise access.no_such(noun)
    if principal.kind == "agent" and action in _NOT_IN_OWN_TREE and _in_one_tree(tx, principal.id, row):
        what = action.replace("_", " ").replace(".", " ")
        raise RequestError("permission_denied", f"{what} is not for an agent of the same tree, whatever its scope.")
    if row.session_id == (principal.id if principal.kind == "agent" else own) and action in _NOT_ON_ITSELF:
        raise invalid("session_id", f"names the caller itself; {action.replace('.', ' ')} is for those below it")
    return row


def _in_one_tree(tx: Tx, session_id: str, row: SessionRow) -> bool:
    own = sessions.get(tx, session_id)
    return own is None or own.root_id == row.root_id


def _project(tx: Tx, principal: Principal, action: str, target: Target, wanted: dict[str, object]) -> Place:
    named, workspace_id = wanted.get("project_id"), wanted.get("workspace_id")
    workspace = workspaces.get(tx, str(workspace_id)) if workspace_id is not None else None
    project_id = str(named) if named is not None else workspace.project_id if workspace else principal.scope.project_id
    if project_id is None and workspace_id is None and target in (Target.LISTED, Target.SESSION_OR_LISTED):
        access.check(principal, action, None)
        return NOWHERE
    if project_id is None and workspace_id is None:
        access.check(principal, action, None)
        raise invalid("project_id", f"is needed by {action.replace('.', ' ')}")
    project = projects.get(tx, project_id) if project_id is not None else None
    own = principal.scope.session_id
    within = workspace_id is None or (own is not None and _in_own_tree(tx, own, str(workspace_id)))
    noun = "project" if workspace_id is None else "workspace"
    try:
        access.check(principal, action, project.project_id if project else None, session_in_subtree=within)
    except RequestError as error:
        # The table names what the action is about; here a foreign place must read as an unknown one does.
        raise (access.no_such(noun) if error.code == "not_found" else error) from None
    if project is None:
        raise access.no_such(noun)
    if workspace_id is not None and (workspace is None or workspace.project_id != project.project_id):
        raise access.no_such("workspace")
    return Place(project.project_id, project, workspace, target=str(workspace_id or project.project_id))


def _in_own_tree(tx: Tx, session_id: str, workspace_id: str) -> bool:
    """Whether an agent may use that workspace: it or a session below it works there, or has made it."""
    row = sessions.get(tx, session_id)
    return row is not None and workspace_id in places.workspaces_of_tree(tx, row.root_id, session_id)
