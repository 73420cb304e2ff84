"""All tools: a noun that is listed here exists at every door."""

from oubliette.api.tools import container, project, session, token

TOOLS = (project.TOOL, session.TOOL, container.TOOL, token.TOOL)
