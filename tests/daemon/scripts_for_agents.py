"""Scripts for the scripted model that use the agent's own session tool, sessions that run them, and their children."""

from __future__ import annotations

import json
from typing import Any

from tests.daemon.harness import Daemon, Json

TOOL = "oubliette_session"
"""The name under which the agent sees the session tool."""


def tool(**arguments: object) -> str:
    """One directive line: a call of the agent's own session tool."""
    return f"@tool {TOOL} {json.dumps(arguments)}"


def tools(*calls: dict[str, object]) -> str:
    """One directive line: several calls of it at once."""
    return f"@tools {json.dumps([{'name': TOOL, 'arguments': one} for one in calls])}"


def bash(command: str) -> str:
    """One directive line: a command."""
    return f"@tool bash {json.dumps({'command': command, 'description': 'work', 'timeout': 600_000})}"


def lines(*directives: str) -> str:
    return "\n".join(directives)


async def spawn(daemon: Daemon, project: Json, script: str, **more: Any) -> str:
    """A new session of the project that runs ``script``; its id."""
    spawned = await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        message=script,
        model="scripted",
        new_session=True,
        **more,
    )
    return str(spawned["session_id"])


async def below(daemon: Daemon, parent: str) -> list[Json]:
    """Its direct children, oldest first."""
    found = await daemon.call("session", action="list", parent_id=parent, limit=200, detail="full")
    return list(reversed(found["sessions"]))
