"""A caller and the stream of the agent's server of it, at the agents' door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from oubliette.agent.base import Prompt
from oubliette.core.model import EventType, Json
from tests.api.agent_world import PATIENCE, Agents, Wire, open_agents
from tests.api.world import PROJECT, eventually

OPEN_FILE: Json = {
    "name": "open_file",
    "description": "Show a file in the editor.",
    "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
SELECTION: Json = {"name": "selection", "description": "What is selected in the editor."}
LONG = {"agent": {"caller_tool_timeout_seconds": 30}}


def named(name: str, **properties: Any) -> Json:
    return {"name": name, "description": name, "input_schema": {"type": "object", "properties": properties}}


async def spawn(
    agents: Agents, who: str = "project", caller_id: str = "ide", *tools: Json, **more: Any
) -> tuple[str, str]:
    """A session at work whose caller has these tools: its id and its agent's stamp."""
    given: Json = {"project_id": PROJECT, "message": "sleep", "model": "scripted", "new_session": True, **more}
    spawned = await agents.doors.tool(
        "session", who, action="spawn", caller_id=caller_id, caller_tools=list(tools or (OPEN_FILE,)), **given
    )
    return await agents.at_work(spawned["session_id"])


def asking(number: int, stamp: str | None, name: str = "open_file", **arguments: Any) -> Json:
    given = {**arguments, "_session": stamp} if stamp is not None else arguments
    return {"id": number, "method": "tools/call", "params": {"name": name, "arguments": given}}


async def prompted(agents: Agents, stamp: str, count: int = 1) -> Prompt:
    """The newest prompt of that agent session, once it has got so many."""
    turns = agents.doors.world.agent.turns
    with trio.fail_after(PATIENCE):
        while len(turns[stamp]) < count:
            await trio.sleep(0.01)
    return turns[stamp][-1].prompt


async def pending(agents: Agents, session_id: str, count: int = 1) -> list[Json]:
    """The calls that wait, once there are so many."""

    async def look() -> list[Json]:
        return list((await agents.doors.tool("session", action="get", session_id=session_id))["pending"])

    with trio.fail_after(PATIENCE):
        return await eventually(look, lambda found: len(found) == count)


async def answer(agents: Agents, session_id: str, request: Json, who: str = "project", **said: Any) -> Json:
    return await agents.doors.tool(
        "caller_tool_response", who, session_id=session_id, request_id=request["request_id"], **said
    )


async def heard(wire: Wire, number: int) -> tuple[bool, list[Json]]:
    """The answer to that call: (whether it is an error, its content). Other messages are passed over."""
    while (message := await wire.hear()).get("id") != number:
        assert "id" not in message
    return bool(message["result"].get("isError")), message["result"]["content"]


async def refused(wire: Wire, number: int = 1) -> str:
    """The text of the error that the agent got."""
    failed, [content] = await heard(wire, number)
    assert failed
    return str(content["text"])


async def resolution(agents: Agents, session_id: str) -> Json:
    """How the newest call was settled, as the events tell it."""
    log = await agents.doors.world.log(session_id)
    return dict([event.body["resolution"] for event in log if event.type is EventType.REQUEST_RESOLVED][-1])


async def page(wire: Wire, cursor: str | None = None) -> Json:
    """The agent's server asks for the list, or for a later page of it."""
    await wire.say({"id": "list", "method": "tools/list", "params": {"cursor": cursor} if cursor else {}})
    while (message := await wire.hear()).get("id") != "list":
        assert message["method"] == "notifications/tools/list_changed"
    return dict(message["result"])


async def names(wire: Wire) -> list[str]:
    return [tool["name"] for tool in (await page(wire))["tools"]]


@asynccontextmanager
async def at_the_door(path: Path, **defaults: Any) -> AsyncIterator[tuple[Agents, Wire]]:
    """The doors, and the stream of the agent's server of the caller ``ide``."""
    async with open_agents(path, defaults={**LONG, **defaults}) as agents, agents.wire(caller_id="ide") as wire:
        yield agents, wire
