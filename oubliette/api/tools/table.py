"""All tools: a noun that is listed here exists at every door."""

from oubliette.api.tools import session, token

TOOLS = (session.TOOL, token.TOOL)
