"""What the ``session`` tool only looks at: one session, a list of them, their events."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from oubliette.api.tools.fields import invalid, shown
from oubliette.api.tools.progress import patience, with_progress
from oubliette.api.tools.registry import Call
from oubliette.core.events import event_shape
from oubliette.core.model import EventRow, EventType, Json, SessionRow, SessionStatus
from oubliette.safe_text import safe_line
from oubliette.session import views
from oubliette.session.feed import Subscription
from oubliette.session.requests import EventsArgs
from oubliette.store import cursors, sessions
from oubliette.store import events as event_log
from oubliette.store.database import Tx

if TYPE_CHECKING:
    from oubliette.api.tools.session import Events, Get, List

_BRIEF: Final = (
    "session_id",
    "project_id",
    "workspace_id",
    "parent_id",
    "depth",
    "title",
    "external_id",
    "source",
    "status",
    "reason",
    "since",
    "open",
    "model",
    "turn",
    "queued",
    "last_index",
)
_MAX_ANSWERS: Final = 50


def as_answers(given: dict[str, Any]) -> dict[str, list[str]]:
    """Question id to chosen options; one option may come without its list."""
    found: dict[str, list[str]] = {}
    for question, chosen in given.items():
        values = [chosen] if isinstance(chosen, str) else chosen
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise invalid("answers", f"to {shown(question)} must be an array of strings")
        found[question] = values
    if not 0 < len(found) <= _MAX_ANSWERS:
        raise invalid("answers", "must name a question and what was chosen")
    return found


async def get(call: Call, args: Get) -> Json:
    row = call.place.session
    return await call.shared.services.store.read(partial(_fresh_view, row=row, full=args.detail == "full"))


def _fresh_view(tx: Tx, row: SessionRow, full: bool) -> Json:
    return views.session_view(tx, sessions.get(tx, row.session_id) or row, full=full)


async def list_sessions(call: Call, args: List) -> Json:
    return await call.shared.services.store.read(partial(_list, call=call, args=args))


def _list(tx: Tx, call: Call, args: List) -> Json:
    following: str | None = None
    own = call.principal.scope.session_id
    if own is not None:
        rows = [row for row in sessions.subtree(tx, own) if _fits(row, args)]
        rows = sorted(rows, key=lambda row: (row.created_at, row.session_id), reverse=True)[: args.limit]
    else:
        status = None
        if args.status is not None:
            status = "open" if args.status == "open" else [SessionStatus(args.status)]
        rows, following = sessions.list_page(
            tx,
            project_id=call.place.project_id,
            workspace_id=args.workspace_id,
            status=status,  # type: ignore[arg-type]  # "open" or a list
            root_id=args.root_id,
            parent_id=args.parent_id,
            external_id=args.external_id,
            source=args.source,
            limit=args.limit,
            cursor=args.cursor,
            bound_to=call.principal.id,
        )
    full = args.detail == "full"
    page: Json = {"sessions": [_item(views.session_view(tx, row), full) for row in rows]}
    if following is not None:
        page["next_cursor"] = following
    return page


def _fits(row: SessionRow, args: List) -> bool:
    right_status = args.status is None or row.status == args.status or (args.status == "open" and row.open)
    asked = (
        (args.workspace_id, row.workspace_id),
        (args.root_id, row.root_id),
        (args.parent_id, row.parent_id),
        (args.external_id, row.external_id),
        (args.source, row.source),
    )
    return right_status and all(wanted is None or wanted == value for wanted, value in asked)


def _item(view: Json, full: bool) -> Json:
    """A list's brief item: where it is, how it stands, how its last turn ended."""
    if full:
        return view
    item: Json = {name: view[name] for name in _BRIEF if name in view}
    item["title"] = safe_line(str(item.get("title", "")), 120)
    if view["pending"]:
        item["pending"] = view["pending"]
    last = view.get("last_turn")
    if last is not None:
        item["last_turn"] = {name: last[name] for name in ("turn", "status", "outcome", "error") if name in last}
    return item


# --- events


async def events(call: Call, args: Events) -> Json:
    """A page of events; with ``wait_seconds`` it waits for the first one."""
    types = tuple(_event_type(name) for name in args.types or ())
    asked = EventsArgs(
        session_id=args.session_id,
        since_index=args.since_index,
        cursor=args.cursor,
        max_events=args.max_events,
        include_children=args.include_children or args.cursor is not None,
        types=types,
    )
    row = call.place.session
    read = partial(_page, row=row, asked=asked, bound_to=call.principal.id)
    seconds = patience(call, args.wait_seconds)
    if seconds <= 0:
        return await call.shared.services.store.read(read)

    async def wait() -> Json:
        with _subscribed(call, row, asked) as subscription:
            page: Json = {}
            with trio.move_on_after(seconds):
                while True:
                    page = await call.shared.services.store.read(read)
                    if page["events"] or subscription.closed or SessionStatus(page["status"]) not in _OPEN:
                        return page
                    await subscription.next_batch()
            return page or await call.shared.services.store.read(read)

    return await with_progress(call, seconds, "waiting for events", wait)


_OPEN: Final = frozenset(status for status in SessionStatus if status not in ("completed", "failed", "cancelled"))


def _event_type(name: str) -> EventType:
    try:
        return EventType(name)
    except ValueError:
        raise invalid("types", f"has no event type {shown(name)}", hint=f"Types: {', '.join(EventType)}.") from None


def _subscribed(call: Call, row: SessionRow, asked: EventsArgs) -> AbstractContextManager[Subscription]:
    feed = call.shared.services.feed
    if asked.include_children:
        return feed.subscribe(lambda event: event.root_id == row.root_id)
    return feed.subscribe_session(row.session_id)


def _page(tx: Tx, row: SessionRow, asked: EventsArgs, bound_to: str) -> Json:
    if not asked.include_children:
        return views.events_result(tx, asked)
    below = [one.session_id for one in sessions.subtree(tx, row.session_id)]
    filters = ["events", row.session_id, bound_to]
    since = cursors.decode(asked.cursor, filters, (int,))[0] if asked.cursor is not None else _start(tx, row, asked)
    found = event_log.read_tree(
        tx, row.root_id, None if row.parent_id is None else below, since, asked.max_events, _types(asked)
    )
    root = sessions.get(tx, row.root_id)
    more = len(found) == asked.max_events
    last = found[-1].seq if more else max(since, root.last_seq if root is not None else since)
    base = views.events_result(tx, EventsArgs(row.session_id, since_index=row.last_index, max_events=1))
    for name in ("last_index", "dropped_events", "next", "events", "more"):
        base.pop(name, None)
    return {
        **base,
        "events": [event_shape(event) for event in found],
        "cursor": cursors.encode([last], filters),
        "more": more,
    }


def _types(asked: EventsArgs) -> Sequence[EventType] | None:
    return [EventType(name) for name in asked.types] or None


def _start(tx: Tx, row: SessionRow, asked: EventsArgs) -> int:
    """Without a cursor a merged read begins where ``since_index`` of the session itself is."""
    if asked.since_index < 0:
        return -1
    before: list[EventRow] = event_log.read(tx, row.session_id, asked.since_index - 1, 1)
    return before[0].seq if before and before[0].index == asked.since_index else row.last_seq
