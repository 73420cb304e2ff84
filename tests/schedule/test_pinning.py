"""The session that a target's runs continue, whatever has become of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from oubliette import clock as real_clock
from oubliette.core.limits import MAX_QUEUED_MESSAGES
from oubliette.core.model import EventType, PlaceState
from oubliette.schedule import runs
from oubliette.schedule.requests import ScheduleChanges, TargetArgs
from oubliette.schedule.sending import Ways
from oubliette.session.requests import SpawnArgs, TurnArgs
from oubliette.store import schedules, sessions, workspaces
from oubliette.store.database import Tx
from tests.schedule.world import (
    ADMIN,
    MORE_WORKSPACE,
    OTHER_PROJECT,
    PROJECT,
    START,
    WORKSPACE,
    open_place,
)


async def test_an_ended_session_is_opened_again(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.advance(hours=1)
        (first,) = await place.ended(schedule_id)
        for how, number in (("completed", 2), ("cancelled", 3)):
            await place.sessions.tree.end(ADMIN, first["session_id"], how)  # type: ignore[arg-type]
            place.clock.advance(hours=1)
            found = await place.ended(schedule_id, number)
            assert (found[-1]["session"], found[-1]["session_id"]) == ("resumed", first["session_id"])
            assert found[-1]["status"] == "succeeded"
        codes = [event.body.get("code") for event in await place.sessions.log(first["session_id"])]
        assert codes.count("reopened") == 2


async def test_a_session_that_is_lost_is_replaced_and_the_run_says_so(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.advance(hours=1)
        (first,) = await place.ended(schedule_id)
        await place.sessions.tree.end(ADMIN, first["session_id"], "completed")
        await place.sessions.store.write(partial(sessions.delete, session_id=first["session_id"]))
        for expected, number in (("replaced", 2), ("pinned", 3)):
            place.clock.advance(hours=1)
            found = await place.ended(schedule_id, number)
            assert found[-1]["session"] == expected
        assert found[0]["session_id"] == first["session_id"], "the account outlives its session"
        assert found[2]["session_id"] == found[1]["session_id"] != first["session_id"]
        assert (await place.target(schedule_id)).session_id == found[1]["session_id"]


async def test_a_deleted_workspace_pauses_and_enabling_goes_on_in_the_default_one(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(targets=[TargetArgs(PROJECT, MORE_WORKSPACE)])
        place.clock.advance(hours=1)
        (first,) = await place.ended(schedule_id)
        assert first["workspace_id"] == MORE_WORKSPACE
        await place.sessions.tree.end(ADMIN, first["session_id"], "completed")

        def delete(tx: Tx) -> None:
            workspaces.update(tx, MORE_WORKSPACE, state=PlaceState.DELETING)
            schedules.workspace_deleted(tx, MORE_WORKSPACE, place.clock.now())
            workspaces.delete(tx, MORE_WORKSPACE)

        await place.sessions.store.write(delete)
        shown = await place.shown(schedule_id)
        assert shown["paused"]["reason"] == "workspace_deleted"
        assert "next_run_at" not in shown
        place.clock.advance(hours=3)
        await place.asleep()
        assert len(await place.runs(schedule_id)) == 1
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=True))
        place.clock.advance(hours=1)
        found = await place.ended(schedule_id, 2)
        assert (found[1]["session"], found[1]["workspace_id"]) == ("replaced", WORKSPACE)


async def test_a_target_that_moves_to_another_workspace_gets_a_new_session(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.advance(hours=1)
        await place.ended(schedule_id)
        before = await place.target(schedule_id)
        changes = ScheduleChanges(targets=[TargetArgs(PROJECT, MORE_WORKSPACE)])
        await place.schedules.update(ADMIN, schedule_id, changes)
        assert (await place.target(schedule_id)).target_id == before.target_id
        place.clock.advance(hours=1)
        found = await place.ended(schedule_id, 2)
        assert (found[1]["session"], found[1]["workspace_id"]) == ("replaced", MORE_WORKSPACE)
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(targets=[TargetArgs(OTHER_PROJECT)]))
        place.clock.advance(hours=1)
        found = await place.ended(schedule_id, 3)
        assert (found[2]["session"], found[2]["project_id"]) == ("new", OTHER_PROJECT)


async def test_a_session_busy_with_somebody_elses_turn_queues_the_message(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("say hello", timeout_minutes=1)
        place.clock.advance(hours=1)
        (first,) = await place.ended(schedule_id)
        session_id = first["session_id"]
        await place.sessions.message(session_id, "sleep")
        await place.sessions.until(session_id, "running")
        place.clock.advance(hours=1)
        found = await place.until(schedule_id, lambda found: len(found) == 2)
        assert (found[1]["status"], found[1]["session"], found[1]["turn"]) == ("claimed", "pinned", 3)
        assert "started_at" not in found[1]
        await place.sessions.tree.interrupt(ADMIN, session_id)
        found = await place.ended(schedule_id, 2)
        assert found[1]["status"] == "succeeded"
        turn = await place.sessions.turn(session_id, 3)
        assert turn.overrides["timeout_minutes"] == 1


async def test_a_pinned_session_is_never_resumed_by_a_spawn(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.advance(hours=1)
        (first,) = await place.ended(schedule_id)
        spawned = await place.sessions.tree.spawn(ADMIN, SpawnArgs(TurnArgs("say hi", model="scripted"), PROJECT))
        assert spawned["created"]
        assert spawned["session_id"] != first["session_id"]


async def test_a_session_that_is_being_ended_is_waited_for(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.advance(hours=1)
        (first,) = await place.ended(schedule_id)
        session_id = first["session_id"]
        await place.sessions.store.write(partial(sessions.update, session_id=session_id, ending="completed"))
        place.clock.advance(hours=1)
        found = await place.until(schedule_id, lambda found: len(found) == 2)
        assert (found[1]["status"], found[1]["reason"]) == ("queued", "session_ending")
        await place.sessions.store.write(partial(sessions.update, session_id=session_id, ending=None))
        place.clock.advance(minutes=1)
        found = await place.ended(schedule_id, 2)
        assert (found[1]["status"], found[1]["session_id"]) == ("succeeded", session_id)


async def test_a_full_queue_of_messages_fails_the_run_clearly(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.advance(hours=1)
        (first,) = await place.ended(schedule_id)
        await place.sessions.message(first["session_id"], "sleep")
        await place.sessions.until(first["session_id"], "running")
        for _ in range(MAX_QUEUED_MESSAGES):
            await place.sessions.message(first["session_id"], "say more")
        place.clock.advance(hours=1)
        found = await place.ended(schedule_id, 2)
        assert (found[1]["status"], found[1]["error"]["code"]) == ("failed", "queue_full")


async def test_a_session_made_for_one_run_is_completed_after_it(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(session_behavior="new")
        for number in (1, 2):
            place.clock.advance(hours=1)
            found = await place.ended(schedule_id, number)
        assert [run["session"] for run in found] == ["new", "new"]
        assert (await place.target(schedule_id)).session_id is None
        for run in found:
            await place.sessions.until(run["session_id"], "completed")


async def test_sessions_that_were_made_for_runs_and_left_by_a_kill_are_completed_at_the_next_start(
    tmp_path: Path,
) -> None:
    async with open_place(tmp_path, running=False) as place:
        places = [TargetArgs(PROJECT), TargetArgs(OTHER_PROJECT)]
        schedule_id = await place.create(session_behavior="new", targets=places)
        clock, agent = place.clock, place.sessions.agent
        clock.advance(hours=1)
        ways = Ways(place.sessions.deps.config, real_clock.fresh_hex, lambda _session_id: None)
        unit = partial(runs.claim, ways=ways, schedule_id=schedule_id, at=clock.now())
        for row in (await place.sessions.store.write(unit)).started:
            place.sessions.tree.take_up(row)
            await place.sessions.settle(row.session_id)
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        for run in await place.ended(schedule_id, 2):
            row = await place.sessions.until(run["session_id"], "completed")
            assert row.reason is None


async def test_a_session_made_for_one_run_stays_open_for_those_who_have_come_to_use_it(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", session_behavior="new")
        place.clock.advance(hours=1)
        (run,) = await place.until(schedule_id, lambda found: bool(found) and found[0]["status"] == "running")
        await place.sessions.message(run["session_id"], "say I take over")
        await place.sessions.tree.interrupt(ADMIN, run["session_id"])
        await place.ended(schedule_id)
        await place.sessions.until(run["session_id"], "idle")
        place.clock.advance(minutes=2)
        await place.asleep()
        assert (await place.sessions.row(run["session_id"])).status == "idle"


async def test_a_time_limit_that_is_taken_away_is_the_projects_again(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(timeout_minutes=7)
        place.clock.advance(hours=1)
        (run,) = await place.ended(schedule_id)
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(timeout_minutes=None))
        place.clock.advance(hours=1)
        await place.ended(schedule_id, 2)
        turn = await place.sessions.turn(run["session_id"], 2)
        limit = place.sessions.deps.config.defaults.limits.turn_timeout_minutes
        assert turn.overrides["timeout_minutes"] == limit != 7


async def test_each_run_begins_the_count_of_money_anew_and_carries_its_limits(tmp_path: Path) -> None:
    models = {"scripted-priced": {"model": "m", "provider": "scripted", "cost": {"input": 1, "output": 1}}}
    async with open_place(tmp_path, models=models) as place:
        schedule_id = await place.create(max_cost_usd=0.25, timeout_minutes=7, model="scripted-priced")
        place.clock.advance(hours=1)
        (run,) = await place.ended(schedule_id)
        turn = await place.sessions.turn(run["session_id"], 1)
        assert turn.overrides["run_budget"] == {"max_cost_usd": 0.25}
        place.clock.advance(hours=1)
        await place.ended(schedule_id, 2)
        turn = await place.sessions.turn(run["session_id"], 2)
        assert (turn.overrides["run_budget"], turn.overrides["timeout_minutes"]) == ({"max_cost_usd": 0.25}, 7)
        log = await place.sessions.log(run["session_id"])
        assert [event.type for event in log].count(EventType.COMPLETION) == 2
        assert log[0].ts > START
