"""Clients with tokens and tools of their own, on a running daemon."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from tests.daemon.harness import Daemon, Json

SETTLE_SECONDS = 90
OPEN_FILE: Json = {
    "name": "open_file",
    "description": "Show a file in the editor.",
    "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
SELECTION: Json = {"name": "selection", "description": "What is selected in the editor."}


_numbers = itertools.count(1)


def lines(*directives: str) -> str:
    return "\n".join(directives)


def tool(name: str, **arguments: object) -> str:
    return f"@tool {name} {json.dumps(arguments)}"


def wait_for(name: str) -> str:
    """A directive: the agent's turn goes on when the file is there."""
    return tool("bash", command=f"until [ -e {name} ]; do sleep 0.1; done", description="wait")


@dataclass(eq=False)
class Caller:
    """A client with a token of its own."""

    daemon: Daemon
    project_id: str
    token_id: str
    secret: str
    caller_id: str = "ide"
    tools: Sequence[Json] = field(default_factory=lambda: [OPEN_FILE])

    async def post(self, tool: str, **arguments: Any) -> tuple[int, Json]:
        headers = {"authorization": f"Bearer {self.secret}"}
        async with httpx.AsyncClient(timeout=60) as client:
            response = await client.post(f"{self.daemon.url}/v1/tools/{tool}", json=arguments, headers=headers)
        return response.status_code, response.json()

    async def call(self, tool: str, **arguments: Any) -> Json:
        status, body = await self.post(tool, **arguments)
        assert status == 200, (tool, arguments, body)
        return body

    def declared(self) -> Json:
        return {"caller_id": self.caller_id, "caller_tools": list(self.tools)}

    async def spawn(self, *directives: str, **more: Any) -> str:
        given = {"project_id": self.project_id, "model": "scripted", "new_session": True, **self.declared(), **more}
        return str((await self.call("session", action="spawn", message=lines(*directives), **given))["session_id"])

    async def pending(self, session_id: str, count: int = 1) -> list[Json]:
        """The calls that wait, once there are so many."""
        with trio.fail_after(SETTLE_SECONDS):
            while True:
                shown = await self.call("session", action="get", session_id=session_id)
                if len(shown["pending"]) == count:
                    return list(shown["pending"])
                assert shown["open"], shown
                await trio.sleep(0.1)

    async def answer(self, session_id: str, request: Json, **said: Any) -> Json:
        return await self.call("caller_tool_response", session_id=session_id, request_id=request["request_id"], **said)


async def new_caller(daemon: Daemon, project: Json, **more: Any) -> Caller:
    scope = f"project:{project['project_id']}"
    made = await daemon.call("token", action="create", name=f"client {next(_numbers)}", scope=scope)
    return Caller(daemon, project["project_id"], made["token_id"], made["secret"], **more)


async def outputs(daemon: Daemon, session_id: str, name: str) -> list[Json]:
    """What that tool of the agent answered, in order."""
    log = await daemon.events(session_id)
    return [event["tool"] for event in log if event["type"] == "tool_result" and event["tool"]["name"] == name]


async def resolutions(daemon: Daemon, session_id: str) -> list[Json]:
    log = await daemon.events(session_id)
    return [event["resolution"] for event in log if event["type"] == "request_resolved"]


async def offered(daemon: Daemon, session_id: str) -> set[str]:
    """The tools that the model was offered, as its first words (``@tools?``) list them."""
    log = await daemon.events(session_id)
    first = next(event for event in log if event["type"] == "message" and event["role"] == "assistant")
    return set(re.findall(r"[A-Za-z0-9_-]+", first["text"]))
