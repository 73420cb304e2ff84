"""What a project's agents may do beyond their own sessions: its ``agent_scope``, which an admin's token lends.

The loan is a row among the tokens (kind ``agent``) without a secret that anybody ever knew: it opens no door, it is
looked up for calls that arrive through a relay. It ends with the token that lent it. It holds only in containers that
were made for it (``grant_id``), because what ran in one before was trusted with less.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from oubliette.core.access import covers, parse_scope
from oubliette.core.model import Json, ProjectRow
from oubliette.core.principals import AGENT_GRANT, Principal, Scope, TokenRow
from oubliette.core.tokens import ID_HEX, new_token, secret_hash
from oubliette.errors import RequestError
from oubliette.store import containers, projects, sessions, tokens
from oubliette.store.database import Tx

SETTING = "agent_scope"
_BOUNDS = frozenset({"limits", "autonomy", "permissions", "disabled_tools"})
FRESH_HEX = ID_HEX + 96
"""Random digits that ``lent`` needs: the token's id, the grant's, and a secret that is thrown away."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A loan that holds. ``grant_id`` is kept when its scope becomes narrower, and new when it becomes wider."""

    grant_id: str
    token_id: str
    scope: Scope


def scope_of(value: str | None, project_id: str) -> Scope | None:
    """The scope that a value of ``agent_scope`` means for that project; None: nothing. RequestError: it is none."""
    if value is None or value == "none":
        return None
    if value in ("project", "project:ro"):
        return Scope("project", read_only=value.endswith(":ro"), project_id=project_id)
    return parse_scope(value)


def of_project(tx: Tx, project: ProjectRow, at: datetime) -> Grant | None:
    """The loan that holds at that moment."""
    kept: Json | None = project.settings.get(AGENT_GRANT)
    row = tokens.get(tx, kept["token_id"]) if kept else None
    if kept is None or row is None or row.kind != "agent" or not _good(row, at):
        return None
    return Grant(kept["id"], row.token_id, parse_scope(row.scope))


def of_container(tx: Tx, container_id: str, at: datetime) -> Grant | None:
    """What agents in that container may do beyond their own sessions."""
    container = containers.get(tx, container_id)
    project = projects.get(tx, container.project_id) if container is not None else None
    grant = of_project(tx, project, at) if project is not None else None
    if (
        container is None
        or grant is None
        or container.workspace_id is None
        or container.spec.get(AGENT_GRANT) != grant.grant_id
    ):
        return None
    return grant


def lent(tx: Tx, principal: Principal, row: ProjectRow, at: datetime, random_hex: str) -> ProjectRow:
    """The project with the loan that its new ``agent_scope`` asks for; the one of before has ended.

    ``random_hex``: FRESH_HEX digits. Raises RequestError: permission_denied (only an admin lends), conflict (its
    workspaces share a container), not_found (the scope's project).
    """
    before = of_project(tx, row, at)
    end(tx, row, at)
    settings = {name: value for name, value in row.settings.items() if name != AGENT_GRANT}
    scope = scope_of(settings.get(SETTING), row.project_id)
    if scope is None:
        return replace(row, settings=settings)
    until = _lent_until(tx, principal, scope, at)
    if not settings.get("workspace_isolation", True):
        raise RequestError(
            "conflict",
            "The workspaces of this project share a container (workspace_isolation false).",
            hint="Agents with a scope need a container of their own: make a project with workspace_isolation.",
            field=SETTING,
        )
    if scope.project_id not in (None, row.project_id) and projects.get(tx, scope.project_id or "") is None:
        raise RequestError("not_found", "The scope names a project that does not exist.", field=SETTING)
    token_id, fresh_id, secret = random_hex[:ID_HEX], random_hex[ID_HEX : ID_HEX + 32], random_hex[ID_HEX + 32 :]
    loan = new_token(token_id, name=f"agent:{row.project_id}", scope=scope, kind="agent", at=at, by=principal.as_json())
    tokens.create(tx, replace(loan, expires_at=until), secret_hash(secret))
    kept = before.grant_id if before is not None and covers(before.scope, scope) else fresh_id
    return replace(row, settings={**settings, AGENT_GRANT: {"id": kept, "token_id": loan.token_id}})


def check_own_bounds(tx: Tx, principal: Principal, project_id: str, changes: Collection[str]) -> None:
    """Raises RequestError permission_denied when an agent would move what holds for itself: its project's limits (the
    day's money counts for trees that are at work), what its agents may use, and what they ask."""
    moved = sorted(_BOUNDS & set(changes))
    caller = sessions.get(tx, principal.id) if principal.kind == "agent" and moved else None
    if caller is not None and caller.project_id == project_id:
        raise RequestError(
            "permission_denied",
            f"{moved[0]} of its own project is not for an agent, whatever its scope.",
            hint="Ask a person to change it.",
            field=moved[0],
        )


def end(tx: Tx, project: ProjectRow, at: datetime) -> None:
    """Take the loan back, if there is one: it is worth nothing from this commit on."""
    kept: Json | None = project.settings.get(AGENT_GRANT)
    if kept is not None:
        tokens.revoke(tx, kept["token_id"], at)


def _lent_until(tx: Tx, principal: Principal, scope: Scope, at: datetime) -> datetime | None:
    """When what that principal lends ends by itself: with its own token. Raises RequestError when it cannot lend it."""
    row = tokens.get(tx, principal.id) if principal.kind == "token" else None
    own = principal.scope
    lends = (row is not None and _good(row, at)) or principal.kind == "local"
    if not (lends and own.is_admin and not own.read_only and covers(own, scope)):
        raise RequestError(
            "permission_denied",
            "agent_scope is lent by an admin's token; an agent does not lend on.",
            hint="It needs an admin token.",
            field=SETTING,
        )
    return row.expires_at if row is not None else None


def _good(row: TokenRow, at: datetime) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > at)
