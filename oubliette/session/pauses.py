"""Trees that stand still because a request of theirs does not fit into the budget: their clocks, and their patience."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial

import structlog
import trio

from oubliette.core.budget import Held
from oubliette.core.model import Outcome, Reason
from oubliette.errors import OublietteError
from oubliette.session import budgets
from oubliette.session.deps import Deps
from oubliette.session.session import Session
from oubliette.store import budgets as rows
from oubliette.store.database import Tx

log = structlog.get_logger(__name__)

LOOK_SECONDS = 60.0
"""How often the wall clock is looked at: the one that sleeps are timed by stands still while the machine does."""
TRY_AGAIN_SECONDS = 60.0
"""After the store has failed."""


class Pauses:
    """``hold`` and ``release`` are handed to the gateway's meter, which calls them in its own units."""

    def __init__(self, deps: Deps, live: Mapping[str, Session]) -> None:
        """``live``: the open sessions' tasks by id, as the tree keeps them."""
        self._deps = deps
        self._live = live
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: ends the turns of trees that were held for too long, those of a daemon before included."""
        try:
            async with trio.open_nursery() as self._nursery:
                for root_id, since in await self._deps.store.write(partial(_take_up, at=self._deps.now())):
                    self._nursery.start_soon(self._expire, root_id, since)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def hold(self, tx: Tx, root_id: str, held: Held, at: datetime) -> None:
        """A request of the tree does not fit."""
        if budgets.hold(tx, root_id, held, at):
            tx.after_commit(partial(self._changed, root_id, since=at))

    def release(self, tx: Tx, root_id: str, at: datetime) -> None:
        """Nothing of the tree waits for its budget; mostly nothing did."""
        if budgets.release(tx, root_id, at):
            tx.after_commit(partial(self._changed, root_id, since=None))

    def _changed(self, root_id: str, *, since: datetime | None) -> None:
        for session in self._live.values():
            if session.driver is not None and session.driver.row.root_id == root_id:
                session.driver.hold(held=since is not None)
        if since is not None:
            log.info("a tree is paused for its budget", root=root_id)
            if self._nursery is not None:
                self._nursery.start_soon(self._expire, root_id, since)
        else:
            log.info("a tree goes on", root=root_id)

    async def _expire(self, root_id: str, since: datetime) -> None:
        """Nobody raised the limit in time: every turn of the tree ends."""
        due = since + timedelta(hours=budgets.HOLD_HOURS)
        # Looked at again after that as well: a turn that was queued behind an ended one may keep the tree held.
        while await self._still_held(root_id, since):
            left = (due - self._deps.now()).total_seconds()
            if left <= 0:
                self._give_up(root_id)
            await trio.sleep(min(left, LOOK_SECONDS) if left > 0 else LOOK_SECONDS)

    def _give_up(self, root_id: str) -> None:
        log.warning("a tree was held for too long", root=root_id, hours=budgets.HOLD_HOURS)
        for session in list(self._live.values()):
            if session.driver is not None and session.driver.row.root_id == root_id:
                session.stop_turn(Outcome.BUDGET, Reason.BUDGET, kill=False)

    async def _still_held(self, root_id: str, since: datetime) -> bool:
        while True:
            try:
                return (await self._deps.store.read(partial(rows.get, root_id=root_id))).held_since == since
            except OublietteError as error:
                log.warning("a held tree could not be looked at", root=root_id, error=str(error))
                await trio.sleep(TRY_AGAIN_SECONDS)


def _take_up(tx: Tx, at: datetime) -> list[tuple[str, datetime]]:
    """Trees that a daemon before has held, without those of which nothing is at work any more."""
    for root_id, _ in rows.held_trees(tx):
        budgets.rest(tx, root_id, at)
    return rows.held_trees(tx)
