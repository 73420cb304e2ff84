"""From OpenCode's events of one session to ours. Pure: told what arrives, it answers with what that means.

A turn begins with ``begin(message_id)``; only what belongs to it is told. OpenCode's habits that shape this file, all
seen with 1.18.33 (tests/agent/transcripts):

- The role is on the message, not on the part; a prompt's own text arrives as a part too. Every part is sent whole,
  several times; its text is complete when it has ``time.end``.
- With openai-compatible models a text ends after the tool call that follows it has begun. Durables of one message are
  told in the order in which their parts began, so a text that is not complete holds back what comes after it.
- After an error or an abort ``session.idle`` comes twice: first before the last tool result and the end of the
  message, then again. A turn is over at an idle when all its messages are complete. Any other idle is only
  *suspicious*: perhaps it is a stale one, perhaps the agent never answers. The caller then asks for the history and
  decides (``needs_settling``, ``settle``).
- Some errors (an unknown model, an image that is none) come without any message, some without any idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oubliette.agent import opencode_parts as shapes
from oubliette.agent.base import (
    AgentAsk,
    AgentAskGone,
    AgentBusy,
    AgentDelta,
    AgentDurable,
    AgentEvent,
    AgentRetry,
)
from oubliette.agent.opencode_history import Message, is_user, parts_of, turn_messages
from oubliette.agent.opencode_parts import number_at, object_at, text_at
from oubliette.agent.opencode_turn import MAX_MESSAGE_PARTS, Part, Turn, TurnMessage
from oubliette.agent.permissions import Rule, is_granted
from oubliette.core.model import EventType, Json, RequestKind

MAX_ASKS = 100
"""Pending at once in one session."""
_TEXTS = {"text": EventType.MESSAGE, "reasoning": EventType.REASONING}


class EventMapper:
    """One session's. ``feed`` takes OpenCode's event type and properties; the others are for prompts and history."""

    def __init__(self) -> None:
        self.needs_settling = False
        """An idle or an error came that may be the end of the turn; only the history can tell."""
        self.granted: list[Rule] = []
        """What this session may do without asking again; OpenCode itself learns of it only in its next turn."""
        self.answerable: list[str] = []
        """Asks that were granted before: to be answered, not told."""
        self._turn: Turn | None = None
        self._busy = False
        self._asks: set[str] = set()
        self._handlers: dict[str, Callable[[Json], list[AgentEvent]]] = {
            "message.updated": lambda given: self._message(object_at(given, "info")),
            "message.part.updated": lambda given: self._part(object_at(given, "part")),
            "message.part.delta": self._delta,
            "message.part.removed": self._removed,
            "session.status": lambda given: self._status(object_at(given, "status")),
            "session.idle": lambda _given: self._idle(),
            "session.error": self._error,
            "permission.asked": lambda given: self._asked(RequestKind.PERMISSION, given),
            "question.asked": lambda given: self._asked(RequestKind.QUESTION, given),
            "permission.replied": self._settled,
            "question.replied": self._settled,
            "question.rejected": self._settled,
        }

    # --- the turn

    @property
    def turn(self) -> str | None:
        """The message id of the turn that runs."""
        return self._turn.message_id if self._turn else None

    @property
    def failed(self) -> bool:
        """An error was told of the turn that runs; with no answer after it, that was its end."""
        return self._turn is not None and bool(self._turn.error)

    def begin(self, message_id: str) -> None:
        """That message is being sent, or a turn that runs already is to be followed from here on."""
        if self.turn != message_id:
            self._turn = Turn(message_id, {message_id})
            self._busy = False
            self.needs_settling = False
            self.granted = []
            self.answerable = []

    def forget(self, message_id: str) -> None:
        """The message was refused."""
        if self.turn == message_id:
            self._turn = None

    def aborting(self) -> None:
        """From here on the end of the turn is our doing."""
        if self._turn:
            self._turn.aborted = True

    def feed(self, kind: str, given: Json) -> list[AgentEvent]:
        """What one event of OpenCode's means. Kinds that mean nothing to us give nothing."""
        handler = self._handlers.get(kind)
        return handler(given) if handler and self._turn else []

    # --- history

    def absorb(self, history: Sequence[Message]) -> list[AgentEvent]:
        """What the history shows of the turn and was not told yet."""
        found: list[AgentEvent] = []
        if self._turn is None:
            return found
        for message in turn_messages(history, self._turn.message_id):
            info = object_at(message, "info")
            completed = self._is_complete(info)
            found += self._message({**info, "time": {}} if completed else info)
            if not is_user(message):
                for part in parts_of(message):
                    found += self._part({**part, "messageID": info.get("id")})
            if completed:
                found += self._message(info)
        return found

    def absorb_asks(self, permissions: Sequence[Json], questions: Sequence[Json]) -> list[AgentEvent]:
        """What is pending now: new asks, and those of ours that are not among them any more."""
        found: list[AgentEvent] = []
        pending = {text_at(asked, "id") for asked in (*permissions, *questions)}
        found += [AgentAskGone(reference) for reference in sorted(self._asks - pending)]
        self._asks &= pending
        for asked in permissions:
            found += self._asked(RequestKind.PERMISSION, asked)
        for asked in questions:
            found += self._asked(RequestKind.QUESTION, asked)
        return found

    def settle(self, history: Sequence[Message], *, running: bool) -> list[AgentEvent]:
        """Decide about a suspicious idle: ``running`` is what OpenCode itself says of the session now."""
        self.needs_settling = False
        found = self.absorb(history)
        if self._turn is not None and not running:
            found += self._finish()
        return found

    # --- messages and parts

    def _message(self, info: Json) -> list[AgentEvent]:
        turn, id_ = self._turn, text_at(info, "id")
        if turn is None or id_ in turn.past:
            return []
        if text_at(info, "role") == "user":
            if id_ == turn.message_id:
                turn.arrived = True
            elif turn.arrived and turn.room():
                turn.parents.add(id_)
            return []
        message = turn.messages.get(id_)
        if message is None:
            if text_at(info, "parentID") not in turn.parents or not turn.room():
                return []
            turn.arrived = True
            message = turn.messages[id_] = TurnMessage(id_, summary=info.get("summary") is True)
        message.error = object_at(info, "error")
        message.complete = self._is_complete(info)
        if not message.complete:
            return []
        found = self._release(message, whole=True)
        if message.summary and not message.error:
            found += self._tell(AgentDurable(EventType.SYSTEM, {"code": "compacted"}, f"{id_}:compacted"))
        turn.retire()
        return found

    @staticmethod
    def _is_complete(info: Json) -> bool:
        return number_at(info, "time", "completed") is not None

    def _part(self, given: Json) -> list[AgentEvent]:
        turn = self._turn
        message = turn.messages.get(text_at(given, "messageID")) if turn else None
        kind, id_ = text_at(given, "type"), text_at(given, "id")
        if turn is None or message is None or message.summary or not id_:
            return []
        part = message.parts.get(id_)
        if part is None:
            if kind not in ("text", "reasoning", "tool") or given.get("synthetic") is True:
                return []
            if len(message.parts) >= MAX_MESSAGE_PARTS or not turn.room():
                return []
            part = message.parts[id_] = Part(kind)
        if part.kind == "tool":
            found = self._preview(id_, part, given)
            part.tool = given
            return found + self._release(message)
        part.text = text_at(given, "text")
        part.shown = max(part.shown, len(part.text))
        part.ended = number_at(given, "time", "end") is not None
        return self._release(message) if part.ended else []

    def _removed(self, given: Json) -> list[AgentEvent]:
        message = self._turn.messages.get(text_at(given, "messageID")) if self._turn else None
        if message is None:
            return []
        message.parts.pop(text_at(given, "partID"), None)
        return self._release(message)

    def _delta(self, given: Json) -> list[AgentEvent]:
        message = self._turn.messages.get(text_at(given, "messageID")) if self._turn else None
        id_, text = text_at(given, "partID"), text_at(given, "delta")
        part = message.parts.get(id_) if message else None
        if part is None or not text or text_at(given, "field") != "text":
            return []
        offset = part.shown
        part.shown += len(text)
        if part.kind == "text":
            return [AgentDelta(id_, "text", offset, text)]
        return [AgentDelta(id_, "reasoning", offset, text)] if part.kind == "reasoning" else []

    @staticmethod
    def _preview(id_: str, part: Part, given: Json) -> list[AgentEvent]:
        """The output of a running tool as far as it is known; OpenCode sends all of it each time."""
        output = text_at(given, "state", "metadata", "output") if text_at(given, "state", "status") == "running" else ""
        before, part.output = part.output, output
        if len(output) <= len(before) or not output.startswith(before):
            return []
        return [AgentDelta(id_, "tool_output", len(before), output[len(before) :])]

    def _release(self, message: TurnMessage, *, whole: bool = False, past_texts: bool = False) -> list[AgentEvent]:
        """Tell what is ready, in order. ``whole``: all texts are complete; ``past_texts``: do not wait for them."""
        found: list[AgentEvent] = []
        for id_, part in message.parts.items():
            if part.done:
                continue
            if part.kind == "tool":
                found += self._tool(id_, part)
            elif part.ended or whole:
                found += self._text(id_, part)
            elif not past_texts:
                break
        return found

    def _text(self, id_: str, part: Part) -> list[AgentEvent]:
        part.done = True
        if not part.text:
            return []
        body: Json = {"part": id_, "text": part.text}
        if part.kind == "text":
            body["role"] = "assistant"
        return self._tell(AgentDurable(_TEXTS[part.kind], body, f"{id_}:{part.kind}"))

    def _tool(self, id_: str, part: Part, *, over: bool = False) -> list[AgentEvent]:
        """``over``: nothing more will come; what has no result gets one that says so."""
        given = part.tool or {}
        status = text_at(given, "state", "status")
        if status not in ("running", "completed", "error") and not over:
            return []
        found = self._tell(AgentDurable(EventType.TOOL_CALL, shapes.tool_call_body(given), f"{id_}:call"))
        if status == "running" and not over:
            return found
        part.done, part.tool = True, None
        found += self._tell(AgentDurable(EventType.TOOL_RESULT, shapes.tool_result_body(given), f"{id_}:result"))
        todo = shapes.todo_body(given) if text_at(given, "tool") == "todowrite" and status == "completed" else None
        if todo:
            found += self._tell(AgentDurable(EventType.TODO, todo, f"{id_}:todo"))
        return found

    def _tell(self, durable: AgentDurable) -> list[AgentEvent]:
        if self._turn is None or durable.source in self._turn.told:
            return []
        self._turn.told.add(durable.source)
        return [durable]

    # --- the session

    def _status(self, status: Json) -> list[AgentEvent]:
        kind = text_at(status, "type")
        was_busy, self._busy = self._busy, kind == "busy"
        if kind == "retry":
            attempt, at = number_at(status, "attempt") or 0, number_at(status, "next") or 0
            return [*self._abandon(), AgentRetry(int(attempt), text_at(status, "message")[:1000], int(at))]
        return [AgentBusy()] if self._busy and not was_busy else []

    def _abandon(self) -> list[AgentEvent]:
        """A model's answer broke off: its open texts stay empty in the history, its tool calls count."""
        found: list[AgentEvent] = []
        for message in self._turn.messages.values() if self._turn else ():
            for part in message.parts.values():
                part.done = part.done or (part.kind != "tool" and not part.ended)
                part.abandoned = True
            found += self._release(message)
        return found

    def _idle(self) -> list[AgentEvent]:
        if self._turn is not None and self._turn.complete:
            return self._finish()
        self.needs_settling = True
        return []

    def _error(self, given: Json) -> list[AgentEvent]:
        turn = self._turn
        if turn is not None:
            if not turn.error:
                turn.error = object_at(given, "error")
            if not turn.arrived:
                self.needs_settling = True
        return []

    def _asked(self, kind: RequestKind, asked: Json) -> list[AgentEvent]:
        reference = text_at(asked, "id")
        if self._turn is None or not reference or reference in self._asks or len(self._asks) >= MAX_ASKS:
            return []
        if kind is RequestKind.PERMISSION and is_granted(asked, self.granted):
            self.answerable.append(reference)
            return []
        self._asks.add(reference)
        message = self._turn.messages.get(text_at(asked, "tool", "messageID"))
        found = self._release(message, past_texts=True) if message else []
        permission = kind is RequestKind.PERMISSION
        body = shapes.permission_body(asked) if permission else shapes.questions_body(asked)
        return [*found, AgentAsk(reference, kind, body)]

    def _settled(self, given: Json) -> list[AgentEvent]:
        reference = text_at(given, "requestID")
        if reference not in self._asks:
            return []
        self._asks.discard(reference)
        return [AgentAskGone(reference)]

    def _finish(self) -> list[AgentEvent]:
        """Everything that is left, then the end."""
        turn = self._turn
        if turn is None:
            return []
        found: list[AgentEvent] = []
        for message in turn.messages.values():
            found += self._release(message, whole=True)
            for id_, part in message.parts.items():
                if part.kind == "tool" and not part.done:
                    found += self._tool(id_, part, over=True)
        found += [AgentAskGone(reference) for reference in sorted(self._asks)]
        self._asks.clear()
        found.append(turn.end())
        self._turn = None
        self.needs_settling = False
        return found
