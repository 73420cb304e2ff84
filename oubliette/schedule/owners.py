"""The tokens that answer for schedules: their end pauses what they answer for, and is announced a week before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import trio

from oubliette import clock
from oubliette.core.model import Json, rfc3339
from oubliette.core.principals import TokenRow
from oubliette.core.schedule_rows import PauseReason, ScheduleRow
from oubliette.log import get_logger
from oubliette.store import schedules, tokens
from oubliette.store.database import Store, Tx

log = get_logger(__name__)

NOTICE: Final = timedelta(days=7)
"""So long before a token expires its schedules say so."""
LONGEST_SLEEP_SECONDS: Final = 3_600
"""The clock may be set, and a machine that sleeps does not count the time; a run asks for its token's rights anyway."""
TROUBLE_SECONDS: Final = 30


async def run_owners(
    store: Store,
    now: Callable[[], datetime] = clock.now,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A service: sleeps until the next token that answers for a schedule is due to expire, or any of them changes.

    ``started`` once everything that ended before is accounted for: tokens are revoked on a stopped daemon's store too.
    """
    wake = trio.Event()
    warned: set[str] = set()
    with ExitStack() as stack:
        for topic in (tokens.TOPIC, schedules.TOPIC):
            stack.enter_context(store.hear(topic, lambda _subject: wake.set()))
        while True:
            wake = trio.Event()
            try:
                seconds = await _look(store, now(), warned)
            except Exception:
                # Nobody above holds this service: one row that cannot be read must not end the daemon.
                log.exception("the tokens of schedules could not be looked at")
                seconds = TROUBLE_SECONDS
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            with trio.move_on_after(min(seconds, LONGEST_SLEEP_SECONDS)):
                await wake.wait()


async def _look(store: Store, at: datetime, warned: set[str]) -> float:
    """Pause what has lost its token, warn of what will; how many seconds nothing of that is due."""
    owners = await store.read(tokens.answering)
    if any(_ended(token, at) for token in owners):
        for schedule_id, token in await store.write(partial(pause_orphans, at=at)):
            log.warning(
                "a schedule was paused: its token is no longer good", schedule_id=schedule_id, token_id=token.token_id
            )
    moments = []
    for token in owners:
        if token.expires_at is None or _ended(token, at):
            continue
        moments.append(token.expires_at)
        if token.expires_at - NOTICE > at:
            moments.append(token.expires_at - NOTICE)
        elif token.token_id not in warned:
            warned.add(token.token_id)
            log.warning(
                "a token that answers for schedules expires soon",
                token_id=token.token_id,
                name=token.name,
                expires_at=rfc3339(token.expires_at),
            )
    return min(((moment - at).total_seconds() for moment in moments), default=float("inf"))


def pause_orphans(tx: Tx, at: datetime) -> list[tuple[str, TokenRow]]:
    """Pause every schedule whose token has been revoked or has expired. Returns their ids with that token."""
    found = []
    for token in tokens.answering(tx):
        reason = _ended(token, at)
        if reason is not None:
            ids = schedules.pause_for(tx, reason, at, token_id=token.token_id, text=_text(token, reason))
            found += [(schedule_id, token) for schedule_id in ids]
    return found


def notice_of(tx: Tx, row: ScheduleRow, at: datetime) -> Json | None:
    """SHAPES' ``notice`` of a schedule: its token expires within a week. None: nothing of that kind is ahead."""
    token = tokens.get(tx, row.authority) if row.authority is not None and row.paused is None else None
    if token is None or token.expires_at is None or _ended(token, at) or token.expires_at - NOTICE > at:
        return None
    when = rfc3339(token.expires_at)
    text = (
        f"The token {token.name}, which answers for its runs, expires at {when}: it is paused then. Whoever changes it "
        "with another token answers for them instead."
    )
    return {"reason": "token_expires", "at": when, "text": text}


def _ended(token: TokenRow, at: datetime) -> PauseReason | None:
    if token.revoked_at is not None:
        return "token_revoked"
    return "token_expired" if token.expires_at is not None and token.expires_at <= at else None


def _text(token: TokenRow, reason: PauseReason) -> str:
    ended = "was revoked" if reason == "token_revoked" else "has expired"
    return (
        f"The token {token.name} ({token.token_id}), which answers for its runs, {ended}. Whoever enables it again "
        "answers for them."
    )
