"""Notices for webhooks: which events are worth one, what it says, and how it is signed. Pure.

Thin on purpose: no text of people or agents. Signed as Standard Webhooks says (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, Literal, get_args

from oubliette.core.model import OPEN_STATUSES, EventRow, EventType, Json, SessionStatus, rfc3339

NoticeType = Literal[
    "session.turn_ended",
    "session.waiting",
    "session.paused",
    "session.ended",
    "schedule.run_ended",
    "schedule.paused",
]
NOTICE_TYPES: Final[tuple[NoticeType, ...]] = get_args(NoticeType)

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix is no secret
MIN_KEY_BYTES: Final = 24
MAX_KEY_BYTES: Final = 64

WORTH_A_LOOK: Final = frozenset({EventType.COMPLETION, EventType.STATUS, EventType.SCHEDULE_RUN_ENDED})
"""The types of event that ``notice_of`` may find something in."""
_OPEN_NEWS: Final[Mapping[str, NoticeType]] = {
    SessionStatus.WAITING.value: "session.waiting",
    SessionStatus.PAUSED.value: "session.paused",
}
_ENDED: Final = frozenset(status.value for status in SessionStatus if status not in OPEN_STATUSES)
_RUN: Final = (
    "run_id",
    "schedule_id",
    "target_id",
    "project_id",
    "workspace_id",
    "trigger",
    "planned_at",
    "claimed_at",
    "started_at",
    "ended_at",
    "status",
    "reason",
    "missed_count",
    "until",
    "session_id",
    "session",
    "turn",
    "usage",
)


def notice_of(event: EventRow) -> tuple[NoticeType, Json] | None:
    """The notice that an event is worth, and what it says besides its id, type, time and project."""
    about: Json = {"session_id": event.session_id}
    if event.turn is not None:
        about["turn"] = event.turn
    if event.type is EventType.COMPLETION:
        return "session.turn_ended", {**about, "outcome": event.body.get("outcome")}
    if event.type is EventType.STATUS:
        to = str((event.body.get("status") or {}).get("to"))
        if to in _ENDED:
            return "session.ended", {**about, "outcome": to}
        return (_OPEN_NEWS[to], about) if to in _OPEN_NEWS else None
    if event.type is EventType.SCHEDULE_RUN_ENDED:
        return "schedule.run_ended", {**about, "run": thin_run((event.body.get("data") or {}).get("run") or {})}
    return None


def thin_run(run: Mapping[str, object]) -> Json:
    """SHAPES' Run without what the agent wrote; of its error the code alone."""
    thin: Json = {name: run[name] for name in _RUN if name in run}
    error = run.get("error")
    if isinstance(error, Mapping) and "code" in error:
        thin["error"] = {"code": error["code"]}
    return thin


def body_of(
    notice_id: str, kind: str, at: datetime, project_id: str, about: Mapping[str, object], attempt: int
) -> bytes:
    """SHAPES' Outgoing webhook. ``attempt`` counts from 1; the id is the same at each."""
    shape = {"id": notice_id, "type": kind, "ts": rfc3339(at), "project_id": project_id, **about, "attempt": attempt}
    return json.dumps(shape, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def signing_key(secret: str) -> bytes:
    """The key in a ``whsec_…`` secret. Raises ValueError when it is none, shorter than 24 or longer than 64 bytes."""
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError("it does not begin with whsec_")
    text = secret.removeprefix(SECRET_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("what follows whsec_ is not base64") from None
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"it holds {len(key)} bytes")
    return key


def signature(keys: Iterable[bytes], notice_id: str, seconds: int, body: bytes) -> str:
    """The header ``webhook-signature``: one ``v1`` signature for each key."""
    signed = b".".join((notice_id.encode(), str(seconds).encode(), body))
    made = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return " ".join(f"v1,{one}" for one in made)
