"""OpenCode's history of a session, cut into turns. Pure.

A message is ``{info, parts}``. An answer names the user message that it answers (``parentID``). When OpenCode compacts
a conversation in the middle of a turn it adds user messages of its own; they belong to the turn they interrupt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oubliette.agent.opencode_parts import list_at, object_at, text_at

Message = Mapping[str, Any]


def turn_messages(history: Sequence[Message], message_id: str) -> list[Message]:
    """The messages of the turn that ``message_id`` began, that one first; empty when the history does not hold it."""
    start = next((at for at, one in enumerate(history) if text_at(one, "info", "id") == message_id), None)
    if start is None:
        return []
    found = [history[start]]
    for message in history[start + 1 :]:
        if is_user(message) and not (_own(message) or _summarised(found[-1])):
            break
        found.append(message)
    return found


def is_user(message: Message) -> bool:
    return text_at(message, "info", "role") == "user"


def parts_of(message: Message) -> list[Mapping[str, Any]]:
    """In the order in which they began."""
    return [part for part in list_at(message, "parts") if isinstance(part, Mapping)]


def _own(message: Message) -> bool:
    """Whether OpenCode wrote that user message itself."""
    parts = parts_of(message)
    return bool(parts) and all(text_at(part, "type") == "compaction" or part.get("synthetic") is True for part in parts)


def _summarised(message: Message) -> bool:
    """After a summary OpenCode goes on by itself, sometimes by sending the user's own words again."""
    return not is_user(message) and object_at(message, "info").get("summary") is True
