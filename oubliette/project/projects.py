"""Projects: created, cloned, configured and deleted. Long work is a row first and goes on when its call ends."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import structlog
import trio

from oubliette import clock
from oubliette.config import Config
from oubliette.core import access
from oubliette.core.access import no_such
from oubliette.core.model import Json, PlaceState, ProjectRow, WorkspaceRow
from oubliette.core.principals import Principal
from oubliette.errors import OublietteError, RequestError
from oubliette.home import Home
from oubliette.project import grants
from oubliette.project.background import Background
from oubliette.project.contents import Trees, failure
from oubliette.project.remote import check_branch, check_remote
from oubliette.project.settings import FIXED, check_prices, check_settings, guarded_keys, merged, secrets_of
from oubliette.project.views import DescribeContainer, Views, describe_row
from oubliette.project.workspaces import BUSY_STATES, RemoveContainers, Workspaces
from oubliette.store import projects, schedules, sessions, workspaces
from oubliette.store.database import Store, Tx

log = structlog.get_logger(__name__)

MAX_NAME = 200
MAX_DESCRIPTION = 4096


@dataclass(frozen=True, slots=True)
class CreateProject:
    """What ``project create`` asks for. ``settings``: the keys of ``settings.SETTINGS`` that were given."""

    name: str
    description: str | None = None
    remote_url: str | None = None
    branch: str | None = None
    init_git: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What projects need from rooms that they must not import."""

    end_sessions: Callable[[str], Awaitable[None]]
    """(project_id): every open session of the project is ended when it returns."""
    remove_containers: RemoveContainers
    warm: Callable[[str, str], Awaitable[None]]
    """(project_id, workspace_id): bring its container up; failures show on the container, not here."""
    hide: Callable[[str], None]
    """Teach the log a secret."""
    renew_containers: Callable[[str], None] = lambda _project_id: None
    """(project_id): containers that were made for another ``agent_scope`` are made anew once nobody works in them."""
    describe_container: DescribeContainer = describe_row


