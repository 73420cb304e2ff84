"""Events as the bytes of an event stream, made once however many read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from oubliette.agent.base import AgentDelta
from oubliette.api.tools.reply import compact, fit
from oubliette.core.budget import LimitName
from oubliette.core.events import event_shape
from oubliette.core.limits import EVENT_SENT_BYTES, MIB
from oubliette.core.model import EventRow, EventType, Json

_GENERATION_BYTES: Final = 8 * MIB
_CHARACTERS: Final = EVENT_SENT_BYTES // 4
"""So many characters of JSON certainly fit; only longer ones are measured in bytes."""

Cursor = Literal["index", "seq"]
"""What a stream counts by: the session's own index, or its tree's seq."""

THIN: Final = frozenset(
    {
        EventType.STATUS,
        EventType.TURN_QUEUED,
        EventType.TURN_STARTED,
        EventType.COMPLETION,
        EventType.PERMISSION_REQUEST,
        EventType.QUESTION,
        EventType.CALLER_TOOL_REQUEST,
        EventType.REQUEST_RESOLVED,
        EventType.CHILD_SPAWNED,
        EventType.CHILD_ENDED,
        EventType.SCHEDULE_RUN_STARTED,
        EventType.SCHEDULE_RUN_ENDED,
        EventType.SYSTEM,
        EventType.ERROR,
    }
)
"""What the stream of everything carries: states, asks, children, runs."""


def sent_shape(row: EventRow) -> Json:
    """SHAPES' event in at most 64 KiB of JSON."""
    shape = event_shape(row)
    text = compact(shape)
    if len(text) > _CHARACTERS and len(text.encode()) > EVENT_SENT_BYTES:
        ratio = len(text.encode()) / len(text)
        shape = fit(shape, int(EVENT_SENT_BYTES / ratio))
    return shape


def thin_shape(row: EventRow) -> Json:
    """The same event without anything that people or agents wrote."""
    full = event_shape(row)
    shape: Json = {name: full[name] for name in ("session_id", "index", "seq", "ts", "turn", "type") if name in full}
    shape["project_id"] = row.project_id
    shape["root_id"] = row.root_id
    for name in ("status", "code", "outcome", "usage"):
        if name in full:
            shape[name] = full[name]
    for name, kept in (
        ("request", ("request_id", "kind", "session_id", "turn", "created_at", "expires_at", "on_expiry")),
        ("resolution", ("request_id", "accepted", "resolved_at", "by", "how")),
        ("child", ("session_id", "outcome")),
        ("error", ("code", "retryable")),
    ):
        if isinstance(full.get(name), dict):
            shape[name] = {key: full[name][key] for key in kept if key in full[name]}
    limit = full.get("data", {}).get("limit") if row.type is EventType.STATUS else None
    if isinstance(limit, dict) and limit.get("name") in set(LimitName):
        numbers = {key: value for key, value in limit.items() if isinstance(value, int | float)}
        shape["data"] = {"limit": {"name": limit["name"], **numbers}}
    run = full.get("data", {}).get("run") if row.type.value.startswith("schedule_run") else None
    if isinstance(run, dict):
        shape["data"] = {"run": {key: value for key, value in run.items() if key not in ("output", "error")}}
    return shape


def frame(event: str, data: Json, cursor: str | None = None) -> bytes:
    """One event of a stream."""
    head = f"id: {cursor}\n" if cursor is not None else ""
    return f"{head}event: {event}\ndata: {compact(data)}\n\n".encode()


class Frames:
    """Remembers the frames of recent events in two generations of at most 8 MiB each."""

    def __init__(self) -> None:
        self._new: dict[tuple[str, int, str], bytes] = {}
        self._old: dict[tuple[str, int, str], bytes] = {}
        self._size = 0

    def event(self, row: EventRow, cursor: Cursor) -> bytes:
        """The whole event, with the id that a reader of this kind of stream resumes from."""
        return self._made((row.session_id, row.index, cursor), lambda: self._event(row, cursor))

    def delta(self, session_id: str, turn: int, delta: AgentDelta) -> bytes:
        """A preview; it has no id."""
        key = (f"{session_id}/{delta.part}/{delta.kind}", delta.offset, delta.text)
        return self._made(key, lambda: frame("delta", delta_shape(session_id, turn, delta)))

    def _event(self, row: EventRow, cursor: Cursor) -> bytes:
        return frame(row.type.value, sent_shape(row), str(row.index if cursor == "index" else row.seq))

    def _made(self, key: tuple[str, int, str], make: Callable[[], bytes]) -> bytes:
        found = self._new.get(key) or self._old.get(key)
        if found is None:
            found = self._new[key] = make()
            self._size += len(found)
            if self._size > _GENERATION_BYTES:
                self._old, self._new, self._size = self._new, {}, 0
        return found


def delta_shape(session_id: str, turn: int, delta: AgentDelta) -> Json:
    """SHAPES' Delta."""
    return {
        "type": "delta",
        "session_id": session_id,
        "turn": turn,
        "part": delta.part,
        "kind": delta.kind,
        "offset": delta.offset,
        "text": delta.text,
    }
