"""Commands run by ``container exec``: a row before the answer, a task of their own, so that one outlives its call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

import trio

from oubliette import clock
from oubliette.api.errors import error_shape
from oubliette.api.services import Services
from oubliette.core.model import Json
from oubliette.core.principals import Principal
from oubliette.errors import Limit, OublietteError, RequestError
from oubliette.log import get_logger
from oubliette.runtime.base import ExecResult
from oubliette.store import execs
from oubliette.store.database import Tx
from oubliette.store.execs import ExecRow, ExecState

log = get_logger(__name__)

MAX_RUNNING: Final = 12
"""Commands at once in one project's containers; below what a relay serves at once, so that our own come through."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run where. ``working_dir`` is relative to the workspace, or absolute inside the container."""

    project_id: str
    workspace_id: str
    argv: Sequence[str]
    working_dir: str | None
    timeout_seconds: float
    max_output_bytes: int


class Execs:
    """Hosts running commands."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._nursery: trio.Nursery | None = None
        self._done: dict[str, trio.Event] = {}
        self._running: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service. What a restart finds unfinished did not survive it."""
        await self._services.store.write(partial(_give_up, at=self._services.now()))
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def start(self, principal: Principal, command: Command, request_id: str) -> str:
        """Begin; returns the exec's id once its row exists."""
        if self._nursery is None:
            raise RequestError("unavailable", "The daemon is stopping.", retryable=True)
        used = self._running[command.project_id]
        if used >= MAX_RUNNING:
            raise RequestError(
                "limit_reached",
                f"{MAX_RUNNING} commands of the project are running.",
                hint="Wait for some to end.",
                retryable=True,
                limit=Limit("running_commands", MAX_RUNNING, used),
            )
        exec_id = "exec_" + clock.fresh_hex(24)
        row = ExecRow(
            exec_id=exec_id,
            project_id=command.project_id,
            workspace_id=command.workspace_id,
            command=list(command.argv),
            state=ExecState.RUNNING,
            created_at=self._services.now(),
            created_by=principal.as_json(),
            working_dir=command.working_dir,
        )
        self._running[command.project_id] += 1
        try:
            with trio.CancelScope(shield=True):
                await self._services.store.write(partial(execs.insert, row=row))
        except BaseException:
            self._running[command.project_id] -= 1
            raise
        self._done[exec_id] = trio.Event()
        self._nursery.start_soon(self._run, exec_id, command, request_id, name=f"exec {exec_id}")
        return exec_id

    async def wait(self, exec_id: str, seconds: float) -> None:
        """Until it has ended, or so long."""
        done = self._done.get(exec_id)
        if done is not None:
            with trio.move_on_after(seconds):
                await done.wait()

    async def _run(self, exec_id: str, command: Command, request_id: str) -> None:
        try:
            changes = await self._outcome(command, request_id)
            with trio.move_on_after(5, shield=True):
                ended: Json = {"ended_at": self._services.now(), **changes}
                await self._services.store.write(lambda tx: execs.update(tx, exec_id, **ended))
        except OublietteError:
            log.exception("an exec's end could not be written", exec_id=exec_id)
        finally:
            self._running[command.project_id] -= 1
            self._done.pop(exec_id).set()

    async def _outcome(self, command: Command, request_id: str) -> dict[str, Any]:
        try:
            async with self._services.containers.lease(command.project_id, command.workspace_id) as container:
                inside = container.directory(command.workspace_id)
                where = command.working_dir or ""
                result = await container.exec(
                    command.argv,
                    cwd=where if where.startswith("/") else f"{inside}/{where}".rstrip("/"),
                    timeout_seconds=command.timeout_seconds,
                    max_output_bytes=command.max_output_bytes,
                )
        except OublietteError as error:
            log.warning("exec failed", error=str(error), request_id=request_id)
            return {"state": ExecState.KILLED, "error": error_shape(error, request_id)}
        return _ended(result)


def _ended(result: ExecResult) -> dict[str, Any]:
    return {
        "state": ExecState.KILLED if result.timed_out else ExecState.DONE,
        "exit_code": result.exit_code,
        "stdout": result.stdout.decode("utf-8", "replace"),
        "stdout_bytes": result.stdout_bytes,
        "stderr": result.stderr.decode("utf-8", "replace"),
        "stderr_bytes": result.stderr_bytes,
        "timed_out": result.timed_out,
    }


def _give_up(tx: Tx, at: datetime) -> None:
    error = {"code": "cancelled", "message": "The daemon was stopped while this ran.", "retryable": True}
    for row in execs.running(tx):
        execs.update(tx, row.exec_id, state=ExecState.KILLED, ended_at=at, error=error)


def exec_shape(row: ExecRow, now: Callable[[], datetime]) -> Json:
    """SHAPES' exec."""
    shape: Json = {"exec_id": row.exec_id, "state": str(row.state), "timed_out": row.timed_out}
    if row.state is not ExecState.RUNNING:
        if row.exit_code is not None:
            shape["exit_code"] = row.exit_code
        for name in ("stdout", "stderr"):
            text, size = getattr(row, name), getattr(row, f"{name}_bytes")
            shape[name] = text
            if size > len(text.encode()):
                shape[f"{name}_truncated"] = True
                shape[f"{name}_bytes"] = size
    shape["duration_ms"] = round(((row.ended_at or now()) - row.created_at).total_seconds() * 1000)
    if row.error is not None:
        shape["error"] = row.error
    return shape
