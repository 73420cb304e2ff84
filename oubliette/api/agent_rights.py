"""Whose call an agent's call is, and what that session may do: in its own right, and by its project's agent_scope.

What a session may do itself (its own subtree, with at most what it has) is done so, scope or not. Only a call that
names what is beyond it is made by the scope that an admin's token lends (project.grants), in the session's name all
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from oubliette.agent.base import OWN_SERVER
from oubliette.agent.permissions import names_tool
from oubliette.api.tools.registry import READ_SUFFIX
from oubliette.core.caller_tools import STAMP
from oubliette.core.model import ContainerRow
from oubliette.core.principals import Principal, Scope
from oubliette.errors import RequestError
from oubliette.project import grants
from oubliette.session.attenuation import caller_of
from oubliette.store import projects, sessions
from oubliette.store.database import Tx


@dataclass(frozen=True, slots=True)
class Rights:
    """``own``: the session within its subtree. ``lent``: the same session by the scope; None when it has none."""

    own: Principal
    lent: Principal | None = None


def rights_of(tx: Tx, container: ContainerRow, given: Mapping[str, Any], tool: str, at: datetime) -> Rights:
    """The session of that container which makes this call. Raises RequestError."""
    # What is switched off by its name is so by its other spelling, which agents are not shown, too.
    session_id = session_of(tx, container, given, f"{OWN_SERVER}_{tool.removesuffix(READ_SUFFIX)}")
    scope = Scope(
        "session",
        project_id=container.project_id,
        session_id=session_id,
        container_id=container.container_id,
    )
    own = Principal("session", session_id, session_id, scope)
    return Rights(own, _lent(tx, container, session_id, at))


def session_of(tx: Tx, container: ContainerRow, given: Mapping[str, Any], name: str) -> str:
    """The id of the session of that container which calls ``name``, as the model knows the tool. Raises RequestError
    when there is none or it may not."""
    stamp = given.get(STAMP)
    if not isinstance(stamp, str) or not stamp:
        raise RequestError(
            "invalid_argument",
            "The call does not say which session makes it.",
            hint="The agent's plugin writes that into _session; call the tool through the agent.",
            field=STAMP,
        )
    row = sessions.by_agent_id(tx, container.project_id, container.workspace_id, stamp)
    if row is None:
        raise RequestError("not_found", "No session of this container has that _session.", field=STAMP)
    if not caller_of(tx, row.session_id).may_use(name):
        raise RequestError("permission_denied", f"This session may not use {name[:80]}.")
    project = projects.get(tx, container.project_id)
    if project is not None and any(names_tool(one, name) for one in project.settings.get("disabled_tools") or ()):
        raise RequestError("permission_denied", f"This project does not let its agents use {name[:80]}.")
    return row.session_id


def anybody(tx: Tx, container: ContainerRow, at: datetime) -> Principal:
    """Some session of the container: enough to list tools, which nobody stamps."""
    scope = Scope("session", project_id=container.project_id, container_id=container.container_id)
    own = Principal("session", container.container_id, container.container_id, scope)
    return _lent(tx, container, container.container_id, at) or own


def _lent(tx: Tx, container: ContainerRow, session_id: str, at: datetime) -> Principal | None:
    grant = grants.of_container(tx, container.container_id, at)
    if grant is None:
        return None
    return Principal("agent", session_id, session_id, grant.scope, grant.token_id)
