"""What is known of one turn of an OpenCode session while it runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oubliette.agent import opencode_parts as shapes
from oubliette.agent.base import AgentIdle
from oubliette.agent.opencode_parts import text_at
from oubliette.core.model import Json

MAX_PARTS = 20_000
"""Of one turn. What an agent tells beyond is dropped: nobody reads it, and our memory is not its to fill."""
MAX_MESSAGE_PARTS = 1_000
"""Of one message, which is one answer of the model. Each change looks at all of them."""
NO_ANSWER = "The agent took the message and did not answer it."
STOPPED = "The agent stopped in the middle of its answer."


@dataclass(slots=True)
class Part:
    kind: str
    ended: bool = False
    text: str = ""
    shown: int = 0
    """Characters of the text that were previewed."""
    output: str = ""
    """What was previewed of a tool's output."""
    tool: Mapping[str, Any] | None = None
    done: bool = False
    abandoned: bool = False
    """Of an answer that broke off and was asked for again: no part of the final text."""


@dataclass(slots=True)
class TurnMessage:
    id: str
    summary: bool = False
    complete: bool = False
    error: Json = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)


@dataclass(slots=True)
class Turn:
    message_id: str
    parents: set[str]
    messages: dict[str, TurnMessage] = field(default_factory=dict)
    past: set[str] = field(default_factory=set)
    """Messages that are complete and told; nothing of them is looked at again."""
    told: set[str] = field(default_factory=set)
    """Sources."""
    parts: int = 0
    arrived: bool = False
    aborted: bool = False
    error: Json = field(default_factory=dict)

    @property
    def last(self) -> TurnMessage | None:
        return next(reversed(self.messages.values()), None)

    @property
    def complete(self) -> bool:
        return bool(self.messages) and all(message.complete for message in self.messages.values())

    def room(self) -> bool:
        """Count one more thing to remember; False: there is no room for it."""
        self.parts += 1
        return self.parts <= MAX_PARTS

    def retire(self) -> None:
        """Forget complete messages but the last one, whose text is the final one."""
        for old in [message for message in self.messages.values() if message.complete and message is not self.last]:
            self.past.add(old.id)
            del self.messages[old.id]

    def end(self) -> AgentIdle:
        """How the turn ended, once nothing more is to come."""
        last = self.last
        parts = last.parts.values() if last else ()
        texts = [part.text for part in parts if part.kind == "text" and part.text and not part.abandoned]
        final = "" if last is None or last.summary else "\n\n".join(texts)
        failure = last.error if last else self.error
        if self.aborted or text_at(failure, "name") == shapes.ABORTED:
            return AgentIdle(aborted=True, final_text=final)
        error: Json | None = None
        if failure:
            error = shapes.error_body(failure)
        elif last is None:
            error = {"code": "agent_error", "message": NO_ANSWER, "retryable": False}
        elif not last.complete:
            error = {"code": "agent_error", "message": STOPPED, "retryable": True}
        return AgentIdle(error=error, final_text=final)
