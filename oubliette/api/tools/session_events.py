"""``session events``: pages of one log or of a tree's merged ones, with or without waiting for news."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from oubliette.api.tools.fields import invalid, shown
from oubliette.api.tools.progress import patience, with_progress
from oubliette.api.tools.registry import Call
from oubliette.core.model import EventRow, EventType, Json, SessionRow
from oubliette.session import merged_views, views
from oubliette.session.feed import Subscription
from oubliette.session.requests import EventsArgs
from oubliette.session.status import require_session
from oubliette.store.database import Tx

if TYPE_CHECKING:
    from oubliette.api.tools.session import Events


PAUSE_SECONDS: Final = 0.05
"""A wait for one branch is woken by its whole tree: after a look for nothing so long until the next."""


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
    read = partial(_page, asked=asked, bound_to=call.principal.id)
    seconds = patience(call, args.wait_seconds)
    if seconds <= 0:
        return (await call.shared.services.store.read(read))[0]

    async def wait() -> Json:
        woken = False
        with _subscribed(call, row, asked) as subscription:
            with trio.move_on_after(seconds):
                while True:
                    page, over = await call.shared.services.store.read(read)
                    if page["events"] or over or subscription.closed:
                        return page
                    await subscription.next_batch()
                    if woken:
                        await trio.sleep(PAUSE_SECONDS)
                    woken = True
        return (await call.shared.services.store.read(read))[0]

    return await with_progress(call, seconds, "waiting for events", wait)


def _event_type(name: str) -> EventType:
    try:
        return EventType(name)
    except ValueError:
        raise invalid("types", f"has no event type {shown(name)}", hint=f"Types: {', '.join(EventType)}.") from None


def _subscribed(call: Call, row: SessionRow, asked: EventsArgs) -> AbstractContextManager[Subscription]:
    """Woken by what may be on the page, and by what may end the wait."""
    feed = call.shared.services.feed
    if not asked.include_children and not asked.types:
        return feed.subscribe_session(row.session_id)
    news = {*(EventType(name) for name in asked.types), EventType.STATUS} if asked.types else None

    def wants(event: EventRow) -> bool:
        mine = event.root_id == row.root_id if asked.include_children else event.session_id == row.session_id
        return mine and (news is None or event.type in news)

    return feed.subscribe(wants)


def _page(tx: Tx, asked: EventsArgs, bound_to: str) -> tuple[Json, bool]:
    """The page, and whether nothing can follow it."""
    row = require_session(tx, asked.session_id)
    if asked.include_children:
        return merged_views.merged_result(tx, asked, bound_to), not merged_views.anything_open(tx, row)
    return views.events_result(tx, asked), not row.open
