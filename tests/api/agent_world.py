"""Agents at their door: pretended agent streams in front of the real table, store and session tree."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio
from trio.testing import memory_stream_pair

from oubliette import clock
from oubliette.api.agents import AgentDoor
from oubliette.api.desk import Desk
from oubliette.api.shared import Shared
from oubliette.api.tools.registry import Registry
from oubliette.api.tools.table import TOOLS
from oubliette.core.model import ContainerRow, ContainerState, Json, PlaceState, ProjectRow, WorkspaceRow
from oubliette.errors import RemoteWireError
from oubliette.session.requests import SpawnArgs, TurnArgs
from oubliette.store import containers, projects, workspaces
from oubliette.store.database import Tx
from tests.api.world import OTHER_PROJECT, PROJECT, WORKSPACE, Doors, open_doors
from tests.session.world import ADMIN

CONTAINER = "c0ffee00"
OTHER_CONTAINER = "c0ffee01"
FOREIGN_CONTAINER = "c0ffee02"
OTHER_WORKSPACE = "91aa0000-0000-4000-8000-000000000002"
FOREIGN_WORKSPACE = "91aa0000-0000-4000-8000-00000000000f"
PATIENCE = 10


def calling(number: int, stamp: str, **arguments: Any) -> dict[str, Any]:
    """A call of the session tool, as the plugin stamps it."""
    params = {"name": "session", "arguments": {**arguments, "_session": stamp}}
    return {"id": number, "method": "tools/call", "params": params}


class Wire:
    """The agent's end of one stream."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._held = b""
        self._ids = itertools.count(1)

    async def say(self, message: Mapping[str, Any]) -> None:
        await self.stream.send_all(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def hear(self) -> Json:
        """The next message."""
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._held:
                data = await self.stream.receive_some()
                if not data:
                    raise EOFError("the daemon closed the stream")
                self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return dict(json.loads(line))

    async def ask(self, method: str, params: Json | None = None) -> Json:
        """One request and its answer, alone on the stream."""
        number = next(self._ids)
        await self.say({"id": number, "method": method, "params": params or {}})
        answer = await self.hear()
        assert answer["id"] == number
        return answer

    async def call(self, tool: str, stamp: str | None, **arguments: Any) -> tuple[bool, str]:
        """A tool call as the plugin stamps it: (whether it is an error, the text)."""
        given = {**arguments, "_session": stamp} if stamp is not None else arguments
        answer = await self.ask("tools/call", {"name": tool, "arguments": given})
        [content] = answer["result"]["content"]
        assert "structuredContent" not in answer["result"]
        return bool(answer["result"].get("isError")), content["text"]

    async def result(self, stamp: str, **arguments: Any) -> Json:
        """What the session tool answered; it must be no error."""
        failed, text = await self.call("session", stamp, **arguments)
        assert not failed, text
        return dict(json.loads(text))


@dataclass
class Agents:
    doors: Doors
    desk: Desk
    door: AgentDoor
    nursery: trio.Nursery
    refused: list[str] = field(default_factory=list)
    """What the relay host would have heard of broken streams."""

    @asynccontextmanager
    async def wire(self, container: str = CONTAINER, caller_id: str = "") -> AsyncIterator[Wire]:
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.serve, theirs, container, caller_id)
        try:
            yield Wire(ours)
        finally:
            await trio.aclose_forcefully(ours)

    async def serve(self, stream: trio.abc.HalfCloseableStream, container: str, caller_id: str) -> None:
        """As the relay host does."""
        try:
            await self.door.serve(stream, container, caller_id)
        except RemoteWireError as error:
            self.refused.append(str(error))
        finally:
            await trio.aclose_forcefully(stream)

    async def session(
        self, text: str = "sleep", *, workspace_id: str = WORKSPACE, project_id: str = PROJECT, **turn: Any
    ) -> tuple[str, str]:
        """A root session at work: its id and the stamp of its agent."""
        args = SpawnArgs(TurnArgs(text, **{"model": "scripted", **turn}), project_id, workspace_id, new_session=True)
        spawned = await self.doors.world.tree.spawn(ADMIN, args)
        return await self.at_work(spawned["session_id"])

    async def at_work(self, session_id: str) -> tuple[str, str]:
        row = await self.doors.world.until(session_id, "running")
        assert row.agent_session_id is not None
        return session_id, row.agent_session_id

    async def no_calls(self) -> None:
        """Returns when nothing goes on in anybody's name."""
        with trio.fail_after(PATIENCE):
            while self.desk.shared.live.principals():
                await trio.sleep(0.01)


def _places(tx: Tx) -> None:
    at = clock.now()
    workspaces.insert(tx, WorkspaceRow(OTHER_WORKSPACE, PROJECT, False, PlaceState.READY, at))
    projects.insert(tx, ProjectRow(OTHER_PROJECT, "bank", PlaceState.READY, at, at, ADMIN.as_json(), FOREIGN_WORKSPACE))
    workspaces.insert(tx, WorkspaceRow(FOREIGN_WORKSPACE, OTHER_PROJECT, True, PlaceState.READY, at))
    places = (
        (CONTAINER, PROJECT, WORKSPACE),
        (OTHER_CONTAINER, PROJECT, OTHER_WORKSPACE),
        (FOREIGN_CONTAINER, OTHER_PROJECT, FOREIGN_WORKSPACE),
    )
    for one, project_id, workspace_id in places:
        containers.insert(
            tx, ContainerRow(one, project_id, workspace_id, "fake", 1, f"key {one}", ContainerState.READY, at)
        )


@asynccontextmanager
async def open_agents(path: Path, *, opened: bool = True, defaults: Json | None = None) -> AsyncIterator[Agents]:
    """``opened`` False: the test opens the door itself. ``defaults``: those of the config."""
    async with open_doors(path, defaults=defaults) as doors, trio.open_nursery() as nursery:
        await doors.world.store.write(_places)
        agents = Agents(doors, Desk(Shared(doors.services), Registry(TOOLS)), AgentDoor("0.1.0"), nursery)
        if opened:
            async with agents.door.open(agents.desk):
                yield agents
        else:
            yield agents
        nursery.cancel_scope.cancel("the test is over")


async def settings(agents: Agents, **given: Any) -> None:
    """Change the settings of the project."""
    await agents.doors.world.store.write(partial(projects.update, project_id=PROJECT, settings=given))
