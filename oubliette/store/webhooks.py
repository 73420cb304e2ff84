"""Notices for webhooks: written in the unit of what they tell of, so that none is lost, and kept until taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from oubliette import clock
from oubliette.core.model import EventRow, Json
from oubliette.core.notices import NoticeType, notice_of
from oubliette.store.codec import Table, to_json, to_micros
from oubliette.store.database import Tx

TOPIC: Final = "webhooks"
"""``Store.hear`` of it wakes those who send; the subject is the receiver's name."""


@dataclass(frozen=True, slots=True)
class NoticeRow:
    """One notice for one receiver. ``about``: SHAPES' Outgoing webhook without id, type, ts, project_id, attempt.

    ``attempt``: how many were begun. ``due_at``: when the next one is.
    """

    notice_id: str
    endpoint: str
    type: str
    project_id: str
    at: datetime
    about: Json
    attempt: int
    due_at: datetime


_NOTICES = Table("webhook_notices", NoticeRow)


def add(tx: Tx, kind: NoticeType, project_id: str, about: Json, at: datetime) -> None:
    """Queue a notice for every receiver that wants it; sent after the commit, within a moment."""
    for name, types, projects in tx.rows("SELECT name, types, projects FROM webhook_endpoints"):
        wanted, of = json.loads(types), json.loads(projects)
        if (wanted and kind not in wanted) or (of and project_id not in of):
            continue
        notice_id = f"wh_{clock.fresh_hex(24)}"
        _NOTICES.insert(tx, NoticeRow(notice_id, name, kind, project_id, at, about, attempt=0, due_at=at))
        tx.tell(TOPIC, name)


def add_event(tx: Tx, event: EventRow) -> None:
    """The notice of an event that was just appended, if it is worth one."""
    found = notice_of(event)
    if found is not None:
        kind, about = found
        add(tx, kind, event.project_id, about, event.ts)


def set_endpoints(tx: Tx, wanted: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> list[str]:
    """Have exactly these receivers (name → types, projects; empty means all). What waited for others is forgotten;
    returns their names."""
    known = [row[0] for row in tx.rows("SELECT name FROM webhook_endpoints")]
    gone = [name for name in known if name not in wanted]
    for name in gone:
        remove_endpoint(tx, name)
    for name, (types, projects) in wanted.items():
        tx.run(
            "INSERT INTO webhook_endpoints (name, types, projects) VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET types = excluded.types, projects = excluded.projects",
            name,
            to_json(list(types)),
            to_json(list(projects)),
        )
    return gone


def remove_endpoint(tx: Tx, name: str) -> int:
    """A receiver is no more, nor what waited for it. Returns how many notices that were."""
    waiting = pending(tx, name)
    tx.run("DELETE FROM webhook_endpoints WHERE name = ?", name)
    return waiting


def claim(tx: Tx, endpoint: str, at: datetime, count: int, lease: timedelta) -> list[NoticeRow]:
    """The next notices that are due, oldest first, each with one attempt more than before. None of them is due again
    before ``lease`` is over: whoever claimed it says what came of it, or has died."""
    due = _NOTICES.list(
        tx,
        "WHERE t.endpoint = ? AND t.due_at <= ? ORDER BY t.due_at, t.notice_key LIMIT ?",
        endpoint,
        to_micros(at),
        count,
    )
    for row in due:
        _NOTICES.update(tx, "notice_id = ?", [row.notice_id], {"attempt": row.attempt + 1, "due_at": at + lease})
    return [replace(row, attempt=row.attempt + 1, due_at=at + lease) for row in due]


def put_off(tx: Tx, notice_id: str, due_at: datetime) -> None:
    """An attempt has failed; another is due then."""
    _NOTICES.update(tx, "notice_id = ?", [notice_id], {"due_at": due_at})


def finish(tx: Tx, notice_id: str) -> None:
    """It was taken, or is given up."""
    tx.run("DELETE FROM webhook_notices WHERE notice_id = ?", notice_id)


def hasten(tx: Tx, endpoint: str, at: datetime, lease: timedelta) -> int:
    """The receiver is back: whatever waits for it is due now, but for what is due within ``lease`` anyway: that may be
    under way. ``at`` is read in this unit, so that no claim before it has a later lease."""
    return tx.run(
        "UPDATE webhook_notices SET due_at = ? WHERE endpoint = ? AND due_at > ?",
        to_micros(at),
        endpoint,
        to_micros(at + lease),
    )


def trim(tx: Tx, endpoint: str, keep: int) -> int:
    """Forget the oldest so that at most ``keep`` wait. Returns how many were forgotten."""
    return tx.run(
        "DELETE FROM webhook_notices WHERE endpoint = ? AND notice_key <= (SELECT notice_key FROM webhook_notices"
        " WHERE endpoint = ? ORDER BY notice_key DESC LIMIT 1 OFFSET ?)",
        endpoint,
        endpoint,
        keep,
    )


def next_due(tx: Tx, endpoint: str) -> datetime | None:
    """When there is something to do for this receiver."""
    row = _NOTICES.find(tx, "WHERE t.endpoint = ? ORDER BY t.due_at, t.notice_key LIMIT 1", endpoint)
    return row.due_at if row is not None else None


def pending(tx: Tx, endpoint: str) -> int:
    """How many notices wait for this receiver."""
    return int(tx.rows("SELECT count(*) FROM webhook_notices WHERE endpoint = ?", endpoint)[0][0])
