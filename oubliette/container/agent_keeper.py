"""Keeps one container's agent running: started, found again, replaced when it ends, given up when it keeps ending."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from oubliette.agent.base import OWN_SERVER, Agent
from oubliette.container import directories
from oubliette.container.failures import first_of
from oubliette.container.layout import AGENT, agent_password
from oubliette.container.link import ProcessExit, RelayLink
from oubliette.container.ready import ReadyContainer
from oubliette.core.model import ContainerRow, ContainerState, Json, ProjectRow
from oubliette.errors import AgentError, AgentUnreachable, ContainerError, OublietteError
from oubliette.store import sessions

if TYPE_CHECKING:
    from oubliette.container.owner import Owner

log = structlog.get_logger(__name__)


class AgentKeeper:
    """``run`` is its task; ``hear_exits`` and ``watch_memory`` run beside it."""

    def __init__(self, owner: Owner, project: ProjectRow, link: RelayLink, directory: Path) -> None:
        self._owner = owner
        self._deps = owner.deps
        self._project = project
        self._link = link
        self._directory = directory
        self._scope = trio.CancelScope()
        self._up_since = math.inf
        self._exit: ProcessExit | None = None
        self._tag = ""
        """Of the start that ``_scope`` is about."""
        self._forgiven = False
        """It is ended by us, and that counts as no failure."""

    async def run(self, ready: ReadyContainer, *, woken: bool) -> None:
        """Raises AgentUnreachable when it ended too often in a row."""
        failures = 0
        first = True
        while True:
            detail = await self._one_life(ready, first=first, woken=woken)
            steady = trio.current_time() - self._up_since > self._deps.tuning.agent_steady
            failures = 0 if self._forgiven else 1 if steady else failures + 1
            if self._up_since < math.inf:
                first = False
            self._down(ready)
            log.warning("agent ended", container=self._row.container_id, detail=detail, failures=failures)
            if failures > self._deps.tuning.agent_failures:
                raise AgentUnreachable(f"the agent ended {failures} times in a row: {detail}")
            # It may have been hung and not dead; and what it left behind must be gone before the next one.
            await self._link.stop_process(AGENT, self._deps.tuning.agent_grace)
            if failures > 1:
                pause = self._deps.tuning.backoff_first * 2 ** (failures - 2)
                await trio.sleep(min(pause, self._deps.tuning.backoff_last))

    async def hear_exits(self) -> None:
        """The relay tells of an end when the tools are gone too."""
        async for end in self._link.exits:
            if end.name == AGENT and end.tag == self._tag:
                self._exit = end
                self._scope.cancel("the agent has ended")

    async def watch_memory(self) -> None:
        """An agent grows with every turn; the time to make it small again is when nobody uses it."""
        tuning = self._deps.tuning
        limit = self._deps.ground.config.defaults.container.memory_bytes * tuning.memory_share
        while True:
            await trio.sleep(tuning.memory_look)
            used = self._link.memory_bytes(AGENT) or 0
            if used > max(limit, tuning.memory_least_bytes) and not self._owner.leases and self._up_since < math.inf:
                log.info("restarting an agent that has grown", container=self._row.container_id, memory_bytes=used)
                self._forgiven = True
                self._scope.cancel("memory")

    async def keep_tools(self, ready: ReadyContainer) -> None:
        """The program that carries our own tools may be killed like any other inside; the agent starts it only once.
        Where that has happened it is started again, wherever somebody works."""
        while True:
            await self._link.wait_client_left()
            await trio.sleep(self._deps.tuning.tools_look)
            if self._up_since == math.inf:
                continue
            row = self._row
            find = partial(sessions.open_in_place, project_id=row.project_id, workspace_id=row.workspace_id)
            open_now = await self._deps.store.read(find)
            for directory in sorted({ready.directory(one.workspace_id) for one in open_now}):
                try:
                    if await ready.agent.reconnect_mcp_server(directory, OWN_SERVER):
                        log.warning("the agent's tools were gone and are back", container=row.container_id)
                except OublietteError as error:
                    log.warning("the agent's tools are gone", container=row.container_id, error=str(error))

    async def lives(self) -> bool:
        """Ask the relay; when it does not run any more, ``run`` replaces it from now on."""
        tag = self._tag
        for state in await self._link.list_processes():
            if state.name == AGENT and state.tag == tag and state.running:
                return True
        if self._up_since < math.inf and tag == self._tag:
            self._owner.not_ready()
            self._scope.cancel("the agent was found dead")
        return False

    async def put_files(self) -> None:
        """Write the agent's configuration where the inside can read it."""
        files = await self._deps.launcher.files(self._row, self._project)
        await trio.to_thread.run_sync(partial(directories.put_files, self._directory, files))

    # --- inside

    @property
    def _row(self) -> ContainerRow:
        if self._owner.row is None:
            raise AssertionError("a container with an agent has a row")
        return self._owner.row

    async def _one_life(self, ready: ReadyContainer, *, first: bool, woken: bool) -> str:
        """From start to end; returns why it ended."""
        self._up_since = math.inf
        self._exit = None
        self._tag = ""
        self._forgiven = False
        failure: OublietteError | None = None
        try:
            with trio.CancelScope() as self._scope:
                await self._start()
                async with self._deps.launcher.connect(self._link, self._row, agent_password(self._row)) as agent:
                    await self._up(ready, agent, first=first, woken=woken)
                    await trio.sleep_forever()
        except* (AgentError, ContainerError) as group:
            failure = first_of(group)
        return self._why(failure)

    async def _start(self) -> None:
        """Find the agent that this row has started, or start another."""
        start = str(self._row.agent.get("start", ""))
        present = [state for state in await self._link.list_processes() if state.name == AGENT and not state.settled]
        if any(state.running and state.tag == start for state in present):
            self._tag = start
            return
        if present:
            await self._link.stop_process(AGENT, self._deps.tuning.agent_grace)
        await self.put_files()
        tag = self._deps.fresh_hex(16)
        agent: Json = {**self._row.agent, "start": tag, "state": "starting", "version": self._deps.launcher.version}
        row = await self._owner.save(agent=agent)
        command = self._deps.launcher.command(row, agent_password(row))
        self._tag = tag
        await self._link.start_process(AGENT, command.argv, command.env, command.cwd, tag=tag)

    async def _up(self, ready: ReadyContainer, agent: Agent, *, first: bool, woken: bool) -> None:
        restarts = int(self._row.agent.get("restarts", 0)) + (0 if first else 1)
        row = await self._owner.save(
            state=ContainerState.READY, error=None, agent={**self._row.agent, "state": "ready", "restarts": restarts}
        )
        ready.row = row
        ready.set_agent(agent)
        self._up_since = trio.current_time()
        self._owner.now_ready(ready)
        if not first:
            self._deps.notify(row, "agent_restarted", {"restarts": restarts})
            return
        self._deps.notify(row, "container_ready", {"generation": row.generation})
        if woken:
            self._deps.notify(row, "woken", {})
        if row.workspace_id is not None:
            await self._warm(agent, ready.directory(row.workspace_id))

    async def _warm(self, agent: Agent, directory: str) -> None:
        try:
            await agent.warm(directory)
        except AgentError as error:
            log.info("agent not warmed", container=self._row.container_id, error=str(error))

    def _down(self, ready: ReadyContainer) -> None:
        ready.set_agent(None)
        self._up_since = math.inf
        self._owner.not_ready()

    def _why(self, failure: OublietteError | None) -> str:
        end = self._exit
        if end is not None:
            how = f"signal {end.signal}" if end.signal else f"code {end.code}"
            return f"it ended with {how}: {end.stderr_tail[-1000:]}" if end.stderr_tail else f"it ended with {how}"
        return str(failure) if failure is not None else "it was found dead or too large"
