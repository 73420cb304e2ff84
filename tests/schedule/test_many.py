"""Five hundred schedules due in the same second, and too many of them for the sessions there may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio

from oubliette import clock
from oubliette.core.limits import MAX_OPEN_SESSIONS, MAX_SCHEDULES
from oubliette.core.model import Json
from oubliette.core.schedule_rows import RunRow
from oubliette.errors import RequestError
from oubliette.schedule import runs as runs_unit
from oubliette.schedule.requests import ScheduleArgs, ScheduleChanges, TargetArgs
from oubliette.schedule.sending import Ways
from oubliette.store import model_requests, runs, schedules, sessions
from oubliette.store.database import Tx
from tests.schedule.world import ADMIN, PROJECT, START, Place, open_place

MANY = 500
CALL_SECONDS = 1.0
"""What a caller may wait meanwhile on a good day; the guard is five times that."""


async def _create(place: Place, number: int, message: str = "say hello") -> str:
    args = ScheduleArgs(f"one of many {number}", "0 * * * *", message, [TargetArgs(PROJECT)], model="scripted")
    return str((await place.schedules.create(ADMIN, args))["schedule_id"])


def _all_runs(tx: Tx) -> list[RunRow]:
    found: list[RunRow] = []
    cursor = None
    while True:
        rows, cursor = schedules.list_page(tx, limit=200, cursor=cursor)
        for row in rows:
            found += runs.list_page(tx, row.schedule_id, limit=50)[0]
        if cursor is None:
            return found


async def test_five_hundred_due_at_once_are_all_claimed_once_while_the_daemon_answers(tmp_path: Path) -> None:
    async with open_place(tmp_path, agent=None) as place:
        for number in range(MANY):
            await _create(place, number)
        slowest = 0.0
        over = False

        async def call_again_and_again() -> None:
            nonlocal slowest
            while not over:
                began = trio.current_time()
                await place.schedules.list_page(ADMIN, limit=5)
                slowest = max(slowest, trio.current_time() - began)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_again_and_again)
            place.clock.advance(hours=1)
            with trio.fail_after(120):
                while True:
                    found = await place.sessions.store.read(_all_runs)
                    if len(found) >= MANY and all(run.ended_at is not None for run in found):
                        break
                    await trio.sleep(0.1)
            over = True
        assert len(found) == MANY
        assert {str(run.status) for run in found} == {"succeeded"}
        assert len({run.session_id for run in found}) == MANY
        assert len({(run.schedule_id, run.planned_at) for run in found}) == MANY
        assert sum(len(turns) for turns in place.sessions.agent.turns.values()) == MANY
        assert slowest < 5 * CALL_SECONDS, f"a call took {slowest:.2f} s"


class _Listening:
    """A unit's ``tx`` that only notes what it would do."""

    statement = ""

    def run(self, statement: str, *_args: object) -> int:
        self.statement = statement
        return 0


async def test_cancelling_what_waits_looks_at_open_runs_alone_however_long_the_history_is(tmp_path: Path) -> None:
    listening = _Listening()
    runs.cancel_waiting(cast("Tx", listening), "sched_1", reason="paused", at=START)
    async with open_place(tmp_path) as place:
        asked = ("paused", 1, "sched_1", None)
        plan = await place.sessions.store.read(lambda tx: tx.rows(f"EXPLAIN QUERY PLAN {listening.statement}", *asked))
    assert [row[3] for row in plan] == ["SCAN runs USING INDEX runs_open"]