class Projects:
    """The service. ``owner``: uid and gid that agents run as when the daemon is root; ``host_env``: its environment."""

    def __init__(
        self,
        store: Store,
        config: Config,
        home: Home,
        neighbours: Neighbours,
        *,
        owner: int | None,
        host_env: Mapping[str, str],
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self._store = store
        self._config = config
        self._neighbours = neighbours
        self._now = now
        self._trees = Trees(config, home, owner, host_env)
        self._background = Background()
        self._taken_up = trio.Event()
        self.views = Views(config, home, now, neighbours.describe_container)
        self.workspaces = Workspaces(store, self._trees, self._background, neighbours.remove_containers, now)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Starting is recovering: what a restart interrupted is finished first thing."""
        async with self._background.open():
            rows, places, secrets = await self._store.read(_unfinished)
            for secret in secrets:
                self._neighbours.hide(secret)
            for row in rows:
                log.info("project taken up", project=row.project_id, state=row.state.value)
                work = self._finish_delete if row.state is PlaceState.DELETING else self._prepare
                self._background.start(row.project_id, partial(work, row.project_id))
            for place in places:
                self.workspaces.resume(place)
            self._taken_up.set()
            task_status.started()
            await trio.sleep_forever()

    # --- making

    async def create(self, principal: Principal, args: CreateProject) -> ProjectRow:
        """The project's rows; cloning and warming go on behind the answer (``idle`` waits for them).

        Raises RequestError: invalid_argument, permission_denied (guarded keys), limit_reached.
        """
        settings = merged({}, check_settings(self._config, args.settings))
        if args.remote_url is not None:
            check_remote(args.remote_url, self._config.git)
        if args.branch is not None:
            if args.remote_url is None:
                raise RequestError("invalid_argument", "branch needs a remote_url.", field="branch")
            check_branch(args.branch)
        self._check_guarded(principal, {}, settings)
        check_prices(self._config, settings)
        if not args.init_git:
            settings["init_git"] = False
        at = self._now()
        row = ProjectRow(
            project_id=str(uuid.uuid4()),
            name=_name(args.name),
            state=PlaceState.CLONING if args.remote_url is not None else PlaceState.PREPARING,
            created_at=at,
            updated_at=at,
            created_by=principal.as_json(),
            default_workspace_id=str(uuid.uuid4()),
            description=_description(args.description),
            remote_url=args.remote_url,
            branch=args.branch,
            settings=settings,
        )
        self._hide(settings)
        unit = partial(_insert, row=row, principal=principal, random_hex=clock.fresh_hex(grants.FRESH_HEX))
        row = await self._store.write(unit)
        self._background.start(row.project_id, partial(self._prepare, row.project_id))
        return row

    async def _prepare(self, project_id: str) -> None:
        row = await self._store.read(partial(projects.get, project_id=project_id))
        if row is None or row.state is PlaceState.DELETING:
            return
        workspace_id = row.default_workspace_id
        state = await self.workspaces.prepare(workspace_id)
        settled = await self._store.write(partial(_follow_default, project_id=project_id, at=self._now()))
        if state is PlaceState.FAILED:
            await self._trees.delete_project(project_id)
        elif settled is PlaceState.READY:
            await self._neighbours.warm(project_id, workspace_id)

    # --- reading

    async def get(self, project_id: str) -> ProjectRow:
        """Raises RequestError not_found."""
        row = await self._store.read(partial(projects.get, project_id=project_id))
        if row is None:
            raise no_such("project")
        return row

    async def list(
        self, principal: Principal, *, name_contains: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[ProjectRow], str | None]:
        """Newest first; a principal with a project sees that one."""
        return await self._store.read(
            partial(
                projects.list_page,
                project_id=principal.scope.project_id,
                name_contains=name_contains,
                limit=limit,
                cursor=cursor,
                bound_to=principal.id,
            )
        )

    async def idle(self, project_id: str) -> None:
        """Wait until nothing is being done to the project."""
        await self._background.idle(project_id)

    async def place_ready(self, project_id: str, workspace_id: str) -> None:
        """Wait while the place is being made, after a start until that is taken up again.

        Raises RequestError: what made it fail, or not_found.
        """
        for attempt in range(2):
            if attempt:
                await self._taken_up.wait()
                await self._background.idle(project_id)
                await self._background.idle(workspace_id)
            project, workspace = await self._store.read(
                lambda tx: (projects.get(tx, project_id), workspaces.get(tx, workspace_id))
            )
            if project is None or workspace is None or workspace.project_id != project_id:
                raise no_such("workspace" if project is not None else "project")
            for row in (project, workspace):
                if row.state is PlaceState.DELETING:
                    raise no_such("project" if row is project else "workspace")
                if row.state is PlaceState.FAILED:
                    raise _failed(row.error)
            if project.state is PlaceState.READY and workspace.state is PlaceState.READY:
                return
        raise RequestError("not_ready", "The workspace is not prepared yet.", retryable=True)

    # --- changing

    async def update(
        self,
        principal: Principal,
        project_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> ProjectRow:
        """Change what is given; a setting that is None goes back to its default, an empty description is none.

        Raises RequestError: not_found, invalid_argument, permission_denied (guarded keys), conflict (being deleted).
        """
        changes = check_settings(self._config, settings or {})
        fixed = sorted(FIXED & set(changes))
        if fixed:
            raise RequestError("invalid_argument", f"{fixed[0]} is chosen when a project is made.", field=fixed[0])
        fields: Json = {"updated_at": self._now()}
        if name is not None:
            fields["name"] = _name(name)
        if description is not None:
            fields["description"] = _description(description)
        self._hide(changes)
        random_hex = clock.fresh_hex(grants.FRESH_HEX)

        def unit(tx: Tx) -> tuple[ProjectRow, bool]:
            row = projects.get(tx, project_id)
            if row is None:
                raise no_such("project")
            if row.state is PlaceState.DELETING:
                raise RequestError("conflict", "The project is being deleted.")
            new = merged(row.settings, changes)
            grants.check_own_bounds(tx, principal, project_id, changes)
            self._check_guarded(principal, row.settings, new)
            if {"limits", "model", "allowed_models"} & set(changes):
                check_prices(self._config, new)
            before, row = row.agent_grant, replace(row, settings=new, **fields)
            if grants.SETTING in changes:
                row = grants.lent(tx, principal, row, self._now(), random_hex)
            projects.update(tx, project_id, settings=row.settings, **fields)
            return row, row.agent_grant not in (None, before)

        row, wider = await self._store.write(unit)
        if wider:
            self._neighbours.renew_containers(project_id)
        return row

    def _check_guarded(self, principal: Principal, old: Json, new: Json) -> None:
        changed = guarded_keys(self._config, old, new)
        if changed and not access.may_ever(principal, "project.update.guarded"):
            raise RequestError(
                "permission_denied",
                f"{', '.join(changed)}: only an admin may set this.",
                field=changed[0],
                hint="It needs an admin token.",
            )

    def _hide(self, settings: Json) -> None:
        for secret in secrets_of(settings):
            self._neighbours.hide(secret)

    # --- deleting

    async def delete(self, project_id: str, *, force: bool = False) -> ProjectRow:
        """Refused with open sessions unless ``force``, before anything is destroyed; returns it as ``deleting``.

        Sessions are ended, containers removed, directories and rows deleted behind the answer. Raises RequestError.
        """
        row = await self._store.write(partial(_begin_delete, project_id=project_id, force=force, at=self._now()))
        self._background.start(project_id, partial(self._finish_delete, project_id), instead=True)
        return row

    async def _finish_delete(self, project_id: str) -> None:
        if await self._store.read(partial(projects.get, project_id=project_id)) is None:
            return
        for place in await self._store.read(partial(workspaces.of_project, project_id=project_id)):
            await self._background.stop(place.workspace_id)
        try:
            await self._neighbours.end_sessions(project_id)
            await self._neighbours.remove_containers(project_id, None)
            await self._trees.delete_project(project_id)
        except (OublietteError, OSError) as error:
            log.warning("project could not be deleted", project=project_id, error=str(error))
            await self._store.write(
                partial(
                    projects.set_state,
                    project_id=project_id,
                    state=PlaceState.FAILED,
                    error=failure(error),
                    at=self._now(),
                )
            )
            return
        await self._store.write(partial(_forget, project_id=project_id, at=self._now()))


def _name(name: str) -> str:
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise RequestError("invalid_argument", f"name must be one line of at most {MAX_NAME} characters.", field="name")
    return name.strip()


def _description(text: str | None) -> str | None:
    if text is not None and len(text.encode("utf-8", "replace")) > MAX_DESCRIPTION:
        raise RequestError("too_large", f"description may be {MAX_DESCRIPTION} bytes.", field="description")
    return text or None


def _insert(tx: Tx, row: ProjectRow, principal: Principal, random_hex: str) -> ProjectRow:
    row = grants.lent(tx, principal, row, row.created_at, random_hex)
    projects.insert(tx, row)
    workspaces.insert(
        tx,
        WorkspaceRow(
            workspace_id=row.default_workspace_id,
            project_id=row.project_id,
            default=True,
            state=row.state,
            created_at=row.created_at,
        ),
    )
    return row


def _follow_default(tx: Tx, project_id: str, at: datetime) -> PlaceState | None:
    """The project becomes what its default workspace has become, unless it is being deleted."""
    row = projects.get(tx, project_id)
    if row is None or row.state not in (PlaceState.PREPARING, PlaceState.CLONING):
        return None
    default = workspaces.get(tx, row.default_workspace_id)
    state = default.state if default is not None else PlaceState.FAILED
    projects.set_state(tx, project_id, state, default.error if default is not None else None, at)
    return state


def _begin_delete(tx: Tx, project_id: str, force: bool, at: datetime) -> ProjectRow:
    row = projects.get(tx, project_id)
    if row is None:
        raise no_such("project")
    live, _ = sessions.list_page(tx, project_id=project_id, status="open", limit=20)
    if live and not force:
        number = projects.counts(tx, project_id)["open"]
        raise RequestError(
            "conflict",
            f"{number} sessions of the project are open.",
            hint="End them first, or pass force to end them with the project.",
            field="force",
            candidates=[session.session_id for session in live],
        )
    projects.set_state(tx, project_id, PlaceState.DELETING, None, at)
    schedules.project_deleted(tx, project_id, at)
    return replace(row, state=PlaceState.DELETING, error=None, updated_at=at)


def _forget(tx: Tx, project_id: str, at: datetime) -> None:
    row = projects.get(tx, project_id)
    if row is not None:
        grants.end(tx, row, at)
    projects.delete(tx, project_id)


def _unfinished(tx: Tx) -> tuple[Sequence[ProjectRow], Sequence[WorkspaceRow], set[str]]:
    """Projects and (other than default) workspaces to take up, and every secret that a project holds."""
    rows = projects.in_states(tx, list(PlaceState))
    secrets = {secret for row in rows for secret in secrets_of(row.settings)}
    busy = [row for row in rows if row.state in BUSY_STATES]
    going = {row.project_id for row in busy if row.state is PlaceState.DELETING}
    places = [row for row in workspaces.in_states(tx, BUSY_STATES) if not row.default and row.project_id not in going]
    return busy, places, secrets


def _failed(error: Json | None) -> RequestError:
    shape = error or {}
    return RequestError(
        shape.get("code", "internal"),
        shape.get("message", "The workspace could not be prepared."),
        hint=shape.get("hint", ""),
        retryable=False,
    )
