"""The service that keeps the time: sleeps until something is due, claims it, follows its turn to the end.

What makes every occurrence happen once is its row, not this loop: it may die anywhere and begin again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

import structlog
import trio

from oubliette.config import Config
from oubliette.core.model import EventRow, EventType, SessionRow
from oubliette.errors import OublietteError, RequestError, StoreError
from oubliette.schedule import plans, runs
from oubliette.schedule.runs import Effects
from oubliette.schedule.sending import Ways
from oubliette.session.feed import Feed, Subscription
from oubliette.store import runs as run_rows
from oubliette.store import schedules
from oubliette.store.database import Store, Tx

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R", covariant=True)

LOOK_SECONDS = 30.0
"""The wall clock is looked at that often, whatever is planned: it may be set, and a host may sleep. Well below the
grace that an occurrence has."""
CLAIMS_AT_ONCE = 16
"""Schedules that are claimed side by side; the store commits them together and serves others in between."""
STUMBLE_SECONDS = 5.0
"""After a failure of the store: how long until the next try."""

_FOLLOWED = frozenset({EventType.TURN_STARTED, EventType.COMPLETION, EventType.STATUS})


class Unit(Protocol[R]):
    """One unit of the store that may start runs; its own result, and what is to be done after the commit."""

    def __call__(self, tx: Tx, *, ways: Ways, at: datetime) -> tuple[R, Effects]: ...


class Sessions(Protocol):
    """The session tree, as far as runs reach it."""

    @property
    def closing(self) -> bool: ...

    def check_accepting(self) -> None: ...

    def take_up(self, row: SessionRow) -> None: ...

    def finish_marked(self, ids: Sequence[str]) -> None: ...


class Scheduler:
    """``now``: the wall clock, aware UTC. ``sleep_until`` may return earlier than that moment, never much later."""

    def __init__(
        self,
        store: Store,
        feed: Feed,
        config: Config,
        sessions: Sessions,
        *,
        now: Callable[[], datetime],
        sleep_until: Callable[[datetime], Awaitable[None]],
        fresh_hex: Callable[[int], str],
    ) -> None:
        self._store = store
        self._feed = feed
        self._sessions = sessions
        self._now = now
        self._sleep_until = sleep_until
        self._ways = Ways(config, fresh_hex, self._watch)
        self._watched: set[str] = set()
        self._wake = trio.Event()
        self._looked_at = now()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Starting is recovering: what ended or was missed meanwhile is accounted for first."""
        with self._store.hear(schedules.TOPIC, self._changed), self._feed.subscribe(self._wants) as news:
            recovered = await self._tried(self._recover)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(self._insist, partial(self._follow, news)))
                task_status.started()
                if not recovered:
                    await trio.sleep(STUMBLE_SECONDS)
                    await self._insist(self._recover)
                await self._insist(self._keep_time)

    async def carry_out(self, unit: Unit[T]) -> T:
        """Write a unit that may start runs, and start them. Raises what the unit raises, RequestError unavailable when
        the daemon is stopping."""
        if self._sessions.closing:
            self._sessions.check_accepting()  # says so
        ways, at = self._present_ways(), self._now()
        with trio.CancelScope(shield=True):
            result, effects = await self._store.write(partial(unit, ways=ways, at=at))
        self._apply(effects)
        return result

    # --- keeping time

    async def _keep_time(self) -> None:
        while True:
            # Renewed before looking: what changes from here on is seen in the next round.
            self._wake = trio.Event()
            at = self._now()
            if abs(at - self._looked_at) >= timedelta(seconds=LOOK_SECONDS):
                self._looked_at = at
                await self._settle(None)
                await self._store.write(partial(plans.begin_anew, at=at))
            due_now, upcoming = await self._store.read(partial(_plan, at=at))
            if due_now and not self._sessions.closing:
                await self._claim_all(due_now)
                continue
            look = self._looked_at + timedelta(seconds=LOOK_SECONDS)
            await self._doze(look if upcoming is None or self._sessions.closing else min(look, upcoming))

    async def _doze(self, until: datetime) -> None:
        """Until that moment, or until something changes."""
        async with trio.open_nursery() as nursery:

            async def slept() -> None:
                # Bounded by itself: the clock may have been set since ``until`` was worked out.
                with trio.move_on_after(LOOK_SECONDS):
                    await self._sleep_until(until)
                nursery.cancel_scope.cancel("it is time")

            nursery.start_soon(slept)
            await self._wake.wait()
            nursery.cancel_scope.cancel("something changed")

    async def _claim_all(self, ids: Sequence[str]) -> None:
        """All of them before any of their sessions begins: the work of the first would delay the last."""
        waiting = list(reversed(ids))
        failed: list[str] = []
        claimed: list[Effects] = []
        ways = self._present_ways()

        async def some() -> None:
            while waiting:
                schedule_id = waiting.pop()
                unit = partial(runs.claim, ways=ways, schedule_id=schedule_id, at=self._now())
                try:
                    claimed.append(await self._store.write(unit))
                except Exception as error:
                    # One schedule's trouble must not keep the others waiting.
                    log.exception("a schedule could not be claimed", schedule=schedule_id)
                    if not await self._set_aside(schedule_id, error):
                        failed.append(schedule_id)

        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for _ in range(CLAIMS_AT_ONCE):
                    nursery.start_soon(some)
        for effects in claimed:
            self._apply(effects)
        if failed:
            await trio.sleep(STUMBLE_SECONDS)

    async def _set_aside(self, schedule_id: str, error: Exception) -> bool:
        """Pause what will not be claimed the next time either. False: it is the store that has trouble."""
        if isinstance(error, StoreError):
            return False
        pause = partial(plans.pause_if_readable, schedule_id=schedule_id, at=self._now(), error=error)
        return await self._tried(partial(self._store.write, pause))

    # --- following runs

    async def _recover(self) -> None:
        self._watched.update(await self._store.read(_followed))
        await self._store.write(partial(plans.plan_anew, at=self._now()))
        await self._settle(None)

    async def _follow(self, news: Subscription) -> None:
        while True:
            batch = await news.next_batch()
            if not batch:
                await trio.sleep_forever()  # the daemon is stopping
            ids = {item.session_id for item in batch if isinstance(item, EventRow)}
            missed, news.overflowed = news.overflowed, False
            await self._settle(None if missed else ids)

    async def _settle(self, session_ids: Collection[str] | None) -> None:
        if self._sessions.closing:
            return  # the next start does
        await self.carry_out(partial(self._settled, session_ids=session_ids))

    def _settled(self, tx: Tx, ways: Ways, at: datetime, session_ids: Collection[str] | None) -> tuple[None, Effects]:
        effects = runs.settle(tx, ways, at, session_ids)
        over = set(session_ids or ()) - _followed(tx, session_ids)
        # In the order of commits: a claim that follows in the same one watches its session again.
        tx.after_commit(partial(self._watched.difference_update, over))
        return None, effects

    def _wants(self, event: EventRow) -> bool:
        return event.session_id in self._watched and event.type in _FOLLOWED

    def _watch(self, session_id: str) -> None:
        self._watched.add(session_id)

    def _changed(self, _schedule_id: str) -> None:
        self._wake.set()

    # --- between rows and sessions

    def _present_ways(self) -> Ways:
        try:
            self._sessions.check_accepting()
        except RequestError as error:
            return replace(self._ways, refusal=error)
        return self._ways

    def _apply(self, effects: Effects) -> None:
        for row in effects.started:
            self._sessions.take_up(row)
        for ids in effects.close:
            self._sessions.finish_marked(ids)

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        """``work`` until it returns; its failures are logged, and it is begun again a while later."""
        while True:
            if await self._tried(work):
                return
            await trio.sleep(STUMBLE_SECONDS)

    async def _tried(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except OublietteError as error:
            log.error("the scheduler stumbled", error=str(error))
            return False
        except Exception:
            log.exception("the scheduler stumbled")
            return False
        return True


def _plan(tx: Tx, at: datetime) -> tuple[list[str], datetime | None]:
    return schedules.due(tx, at), schedules.next_due(tx)


def _followed(tx: Tx, session_ids: Collection[str] | None = None) -> set[str]:
    return {run.session_id for run in run_rows.at_work(tx, session_ids) if run.session_id is not None}
