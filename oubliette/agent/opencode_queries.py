"""What the agent's server is asked about its sessions, beside the events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oubliette.agent.opencode_history import Message, is_user, turn_messages
from oubliette.agent.opencode_http import AgentHttp
from oubliette.agent.opencode_parts import list_at, object_at, text_at
from oubliette.core.model import Json

PAGE = "100"
MAX_PAGES = 200


class AgentQueries:
    """Read only. All raise AgentError."""

    def __init__(self, http: AgentHttp) -> None:
        self._http = http

    async def is_running(self, session_id: str, directory: str) -> bool:
        """Whether OpenCode works on that session."""
        status = await self._http.call("GET", "/session/status", query={"directory": directory})
        return text_at(status, session_id, "type") in ("busy", "retry")

    async def asks(self, session_id: str, directory: str) -> tuple[list[Json], list[Json]]:
        """Pending permissions and questions of a session that runs; those of an aborted turn stay listed for ever."""
        if not await self.is_running(session_id, directory):
            return [], []
        query = {"directory": directory}
        permissions = await self._http.call("GET", "/permission", query=query)
        questions = await self._http.call("GET", "/question", query=query)
        return _of(session_id, permissions), _of(session_id, questions)

    async def history(self, session_id: str, directory: str, message_id: str) -> Sequence[Message]:
        """The session's history back to that message at least, if it is there."""
        query = {"directory": directory, "limit": PAGE}
        found: list[Message] = []
        for _ in range(MAX_PAGES):
            page, headers = await self._http.page("GET", f"/session/{session_id}/message", query=query)
            messages = [one for one in page if isinstance(one, dict)] if isinstance(page, list) else []
            found = [*messages, *found]
            cursor = headers.get("x-next-cursor")
            if not cursor or not messages or any(text_at(one, "info", "id") == message_id for one in messages):
                break
            query["before"] = cursor
        return found


def _of(session_id: str, listed: Any) -> list[Json]:
    """Out of a list of pending asks those of that session."""
    return [dict(one) for one in list_at({"all": listed}, "all") if text_at(one, "sessionID") == session_id]


def is_over(history: Sequence[Message], message_id: str, *, failed: bool) -> bool:
    """Whether the history shows an end: every answer complete, or none at all and an error instead (``failed``)."""
    answers = [object_at(one, "info") for one in turn_messages(history, message_id) if not is_user(one)]
    if not answers:
        return failed
    return all("completed" in object_at(info, "time") for info in answers)
