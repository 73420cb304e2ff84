"""The event log: the hot path. Indexes are contiguous per session, ``seq`` per tree, both in commit order."""

# ruff: noqa: S608  # statements are put together from constants and column names; values are always bound

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from oubliette import clock
from oubliette.core.model import EventRow, EventType, NewEvent
from oubliette.core.notices import WORTH_A_LOOK
from oubliette.errors import RequestError
from oubliette.store import webhooks
from oubliette.store.bodies import stored_form
from oubliette.store.codec import from_micros, to_micros
from oubliette.store.database import Tx

_TYPES = {member.value: member for member in EventType}
_SELECT = (
    'SELECT s.session_id, l.root_id, l.project_id, e."index", e.seq, e.ts, e.type, e.turn, e.body'
    " FROM events e JOIN event_logs l ON l.session_key = e.session_key"
    " JOIN sessions s ON s.session_key = e.session_key "
)


def append(tx: Tx, session_id: str, event: NewEvent) -> EventRow | None:
    """Append to the session's log and publish with the commit. None: an event of that ``source`` is already there.

    What is stored (and returned, and published) is cut to 1 MiB. Raises RequestError not_found.
    """
    found = tx.rows(
        "SELECT l.session_key, l.root_key, l.project_id, l.root_id, l.last_index + 1, r.last_seq + 1"
        " FROM sessions s JOIN event_logs l ON l.session_key = s.session_key"
        " JOIN event_logs r ON r.session_key = l.root_key WHERE s.session_id = ?",
        session_id,
    )
    if not found:
        raise RequestError("not_found", "The session of this event is gone.")
    session_key, root_key, project_id, root_id, index, seq = found[0]
    body, text = stored_form(event.body)
    ts = event.ts or clock.now()
    inserted = tx.run(
        'INSERT INTO events (session_key, "index", root_key, seq, ts, type, turn, source, body)'
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (session_key, source) WHERE source IS NOT NULL DO NOTHING",
        session_key,
        index,
        root_key,
        seq,
        to_micros(ts),
        event.type.value,
        event.turn,
        event.source,
        text,
    )
    if not inserted:
        return None
    size = len(text)
    if session_key == root_key:
        tx.run(
            "UPDATE event_logs SET last_index = ?, last_seq = ?, stored_bytes = stored_bytes + ? WHERE session_key = ?",
            index,
            seq,
            size,
            session_key,
        )
    else:
        tx.run(
            "UPDATE event_logs SET last_index = ?, stored_bytes = stored_bytes + ? WHERE session_key = ?",
            index,
            size,
            session_key,
        )
        tx.run("UPDATE event_logs SET last_seq = ? WHERE session_key = ?", seq, root_key)
    row = EventRow(session_id, root_id, project_id, index, seq, ts, event.type, event.turn, body)
    tx.publish(row)
    if event.type in WORTH_A_LOOK:
        webhooks.add_event(tx, row)
    return row


def read(
    tx: Tx, session_id: str, since_index: int, max_events: int, types: Collection[EventType] | None = None
) -> list[EventRow]:
    """Events after ``since_index`` (exclusive), at most ``max_events``, of the given types."""
    filtered, args = _types_filter(types)
    return _rows(
        tx,
        'WHERE e.session_key = (SELECT session_key FROM sessions WHERE session_id = ?) AND e."index" > ? '
        + filtered
        + 'ORDER BY e."index" LIMIT ?',
        session_id,
        since_index,
        *args,
        max_events,
    )


def read_tree(
    tx: Tx,
    root_id: str,
    session_ids: Collection[str] | None,
    since_seq: int,
    max_events: int,
    types: Collection[EventType] | None = None,
) -> list[EventRow]:
    """The merged events of a tree after ``since_seq`` (exclusive), or of some of its sessions."""
    filtered, args = _types_filter(types)
    if session_ids is not None:
        filtered += (
            "AND e.session_key IN (SELECT session_key FROM sessions"
            " WHERE session_id IN (SELECT value FROM json_each(?))) "
        )
        args.append(json.dumps(sorted(session_ids)))
    return _rows(
        tx,
        "WHERE e.root_key = (SELECT session_key FROM sessions WHERE session_id = ?) AND e.seq > ? "
        + filtered
        + "ORDER BY e.seq LIMIT ?",
        root_id,
        since_seq,
        *args,
        max_events,
    )


def read_turn(
    tx: Tx, session_id: str, turn: int, types: Collection[EventType] | None = None, max_events: int = 10_000
) -> list[EventRow]:
    """Events that belong to one turn, in order."""
    filtered, args = _types_filter(types)
    return _rows(
        tx,
        "WHERE e.session_key = (SELECT session_key FROM sessions WHERE session_id = ?) AND e.turn = ? "
        + filtered
        + 'ORDER BY e."index" LIMIT ?',
        session_id,
        turn,
        *args,
        max_events,
    )


def latest(tx: Tx, session_id: str, event_type: EventType, turn: int | None = None) -> EventRow | None:
    """The newest event of a type, of one turn when given."""
    found = _rows(
        tx,
        "WHERE e.session_key = (SELECT session_key FROM sessions WHERE session_id = ?) AND e.type = ?"
        ' AND (? IS NULL OR e.turn = ?) ORDER BY e."index" DESC LIMIT 1',
        session_id,
        event_type.value,
        turn,
        turn,
    )
    return found[0] if found else None


def bounds(tx: Tx, session_id: str) -> tuple[int, int]:
    """(oldest index that is kept, newest index; -1 when there is none). Raises RequestError not_found."""
    rows = tx.rows(
        "SELECT l.oldest_index, l.last_index FROM sessions s JOIN event_logs l ON l.session_key = s.session_key"
        " WHERE s.session_id = ?",
        session_id,
    )
    if not rows:
        raise RequestError("not_found", "The session is gone.")
    oldest, newest = rows[0]
    return oldest, newest


def stored_bytes(tx: Tx, session_id: str) -> int:
    """What the session's events take, in characters of their JSON (0 for an unknown session)."""
    rows = tx.rows(
        "SELECT l.stored_bytes FROM sessions s JOIN event_logs l ON l.session_key = s.session_key"
        " WHERE s.session_id = ?",
        session_id,
    )
    return rows[0][0] if rows else 0


def project_bytes(tx: Tx, project_id: str) -> int:
    """The same for all sessions of a project."""
    return int(
        tx.rows(
            "SELECT coalesce(sum(l.stored_bytes), 0) FROM sessions s JOIN event_logs l"
            " ON l.session_key = s.session_key WHERE s.project_id = ?",
            project_id,
        )[0][0]
    )


def _types_filter(types: Collection[EventType] | None) -> tuple[str, list[Any]]:
    if types is None:
        return "", []
    names = sorted(EventType(one).value for one in types)
    return f"AND e.type IN ({', '.join('?' * len(names))}) ", list(names)


def _rows(tx: Tx, tail: str, *args: Any) -> list[EventRow]:
    return [_decode(row) for row in tx.rows(_SELECT + tail, *args)]


def _decode(row: Sequence[Any]) -> EventRow:
    session_id, root_id, project_id, index, seq, ts, kind, turn, body = row
    return EventRow(session_id, root_id, project_id, index, seq, from_micros(ts), _TYPES[kind], turn, json.loads(body))
