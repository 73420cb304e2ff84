"""Scripts for the scripted model that use the agent's own session tool."""

from __future__ import annotations

import json

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
