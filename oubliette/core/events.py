"""Events: from rows to what clients see, and the ones that the daemon itself writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from oubliette.core.model import (
    EventRow,
    EventType,
    Json,
    ModelUsage,
    NewEvent,
    Outcome,
    Reason,
    RequestKind,
    RequestRow,
    SessionStatus,
    rfc3339,
)

SYSTEM_CODES = frozenset(
    {
        "container_starting",
        "container_ready",
        "container_lost",
        "agent_restarted",
        "recovered",
        "model_retry",
        "compacted",
        "stalled",
        "hibernated",
        "woken",
        "history_purged",
        "caller_tools_changed",
        "limits_changed",
        "reopened",
    }
)

_ASKS = {
    RequestKind.PERMISSION: (EventType.PERMISSION_REQUEST, "permission"),
    RequestKind.QUESTION: (EventType.QUESTION, "questions"),
    RequestKind.CALLER_TOOL: (EventType.CALLER_TOOL_REQUEST, "caller_tool"),
}


def event_shape(row: EventRow) -> Json:
    """SHAPES' Event of a stored one."""
    shape: Json = {"session_id": row.session_id, "index": row.index, "seq": row.seq, "ts": rfc3339(row.ts)}
    if row.turn is not None:
        shape["turn"] = row.turn
    shape["type"] = row.type.value
    shape.update(row.body)
    return shape


def request_shape(row: RequestRow) -> Json:
    """SHAPES' Request: inside its event and in ``session.pending``."""
    return {
        "request_id": row.request_id,
        "kind": row.kind.value,
        "session_id": row.session_id,
        "turn": row.turn,
        "created_at": rfc3339(row.created_at),
        "expires_at": rfc3339(row.expires_at),
        "on_expiry": row.on_expiry,
        _ASKS[row.kind][1]: row.body,
    }


def resolution_shape(
    request_id: str,
    *,
    how: str,
    at: datetime,
    by: Json | None = None,
    reply: str | None = None,
    message: str | None = None,
    answers: Mapping[str, Sequence[str]] | None = None,
) -> Json:
    """SHAPES' Resolution as it is stored, without ``accepted``. ``how``: answered, expired or cancelled."""
    return _present(
        request_id=request_id,
        resolved_at=rfc3339(at),
        how=how,
        by=by,
        reply=reply,
        message=message,
        answers={key: list(chosen) for key, chosen in answers.items()} if answers is not None else None,
    )


def status_event(
    old: SessionStatus | None,
    new: SessionStatus,
    reason: Reason | None = None,
    *,
    turn: int | None = None,
    data: Json | None = None,
) -> NewEvent:
    """A change of status; ``old`` None for a session's first."""
    status = _present(**{"from": old and old.value, "to": new.value, "reason": reason and reason.value})
    return NewEvent(EventType.STATUS, turn, _present(status=status, data=data))


def turn_queued_event(turn: int, prompt: str, request_key: str | None = None) -> NewEvent:
    return _prompt_event(EventType.TURN_QUEUED, turn, prompt, request_key)


def turn_started_event(turn: int, prompt: str, request_key: str | None = None) -> NewEvent:
    return _prompt_event(EventType.TURN_STARTED, turn, prompt, request_key)


def _prompt_event(kind: EventType, turn: int, prompt: str, request_key: str | None) -> NewEvent:
    data = {"request_key": request_key} if request_key is not None else None
    return NewEvent(kind, turn, _present(role="user", text=prompt, data=data))


def message_event(turn: int, part: str, role: str, text: str, *, source: str | None = None) -> NewEvent:
    return NewEvent(EventType.MESSAGE, turn, {"part": part, "role": role, "text": text}, source)


def files_event(turn: int, files: Sequence[Json]) -> NewEvent:
    return NewEvent(EventType.FILES, turn, {"files": list(files)})


def completion_event(
    turn: int, outcome: Outcome, *, text: str | None = None, usage: ModelUsage | None = None, error: Json | None = None
) -> NewEvent:
    """The end of a started turn. Its source makes a second one for the same turn a no-op."""
    body = _present(outcome=outcome.value, text=text, usage=usage and usage.as_json(), error=error)
    return NewEvent(EventType.COMPLETION, turn, body, f"completion:{turn}")


def usage_event(turn: int | None, usage: ModelUsage) -> NewEvent:
    return NewEvent(EventType.USAGE, turn, {"usage": usage.as_json()})


def error_event(turn: int | None, error: Json) -> NewEvent:
    return NewEvent(EventType.ERROR, turn, {"error": error})


def request_event(row: RequestRow) -> NewEvent:
    """The ask itself: permission_request, question or caller_tool_request."""
    return NewEvent(_ASKS[row.kind][0], row.turn, {"request": request_shape(row)})


def request_resolved_event(row: RequestRow, resolution: Json) -> NewEvent:
    return NewEvent(
        EventType.REQUEST_RESOLVED, row.turn, {"request": {"request_id": row.request_id}, "resolution": resolution}
    )


def child_spawned_event(turn: int | None, child_id: str, title: str) -> NewEvent:
    return NewEvent(EventType.CHILD_SPAWNED, turn, {"child": {"session_id": child_id, "title": title}})


def child_ended_event(turn: int | None, child_id: str, title: str, outcome: str | None) -> NewEvent:
    child = _present(session_id=child_id, title=title, outcome=outcome)
    return NewEvent(EventType.CHILD_ENDED, turn, {"child": child})


def schedule_run_event(kind: EventType, turn: int | None, run: Json, at: datetime) -> NewEvent:
    """A run of a schedule has started or ended (``kind``); once of each kind in a session's log."""
    return NewEvent(kind, turn, {"data": {"run": run}}, f"{kind.value}:{run['run_id']}", at)


def system_event(code: str, *, turn: int | None = None, data: Json | None = None) -> NewEvent:
    """KeyError for a code that SHAPES does not have."""
    if code not in SYSTEM_CODES:
        raise KeyError(f"there is no system event {code!r}")
    return NewEvent(EventType.SYSTEM, turn, _present(code=code, data=data))


def _present(**fields: Any) -> Json:
    """Absent means unknown: ``null`` is never sent."""
    return {name: value for name, value in fields.items() if value is not None}
