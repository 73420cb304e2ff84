"""Containers: what sandbox there is (or was) for each place. The engine knows the rest."""

from __future__ import annotations

from typing import Any

import apsw

from oubliette.core.model import ContainerRow
from oubliette.errors import RequestError
from oubliette.store.codec import Table
from oubliette.store.constraints import broke_foreign_key
from oubliette.store.database import Tx

_CONTAINERS = Table("containers", ContainerRow)


def insert(tx: Tx, row: ContainerRow) -> None:
    """Raises RequestError not_found when the project or workspace is gone."""
    try:
        _CONTAINERS.insert(tx, row)
    except apsw.ConstraintError as error:
        if not broke_foreign_key(error):
            raise
        raise RequestError("not_found", "The workspace of this container is gone.") from error


def get(tx: Tx, container_id: str) -> ContainerRow | None:
    return _CONTAINERS.find(tx, "WHERE t.container_id = ?", container_id)


def for_place(tx: Tx, project_id: str, workspace_id: str | None) -> ContainerRow | None:
    """The newest generation of that place; ``workspace_id`` None: the one that the project's workspaces share."""
    return _CONTAINERS.find(
        tx,
        "WHERE t.project_id = ? AND t.workspace_id IS ? ORDER BY t.generation DESC LIMIT 1",
        project_id,
        workspace_id,
    )


def of_project(tx: Tx, project_id: str) -> list[ContainerRow]:
    """Every row of the project that is not ``absent``, newest generation first in each place."""
    return _CONTAINERS.list(
        tx, "WHERE t.project_id = ? AND t.state <> 'absent' ORDER BY t.workspace_id, t.generation DESC", project_id
    )


def update(tx: Tx, container_id: str, **fields: Any) -> bool:
    """Set columns. False: there is none."""
    return _CONTAINERS.update(tx, "container_id = ?", [container_id], fields) == 1


def all_live(tx: Tx) -> list[ContainerRow]:
    """Every row for which an engine may hold something: all but ``absent`` ones."""
    return _CONTAINERS.list(tx, "WHERE t.state <> 'absent' ORDER BY t.since")


def delete(tx: Tx, container_id: str) -> bool:
    return tx.run("DELETE FROM containers WHERE container_id = ?", container_id) == 1
