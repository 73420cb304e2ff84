from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from oubliette.core import events
from oubliette.core.model import (
    EventRow,
    EventType,
    ModelUsage,
    NewEvent,
    Outcome,
    Reason,
    RequestKind,
    RequestRow,
    SessionStatus,
)
from oubliette.core.shape import dump
from oubliette.core.shapes import Event

AT = datetime(2026, 11, 22, 8, 15, 40, 2999, tzinfo=UTC)
BY = {"kind": "token", "id": "tok_1", "name": "phone"}
ASK = RequestRow(
    "req_1", "s", 3, RequestKind.PERMISSION, AT, AT, "reject", {"action": "bash", "options": ["once"]}, "per_1"
)


def stored(new: NewEvent) -> EventRow:
    return EventRow("s", "root", "p", 17, 203, AT, new.type, new.turn, new.body)


def test_an_event_has_the_shape_of_its_documentation() -> None:
    new = NewEvent(EventType.TOOL_RESULT, 3, {"part": "prt_9", "tool": {"id": "call_7", "output": "ok"}})
    assert events.event_shape(stored(new)) == {
        "session_id": "s",
        "index": 17,
        "seq": 203,
        "ts": "2026-11-22T08:15:40.002Z",
        "turn": 3,
        "type": "tool_result",
        "part": "prt_9",
        "tool": {"id": "call_7", "output": "ok"},
    }


@pytest.mark.parametrize(
    "new",
    [
        events.status_event(None, SessionStatus.STARTING),
        events.status_event(SessionStatus.RUNNING, SessionStatus.PAUSED, Reason.BUDGET, turn=1, data={"limit": {}}),
        events.turn_queued_event(1, "do it", "key"),
        events.turn_started_event(1, "do it"),
        events.message_event(1, "prt", "assistant", "hi", source="prt:done"),
        events.files_event(1, [{"path": "a", "change": "added", "added": 1, "removed": 0}]),
        events.completion_event(1, Outcome.FAILED, text="", usage=ModelUsage(1), error={"code": "agent_error"}),
        events.usage_event(1, ModelUsage(1, 2, 3)),
        events.error_event(None, {"code": "model_error", "message": "m"}),
        events.request_event(ASK),
        events.request_resolved_event(
            ASK, events.resolution_shape("req_1", how="answered", at=AT, by=BY, reply="once", answers={"q": ("a",)})
        ),
        events.child_spawned_event(1, "s2", "t"),
        events.child_ended_event(None, "s2", "t", None),
        events.system_event("woken", data={"after_ms": 3}),
    ],
    ids=lambda new: new.type.value,
)
def test_every_event_we_write_fits_the_shape_and_sends_no_null(new: NewEvent) -> None:
    shape = events.event_shape(stored(new))
    assert dump(Event.model_validate(shape)) == shape
    assert "null" not in str(shape)
    assert "None" not in str(shape)


def test_a_turn_has_one_completion() -> None:
    first, second = events.completion_event(4, Outcome.COMPLETED), events.completion_event(4, Outcome.CANCELLED)
    assert first.source == second.source == "completion:4"


@pytest.mark.parametrize(
    ("kind", "body", "key", "event_type"),
    [
        (RequestKind.PERMISSION, {"action": "bash"}, "permission", EventType.PERMISSION_REQUEST),
        (RequestKind.QUESTION, [{"id": "q1"}], "questions", EventType.QUESTION),
        (RequestKind.CALLER_TOOL, {"name": "open"}, "caller_tool", EventType.CALLER_TOOL_REQUEST),
    ],
)
def test_a_request_carries_the_one_of_three_that_its_kind_names(
    kind: RequestKind, body: Any, key: str, event_type: EventType
) -> None:
    row = RequestRow("req_1", "s", 1, kind, AT, AT, "pause", body, "ref")
    shape = events.request_shape(row)
    assert shape[key] == body
    assert {"permission", "questions", "caller_tool"} & set(shape) == {key}
    assert events.request_event(row).type is event_type


def test_a_system_event_of_an_unknown_code_is_a_bug() -> None:
    with pytest.raises(KeyError):
        events.system_event("nonsense")
