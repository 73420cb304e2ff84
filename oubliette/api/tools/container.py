"""The ``container`` tool: the sandbox around a workspace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

import trio
from pydantic import Field

from oubliette.api.execs import Command as ExecCommand
from oubliette.api.execs import exec_shape
from oubliette.api.tools import project_prose as prose
from oubliette.api.tools.fields import (
    Args,
    Command,
    Doc,
    Id,
    Only,
    PathText,
    WaitSeconds,
    WriteArgs,
    invalid,
)
from oubliette.api.tools.gate import Target
from oubliette.api.tools.progress import patience, with_progress
from oubliette.api.tools.registry import Action, Call, Tool
from oubliette.core import access
from oubliette.core.limits import KIB, MAX_LIST_ITEMS, MIB, WORK_WAIT_SECONDS
from oubliette.core.model import Json
from oubliette.core.place_shapes import Container, ExecResultShape
from oubliette.errors import AgentError, ContainerError, RequestError
from oubliette.store import containers, execs, sessions, turns
from oubliette.store.database import Tx

ProjectId = Annotated[Id | None, Doc("default: the token's own project"), Only("tokens")]
WorkspaceId = Annotated[Id | None, Doc("default: the project's default one")]
WaitForWork = Annotated[WaitSeconds, Doc(f"how long to wait for its end [{WORK_WAIT_SECONDS}]")]


class Start(WriteArgs):
    project_id: ProjectId = None
    workspace_id: WorkspaceId = None
    recreate: Annotated[bool, Doc("a new container from the image")] = False
    force: Annotated[bool, Doc("though turns run, or its runtime is gone")] = False
    wait_seconds: WaitForWork = WORK_WAIT_SECONDS


class Stop(WriteArgs):
    project_id: ProjectId = None
    workspace_id: WorkspaceId = None
    force: Annotated[bool, Doc("give it up when its runtime is gone")] = False
    wait_seconds: WaitForWork = WORK_WAIT_SECONDS


class Exec(WriteArgs):
    command: Annotated[
        Command | Annotated[list[Command], Field(min_length=1, max_length=MAX_LIST_ITEMS)] | None,
        Doc("text for the shell, or an array of arguments"),
    ] = None
    exec_id: Annotated[Id | None, Doc("of a command that goes on: its state now")] = None
    project_id: ProjectId = None
    workspace_id: WorkspaceId = None
    working_dir: Annotated[PathText | None, Doc("[the workspace]")] = None
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400), Doc("killed after [120]")] = 120
    max_output_bytes: Annotated[int, Field(ge=1, le=16 * MIB), Doc("kept of each stream [64 KiB]")] = 64 * KIB
    wait_seconds: WaitForWork = WORK_WAIT_SECONDS


class Look(Args):
    project_id: ProjectId = None
    workspace_id: WorkspaceId = None


class Logs(Look):
    tail: Annotated[int, Field(ge=1, le=10_000), Doc("lines [200]")] = 200


async def start(call: Call, args: Start) -> Json:
    project_id, workspace_id = await _place(call)
    if args.recreate and not args.force:
        busy = await call.shared.services.store.read(
            partial(_busy_sessions, project_id=project_id, workspace_id=workspace_id)
        )
        if busy:
            raise RequestError(
                "busy",
                "Turns are running in this container.",
                hint="Wait for them, or pass force to interrupt them.",
                candidates=busy,
                retryable=True,
            )
    containers = call.shared.services.containers
    await _wait_for(
        call,
        args.wait_seconds,
        "starting the container",
        partial(containers.start, project_id, workspace_id, recreate=args.recreate, force=args.force),
    )
    return await containers.status(project_id, workspace_id)


async def stop(call: Call, args: Stop) -> Json:
    project_id, workspace_id = await _place(call)
    containers = call.shared.services.containers
    stopping = partial(containers.stop, project_id, workspace_id, force=args.force)
    await _wait_for(call, args.wait_seconds, "stopping the container", stopping)
    return await containers.status(project_id, workspace_id)


async def _wait_for(call: Call, asked_seconds: float, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Until the container's owner has done it, or so long. Why it could not is on the container for all to see."""
    seconds = patience(call, asked_seconds)

    async def bounded() -> None:
        with trio.move_on_after(seconds):
            await work()

    failure: ContainerError | AgentError | None = None
    try:
        await with_progress(call, seconds, what, bounded)
    except (ContainerError, AgentError) as error:
        failure = error
    if failure is None:
        return
    project_id, workspace_id = await _place(call)
    shown = (await call.shared.services.containers.status(project_id, workspace_id)).get("error")
    if not shown:
        raise failure
    raise RequestError(
        str(shown.get("code", failure.code)),
        str(shown.get("message", "The container failed.")),
        hint=str(shown.get("hint", "")),
        retryable=failure.retryable,
    ) from failure


