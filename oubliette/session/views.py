"""Sessions as clients see them: SHAPES objects from rows. Every function is a query; nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from oubliette.core.events import event_shape, request_shape
from oubliette.core.model import EventType, Json, Outcome, SessionRow, SessionStatus, TurnRow, TurnStatus, rfc3339
from oubliette.session.accepting import Accepted
from oubliette.session.requests import EventsArgs
from oubliette.session.status import require_session
from oubliette.store import events, model_requests, requests, sessions, turns
from oubliette.store.database import Tx

FINAL_TEXT = 4000
"""Characters of a final text in ``wait`` and in brief objects."""
PROMPT = 2000


def quoted(ids: Sequence[str]) -> str:
    return json.dumps(list(ids), separators=(",", ":"))


def cut(name: str, text: str, limit: int) -> Json:
    """``{name: text}``, with the two fields that say so when it was cut."""
    if len(text) <= limit:
        return {name: text}
    return {name: text[:limit], f"{name}_truncated": True, f"{name}_bytes": len(text.encode())}


def turn_view(tx: Tx, turn: TurnRow, *, text_limit: int = FINAL_TEXT) -> Json:
    """SHAPES' Turn."""
    shape: Json = {"turn": turn.turn, "status": str(turn.status), "from": turn.sender}
    if turn.outcome is not None:
        shape["outcome"] = str(turn.outcome)
    shape.update(cut("prompt", turn.prompt, PROMPT))
    for name in ("queued_at", "started_at", "ended_at"):
        at = getattr(turn, name)
        if at is not None:
            shape[name] = rfc3339(at)
    for name in ("first_index", "last_index"):
        index = getattr(turn, name)
        if index is not None:
            shape[name] = index
    if turn.final_text is not None:
        shape.update(cut("final_text", turn.final_text, text_limit))
    if turn.files:
        shape["files"] = turn.files
    if turn.results:
        shape["results"] = turn.results
    if turn.status is not TurnStatus.QUEUED:
        shape["usage"] = model_requests.turn_usage(tx, turn.session_id, turn.turn).as_json()
    if turn.error is not None:
        shape["error"] = turn.error
    return shape


def session_view(tx: Tx, row: SessionRow, *, full: bool = False) -> Json:
    """SHAPES' Session; ``full`` adds turns, limits and the tree's usage."""
    shape: Json = {
        "session_id": row.session_id,
        "project_id": row.project_id,
        "workspace_id": row.workspace_id,
        "root_id": row.root_id,
        "depth": row.depth,
        "title": row.title,
        "created_by": row.created_by,
        "status": str(row.status),
        "since": rfc3339(row.since),
        "open": row.open,
        "hibernated": row.hibernated,
        "model": row.model,
        "autonomy": str(row.autonomy),
        "reasoning": str(row.reasoning),
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
        "turn": row.turn,
        "queued": turns.queued_count(tx, row.session_id),
        "pending": [request_shape(request) for request in requests.pending(tx, row.session_id)],
        "children": sessions.children_counts(tx, row.session_id),
        "usage": model_requests.session_usage(tx, row.session_id).as_json(),
    }
    for name in ("parent_id", "external_id", "source", "schedule_id", "error"):
        value = getattr(row, name)
        if value is not None:
            shape[name] = value
    if row.reason is not None:
        shape["reason"] = str(row.reason)
    if row.ended_at is not None:
        shape["ended_at"] = rfc3339(row.ended_at)
    last = last_done(tx, row)
    if last is not None:
        shape["last_turn"] = turn_view(tx, last)
    oldest, newest = events.bounds(tx, row.session_id)
    shape["oldest_index"], shape["last_index"] = oldest, newest
    root = row if row.depth == 0 else sessions.get(tx, row.root_id)
    if root is not None:
        shape["last_seq"] = root.last_seq
    if full:
        shape["limits"] = row.limits
        shape["tree_usage"] = model_requests.tree_usage(tx, row.root_id).as_json()
        page, cursor = turns.list_page(tx, row.session_id, limit=20, cursor=None)
        shape["turns"] = [turn_view(tx, turn) for turn in page]
        if cursor is not None:
            shape["turns_cursor"] = cursor
    return shape


