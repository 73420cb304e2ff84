"""``oubliette://`` resources: the same objects that the tools return, under a name that can be subscribed to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from oubliette.api.frames import THIN
from oubliette.api.tools.gate import Target, find
from oubliette.core.limits import MAX_RESULT_CHARACTERS
from oubliette.core.model import EventRow, EventType, Json
from oubliette.core.principals import Principal
from oubliette.store.database import Tx

Kind = Literal["session", "events", "project", "schedule"]
_URI: Final = re.compile(r"oubliette://(sessions|projects|schedules)/([A-Za-z0-9_][A-Za-z0-9_.:-]{0,63})(/events)?")
_PROJECT_NEWS: Final = frozenset({EventType.STATUS, EventType.SYSTEM})

TEMPLATES: Final = (
    ("oubliette://sessions/{session_id}", "session", "One session: status, turns, what is pending."),
    ("oubliette://sessions/{session_id}/events", "session-events", "Its newest events."),
    ("oubliette://projects/{project_id}", "project", "One project: settings, state, counts."),
    ("oubliette://schedules/{schedule_id}", "schedule", "One schedule: when it runs, its targets and their last runs."),
)


@dataclass(frozen=True, slots=True)
class Ref:
    """What a URI names."""

    kind: Kind
    id: str

    @property
    def uri(self) -> str:
        if self.kind in ("project", "schedule"):
            return f"oubliette://{self.kind}s/{self.id}"
        return f"oubliette://sessions/{self.id}" + ("/events" if self.kind == "events" else "")

    def call(self) -> tuple[str, Json]:
        """The tool call that reads it."""
        if self.kind == "project":
            return "project", {"action": "get", "project_id": self.id, "detail": "full"}
        if self.kind == "schedule":
            return "schedule", {"action": "get", "schedule_id": self.id, "detail": "full"}
        if self.kind == "events":
            return "session", {"action": "events", "session_id": self.id, "max_chars": MAX_RESULT_CHARACTERS}
        return "session", {"action": "get", "session_id": self.id, "detail": "full", "max_chars": MAX_RESULT_CHARACTERS}


def parse(uri: str) -> Ref | None:
    """None: this is no resource of ours."""
    match = _URI.fullmatch(uri[:200])
    if match is None or (match[1] != "sessions" and match[3]):
        return None
    kinds: dict[str, Kind] = {"projects": "project", "schedules": "schedule", "sessions": "session"}
    return Ref("events" if match[3] else kinds[match[1]], match[2])


def check(tx: Tx, ref: Ref, principal: Principal) -> None:
    """Raises RequestError not_found or permission_denied, as reading it would."""
    if ref.kind == "project":
        find(tx, principal, "project.get", Target.PROJECT, {"project_id": ref.id})
    elif ref.kind == "schedule":
        find(tx, principal, "schedule.get", Target.SCHEDULE, {"schedule_id": ref.id})
    else:
        find(tx, principal, "session.get", Target.SESSION, {"session_id": ref.id})


def touched_by(row: EventRow) -> Iterator[Ref]:
    """What an event changes."""
    yield Ref("events", row.session_id)
    if row.type in THIN:
        yield Ref("session", row.session_id)
    if row.type in _PROJECT_NEWS:
        yield Ref("project", row.project_id)
