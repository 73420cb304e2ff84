"""Notices: which events are worth one, and that nothing of people or agents is in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks import Webhook

from oubliette.core import events
from oubliette.core.model import EventRow, EventType, Json, NewEvent, Outcome, Reason, SessionStatus
from oubliette.core.notices import NOTICE_TYPES, WORTH_A_LOOK, body_of, notice_of, signature, signing_key, thin_run

AT = datetime(2026, 11, 22, 8, 15, 30, 123000, tzinfo=UTC)
RUN: Json = {
    "run_id": "run_1",
    "schedule_id": "sched_1",
    "status": "failed",
    "reason": "failed",
    "output": "SECRET words",
    "output_bytes": 12,
    "error": {"code": "model_error", "message": "SECRET words", "hint": "SECRET"},
    "usage": {"requests": 1},
}


def row(new: NewEvent) -> EventRow:
    return EventRow("gogol_1", "gogol_1", "7b1c", 3, 9, AT, new.type, new.turn, new.body)


@pytest.mark.parametrize(
    ("event", "kind", "about"),
    [
        (
            events.completion_event(3, Outcome.FAILED, text="SECRET", error={"message": "SECRET"}),
            "session.turn_ended",
            {"turn": 3, "outcome": "failed"},
        ),
        (
            events.status_event(SessionStatus.RUNNING, SessionStatus.WAITING, Reason.PERMISSION, turn=3),
            "session.waiting",
            {"turn": 3},
        ),
        (
            events.status_event(SessionStatus.RUNNING, SessionStatus.PAUSED, Reason.BUDGET, turn=3),
            "session.paused",
            {"turn": 3},
        ),
        (events.status_event(SessionStatus.IDLE, SessionStatus.COMPLETED), "session.ended", {"outcome": "completed"}),
        (events.status_event(SessionStatus.IDLE, SessionStatus.FAILED), "session.ended", {"outcome": "failed"}),
        (
            NewEvent(EventType.SCHEDULE_RUN_ENDED, 3, {"data": {"run": RUN}}),
            "schedule.run_ended",
            {"turn": 3, "run": thin_run(RUN)},
        ),
    ],
)
def test_ends_waits_and_pauses_are_told(event: NewEvent, kind: str, about: Json) -> None:
    assert event.type in WORTH_A_LOOK
    assert notice_of(row(event)) == (kind, {"session_id": "gogol_1", **about})
    assert "SECRET" not in json.dumps(notice_of(row(event)))


@pytest.mark.parametrize(
    "event",
    [
        events.status_event(SessionStatus.STARTING, SessionStatus.RUNNING),
        events.status_event(SessionStatus.RUNNING, SessionStatus.IDLE),
        events.turn_started_event(1, "SECRET"),
        events.message_event(1, "prt_1", "assistant", "SECRET"),
        NewEvent(EventType.SCHEDULE_RUN_STARTED, 3, {"data": {"run": RUN}}),
    ],
)
def test_nothing_else_is(event: NewEvent) -> None:
    assert notice_of(row(event)) is None


def test_a_run_is_told_without_its_output_and_of_its_error_the_code() -> None:
    thin = thin_run(RUN)
    assert (thin["run_id"], thin["error"], thin["usage"]) == ("run_1", {"code": "model_error"}, {"requests": 1})
    assert not {name for name in thin if name.startswith("output")}


def test_a_body_is_the_shape_of_the_documentation() -> None:
    body = body_of("wh_1", "session.ended", AT, "7b1c", {"session_id": "gogol_1", "outcome": "completed"}, 2)
    assert json.loads(body) == {
        "id": "wh_1",
        "type": "session.ended",
        "ts": "2026-11-22T08:15:30.123Z",
        "project_id": "7b1c",
        "session_id": "gogol_1",
        "outcome": "completed",
        "attempt": 2,
    }
    assert len(NOTICE_TYPES) == 6


def test_a_signature_is_the_one_that_the_library_makes() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = '{"test": 2432232314}'
    made: Any = Webhook(secret).sign("msg_1", datetime(2026, 11, 22, 8, tzinfo=UTC), body)
    seconds = int(datetime(2026, 11, 22, 8, tzinfo=UTC).timestamp())
    assert signature([signing_key(secret)], "msg_1", seconds, body.encode()) == made


@pytest.mark.parametrize("secret", ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!!", "whsec_" + "A" * 100])
def test_what_is_no_secret_of_standard_webhooks_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match=r"whsec_|base64|bytes"):
        signing_key(secret)


def test_a_secret_may_come_without_its_padding() -> None:
    assert signing_key("whsec_" + "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQQ") == b"A" * 25