def last_done(tx: Tx, row: SessionRow) -> TurnRow | None:
    """The newest turn that has ended."""
    running = turns.running(tx, row.session_id)
    newest = turns.last(tx, row.session_id)
    if running is None or newest is None or newest.turn != running.turn:
        return newest
    return turns.get(tx, row.session_id, running.turn - 1)


def settled(tx: Tx, row: SessionRow) -> bool:
    """No turn running or queued and no answer awaited."""
    if not row.open:
        return True
    working = turns.running(tx, row.session_id) is not None or turns.queued_count(tx, row.session_id) > 0
    return not working and not requests.pending(tx, row.session_id)


def spawn_result(tx: Tx, accepted: Accepted) -> Json:
    """SHAPES' result of spawn and message."""
    row = sessions.get(tx, accepted.row.session_id) or accepted.row
    shape: Json = {
        "session_id": row.session_id,
        "project_id": row.project_id,
        "workspace_id": row.workspace_id,
        "created": accepted.created,
        "resumed": accepted.resumed,
        "workspace_created": accepted.workspace_created,
        "deduplicated": False,
        "status": str(row.status),
        "turn": accepted.turn.turn,
        "queue_position": accepted.queue_position,
        "last_index": accepted.row.last_index,
        "last_event_index": accepted.row.last_index,
        "next": f"session wait session_ids={quoted([row.session_id])}",
    }
    if not accepted.created:
        last = last_done(tx, row)
        if last is not None:
            shape["last_turn"] = turn_view(tx, last)
    return shape


def events_result(tx: Tx, args: EventsArgs) -> Json:
    """SHAPES' result of events for one session. Raises RequestError not_found."""
    row = require_session(tx, args.session_id)
    page = events.read(
        tx, args.session_id, args.since_index, args.max_events, [EventType(one) for one in args.types] or None
    )
    oldest, newest = events.bounds(tx, args.session_id)
    more = len(page) == args.max_events
    last = page[-1].index if more else max(newest, args.since_index)
    rests = settled(tx, row)
    last_turn = last_done(tx, row)
    good = last_turn is not None and last_turn.outcome is Outcome.COMPLETED
    shape: Json = {
        "session_id": row.session_id,
        "status": str(row.status),
        "turn": row.turn,
        "events": [event_shape(event) for event in page],
        "last_index": last,
        "more": more,
        "oldest_index": oldest,
        "dropped_events": max(0, oldest - args.since_index - 1),
        "completed": rests and good,
        "failed": rests and not good and last_turn is not None,
    }
    if row.error is not None:
        shape["error"] = row.error
    if not (rests and not more):
        shape["next"] = f"session events session_id={row.session_id} since_index={last} wait_seconds=20"
    return shape


def wait_result(tx: Tx, session_ids: Sequence[str], *, everything: bool = False) -> Json:
    """The sessions that are settled or wait for somebody, and the ids of those that do neither.

    ``everything`` lists the others too, as they are now.
    """
    ready, remaining = [], []
    for session_id in session_ids:
        row = require_session(tx, session_id)
        rests = settled(tx, row)
        waits = row.status in (SessionStatus.WAITING, SessionStatus.PAUSED)
        if not rests and not waits:
            remaining.append(session_id)
            if not everything:
                continue
        ready.append(_waited(tx, row, rests=rests))
    return {"sessions": ready, "remaining": remaining}


def _waited(tx: Tx, row: SessionRow, *, rests: bool) -> Json:
    shape: Json = {
        "session_id": row.session_id,
        "status": str(row.status),
        "turn": row.turn,
        "last_index": row.last_index,
        "usage": model_requests.session_usage(tx, row.session_id).as_json(),
        "pending": [request_shape(request) for request in requests.pending(tx, row.session_id)],
    }
    if row.reason is not None:
        shape["reason"] = str(row.reason)
    last = last_done(tx, row) if rests else None
    if last is not None:
        shape["turn"] = last.turn
        if last.outcome is not None:
            shape["outcome"] = str(last.outcome)
        shape.update(cut("final_text", last.final_text or "", FINAL_TEXT))
        shape["files"] = last.files
        if last.results:
            shape["results"] = last.results
        if last.error is not None:
            shape["error"] = last.error
    return shape
