"""Before a prompt: the agent has an MCP server for each caller of the session, and its list is the newest.

The agent's servers are of a directory and of its process: sessions that share a workspace share them, and a process
that was started anew has none. So what it has is asked, never remembered. A server that is there is left alone, because
calls of other sessions may wait in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from weakref import WeakKeyDictionary

import structlog
import trio

from oubliette.agent.opencode_config import STAMPED_FILE, TOOLKIT_INSIDE
from oubliette.config import Config
from oubliette.core.caller_tools import RESERVED, clashing
from oubliette.core.events import error_event
from oubliette.core.model import SessionRow, TurnRow
from oubliette.errors import AgentProtocolError
from oubliette.session import units
from oubliette.session.callers import Callers
from oubliette.session.choices import mcp_servers_of
from oubliette.session.deps import ReadyContainer
from oubliette.store import caller_tools, projects
from oubliette.store.caller_tools import CallerToolsRow
from oubliette.store.database import Store, Tx

log = structlog.get_logger(__name__)

MARGIN_SECONDS = 30.0
"""The agent gives a silent call up later than we do, so that it hears why."""


class CallerEntries:
    """One for the daemon."""

    def __init__(self, store: Store, config: Config, callers: Callers) -> None:
        self._store = store
        self._config = config
        self._callers = callers
        self._locks: WeakKeyDictionary[ReadyContainer, trio.Lock] = WeakKeyDictionary()

    async def ready(self, container: ReadyContainer, row: SessionRow, turn: TurnRow, directory: str) -> None:
        """Returns when the agent can offer the session what its callers declared. A server that cannot be had is an
        ``error`` event of the turn, which goes on without. Raises AgentUnreachable."""
        own, wanted, stamped, servers = await self._store.read(partial(_callers, config=self._config, row=row))
        for caller_id in [one for one in own if clashing(one, servers)]:
            del own[caller_id]
            why = "the project has got an MCP server of that name"
            await self._tell(row, turn, f"The tools of caller {caller_id} are not offered: {why}.")
        if not own:
            return
        lock = self._locks.setdefault(container, trio.Lock())
        async with lock:
            await container.put_file(STAMPED_FILE, json.dumps(stamped).encode())
            present = await container.agent.mcp_servers(directory)
            for caller_id in own:
                if not present.get(caller_id):
                    await self._add(container, row, turn, directory, caller_id)
            for name in set(present) - set(wanted) - servers:
                if present[name]:
                    await self._remove(container, directory, name)
        await self._shown(own, row)
        # One more question: what the agent was told before it is in force when this is answered.
        await container.agent.mcp_servers(directory)

    async def _shown(self, own: dict[str, list[str]], row: SessionRow) -> None:
        listing = self._callers.listing
        if listing is not None:
            for caller_id, names in own.items():
                await listing.shown(row.project_id, row.workspace_id, caller_id, names)

    async def _remove(self, container: ReadyContainer, directory: str, name: str) -> None:
        """Nobody uses it any more. One that stays is listed as empty."""
        try:
            await container.agent.remove_mcp_server(directory, name)
        except AgentProtocolError as error:
            log.warning("the server of a caller that is gone stays", caller=name, error=str(error))

    async def _add(
        self, container: ReadyContainer, row: SessionRow, turn: TurnRow, directory: str, caller_id: str
    ) -> None:
        seconds = self._config.defaults.agent.caller_tool_timeout_seconds
        entry = {
            "type": "local",
            "command": ["python3", "-ISB", f"{TOOLKIT_INSIDE}/python/oubliette_client", caller_id],
            "enabled": True,
            "timeout": round((seconds + MARGIN_SECONDS) * 1000),
        }
        try:
            await container.agent.add_mcp_server(directory, caller_id, entry)
        except AgentProtocolError as error:
            log.warning("a caller's tools are not offered", session=row.session_id, caller=caller_id, error=str(error))
            message = f"The tools of caller {caller_id} could not be given to the agent for this turn."
            await self._tell(row, turn, message)

    async def _tell(self, row: SessionRow, turn: TurnRow, message: str) -> None:
        event = error_event(turn.turn, {"code": "agent_error", "message": message, "retryable": True})
        await self._store.write(partial(units.append_events, session_id=row.session_id, new=[event]))


def _callers(
    tx: Tx, config: Config, row: SessionRow
) -> tuple[dict[str, list[str]], Iterable[str], list[str], set[str]]:
    """The session's callers with the names of their tools; all callers of its workspace, of its project; and the names
    that are not ours to touch."""
    own = {one.caller_id: _names(one) for one in caller_tools.of_session(tx, row.session_id)}
    here = caller_tools.caller_ids(tx, row.project_id, row.workspace_id)
    project = projects.get(tx, row.project_id)
    servers = mcp_servers_of(config, project) if project is not None else set()
    stamped = [one for one in caller_tools.caller_ids(tx, row.project_id) if not clashing(one, servers)]
    return own, here, stamped, servers | RESERVED


def _names(declared: CallerToolsRow) -> list[str]:
    return [str(tool["name"]) for tool in declared.tools]
