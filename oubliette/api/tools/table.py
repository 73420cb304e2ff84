"""All tools: a noun that is listed here exists at every door."""

from oubliette.api.tools import (
    caller_tool_response,
    config_limits,
    container,
    project,
    schedule,
    session,
    token,
    workspace,
)

TOOLS = (
    project.TOOL,
    session.TOOL,
    caller_tool_response.TOOL,
    workspace.TOOL,
    container.TOOL,
    schedule.TOOL,
    config_limits.TOOL,
    token.TOOL,
)
