"""All tools: a noun that is listed here exists at every door."""

from oubliette.api.tools import project, session, token

TOOLS = (project.TOOL, session.TOOL, token.TOOL)
