"""Waiting for sessions to settle, without polling and without missing the moment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from oubliette.core.model import EventRow, EventType, Json
from oubliette.session import views
from oubliette.session.deps import Deps

WATCHED = frozenset(
    {
        EventType.COMPLETION,
        EventType.STATUS,
        EventType.PERMISSION_REQUEST,
        EventType.QUESTION,
        EventType.CALLER_TOOL_REQUEST,
    }
)


async def wait(deps: Deps, session_ids: Sequence[str], *, any_one: bool, timeout_seconds: float) -> Json:
    """Each session once it is settled or waits for somebody. A time-out is a result. Raises RequestError not_found."""
    wanted = frozenset(session_ids)

    def interesting(event: EventRow) -> bool:
        return event.session_id in wanted and event.type in WATCHED

    with deps.feed.subscribe(interesting) as subscription:
        with trio.move_on_after(timeout_seconds):
            while True:
                result = await deps.store.read(partial(views.wait_result, session_ids=session_ids))
                done, remaining = result["sessions"], result["remaining"]
                if subscription.closed or not remaining or (any_one and done):
                    return {**result, "done": not remaining, "timed_out": False}
                await subscription.next_batch()
    result = await deps.store.read(partial(views.wait_result, session_ids=session_ids, everything=True))
    left = result["remaining"]
    return {
        **result,
        "done": not left,
        "timed_out": bool(left),
        **({"next": f"session wait session_ids={views.quoted(left)}"} if left else {}),
    }
