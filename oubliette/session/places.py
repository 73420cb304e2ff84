"""Where sessions work: the workspaces that an agent may use, and the new one that a child gets."""

from __future__ import annotations

from datetime import datetime

from oubliette.core.model import Json, PlaceState, SessionRow, WorkspaceRow
from oubliette.errors import RequestError
from oubliette.project.workspaces import insert_new
from oubliette.session.requests import SpawnArgs
from oubliette.store import trees, workspaces
from oubliette.store.database import Tx


def workspaces_of_tree(tx: Tx, root_id: str, session_id: str) -> set[str]:
    """The workspaces that a session may use: its own, and those that it or a session below it works in or has made."""
    own = trees.below(tx, root_id, session_id)
    makers = {row.session_id for row in own}
    made = workspaces.made_by_tree(tx, root_id)
    return {row.workspace_id for row in own} | {place for place, maker in made if maker in makers}


def place_for_child(
    tx: Tx, parent: SessionRow, args: SpawnArgs, workspace_id: str, created_by: Json, at: datetime
) -> str | None:
    """Make the workspace that a child asks for, named ``workspace_id``; None when it asks for none of its own.

    Raises RequestError: limit_reached (workspaces of the project), not_ready, conflict.
    """
    if args.workspace == "parent":
        return None
    if args.workspace_id not in (None, parent.workspace_id):
        reason = f"A child in workspace {args.workspace!r} gets one of its own: leave workspace_id out."
        raise RequestError("invalid_argument", reason, field="workspace_id")
    row = WorkspaceRow(
        workspace_id=workspace_id,
        project_id=parent.project_id,
        default=False,
        state=PlaceState.PREPARING,
        created_at=at,
        forked_from=parent.workspace_id if args.workspace == "fork" else None,
        created_by=created_by,
    )
    return insert_new(tx, row).workspace_id


def refuse_without_parent(args: SpawnArgs) -> None:
    """Only a child has a parent whose workspace can be shared or forked. Raises RequestError."""
    if args.workspace != "parent":
        raise RequestError(
            "invalid_argument",
            f"workspace {args.workspace!r} is for children.",
            hint="For a session of your own: create_workspace.",
            field="workspace",
        )
