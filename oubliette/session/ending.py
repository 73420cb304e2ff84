"""Ending a subtree in three steps, so that its depth does not add up: see docs/architecture.md, "Ending".

(1) One unit marks every session of it; from its commit nothing of them may start. (2) All their turns are told to stop
at once, under one deadline. (3) Outcomes are written, leaves first, and the tasks are cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import structlog
import trio

from oubliette.core.model import SessionRow
from oubliette.errors import OublietteError
from oubliette.session import units
from oubliette.session.deps import Deps
from oubliette.session.session import Session
from oubliette.store import sessions
from oubliette.store.database import Tx

log = structlog.get_logger(__name__)

REST_SECONDS = 10.0
"""Step two in all: the abort's own deadline and the kill's (turn.py), side by side for every session."""
TAKE_UP_SECONDS = 45.0
"""Step two after a restart, when the containers are being taken up and nobody waits for the answer."""


async def end_subtree(
    deps: Deps, live: Mapping[str, Session], session_id: str, how: Literal["completed", "cancelled"]
) -> list[str]:
    """End the session and all below it; returns the ids this call ended. Takes at most REST_SECONDS and two commits."""
    taken = await deps.store.write(partial(units.mark_ending, session_id=session_id, how=how, at=deps.now()))
    await finish(deps, live, [row.session_id for row in taken], session_id)
    task = live.get(session_id)
    if task is not None and all(row.session_id != session_id for row in taken):
        # Somebody else ends it at this moment, or has failed to: whoever is answered finds it ended.
        with trio.move_on_after(REST_SECONDS) as patience:
            await task.finished.wait()
        if patience.cancelled_caught:
            left = await deps.store.read(partial(_marked, session_id=session_id))
            await finish(deps, live, left, session_id)
    return [row.session_id for row in taken]


def _marked(tx: Tx, session_id: str) -> list[str]:
    """What of its subtree is being ended and has not ended."""
    return [row.session_id for row in sessions.subtree(tx, session_id) if row.open and row.ending is not None]


async def finish(
    deps: Deps, live: Mapping[str, Session], ids: list[str], asked_id: str, *, seconds: float = REST_SECONDS
) -> None:
    """Steps two and three for sessions whose rows say ``ending`` already (also after a restart)."""
    tasks = [live[one] for one in ids if one in live]
    for one in ids:
        deps.cut_model(one)
    stopped = {task.id for task in tasks if task.begin_ending()}
    idle = await deps.store.read(partial(_with_agents, ids=[one for one in ids if one not in stopped]))
    with trio.move_on_after(seconds) as patience:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task.at_rest)
            for row in idle:
                nursery.start_soon(_kill_what_is_left, deps, row)
    if patience.cancelled_caught:
        log.warning("sessions did not come to rest in time", root=asked_id, sessions=len(ids))
    await deps.store.write(partial(units.finish_sessions, ids=ids, at=deps.now(), asked_id=asked_id))
    for task in tasks:
        task.cancel("session ended")


def _with_agents(tx: Tx, ids: Sequence[str]) -> list[SessionRow]:
    """Those of them that have ever worked."""
    rows = [sessions.get(tx, one) for one in ids]
    return [row for row in rows if row is not None and row.agent_session_id is not None]


async def _kill_what_is_left(deps: Deps, row: SessionRow) -> None:
    """No turn runs, but a command that an earlier one has sent to the background may."""
    try:
        await deps.kill_marked(row.project_id, row.workspace_id, row.agent_session_id or "")
    except OublietteError as error:
        log.warning("what a session has left running was not killed", session=row.session_id, error=str(error))