class _Explaining:
    """A ``tx`` that answers with the plan of each query."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.plan: list[str] = []

    def rows(self, sql: str, *args: object) -> list[tuple[object, ...]]:
        self.plan += [row[3] for row in self._tx.rows(f"EXPLAIN QUERY PLAN {sql}", *args)]
        return [(0,) * 8] if "sum(" in sql else []


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (runs.at_work, "t USING INDEX runs_open"),
        (partial(runs.at_work, session_ids=["gogol_1"]), "t USING INDEX runs_open"),
        (runs.waiting, "t USING INDEX runs_open"),
        (runs.left_open, "s USING INDEX sessions_open"),
        (partial(runs.left_open, session_ids=["gogol_1"]), "s USING INDEX sqlite_autoindex_sessions_1"),
        (schedules.next_due, "schedules USING COVERING INDEX schedules_due"),
        (
            partial(model_requests.run_usage, project_id=PROJECT, root_id="gogol_1", since=START),
            "model_requests USING INDEX model_requests_by_project",
        ),
        (partial(schedules.due, at=START), "schedules USING INDEX schedules_due"),
    ],
)
async def test_keeping_the_time_reads_what_is_open_however_long_the_history_is(
    tmp_path: Path, query: Callable[[Tx], object], index: str
) -> None:
    def plan(tx: Tx) -> list[str]:
        explaining = _Explaining(tx)
        query(cast("Tx", explaining))
        return explaining.plan

    async with open_place(tmp_path) as place:
        found = await place.sessions.store.read(plan)
    assert found[0].split(" ", 1)[1].startswith(index), found
    assert not any(line.startswith(("SCAN r ", "SCAN s ", "SCAN t ")) and "runs_open" not in line for line in found)


async def test_of_thousands_that_wait_for_room_few_are_tried_at_once(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        ids = [await _create(place, number) for number in range(runs_unit.REFUSED_AT_ONCE + 10)]
        full = RequestError("limit_reached", "full")
        ways = Ways(place.sessions.deps.config, clock.fresh_hex, lambda _session_id: None, full)
        place.clock.advance(hours=1)
        at, write = place.clock.now(), place.sessions.store.write
        for one in ids:
            await write(partial(runs_unit.claim, ways=ways, schedule_id=one, at=at))
        assert (await write(partial(runs_unit.settle, ways=ways, at=at))).refused == runs_unit.REFUSED_AT_ONCE
        assert len((await write(partial(runs_unit.settle, ways=replace(ways, refusal=None), at=at))).started) == len(
            ids
        )
        later = at + runs_unit.HELD + timedelta(seconds=1)
        assert not (await write(partial(runs_unit.settle, ways=ways, at=later))).refused


async def test_over_the_limit_of_open_sessions_runs_wait_for_room(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        filler = [await place.sessions.new("say filler") for _ in range(MAX_OPEN_SESSIONS - 1)]
        await place.sessions.settle(*filler, timeout_seconds=60)
        ids = [await _create(place, number) for number in range(3)]
        place.clock.advance(hours=1)

        async def states() -> list[Json]:
            return [(await place.runs(one))[0] for one in ids]

        for one in ids:
            await place.until(one, bool)
        await place.until(ids[0], lambda found: "ended_at" in found[0] or found[0]["status"] == "queued")
        held = [run for run in await states() if run["status"] == "queued"]
        assert len(held) == 2
        assert {run["reason"] for run in held} == {"limit"}
        for one in filler[:2]:
            await place.sessions.tree.end(ADMIN, one, "completed")
        place.clock.advance(minutes=1)
        for one in ids:
            assert (await place.ended(one))[0]["status"] == "succeeded"
        assert await place.sessions.store.read(sessions.open_count) == MAX_OPEN_SESSIONS


async def test_what_finds_no_room_for_an_hour_fails_with_that(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        filler = [await place.sessions.new("say filler") for _ in range(MAX_OPEN_SESSIONS)]
        await place.sessions.settle(*filler, timeout_seconds=60)
        schedule_id = await _create(place, 1)
        place.clock.advance(hours=1)
        await place.until(schedule_id, lambda found: bool(found) and found[0]["status"] == "queued")
        place.clock.advance(minutes=62)
        found = await place.until(schedule_id, lambda found: "ended_at" in found[0])
        assert (found[0]["status"], found[0]["error"]["code"]) == ("failed", "limit_reached")


async def test_the_number_of_schedules_is_limited(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        schedule_id = await place.create()
        row = await place.row(schedule_id)

        def fill(tx: Tx) -> None:
            for number in range(MAX_SCHEDULES - 1):
                schedules.insert(tx, replace(row, schedule_id=f"sched_{number}"))

        await place.sessions.store.write(fill)
        with pytest.raises(RequestError) as refused:
            await place.create()
        assert refused.value.code == "limit_reached"
        assert await place.sessions.store.read(partial(schedules.count, project_id=PROJECT)) == 1
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(name="still changed"))
