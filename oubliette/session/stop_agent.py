"""Stopping what an agent does for one session: its turn, and whatever its tools have left running."""

from __future__ import annotations

import structlog
import trio

from oubliette.errors import AgentError, ContainerError
from oubliette.session.deps import ReadyContainer

log = structlog.get_logger(__name__)

ABORT_SECONDS = 5.0
"""How long an agent may take to stop a turn before its processes are killed by mark anyway."""
KILL_SECONDS = 5.0
PATIENCE_SECONDS = 0.5
"""Where processes are to be killed: how long the agent may end them itself. One that has many sessions to stop at once
stops them one after another, and a command that it waits for may take its time."""


async def stop_agent(container: ReadyContainer, agent_session_id: str, directory: str, *, kill: bool) -> None:
    """Abort the turn; ``kill``: also end every process that carries the session's mark. Returns when both were done or
    given up, after ``ABORT_SECONDS + KILL_SECONDS`` at most. Quiet about an agent or a container that is gone."""
    aborted = False
    async with trio.open_nursery() as nursery:
        if kill:
            nursery.start_soon(_lose_patience, container, agent_session_id)
        with trio.move_on_after(ABORT_SECONDS):
            try:
                await container.agent.abort(agent_session_id, directory)
            except AgentError as error:
                log.warning("abort failed", agent_session=agent_session_id, error=str(error))
            aborted = True
        nursery.cancel_scope.cancel("the agent has stopped, or never will")
    if kill or not aborted:
        # Also when it was done before: the agent may have begun something until it heard.
        await _kill(container, agent_session_id)


async def _lose_patience(container: ReadyContainer, agent_session_id: str) -> None:
    await trio.sleep(PATIENCE_SECONDS)
    await _kill(container, agent_session_id)


async def _kill(container: ReadyContainer, agent_session_id: str) -> None:
    with trio.move_on_after(KILL_SECONDS):
        try:
            await container.kill_session(agent_session_id)
        except ContainerError as error:
            log.warning("kill by mark failed", agent_session=agent_session_id, error=str(error))
