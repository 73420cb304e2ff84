"""A container that is ready, as its users see it, and who starts the agent in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from oubliette.agent.base import Agent
from oubliette.container import directories
from oubliette.container.layout import WORKSPACES_INSIDE, environment, workspace_inside
from oubliette.container.link import RelayLink
from oubliette.core.model import ContainerRow, ProjectRow
from oubliette.errors import AgentUnreachable, RequestError
from oubliette.runtime.base import ExecResult

Listen = Callable[..., AbstractAsyncContextManager[RelayLink]]
"""``RelayHost.listen(container_id, directory, *, uid)``."""


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """How the agent is started; the environment is the whole of it."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str


class AgentLauncher(Protocol):
    """Knows the agent; the container room only knows that it is a process with a password."""

    @property
    def version(self) -> str: ...

    async def files(self, row: ContainerRow, project: ProjectRow) -> Mapping[str, bytes]:
        """Files for /run/oubliette, by name: the agent's configuration. Asked before each start of it."""

    def command(self, row: ContainerRow, password: str) -> AgentCommand:
        """``password`` guards the agent's own server; it is new for each start."""

    def connect(self, link: RelayLink, row: ContainerRow, password: str) -> AbstractAsyncContextManager[Agent]:
        """The agent behind ``link.dial``. Entering returns when it answers, and raises AgentError when it does not come
        up; it is cancelled when the process ends. When the agent is lost though its process lives (it hangs), the body
        is cancelled and leaving raises AgentError: the process is then replaced. Leaving tells everybody who still
        listens to the agent that it is lost."""


class ReadyContainer:
    """Valid while leased. ``lost`` is set when the container is gone; calls fail from then on."""

    def __init__(self, row: ContainerRow, link: RelayLink, run_dir: Path) -> None:
        self.row = row
        self.link = link
        self.lost = trio.Event()
        self._run_dir = run_dir
        self._agent: Agent | None = None

    @property
    def agent(self) -> Agent:
        """Raises AgentUnreachable while the agent is being restarted; the next lease waits for it."""
        if self._agent is None:
            raise AgentUnreachable(f"the agent of container {self.row.container_id} is not running")
        return self._agent

    def set_agent(self, agent: Agent | None) -> None:
        """By the owner alone."""
        self._agent = agent

    def directory(self, workspace_id: str) -> str:
        """Where that workspace is inside."""
        if self.row.workspace_id not in (None, workspace_id):
            raise RequestError("not_found", f"Workspace {workspace_id} is not in this container.")
        return workspace_inside(workspace_id)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
        mark: str | None = None,
    ) -> ExecResult:
        """Run a command inside. ``env`` comes on top of ``layout.environment()``; ``mark``: it dies with that agent
        session. Raises ContainerError."""
        return await self.link.exec(
            argv,
            env={**environment(), **(env or {})},
            cwd=cwd or self._default_directory(),
            stdin=stdin,
            timeout_seconds=timeout_seconds,
            max_output_bytes=max_output_bytes,
            mark=mark,
        )

    async def kill_session(self, mark: str) -> int:
        """Kill every process inside that carries the agent session's mark; returns how many were found."""
        return await self.link.kill_session(mark)

    async def put_file(self, name: str, data: bytes) -> None:
        """Write ``/run/oubliette/<name>``, which the inside can only read."""
        await trio.to_thread.run_sync(partial(directories.put_files, self._run_dir, {name: data}))

    def _default_directory(self) -> str:
        return workspace_inside(self.row.workspace_id) if self.row.workspace_id else WORKSPACES_INSIDE
