"""Workspaces: the directories in which agents work, made, looked into and deleted."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from oubliette.core.access import no_such
from oubliette.core.model import Json, PlaceState, ProjectRow, SessionRow, WorkspaceRow
from oubliette.core.principals import Principal
from oubliette.errors import OublietteError, RequestError
from oubliette.project import files, results, tree_facts
from oubliette.project.background import Background
from oubliette.project.contents import Trees, failure
from oubliette.project.shares import Shares
from oubliette.store import projects, schedules, sessions, workspaces
from oubliette.store.database import Store, Tx

log = structlog.get_logger(__name__)

T = TypeVar("T")

RemoveContainers = Callable[[str, str | None], Awaitable[None]]
"""(project_id, workspace_id or None for all of the project): what runs there is gone when it returns."""

BUSY_STATES = [PlaceState.PREPARING, PlaceState.CLONING, PlaceState.DELETING]
MAX_READ_BYTES = 1 << 20
LOOKS_AT_ONCE = 6
LOOKS_OF_A_PROJECT = 2
"""Threads that read agents' trees for callers: slow trees keep those of their own project waiting, and nobody else."""
SHARED = "shared"
"""The key of the state of a container that all workspaces of a project share (container.layout has the same)."""


class Workspaces:
    """Made by ``Projects``, which runs its background work."""

    def __init__(
        self,
        store: Store,
        trees: Trees,
        background: Background,
        remove_containers: RemoveContainers,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._trees = trees
        self._background = background
        self._remove_containers = remove_containers
        self._now = now
        self._looking = Shares(LOOKS_AT_ONCE, LOOKS_OF_A_PROJECT)
        self._noting = Shares(LOOKS_AT_ONCE, LOOKS_OF_A_PROJECT)
        """For results, which turns that end wait for: not behind whatever callers look into."""

    async def create(
        self,
        principal: Principal,
        project_id: str,
        *,
        external_id: str | None = None,
        source: str | None = None,
        from_workspace: str | None = None,
        also: Callable[[Tx, WorkspaceRow], None] = lambda _tx, _row: None,
    ) -> WorkspaceRow:
        """A new workspace: what the project begins with, or a copy of another one as it stands.

        Returns when its row exists; ``idle`` waits for the rest. ``also`` is done in the unit that writes it. Raises
        RequestError.
        """
        row = WorkspaceRow(
            workspace_id=str(uuid.uuid4()),
            project_id=project_id,
            default=False,
            state=PlaceState.PREPARING,
            created_at=self._now(),
            external_id=external_id,
            source=source,
            forked_from=from_workspace,
            created_by=principal.as_json(),
        )

        def unit(tx: Tx) -> WorkspaceRow:
            made = insert_new(tx, row)
            also(tx, made)
            return made

        made = await self._store.write(unit)
        self.begin(made.workspace_id)
        return made

    def begin(self, workspace_id: str) -> None:
        """Prepare a workspace whose row somebody has just written, behind his back: no checkpoint."""
        self._background.start(workspace_id, partial(self.prepare, workspace_id))

    async def get(self, workspace_id: str) -> WorkspaceRow:
        """Raises RequestError not_found."""
        row = await self._store.read(partial(workspaces.get, workspace_id=workspace_id))
        if row is None:
            raise no_such("workspace")
        return row

    async def list(
        self, project_id: str, limit: int, cursor: str | None = None, *, bound_to: str = ""
    ) -> tuple[list[WorkspaceRow], str | None]:
        """Newest first."""
        return await self._store.read(
            partial(workspaces.list_page, project_id=project_id, limit=limit, cursor=cursor, bound_to=bound_to)
        )

    async def delete(self, workspace_id: str) -> WorkspaceRow:
        """Refused for a project's default one and while sessions are open in it; returns it as ``deleting``.

        Its sessions stay, as history. Raises RequestError.
        """
        row = await self._store.write(partial(_begin_delete, workspace_id=workspace_id, at=self._now()))
        self._background.start(workspace_id, partial(self._finish_delete, row), instead=True)
        return row

    async def idle(self, workspace_id: str) -> None:
        """Wait until nothing is being done to the workspace."""
        await self._background.idle(workspace_id)

    async def read(self, row: WorkspaceRow, path: str, max_bytes: int = MAX_READ_BYTES) -> Json:
        """``path``, ``size_bytes`` and the file's beginning as ``text``, or as ``base64`` when it is no text.

        Raises RequestError.
        """
        root = self._root(row)
        content = await self._look(row.project_id, partial(files.read, root, path, min(max_bytes, MAX_READ_BYTES)))
        return _shown(content, {"workspace_id": row.workspace_id, "path": path})

    async def read_result(self, session: SessionRow, path: str, max_bytes: int = MAX_READ_BYTES) -> Json:
        """``read`` of a file that a session has left in its results folder; ``path`` as ``session wait`` lists it.

        Raises RequestError.
        """
        state = await self._state_dir(session)
        look = partial(results.read_result, state, session.session_id, path, min(max_bytes, MAX_READ_BYTES))
        content = await self._look(session.project_id, look)
        return _shown(content, {"session_id": session.session_id, "path": path})

    async def results_of(self, session: SessionRow) -> Sequence[Json]:
        """What is in a session's results folder now: [{path, bytes}], at most 100. Starts nothing."""
        look = partial(results.list_results, await self._state_dir(session), session.session_id)
        async with self._noting.of(session.project_id):
            return await trio.to_thread.run_sync(look)

    async def _look(self, project_id: str, look: Callable[[], T]) -> T:
        async with self._looking.of(project_id):
            return await trio.to_thread.run_sync(look)

    async def _state_dir(self, session: SessionRow) -> Path:
        project = await self._store.read(partial(projects.get, project_id=session.project_id))
        if project is None:
            raise no_such("project")
        shared = not project.settings.get("workspace_isolation", True)
        return self._trees.home.state_dir(session.project_id, SHARED if shared else session.workspace_id)

    async def files(self, row: WorkspaceRow, glob: str = "**", *, limit: int = 1000) -> Json:
        """``files``: [{path, kind, size_bytes}] that match, sorted; ``files_truncated`` when there may be more."""
        root = self._root(row)
        listing = await self._look(row.project_id, partial(files.list_files, root, glob, max_entries=limit))
        entries = [{"path": one.path, "kind": one.kind, "size_bytes": one.size_bytes} for one in listing.entries]
        shown: Json = {"workspace_id": row.workspace_id, "files": entries}
        return {**shown, "files_truncated": True} if listing.truncated else shown

    async def size_bytes(self, row: WorkspaceRow) -> int:
        """What the work tree takes on disk; at least that when it is very large."""
        return (await trio.to_thread.run_sync(files.measure, self._root(row))).size_bytes

    async def facts(self, rows: Sequence[WorkspaceRow], max_seconds: float) -> Mapping[str, Json]:
        """By id: ``size_bytes`` and ``git`` of those that are ready, as far as they can be told in that time."""
        ready = [row for row in rows if row.state is PlaceState.READY]
        roots = {row.workspace_id: self._root(row) for row in ready}
        return await self._look(rows[0].project_id if rows else "", partial(tree_facts.facts, roots, max_seconds))

    def _root(self, row: WorkspaceRow) -> Path:
        if row.state is not PlaceState.READY:
            raise RequestError("not_ready", f"The workspace is {row.state}.", retryable=row.state in BUSY_STATES)
        return self._trees.home.workspace_dir(row.project_id, row.workspace_id)

    # --- background work

    def resume(self, row: WorkspaceRow) -> None:
        """Take up what a restart interrupted; the default workspace belongs to its project's work."""
        deleting = row.state is PlaceState.DELETING
        work = partial(self._finish_delete, row) if deleting else partial(self.prepare, row.workspace_id)
        self._background.start(row.workspace_id, work)

    async def prepare(self, workspace_id: str) -> PlaceState | None:
        """Fill the workspace; returns its state afterwards. None: it or its project is gone."""
        found = await self._store.read(partial(_with_project, workspace_id=workspace_id))
        if found is None:
            return None
        project, row = found
        if row.state not in (PlaceState.PREPARING, PlaceState.CLONING):
            return row.state  # done already, or to be deleted: what is in it is not ours to replace
        try:
            await self._require_source(row)
            await self._trees.fill(project, row)
            await self._require_source(row)  # what is deleted while it is copied makes half a copy
        except (OublietteError, OSError) as error:
            log.warning("workspace could not be prepared", workspace=workspace_id, error=str(error))
            await self._trees.delete_workspace(project.project_id, workspace_id)
            return await self._settle(workspace_id, PlaceState.FAILED, failure(error))
        return await self._settle(workspace_id, PlaceState.READY, None)

    async def _require_source(self, row: WorkspaceRow) -> None:
        if row.forked_from is None:
            return
        source = await self._store.read(partial(workspaces.get, workspace_id=row.forked_from))
        if source is None or source.state is not PlaceState.READY:
            raise RequestError("conflict", "The workspace that was to be copied has been deleted.")

    async def _settle(self, workspace_id: str, state: PlaceState, error: Json | None) -> PlaceState:
        await self._store.write(partial(_set_state, workspace_id=workspace_id, state=state, error=error))
        return state

    async def _finish_delete(self, row: WorkspaceRow) -> None:
        project = await self._store.read(partial(projects.get, project_id=row.project_id))
        try:
            if project is None or project.settings.get("workspace_isolation", True):
                await self._remove_containers(row.project_id, row.workspace_id)
            await self._trees.delete_workspace(row.project_id, row.workspace_id)
        except (OublietteError, OSError) as error:
            log.warning("workspace could not be deleted", workspace=row.workspace_id, error=str(error))
            await self._settle(row.workspace_id, PlaceState.FAILED, failure(error))
            return
        await self._store.write(partial(workspaces.delete, workspace_id=row.workspace_id))


def insert_new(tx: Tx, row: WorkspaceRow) -> WorkspaceRow:
    """Write the row of a new workspace, which is to be prepared then; returns it as written. Raises RequestError:
    not_found, not_ready (project, or workspace to copy), limit_reached."""
    project = projects.get(tx, row.project_id)
    if project is None or project.state is PlaceState.DELETING:
        raise no_such("project")
    if project.state is not PlaceState.READY:
        raise RequestError("not_ready", f"The project is {project.state}.", retryable=project.state in BUSY_STATES)
    if row.forked_from is not None:
        source = workspaces.get(tx, row.forked_from)
        if source is None or source.project_id != row.project_id:
            raise no_such("workspace")
        if source.state is not PlaceState.READY:
            raise RequestError("not_ready", f"The workspace to copy is {source.state}.", field="from_workspace")
    elif project.remote_url is not None:
        row = replace(row, state=PlaceState.CLONING)
    workspaces.insert(tx, row)
    return row


def _begin_delete(tx: Tx, workspace_id: str, at: datetime) -> WorkspaceRow:
    row = workspaces.get(tx, workspace_id)
    if row is None:
        raise no_such("workspace")
    if row.default:
        hint = "It goes with its project: project delete."
        raise RequestError("conflict", "The default workspace of a project is not deleted.", hint=hint)
    used = workspaces.open_sessions(tx, workspace_id)
    if used:
        still, _ = sessions.list_page(tx, workspace_id=workspace_id, status="open", limit=20)
        raise RequestError(
            "conflict",
            f"{used} sessions are open in the workspace.",
            hint="End them first with session end.",
            candidates=[session.session_id for session in still],
        )
    workspaces.update(tx, workspace_id, state=PlaceState.DELETING, error=None)
    schedules.workspace_deleted(tx, workspace_id, at)
    return replace(row, state=PlaceState.DELETING, error=None)


def _with_project(tx: Tx, workspace_id: str) -> tuple[ProjectRow, WorkspaceRow] | None:
    row = workspaces.get(tx, workspace_id)
    project = projects.get(tx, row.project_id) if row is not None else None
    if row is None or project is None:
        return None
    return project, row


def _set_state(tx: Tx, workspace_id: str, state: PlaceState, error: Json | None) -> None:
    row = workspaces.get(tx, workspace_id)
    # A deletion that was asked for meanwhile wins: its own work follows this one.
    if row is not None and (row.state is not PlaceState.DELETING or state is PlaceState.FAILED):
        workspaces.update(tx, workspace_id, state=state, error=error)


def _shown(content: files.Content, shown: Json) -> Json:
    text = _as_text(content.data, cut=content.truncated)
    name = "base64" if text is None else "text"
    shown |= {"size_bytes": content.size_bytes, name: base64.b64encode(content.data).decode() if text is None else text}
    if content.truncated:
        shown |= {f"{name}_truncated": True, f"{name}_bytes": content.size_bytes}
    return shown


def _as_text(data: bytes, *, cut: bool) -> str | None:
    """UTF-8 without NULs; a character that the cut went through is left out."""
    if b"\0" in data:
        return None
    for missing in range(4 if cut else 1):
        try:
            return data[: len(data) - missing].decode()
        except UnicodeDecodeError:
            continue
    return None
