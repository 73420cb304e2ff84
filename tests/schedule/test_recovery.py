"""A scheduler that dies anywhere: no occurrence twice, none unaccounted for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from oubliette import clock as real_clock
from oubliette.core.model import EventType, Outcome
from oubliette.schedule import runs
from oubliette.schedule.sending import Ways
from oubliette.session import units
from oubliette.session.units import TurnEnd
from tests.schedule.world import ADMIN, Place, open_place


def _ways(place: Place) -> Ways:
    return Ways(place.sessions.deps.config, real_clock.fresh_hex, lambda _session_id: None)


async def _claim(place: Place, schedule_id: str) -> runs.Effects:
    """What the scheduler commits, without what it does next."""
    unit = partial(runs.claim, ways=_ways(place), schedule_id=schedule_id, at=place.clock.now())
    return await place.sessions.store.write(unit)


async def test_killed_between_the_claim_and_the_start(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        schedule_id = await place.create()
        clock, agent = place.clock, place.sessions.agent
        clock.advance(hours=1)
        assert len((await _claim(place, schedule_id)).started) == 1
        assert (await _claim(place, schedule_id)).started == [], "a second claim finds nothing"
        assert [run["status"] for run in await place.runs(schedule_id)] == ["claimed"]
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        (run,) = await place.ended(schedule_id)
        assert (run["status"], run["output"]) == ("succeeded", "hello")
        assert sum(len(turns) for turns in agent.turns.values()) == 1


async def test_killed_before_the_claim(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        schedule_id = await place.create()
        clock, agent = place.clock, place.sessions.agent
    clock.advance(hours=1, seconds=20)
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        (run,) = await place.ended(schedule_id)
        assert (run["status"], run["planned_at"]) == ("succeeded", "2026-11-23T13:00:00.000Z")


async def test_killed_between_the_start_and_the_end(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep")
        clock, agent = place.clock, place.sessions.agent
        clock.advance(hours=1)
        (before,) = await place.until(schedule_id, lambda found: bool(found) and found[0]["status"] == "running")
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        (run,) = await place.runs(schedule_id)
        assert run["status"] == "running", "its turn goes on in its container"
        clock.advance(hours=1)
        found = await place.until(schedule_id, lambda found: len(found) == 2)
        assert (found[1]["status"], found[1]["reason"]) == ("skipped", "overlap")
        await place.sessions.tree.interrupt(ADMIN, run["session_id"])
        found = await place.ended(schedule_id, 2)
        assert found[0]["run_id"] == before["run_id"]
        assert found[0]["status"] == "cancelled"
        told = [event.type for event in await place.sessions.log(run["session_id"])]
        assert told.count(EventType.SCHEDULE_RUN_STARTED) == told.count(EventType.SCHEDULE_RUN_ENDED) == 1


async def test_a_turn_that_ended_while_nobody_watched_ends_its_run_at_the_next_start(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        schedule_id = await place.create()
        clock, agent = place.clock, place.sessions.agent
        clock.advance(hours=1)
        effects = await _claim(place, schedule_id)
        for row in effects.started:
            place.sessions.tree.take_up(row)
            await place.sessions.settle(row.session_id)
        assert [run["status"] for run in await place.runs(schedule_id)] == ["claimed"]
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        (run,) = await place.runs(schedule_id)
        assert (run["status"], run["output"]) == ("succeeded", "hello")
        assert run["started_at"] <= run["ended_at"]
        told = [event.type for event in await place.sessions.log(run["session_id"])]
        assert told[-2:] == [EventType.SCHEDULE_RUN_STARTED, EventType.SCHEDULE_RUN_ENDED]


async def test_settling_again_and_again_changes_nothing(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.advance(hours=1)
        found = await place.ended(schedule_id)
        log = await place.sessions.log(found[0]["session_id"])
        for _ in range(3):
            await place.sessions.store.write(partial(runs.settle, ways=_ways(place), at=place.clock.now()))
        assert await place.runs(schedule_id) == found
        assert await place.sessions.log(found[0]["session_id"]) == log


async def test_a_message_that_was_dropped_from_the_queue_cancels_its_run(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.advance(hours=1)
        (first,) = await place.ended(schedule_id)
        await place.sessions.message(first["session_id"], "sleep")
        await place.sessions.until(first["session_id"], "running")
        place.clock.advance(hours=1)
        await place.until(schedule_id, lambda found: len(found) == 2)
        drop = partial(units.drop_queued, session_id=first["session_id"], at=place.clock.now())
        assert await place.sessions.store.write(drop) == 1
        place.clock.advance(minutes=1)
        found = await place.until(schedule_id, lambda found: "ended_at" in found[1])
        assert found[1]["status"] == "cancelled"
        assert "started_at" not in found[1]


async def test_queued_runs_go_on_after_a_restart_and_none_is_lost(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", overlap_behavior="queue")
        clock, agent = place.clock, place.sessions.agent
        for number in (1, 2, 3):
            clock.advance(hours=1)
            await place.until(schedule_id, lambda found, n=number: len(found) == n)  # type: ignore[misc]
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        for number in range(3):
            found = await place.until(schedule_id, lambda found, n=number: found[n]["status"] == "running")  # type: ignore[misc]
            await place.sessions.tree.interrupt(ADMIN, found[number]["session_id"])
        await place.ended(schedule_id, 3)


async def test_a_run_ended_twice_has_one_end(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        schedule_id = await place.create("sleep")
        place.clock.advance(hours=1)
        (row,) = (await _claim(place, schedule_id)).started
        store, at = place.sessions.store, place.clock.now()
        await store.write(partial(units.begin_turn, session_id=row.session_id, message_id="msg_1", at=at))
        end = TurnEnd(Outcome.COMPLETED, "done")
        await store.write(partial(units.finish_turn, session_id=row.session_id, number=1, end=end, at=at))
        for _ in range(2):
            await store.write(partial(runs.settle, ways=_ways(place), at=at))
        told = [event.type for event in await place.sessions.log(row.session_id)]
        assert told.count(EventType.SCHEDULE_RUN_ENDED) == 1
