"""The ``workspace`` tool: the directories in which agents work, and what agents leave in them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

from oubliette.api.tools import workspace_prose as prose
from oubliette.api.tools.fields import (
    Args,
    Cursor,
    Doc,
    ExternalId,
    Id,
    Line,
    Only,
    PageSize,
    PathText,
    WaitSeconds,
    WriteArgs,
    invalid,
)
from oubliette.api.tools.gate import Target
from oubliette.api.tools.progress import patience, until, with_progress
from oubliette.api.tools.registry import Action, Call, Tool
from oubliette.core.access import no_such
from oubliette.core.limits import DEFAULT_PAGE, WORK_WAIT_SECONDS
from oubliette.core.model import Json, PlaceState, ProjectRow, WorkspaceRow
from oubliette.core.place_shapes import Workspace, WorkspaceList
from oubliette.project.globs import Glob
from oubliette.session import places
from oubliette.store import projects, sessions, workspaces
from oubliette.store.database import Tx

ProjectId = Annotated[Id | None, Doc("default: the token's own project"), Only("tokens")]
WaitForWork = Annotated[WaitSeconds, Doc(f"for the work behind it [{WORK_WAIT_SECONDS}]")]

_BUSY: Final = (PlaceState.PREPARING, PlaceState.CLONING)
FACTS_SECONDS: Final = 5.0
"""How long the trees of a page are measured, in all."""
_BESIDE_BASE64: Final = 500
"""Characters of a result that are not its file or its path."""


class Create(WriteArgs):
    project_id: ProjectId = None
    from_workspace: Annotated[Id | None, Doc("copy that one as it stands [a fresh one]")] = None
    external_id: Annotated[ExternalId | None, Doc("yours, unique in the project"), Only("tokens")] = None
    source: Annotated[Line | None, Doc("who asks, e.g. ci"), Only("tokens")] = None
    wait_seconds: WaitForWork = WORK_WAIT_SECONDS


class List(Args):
    project_id: ProjectId = None
    limit: Annotated[PageSize, Doc(f"[{DEFAULT_PAGE}]")] = DEFAULT_PAGE
    cursor: Annotated[Cursor | None, Doc("where the page before ended")] = None


class Look(Args):
    project_id: ProjectId = None
    workspace_id: Annotated[Id | None, Doc("[the default one; an agent: its own]")] = None
    session_id: Annotated[Id | None, Doc("instead: what that session left in its results folder")] = None


class Read(Look):
    path: Annotated[PathText, Doc("relative")]


class Files(Look):
    glob: Annotated[PathText, Doc('e.g. "src/**/*.py" [**]')] = "**"


class Delete(WriteArgs):
    project_id: ProjectId = None
    workspace_id: Annotated[Id, Doc("which one")]
    wait_seconds: WaitForWork = WORK_WAIT_SECONDS


async def create(call: Call, args: Create) -> Json:
    services = call.shared.services
    if args.from_workspace is not None:
        await services.store.read(partial(_require_own, call=call, workspace_id=args.from_workspace))
    row = await services.projects.workspaces.create(
        call.principal,
        call.project_id,
        external_id=args.external_id,
        source=args.source,
        from_workspace=args.from_workspace,
        also=partial(_remembered, call=call, detail=args.detail),
    )
    return await _shown(call, row, args.detail)


def _remembered(tx: Tx, row: WorkspaceRow, call: Call, detail: str) -> None:
    if call.remember is not None:
        call.remember(tx, _view(tx, call, row, projects.get(tx, row.project_id), detail))


def _require_own(tx: Tx, call: Call, workspace_id: str) -> None:
    """An agent copies what it may use; that a token copies within its project is seen to by the unit that writes."""
    own = _own(tx, call)
    if own is not None and workspace_id not in own:
        raise no_such("workspace")


def _own(tx: Tx, call: Call) -> set[str] | None:
    """The workspaces that an agent may use; None: the caller is no agent."""
    if call.principal.scope.kind != "session":
        return None
    row = sessions.get(tx, call.principal.scope.session_id or "")
    return places.workspaces_of_tree(tx, row.root_id, row.session_id) if row is not None else set()


async def wait_until_made(call: Call, args: Create, data: Json) -> Json:
    """A clone or a copy goes on behind the answer; a short one is waited for."""
    seconds = patience(call, args.wait_seconds)
    look = partial(_row, call, data["workspace_id"])
    row = await with_progress(
        call,
        seconds,
        "preparing the workspace",
        partial(until, look, lambda row: row is None or row.state not in _BUSY, seconds),
    )
    return data if row is None else await _shown(call, row, args.detail)


async def list_workspaces(call: Call, args: List) -> Json:
    services = call.shared.services

    def look(tx: Tx) -> tuple[list[tuple[WorkspaceRow, Json]], str | None]:
        rows, following = workspaces.list_page(
            tx,
            call.place.project_id,
            args.limit,
            args.cursor,
            ids=_own(tx, call),
            bound_to=call.principal.id,
        )
        found = {row.project_id: projects.get(tx, row.project_id) for row in rows}
        return [(row, _view(tx, call, row, found[row.project_id], args.detail)) for row in rows], following

    page, following = await services.store.read(look)
    if args.detail == "full":
        facts = await services.projects.workspaces.facts([row for row, _ in page], FACTS_SECONDS)
        page = [(row, {**view, **facts.get(row.workspace_id, {})}) for row, view in page]
    shape: Json = {"workspaces": [view for _, view in page]}
    if following is not None:
        shape["next_cursor"] = following
    return shape


async def read(call: Call, args: Read) -> Json:
    """A file's text; of one that is no text its size, and its beginning in base64 with ``detail: full``."""
    owner = call.shared.services.projects.workspaces
    if call.place.sessions:
        _require_no_workspace(args)
        found = await owner.read_result(call.place.session, args.path)
    else:
        found = await owner.read(await _place(call), args.path)
    encoded = found.pop("base64", None)
    if encoded is None:
        return found
    found = {name: value for name, value in found.items() if not name.startswith("base64_")} | {"binary": True}
    if args.detail == "brief":
        return found
    room = max(0, args.max_chars - _BESIDE_BASE64 - 2 * len(args.path)) // 4 * 4
    kept = found["base64"] = encoded[:room]
    if len(kept) // 4 * 3 - kept[-2:].count("=") < found["size_bytes"]:
        found |= {"base64_truncated": True, "base64_bytes": found["size_bytes"]}
    return found


