"""The events of a session and of all below it as one list, in the order of their commits."""

from __future__ import annotations

from oubliette.core.events import event_shape
from oubliette.core.model import EventType, Json, SessionRow
from oubliette.session import views
from oubliette.session.requests import EventsArgs
from oubliette.session.status import require_session
from oubliette.store import cursors, events, trees
from oubliette.store.database import Tx


def merged_result(tx: Tx, asked: EventsArgs, bound_to: str) -> Json:
    """SHAPES' result of events with ``include_children``: a page by ``seq``, and the cursor after it.

    Everything up to the cursor was looked at, in one snapshot, so reading on from it misses nothing and repeats
    nothing. It is good for the same session, types and principal. Raises RequestError not_found, invalid_cursor.
    """
    row = require_session(tx, asked.session_id)
    root = row if row.depth == 0 else require_session(tx, row.root_id)
    filters = ["events", row.session_id, sorted(asked.types), bound_to]
    since = (
        cursors.decode(asked.cursor, filters, (int,))[0] if asked.cursor is not None else _start(tx, row, root, asked)
    )
    whole = row is root
    below = None if whole else [branch.session_id for branch in trees.below(tx, row.root_id, row.session_id)]
    types = [EventType(name) for name in asked.types] or None
    found = events.read_tree(tx, row.root_id, below, since, asked.max_events, types)
    more = len(found) == asked.max_events
    last = found[-1].seq if more else max(since, root.last_seq)
    shape = views.events_result(tx, EventsArgs(row.session_id, since_index=row.last_index, max_events=1))
    for name in ("last_index", "oldest_index", "dropped_events", "next"):
        shape.pop(name, None)
    cursor = cursors.encode([last], filters)
    shape |= {"events": [event_shape(event) for event in found], "cursor": cursor, "more": more}
    if whole and types is None:
        # seq has no holes: what is missing before the first one was purged.
        shape["dropped_events"] = max(0, (found[0].seq if found else last + 1) - since - 1)
    if more or anything_open(tx, row):
        given = f'session events session_id={row.session_id} include_children=true cursor="{cursor}"'
        shape["next"] = f"{given} wait_seconds=20"
    return shape


def anything_open(tx: Tx, row: SessionRow) -> bool:
    """Whether the session, or one below it, may still have events to come."""
    return row.open or any(branch.open for branch in trees.below(tx, row.root_id, row.session_id))


def _start(tx: Tx, row: SessionRow, root: SessionRow, asked: EventsArgs) -> int:
    """Without a cursor a merged read begins behind the session's own event ``since_index``."""
    if asked.since_index < 0:
        return -1
    near = events.read(tx, row.session_id, asked.since_index - 1, 1)
    if not near:
        return root.last_seq
    return near[0].seq if near[0].index == asked.since_index else near[0].seq - 1
