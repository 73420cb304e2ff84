"""Schedules over a real store and session tree with fake agents, and a wall clock that tests turn by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import trio
import trio.testing

from oubliette import clock
from oubliette.core.model import Json, PlaceState, ProjectRow, WorkspaceRow
from oubliette.core.principals import Principal, Scope, TokenRow
from oubliette.core.schedule_rows import RunRow, ScheduleRow, TargetRow
from oubliette.schedule.requests import ScheduleArgs, TargetArgs
from oubliette.schedule.scheduler import Scheduler
from oubliette.schedule.schedules import Schedules
from oubliette.store import projects, runs, schedules, tokens, workspaces
from oubliette.store.database import Tx
from tests.session.fakes import FakeAgent
from tests.session.world import ADMIN, PROJECT, WORKSPACE, World, open_world

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OTHER_PROJECT = "7b1c0000-0000-4000-8000-000000000002"
OTHER_WORKSPACE = "91aa0000-0000-4000-8000-000000000002"
MORE_WORKSPACE = "91aa0000-0000-4000-8000-000000000003"
OF_PROJECT = Principal("token", "tok_shop", "shop", Scope("project", project_id=PROJECT))
READER = Principal("token", "tok_reader", "reader", Scope("project", True, PROJECT))
OF_OTHER = Principal("token", "tok_other", "other", Scope("project", project_id=OTHER_PROJECT))

__all__ = ["ADMIN", "MORE_WORKSPACE", "OTHER_PROJECT", "OTHER_WORKSPACE", "PROJECT", "START", "WORKSPACE"]


class HandClock:
    """Shows what a test says. Those who sleep until then wake up; so does everybody when it is set back, since real
    sleep is short whatever the wall clock shows."""

    def __init__(self, at: datetime = START) -> None:
        self._at = at
        self._turned = trio.Event()
        self.sleeping_until: datetime | None = None

    def now(self) -> datetime:
        return self._at

    async def sleep_until(self, at: datetime) -> None:
        slept_from = self._at
        while slept_from <= self._at < at:
            self.sleeping_until = at
            await self._turned.wait()

    def turn(self, at: datetime) -> None:
        self._at, self.sleeping_until = at, None
        turned, self._turned = self._turned, trio.Event()
        turned.set()

    def advance(self, **span: float) -> None:
        """``advance(hours=1)``: all at once, as after a sleep of the host."""
        self.turn(self._at + timedelta(**span))


@dataclass
class Place:
    """What tests hold. ``sessions``: the tree's world."""

    clock: HandClock
    sessions: World
    scheduler: Scheduler
    schedules: Schedules

    async def create(
        self,
        message: str = "say hello",
        *,
        principal: Principal = ADMIN,
        targets: Sequence[TargetArgs] = (TargetArgs(PROJECT),),
        **more: object,
    ) -> str:
        args = ScheduleArgs("nightly", "0 * * * *", message, targets, model="scripted")
        made = await self.schedules.create(principal, replace(args, **more))  # type: ignore[arg-type]
        return str(made["schedule_id"])

    async def runs(self, schedule_id: str) -> list[Json]:
        """Oldest first."""
        found = await self.schedules.history(ADMIN, schedule_id, limit=1_000)
        return list(reversed(found["runs"]))

    async def until(self, schedule_id: str, fits: Callable[[list[Json]], bool]) -> list[Json]:
        """The runs once they are as wanted; looks again at each change."""
        changed = trio.Event()

        def hear(_schedule_id: str) -> None:
            changed.set()

        with trio.fail_after(20), self.sessions.store.hear(schedules.TOPIC, hear):
            while True:
                changed = trio.Event()
                found = await self.runs(schedule_id)
                if fits(found):
                    return found
                await changed.wait()

    async def ended(self, schedule_id: str, number: int = 1) -> list[Json]:
        """The runs once there are ``number`` of them and none is open."""
        return await self.until(schedule_id, lambda found: len(found) >= number and all("ended_at" in r for r in found))

    async def shown(self, schedule_id: str) -> Json:
        return await self.schedules.get(ADMIN, schedule_id)

    async def row(self, schedule_id: str) -> ScheduleRow:
        row = await self.sessions.store.read(partial(schedules.get, schedule_id=schedule_id))
        assert row is not None
        return row

    async def target(self, schedule_id: str) -> TargetRow:
        found = await self.sessions.store.read(partial(schedules.targets, schedule_id=schedule_id))
        return found[0]

    async def run_row(self, run_id: str) -> RunRow:
        row = await self.sessions.store.read(partial(runs.get, run_id=run_id))
        assert row is not None
        return row

    async def asleep(self) -> None:
        """Wait until the scheduler has taken up everything that is due and sleeps."""
        with trio.fail_after(20):
            while True:
                await trio.testing.wait_all_tasks_blocked(0.02)
                due = await self.sessions.store.read(partial(schedules.due, at=self.clock.now()))
                until = self.clock.sleeping_until
                if not due and until is not None and until > self.clock.now():
                    return


def _places(tx: Tx) -> None:
    if projects.get(tx, OTHER_PROJECT) is not None:
        return
    by = ADMIN.as_json()
    at = START - timedelta(days=1)
    projects.insert(tx, ProjectRow(OTHER_PROJECT, "mill", PlaceState.READY, at, at, by, OTHER_WORKSPACE))
    for workspace_id, project_id, default in (
        (OTHER_WORKSPACE, OTHER_PROJECT, True),
        (MORE_WORKSPACE, PROJECT, False),
    ):
        workspaces.insert(tx, WorkspaceRow(workspace_id, project_id, default, PlaceState.READY, at))
    for one in (OF_PROJECT, READER, OF_OTHER):
        tokens.create(tx, TokenRow(one.id, one.name, str(one.scope), "client", at, by), one.id.encode())


@asynccontextmanager
async def open_place(
    path: Path, *, agent: FakeAgent | None = None, at: HandClock | None = None, running: bool = True, **world: object
) -> AsyncIterator[Place]:
    """``at``: a clock from a place that was left. ``running`` False: the scheduler does nothing by itself."""
    hand = at or HandClock()
    async with open_world(path, agent=agent, adjust=lambda deps: replace(deps, now=hand.now), **world) as sessions:  # type: ignore[arg-type]
        await sessions.store.write(_places)
        scheduler = Scheduler(
            sessions.store,
            sessions.feed,
            sessions.deps.config,
            sessions.tree,
            now=hand.now,
            sleep_until=hand.sleep_until,
            fresh_hex=clock.fresh_hex,
        )
        noun = Schedules(sessions.store, sessions.deps.config, scheduler, now=hand.now, fresh_hex=clock.fresh_hex)
        async with trio.open_nursery() as nursery:
            if running:
                await nursery.start(scheduler.run)
            yield Place(hand, sessions, scheduler, noun)
            nursery.cancel_scope.cancel("the place is left")


Waits = Callable[[], Awaitable[None]]