async def files(call: Call, args: Files) -> Json:
    owner = call.shared.services.projects.workspaces
    if not call.place.sessions:
        return await owner.files(await _place(call), args.glob)
    _require_no_workspace(args)
    glob = Glob(args.glob)
    session = call.place.session
    left = [(one, str(one["path"]).split("/")) for one in await owner.results_of(session)]
    entries = [
        {"path": one["path"], "kind": "file", "size_bytes": one["bytes"]}
        for one, names in left
        if glob.matches(names[:-1], names[-1])
    ]
    return {"session_id": session.session_id, "files": entries}


def _require_no_workspace(args: Look) -> None:
    if args.workspace_id is not None:
        raise invalid("workspace_id", "does not go with session_id", hint="Name the workspace or the session.")


async def delete(call: Call, args: Delete) -> Json:
    row = await call.shared.services.projects.workspaces.delete(args.workspace_id)
    return {
        "workspace_id": row.workspace_id,
        "project_id": row.project_id,
        "state": str(row.state),
        "deleted": False,
    }


async def wait_until_gone(call: Call, args: Delete, data: Json) -> Json:
    """Removing its container and its files goes on behind the answer."""
    seconds = patience(call, args.wait_seconds)
    look = partial(_row, call, data["workspace_id"])
    row = await with_progress(
        call,
        seconds,
        "deleting the workspace",
        partial(until, look, lambda row: row is None or row.state is PlaceState.FAILED, seconds),
    )
    if row is None:
        return {name: value for name, value in data.items() if name != "state"} | {"deleted": True}
    return {**data, "state": str(row.state), **({"error": row.error} if row.error else {})}


async def _place(call: Call) -> WorkspaceRow:
    """The workspace that a call means: the named one, or the project's default one."""
    if call.place.workspace is not None:
        return call.place.workspace
    project = call.place.project
    if project is None:
        raise invalid("workspace_id", "is needed")
    return await call.shared.services.projects.workspaces.get(project.default_workspace_id)


async def _row(call: Call, workspace_id: str) -> WorkspaceRow | None:
    return await call.shared.services.store.read(partial(workspaces.get, workspace_id=workspace_id))


async def _shown(call: Call, row: WorkspaceRow, detail: str) -> Json:
    def look(tx: Tx) -> Json:
        return _view(tx, call, row, projects.get(tx, row.project_id), detail)

    return await call.shared.services.store.read(look)


def _view(tx: Tx, call: Call, row: WorkspaceRow, project: ProjectRow | None, detail: str) -> Json:
    isolated = project is None or bool(project.settings.get("workspace_isolation", True))
    shape = call.shared.services.projects.views.workspace(tx, row, call.principal, isolated=isolated)
    return shape if detail == "full" else {name: value for name, value in shape.items() if name != "container"}


TOOL = Tool(
    name="workspace",
    doc=(
        "The directories in which agents work. create makes a fresh one or copies another; read shows a file, files "
        "lists them; with session_id, what a session left in its results folder."
    ),
    results=[
        Workspace,
        WorkspaceList,
        {
            "session_id": {"type": "string"},
            "files": {"type": "array"},
            "files_truncated": {"type": "boolean"},
            "text": {"type": "string"},
            "text_truncated": {"type": "boolean"},
            "text_bytes": {"type": "integer"},
            "binary": {"type": "boolean"},
            "base64": {"type": "string"},
            "base64_truncated": {"type": "boolean"},
            "base64_bytes": {"type": "integer"},
            "deleted": {"type": "boolean"},
            "deduplicated": {"type": "boolean"},
        },
    ],
    actions=[
        Action(
            "workspace",
            "list",
            List,
            list_workspaces,
            Target.LISTED,
            prose=prose.workspace_list,
            page="limit",
            items="workspaces",
        ),
        Action("workspace", "create", Create, create, Target.PROJECT, settle=wait_until_made, prose=prose.workspace),
        Action("workspace", "read", Read, read, Target.WORKSPACE, prose=prose.content),
        Action("workspace", "files", Files, files, Target.WORKSPACE, prose=prose.listing),
        Action("workspace", "delete", Delete, delete, Target.PROJECT, settle=wait_until_gone, prose=prose.deleted),
    ],
)
