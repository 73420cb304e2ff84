"""What is due after a while: outages, late wake-ups, clocks that are set, changes of the clock, jitter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from oubliette.core import cron
from oubliette.core.model import Json
from oubliette.core.schedule_rows import ScheduleRow
from oubliette.schedule import due
from oubliette.schedule.scheduler import LOOK_SECONDS
from tests.schedule.world import START, HandClock, open_place


async def test_after_twelve_hours_skip_runs_nothing_and_records_one_gap(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="*/5 * * * *")
        clock, agent = place.clock, place.sessions.agent
    clock.advance(hours=12, minutes=2)
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        found = await place.ended(schedule_id)
        assert [(run["status"], run["missed_count"]) for run in found] == [("missed", 144)]
        assert (found[0]["planned_at"], found[0]["until"]) == ("2026-11-23T12:05:00.000Z", "2026-11-24T00:00:00.000Z")
        assert not agent.turns
        place.clock.advance(minutes=3)
        found = await place.ended(schedule_id, 2)
        assert [run["status"] for run in found] == ["missed", "succeeded"]
        assert found[1]["planned_at"] == "2026-11-24T00:05:00.000Z"


async def test_after_twelve_hours_once_runs_one(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="*/5 * * * *", misfire="once")
        clock, agent = place.clock, place.sessions.agent
    clock.advance(hours=12, minutes=2)
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        found = await place.ended(schedule_id)
        assert [(run["status"], run["missed_count"]) for run in found] == [("succeeded", 143)]
        assert found[0]["planned_at"] == "2026-11-24T00:00:00.000Z"
        assert sum(len(turns) for turns in agent.turns.values()) == 1


@pytest.mark.parametrize("misfire", ["skip", "once"])
async def test_a_host_that_slept_makes_no_burst(tmp_path: Path, misfire: str) -> None:
    """The daemon ran on: the wall clock jumped under it."""
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="* * * * *", misfire=misfire)
        place.clock.advance(minutes=1)
        await place.ended(schedule_id)
        place.clock.advance(hours=8, seconds=90)
        found = await place.ended(schedule_id, 2)
        await place.asleep()
        assert await place.runs(schedule_id) == found
        # The newest one is half a minute late, which is on time.
        if misfire == "skip":
            assert [(run["status"], run.get("missed_count")) for run in found[1:]] == [
                ("missed", 480),
                ("succeeded", None),
            ] or [(run["status"], run.get("missed_count")) for run in found[1:]] == [
                ("succeeded", None),
                ("missed", 480),
            ]
        else:
            assert [(run["status"], run.get("missed_count")) for run in found[1:]] == [("succeeded", 480)]


async def test_a_single_missed_one_is_a_gap_of_one(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="30 12 * * *")
        place.clock.advance(minutes=31, seconds=1)
        found = await place.ended(schedule_id)
        assert [(run["status"], run["missed_count"], "until" in run) for run in found] == [("missed", 1, False)]


async def test_a_clock_that_goes_back_makes_nothing_happen_twice(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="0 * * * *")
        place.clock.advance(hours=1)
        await place.ended(schedule_id, 1)
        place.clock.turn(START + timedelta(minutes=50))
        await place.asleep()
        place.clock.turn(START + timedelta(minutes=60))
        await place.asleep()
        assert len(await place.runs(schedule_id)) == 1
        place.clock.turn(START + timedelta(minutes=120))
        assert len(await place.ended(schedule_id, 2)) == 2


async def test_a_clock_that_was_years_ahead_and_is_put_right_does_not_stop_schedules(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="0 * * * *")
        place.clock.advance(hours=1)
        await place.ended(schedule_id, 1)
        place.clock.turn(datetime(2031, 1, 1, tzinfo=UTC) + timedelta(minutes=20))
        found = await place.ended(schedule_id, 2)
        assert [run["status"] for run in found] == ["succeeded", "missed"]
        await place.asleep()
        place.clock.turn(START + timedelta(hours=1, minutes=1))
        await place.asleep()
        assert await place.runs(schedule_id) == found[:1], "what is yet to come was not missed"
        place.clock.turn(START + timedelta(hours=2))
        again = await place.ended(schedule_id, 2)
        assert [(run["status"], run["planned_at"]) for run in again[1:]] == [("succeeded", "2026-11-23T14:00:00.000Z")]


async def test_a_gap_is_cut_to_what_was_really_missed_when_the_clock_is_put_right(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="0 * * * *")
        place.clock.turn(datetime(2031, 1, 1, tzinfo=UTC) + timedelta(minutes=20))
        await place.ended(schedule_id)
        await place.asleep()
        place.clock.turn(START + timedelta(hours=5, minutes=30))
        await place.asleep()
        (gap,) = await place.runs(schedule_id)
        assert (gap["missed_count"], gap["until"]) == (5, "2026-11-23T17:00:00.000Z")
        place.clock.turn(START + timedelta(hours=6))
        assert (await place.ended(schedule_id, 2))[1]["status"] == "succeeded"


@pytest.mark.parametrize("misfire", ["skip", "once"])
async def test_a_clock_that_was_years_behind_and_is_put_right_says_of_nothing_twice_what_became_of_it(
    tmp_path: Path, misfire: str
) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="0 * * * *", misfire=misfire)
        place.clock.advance(hours=1)
        found = await place.ended(schedule_id, 1)
        place.clock.turn(datetime(2001, 1, 1, 12, 20, tzinfo=UTC))
        await place.asleep()
        place.clock.turn(START + timedelta(hours=1, minutes=20))
        await place.asleep()
        assert await place.runs(schedule_id) == found
        place.clock.turn(START + timedelta(hours=2))
        assert (await place.ended(schedule_id, 2))[1]["planned_at"] == "2026-11-23T14:00:00.000Z"


async def test_a_skipped_hour_in_the_scheduler(tmp_path: Path) -> None:
    async with open_place(tmp_path, at=HandClock(datetime(2026, 3, 28, 12, tzinfo=UTC))) as place:
        schedule_id = await place.create(cron_expr="30 2 * * *", timezone="Europe/Berlin")
        planned: list[str] = []
        for _ in range(3):
            at = (await place.row(schedule_id)).next_at
            assert at is not None
            place.clock.turn(at)
            planned.append((await place.ended(schedule_id, len(planned) + 1))[-1]["planned_at"])
        assert planned == ["2026-03-29T01:00:00.000Z", "2026-03-30T00:30:00.000Z", "2026-03-31T00:30:00.000Z"]


async def test_a_repeated_hour_in_the_scheduler(tmp_path: Path) -> None:
    async with open_place(tmp_path, at=HandClock(datetime(2026, 10, 24, 12, tzinfo=UTC))) as place:
        schedule_id = await place.create(cron_expr="30 2 * * *", timezone="Europe/Berlin")
        place.clock.turn(datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
        await place.ended(schedule_id)
        place.clock.turn(datetime(2026, 10, 25, 1, 30, tzinfo=UTC))
        await place.asleep()
        assert [run["planned_at"] for run in await place.runs(schedule_id)] == ["2026-10-25T00:30:00.000Z"]


def _row(schedule_id: str, **more: object) -> ScheduleRow:
    values: Json = {
        "name": "x", "cron_expr": "0 * * * *", "timezone": "UTC", "message": "m", "enabled": True,
        "overlap_behavior": "skip", "session_behavior": "resume", "misfire": "skip", "jitter_seconds": 600,
        "pause_after_failures": 3, "created_at": START, "updated_at": START, "created_by": {}, "accounted_until": START,
        **more,
    }  # fmt: skip
    return ScheduleRow(schedule_id, **values)


def test_jitter_is_always_the_same_for_an_occurrence_and_spreads_schedules() -> None:
    hourly = cron.parse("0 * * * *")
    planned = START + timedelta(hours=1)
    late = [(due.due_at(_row(f"sched_{n}"), hourly, planned) - planned).total_seconds() for n in range(200)]
    again = [(due.due_at(_row(f"sched_{n}"), hourly, planned) - planned).total_seconds() for n in range(200)]
    assert late == again
    assert all(0 <= seconds <= 600 for seconds in late)
    assert len({round(seconds) for seconds in late}) > 100
    assert min(late) < 60 < 540 < max(late)


def test_jitter_never_reaches_the_next_occurrence() -> None:
    every = cron.parse("* * * * *")
    for number in range(500):
        planned = START + timedelta(minutes=number)
        assert due.due_at(_row("sched_1", jitter_seconds=86_400), every, planned) < planned + timedelta(minutes=1)


async def test_jitter_delays_the_run_and_not_what_was_planned(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(jitter_seconds=1_800)
        row = await place.row(schedule_id)
        assert row.next_at is not None
        assert row.due_at is not None
        assert row.next_at < row.due_at <= row.next_at + timedelta(minutes=30)
        place.clock.turn(row.due_at - timedelta(seconds=1))
        await place.asleep()
        assert await place.runs(schedule_id) == []
        place.clock.turn(row.due_at)
        found = await place.ended(schedule_id)
        assert found[0]["planned_at"] == "2026-11-23T13:00:00.000Z"
        assert found[0]["status"] == "succeeded"


async def test_the_clock_is_looked_at_often_whatever_is_planned(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        await place.create(cron_expr="0 0 1 1 *")
        await place.asleep()
        assert place.clock.sleeping_until == START + timedelta(seconds=LOOK_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