async def execute(call: Call, args: Exec) -> Json:
    if args.exec_id is not None:
        return await _exec_state(call, args.exec_id)
    if args.command is None:
        raise invalid("command", "is needed by container exec")
    project_id, workspace_id = await _place(call)
    argv = ["/bin/sh", "-c", args.command] if isinstance(args.command, str) else args.command
    command = ExecCommand(project_id, workspace_id, argv, args.working_dir, args.timeout_seconds, args.max_output_bytes)
    exec_id = await call.shared.execs.start(call.principal, command, call.request_id)
    return await _exec_state(call, exec_id)


async def wait_for_exec(call: Call, args: Exec, data: Json) -> Json:
    seconds = patience(call, args.wait_seconds)
    wait = partial(call.shared.execs.wait, data["exec_id"], seconds)
    await with_progress(call, seconds, "running the command", wait)
    return await _exec_state(call, data["exec_id"])


async def status(call: Call, args: Look) -> Json:
    return await call.shared.services.containers.status(*await _place(call))


async def list_containers(call: Call, args: Look) -> Json:
    describe = call.shared.services.projects.views.describe_container
    wanted = call.place.project_id

    def look(tx: Tx) -> list[Json]:
        rows = containers.all_live(tx) if wanted is None else containers.of_project(tx, wanted)
        return [describe(row) for row in rows]

    return {"containers": await call.shared.services.store.read(look)}


async def logs(call: Call, args: Logs) -> Json:
    project_id, workspace_id = await _place(call)
    data = await call.shared.services.containers.logs(project_id, workspace_id, tail=args.tail)
    shape = await call.shared.services.containers.status(project_id, workspace_id)
    kept: Json = {
        name: shape[name] for name in ("container_id", "project_id", "workspace_id", "state") if name in shape
    }
    return {**kept, "text": data.decode("utf-8", "replace")}


async def _place(call: Call) -> tuple[str, str]:
    """The project and the workspace that a call means."""
    project = call.place.project
    if project is None:
        raise RequestError("invalid_argument", "project_id is needed.", field="project_id")
    workspace = call.place.workspace
    return project.project_id, workspace.workspace_id if workspace is not None else project.default_workspace_id


def _busy_sessions(tx: Tx, project_id: str, workspace_id: str) -> list[str]:
    rows = sessions.open_in_place(tx, project_id, workspace_id)
    return [row.session_id for row in rows if turns.running(tx, row.session_id) is not None]


async def _exec_state(call: Call, exec_id: str) -> Json:
    row = await call.shared.services.store.read(partial(execs.get, exec_id=exec_id))
    if row is None or row.project_id != call.project_id:
        raise access.no_such("exec")
    return exec_shape(row, call.shared.services.now)


TOOL = Tool(
    name="container",
    doc=(
        "The sandbox around a workspace; sessions start it by themselves. exec runs a command inside, as the agent "
        "would; it goes on when the call ends (exec_id)."
    ),
    results=[
        Container,
        ExecResultShape,
        {"containers": {"type": "array"}, "text": {"type": "string"}, "deduplicated": {"type": "boolean"}},
    ],
    actions=[
        Action("container", "start", Start, start, Target.PROJECT, prose=prose.container),
        Action("container", "stop", Stop, stop, Target.PROJECT, prose=prose.container),
        Action("container", "exec", Exec, execute, Target.PROJECT, settle=wait_for_exec, prose=prose.executed),
        Action("container", "logs", Logs, logs, Target.PROJECT, prose=prose.logs),
        Action("container", "status", Look, status, Target.PROJECT, prose=prose.container),
        Action("container", "list", Look, list_containers, Target.LISTED, prose=prose.container_list),
    ],
)
