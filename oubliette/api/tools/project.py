"""The ``project`` tool: settings, credentials and workspaces under one name."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from oubliette.api.tools import project_prose as prose
from oubliette.api.tools.fields import (
    Args,
    Cursor,
    Description,
    Doc,
    Id,
    JsonObject,
    Line,
    Lines,
    Only,
    PageSize,
    Secret,
    Url,
    WaitSeconds,
    WriteArgs,
)
from oubliette.api.tools.gate import Target
from oubliette.api.tools.progress import patience, until, with_progress
from oubliette.api.tools.project_options import options
from oubliette.api.tools.registry import Action, Call, Tool
from oubliette.core.limits import DEFAULT_PAGE, WORK_WAIT_SECONDS
from oubliette.core.model import Autonomy, Json, ProjectRow, Reasoning
from oubliette.core.place_shapes import Project, ProjectList
from oubliette.project.projects import CreateProject
from oubliette.project.settings import SETTINGS
from oubliette.store import projects
from oubliette.store.database import Tx

ProjectId = Annotated[Id | None, Doc("default: the token's own project"), Only("tokens")]
WaitForWork = Annotated[WaitSeconds, Doc(f"how long to wait for the work behind it [{WORK_WAIT_SECONDS}]")]

_BUSY: Final = ("preparing", "cloning")
_DETAILS: Final = frozenset({"permissions", "mcp_servers", "usage_today", "created_by"})
"""Shown with ``detail: full``."""
_ITEM: Final = (
    "project_id",
    "name",
    "description",
    "state",
    "error",
    "created_at",
    "remote_url",
    "branch",
    "default_workspace_id",
    "model",
    "counts",
)


class Settings(WriteArgs):
    """What create and update have in common."""

    github_token: Annotated[Secret | None, Doc("for clone and push"), Only("admin")] = None
    credential_refs: Annotated[JsonObject | None, Doc("{provider, github}: names"), Only("admin")] = None
    model: Annotated[Line | None, Doc("alias"), Only("admin")] = None
    allowed_models: Annotated[Lines | None, Doc("aliases"), Only("admin")] = None
    autonomy: Annotated[Autonomy | None, Doc("off asks nothing, low asks most")] = None
    reasoning: Annotated[Reasoning | None, Doc("how long models think")] = None
    limits: Annotated[JsonObject | None, Doc("e.g. {max_cost_usd: 5}, see options")] = None
    container_type: Annotated[Line | None, Doc("see options"), Only("admin")] = None
    network: Annotated[Literal["none", "bridge"] | None, Doc("of its containers"), Only("admin")] = None
    protected_paths: Annotated[Lines | None, Doc("the agent cannot change"), Only("admin")] = None
    disabled_tools: Annotated[Lines | None, Doc("of the agent")] = None
    mcp_servers: Annotated[JsonObject | None, Doc("for its agents: {name: {type, url | command, …}}")] = None
    permissions: Annotated[JsonObject | None, Doc("{tool: allow | ask | deny}")] = None
    agent_scope: Annotated[Line | None, Doc("what its agents may do here [none]"), Only("admin")] = None


class Create(Settings):
    name: Annotated[Line, Doc("its name")]
    description: Annotated[Description | None, Doc("what it is")] = None
    remote_url: Annotated[Url | None, Doc("cloned (https or ssh)")] = None
    branch: Annotated[Line | None, Doc("of the remote")] = None
    init_git: Annotated[bool, Doc("[true]")] = True
    workspace_isolation: Annotated[bool | None, Doc("a container per workspace [true]"), Only("admin")] = None
    wait_seconds: WaitForWork = WORK_WAIT_SECONDS


class Update(Settings):
    keeps_null: ClassVar[bool] = True

    project_id: ProjectId = None
    name: Annotated[Line | None, Doc("its name")] = None
    description: Annotated[Description | None, Doc("what it is")] = None


class Get(Args):
    project_id: ProjectId = None


class List(Args):
    name_contains: Annotated[Line | None, Doc("part of the name")] = None
    limit: Annotated[PageSize, Doc(f"[{DEFAULT_PAGE}]")] = DEFAULT_PAGE
    cursor: Annotated[Cursor | None, Doc("where the page before ended")] = None


class Delete(WriteArgs):
    project_id: Annotated[Id, Doc("which project"), Only("tokens")]
    force: Annotated[bool, Doc("with its open sessions")] = False
    wait_seconds: Annotated[float, Field(ge=0, le=240), Doc("")] = WORK_WAIT_SECONDS


class Options(Args):
    project_id: ProjectId = None


def given_settings(args: Settings) -> Json:
    """The settings among the arguments, null included where it was sent."""
    found: dict[str, Any] = {}
    for name in SETTINGS & args.model_fields_set:
        value = getattr(args, name)
        found[name] = str(value) if isinstance(value, Autonomy | Reasoning) else value
    return found


async def create(call: Call, args: Create) -> Json:
    wanted = CreateProject(
        name=args.name,
        description=args.description,
        remote_url=args.remote_url,
        branch=args.branch,
        init_git=args.init_git,
        settings=given_settings(args),
    )
    row = await call.shared.services.projects.create(call.principal, wanted)
    return await _view(call, row.project_id, args.detail)


async def wait_until_made(call: Call, args: Create, data: Json) -> Json:
    """A clone goes on behind the answer; a short one is waited for."""
    seconds = patience(call, args.wait_seconds)
    look = partial(_row, call, data["project_id"])
    await with_progress(
        call,
        seconds,
        "preparing the project",
        partial(until, look, lambda row: not row or row.state not in _BUSY, seconds),
    )
    return await _view(call, data["project_id"], args.detail)


async def get(call: Call, args: Get) -> Json:
    return await _view(call, call.project_id, args.detail)


async def list_projects(call: Call, args: List) -> Json:
    rows, following = await call.shared.services.projects.list(
        call.principal, name_contains=args.name_contains, limit=args.limit, cursor=args.cursor
    )
    views = call.shared.services.projects.views

    def look(tx: Tx) -> list[Json]:
        return [views.project(tx, row, call.principal) for row in rows]

    shapes = await call.shared.services.store.read(look)
    if args.detail == "brief":
        shapes = [{name: shape[name] for name in _ITEM if name in shape} for shape in shapes]
    page: Json = {"projects": shapes}
    if following is not None:
        page["next_cursor"] = following
    return page


async def update(call: Call, args: Update) -> Json:
    row = await call.shared.services.projects.update(
        call.principal,
        call.project_id,
        name=args.name,
        description="" if args.description is None and "description" in args.model_fields_set else args.description,
        settings=given_settings(args),
    )
    return await _view(call, row.project_id, args.detail)


async def delete(call: Call, args: Delete) -> Json:
    row: ProjectRow = await call.shared.services.projects.delete(call.project_id, force=args.force)
    return {"project_id": row.project_id, "name": row.name, "state": str(row.state), "deleted": False}


async def wait_until_gone(call: Call, args: Delete, data: Json) -> Json:
    """Ending sessions and removing containers goes on behind the answer."""
    seconds = patience(call, args.wait_seconds)
    look = partial(_row, call, data["project_id"])
    row = await with_progress(
        call,
        seconds,
        "deleting the project",
        partial(until, look, lambda row: not row or row.state == "failed", seconds),
    )
    if row is None:
        return {**data, "deleted": True}
    return {**data, "state": str(row.state), **({"error": row.error} if row.error else {})}


async def _row(call: Call, project_id: str) -> ProjectRow | None:
    return await call.shared.services.store.read(partial(projects.get, project_id=project_id))


async def _view(call: Call, project_id: str, detail: str) -> Json:
    services = call.shared.services
    row = await services.projects.get(project_id)
    shape = await services.store.read(lambda tx: services.projects.views.project(tx, row, call.principal))
    if detail == "full":
        return shape
    return {name: value for name, value in shape.items() if name not in _DETAILS and value not in ([], {})}


TOOL = Tool(
    name="project",
    doc=(
        "Projects: settings, credentials and workspaces. create clones remote_url or starts empty; its container comes "
        "up in the background. options lists models, limits, credentials and container types. update: null means back "
        "to the default."
    ),
    results=[
        Project,
        ProjectList,
        {
            "deleted": {"type": "boolean"},
            "deduplicated": {"type": "boolean"},
            "models": {"type": "array"},
            "default_model": {"type": "string"},
            "container_types": {"type": "array"},
            "runtimes": {"type": "array"},
            "token_scopes": {"type": "array"},
            "versions": {"type": "object"},
        },
    ],
    actions=[
        Action("project", "create", Create, create, settle=wait_until_made, prose=prose.created),
        Action("project", "list", List, list_projects, prose=prose.project_list, page="limit", items="projects"),
        Action("project", "get", Get, get, Target.PROJECT, prose=prose.project),
        Action("project", "update", Update, update, Target.PROJECT, prose=prose.project),
        Action("project", "delete", Delete, delete, Target.PROJECT, settle=wait_until_gone, prose=prose.deleted),
        Action("project", "options", Options, options, Target.LISTED),
    ],
)
