"""The permission table. An action that is not in it does not exist: ``require_known`` fails where it is registered."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Literal

from oubliette.core.principals import Principal, Scope
from oubliette.errors import RequestError


class Need(IntEnum):
    """What an action asks of the caller's scope."""

    READ = 1
    """``project:<its project>:ro`` or more."""
    WRITE = 2
    """``project:<its project>`` or ``admin``."""
    ADMIN_READ = 3
    """``admin:ro`` or ``admin``."""
    ADMIN = 4
    """``admin``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table.

    ``session``: an agent's principal may do it too, within its own subtree. ``anywhere``: the action needs no target
    project; its results are filtered to what the caller may see.
    """

    need: Need
    session: bool = False
    anywhere: bool = False


def _rules() -> dict[str, Rule]:
    table: dict[str, Rule] = {}

    def add(need: Need, names: str, *, session: str = "", anywhere: str = "") -> None:
        for name in names.split():
            table[name] = Rule(need, name in session.split(), name in anywhere.split())

    add(
        Need.ADMIN,
        "token.create token.list token.revoke project.create project.update.guarded container_refresh.by_type"
        " image.build image.pull backup.create backup.list backup.verify backup.restore",
    )
    add(Need.ADMIN_READ, "audit.list results.paths lists.unfiltered metrics.read")
    add(
        Need.WRITE,
        "project.update project.delete container.start container.stop container.exec container.logs container_refresh"
        " session.spawn session.message session.update session.interrupt session.end session.cancel session.delete"
        " session.cleanup session.answer session.merge caller_tool_response"
        " workspace.create workspace.delete workspace.push workspace.export"
        " schedule.create schedule.update schedule.delete schedule.trigger",
        session="session.spawn session.message session.merge session.interrupt session.end session.cancel"
        " workspace.create",
    )
    add(
        Need.READ,
        "project.get project.list project.options container.status container.list session.get session.list"
        " session.tree session.events session.wait session.diff session.export workspace.list workspace.read"
        " workspace.files schedule.get schedule.list schedule.history schedule.preview config_limits"
        " project_changes project_tasks usage resources.read events.stream",
        session="session.wait session.get session.list session.tree session.events session.diff workspace.list"
        " workspace.read workspace.files config_limits",
        anywhere="project.list project.options container.list session.list workspace.list schedule.list"
        " schedule.preview config_limits usage events.stream",
    )
    return table


TABLE = MappingProxyType(_rules())
"""Action name -> rule. ``<tool>.<action>``, or the tool's name alone where it has one action."""

NOT_BY_GRANT = frozenset(
    {
        "token.create",
        "token.revoke",
        "schedule.create",
        "schedule.update",
        "schedule.delete",
        "schedule.trigger",
    }
)
"""What no agent may do whatever its project's ``agent_scope``: no secret of a token enters a container, and nothing is
planned that would begin when the loan has ended."""


def require_known(action: str) -> str:
    """``action`` itself. KeyError when the table does not have it: called where actions are registered."""
    if action not in TABLE:
        raise KeyError(f"the permission table has no action {action!r}")
    return action


def check(principal: Principal, action: str, project_id: str | None, *, session_in_subtree: bool = False) -> None:
    """Let the call through or raise.

    ``project_id`` is the target's, looked up in the store, never the caller's word for it; None when there is no such
    target or the action has none. ``session_in_subtree``: for an agent's principal, whether the target session is one
    of its own subtree (True as well where the target is no session but a place of its own tree).

    Raises RequestError permission_denied when this scope may never do this, and not_found when the target is not the
    caller's: unknown, foreign and deleted look alike. KeyError for an action that is not in the table.
    """
    rule = TABLE[action]
    scope = principal.scope
    if not may_ever(principal, action):
        whose = "An agent's scope" if principal.kind == "agent" else "This token's scope"
        raise RequestError(
            "permission_denied",
            f"{whose} ({_shown(scope)}) does not allow {action}.",
            hint="Tokens and schedules are not for agents."
            if principal.kind == "agent" and action in NOT_BY_GRANT
            else _hint(scope, rule),
        )
    if scope.is_admin:
        return
    if project_id is None and rule.anywhere:
        return
    if project_id is None or project_id != scope.project_id:
        raise no_such(_noun(action))
    if scope.kind == "session" and not session_in_subtree:
        raise no_such(_noun(action))


def may_ever(principal: Principal, action: str) -> bool:
    """Whether this principal may do this to some target. KeyError for an action that is not in the table."""
    return _ever(principal.scope, TABLE[action]) and not (principal.kind == "agent" and action in NOT_BY_GRANT)


def allowed_actions(principal: Principal) -> frozenset[str]:
    """Every action that this principal may do to some target: what ``tools/list`` shows."""
    return frozenset(action for action in TABLE if may_ever(principal, action))


def no_such(noun: str) -> RequestError:
    """The one answer for a target that is unknown, foreign or deleted; lookups elsewhere raise it too."""
    return RequestError("not_found", f"There is no such {noun}.", hint=f"List what there is with {noun} list.")


def parse_scope(text: str) -> Scope:
    """``admin``, ``admin:ro``, ``project:<uuid>``, ``project:<uuid>:ro``. Raises RequestError invalid_argument."""
    kind, *rest = text.split(":")
    read_only = rest[-1:] == ["ro"]
    if read_only:
        rest.pop()
    if kind == "admin" and not rest:
        return Scope("admin", read_only)
    if kind == "project" and len(rest) == 1 and _is_uuid(rest[0]):
        return Scope("project", read_only, project_id=rest[0])
    raise RequestError(
        "invalid_argument",
        "This is not a scope.",
        field="scope",
        hint="One of: admin, admin:ro, project:<project id>, project:<project id>:ro.",
    )


def covers(outer: Scope, inner: Scope) -> bool:
    """Whether a token of ``outer`` may do everything that one of ``inner`` may. For scopes of tokens."""
    if outer.read_only and not inner.read_only:
        return False
    return outer.is_admin or (inner.kind == outer.kind and inner.project_id == outer.project_id)


def _ever(scope: Scope, rule: Rule) -> bool:
    if scope.kind == "session":
        return rule.session and not (scope.read_only and rule.need is Need.WRITE)
    if scope.read_only and rule.need in {Need.WRITE, Need.ADMIN}:
        return False
    return scope.is_admin or rule.need in {Need.READ, Need.WRITE}


def _shown(scope: Scope) -> str:
    return "session" if scope.kind == "session" else str(scope)


def _hint(scope: Scope, rule: Rule) -> str:
    if scope.kind == "session":
        return "An agent may only use its own sessions and workspaces."
    needed: Literal["admin", "admin:ro", "write"]
    needed = "admin" if rule.need is Need.ADMIN else "admin:ro" if rule.need is Need.ADMIN_READ else "write"
    return "It needs write access to the project." if needed == "write" else f"It needs a token of scope {needed}."


def _noun(action: str) -> str:
    """What the action is about, for a sentence: ``session.events`` → ``session``."""
    name = action.partition(".")[0]
    return name if "." in action and name in {"project", "session", "workspace", "schedule", "container"} else "project"


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
