"""Who pays for a request of a container, and whether that model may be asked. Queries only."""

from __future__ import annotations

from oubliette.config import Config
from oubliette.core.model import ProjectRow, SessionRow, TurnRow
from oubliette.errors import RequestError
from oubliette.store import containers, projects, sessions, turns
from oubliette.store.database import Tx


def payer(tx: Tx, container_id: str, named: tuple[str, ...]) -> tuple[SessionRow, TurnRow | None, ProjectRow]:
    """The first of the ``named`` agent sessions that lives in the container, else the container's oldest open one.
    Raises RequestError permission_denied: nobody there may ask."""
    container = containers.get(tx, container_id)
    if container is None:
        raise RequestError("permission_denied", "This container is no longer there.")
    place = (container.project_id, container.workspace_id)
    found = (sessions.by_agent_id(tx, *place, name) for name in named)
    session = next((one for one in found if one is not None), None)
    if session is None:
        session = next((one for one in sessions.open_in_place(tx, *place) if one.ending is None), None)
    if session is None:
        raise RequestError("permission_denied", "No session is open here that could pay for a model.")
    require_open(session)
    project = projects.get(tx, session.project_id)
    if project is None:
        raise RequestError("permission_denied", "The project is no longer there.")
    return session, turns.running(tx, session.session_id), project


def require_open(session: SessionRow | None) -> None:
    """Raises RequestError permission_denied for one that is gone, has ended or is being ended."""
    if session is None or session.ending is not None or not session.open:
        raise RequestError("permission_denied", "The session has ended: it may not ask a model any more.")


def alias_of(asked: str, config: Config) -> str:
    """``alias``, or ``model-name@alias``: agents choose prompts and abilities by the real name that stands in front."""
    if asked in config.models.models:
        return asked
    return asked.rpartition("@")[2]


def check_allowed(alias: str, session: SessionRow, turn: TurnRow | None, project: ProjectRow) -> None:
    """The project's allowed models, and what the session itself runs with. Raises RequestError permission_denied."""
    allowed = project.settings.get("allowed_models")
    own = {session.model, (turn.overrides.get("model") if turn else None)}
    if allowed and alias not in allowed and alias not in own:
        raise RequestError("permission_denied", f"This session may not use the model {alias[:80]!r}.")
