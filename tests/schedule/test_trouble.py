"""One schedule, or one run, that cannot be dealt with is said to be so, and keeps none of the others from running."""

from __future__ import annotations

from pathlib import Path

import pytest

from oubliette.core.model import Json, ProjectRow
from oubliette.core.schedule_rows import RunRow, ScheduleRow
from oubliette.errors import RequestError
from oubliette.schedule import due, runs, sending
from oubliette.schedule.requests import ScheduleChanges, TargetArgs
from oubliette.schedule.sending import Ways
from oubliette.store import projects, schedules, workspaces
from oubliette.store.database import Tx
from tests.schedule.world import ADMIN, MORE_WORKSPACE, OF_PROJECT, PROJECT, Place, open_place


async def _spoil(place: Place, schedule_id: str, **columns: object) -> None:
    await place.sessions.store.write(lambda tx: schedules.update(tx, schedule_id, **columns))


async def test_a_schedule_of_which_nobody_knows_what_is_due_is_paused_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = due.account

    def broken(row: ScheduleRow, *more: object) -> object:
        if row.name == "broken":
            raise ArithmeticError("no such year")
        return account(row, *more)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr(due, "account", broken)
    async with open_place(tmp_path) as place:
        bad = await place.create(name="broken")
        good = await place.create()
        place.clock.advance(hours=1)
        assert (await place.ended(good))[0]["status"] == "succeeded"
        await place.asleep()
        paused = (await place.shown(bad))["paused"]
        assert (paused["reason"], "no such year" in paused["text"]) == ("invalid", True)


async def test_a_schedule_that_cannot_be_planned_at_the_start_stops_no_other(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        bad, worse, good = await place.create(), await place.create(), await place.create()
        await _spoil(place, bad, timezone="Mars/Olympus")
        await place.sessions.store.write(
            lambda tx: tx.run("UPDATE schedules SET created_by = 'no json' WHERE schedule_id = ?", worse)
        )
        clock, agent = place.clock, place.sessions.agent
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        place.clock.advance(hours=1)
        assert (await place.ended(good))[0]["status"] == "succeeded"
        assert (await place.shown(bad))["paused"]["reason"] == "invalid"


async def test_a_run_whose_message_cannot_be_sent_fails_and_its_neighbour_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = sending.send

    def broken(tx: Tx, ways: Ways, schedule: ScheduleRow, **more: object) -> sending.Sent:
        if schedule.name == "broken":
            raise KeyError("what nobody thought of")
        return send(tx, ways, schedule, **more)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr(runs, "send", broken)
    async with open_place(tmp_path) as place:
        bad = await place.create(name="broken", pause_after_failures=1)
        good = await place.create()
        place.clock.advance(hours=1)
        (run,) = await place.ended(bad)
        assert (run["status"], run["reason"], run["error"]["code"]) == ("failed", "internal", "internal")
        assert (await place.shown(bad))["paused"]["reason"] == "failures"
        assert (await place.ended(good))[0]["status"] == "succeeded"


async def test_a_run_that_cannot_be_brought_up_to_its_turn_keeps_no_other_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up = runs._bring_up

    def broken(tx: Tx, run: RunRow, **more: object) -> None:
        if run.schedule_id == bad:
            raise KeyError("what nobody thought of")
        bring_up(tx, run, **more)  # type: ignore[arg-type]  # as given

    async with open_place(tmp_path) as place:
        bad, good = await place.create(), await place.create()
        monkeypatch.setattr(runs, "_bring_up", broken)
        place.clock.advance(hours=1)
        await place.ended(good)
        assert (await place.runs(bad))[0]["status"] == "claimed"
        monkeypatch.setattr(runs, "_bring_up", bring_up)
        place.clock.advance(minutes=1)
        assert (await place.ended(bad))[0]["status"] == "succeeded", "it is tried again"


async def test_a_disk_that_is_full_is_not_taken_for_trouble_with_one_run(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        kept: list[bool] = []

        def unit(tx: Tx) -> None:
            with pytest.raises(ZeroDivisionError):
                tx.attempt(lambda _tx: 1 // 0)
            kept.append(tx.intact)
            tx.run("ROLLBACK")
            kept.append(tx.intact)
            tx.run("BEGIN IMMEDIATE")
            tx.run("SAVEPOINT unit")

        await place.sessions.store.write(unit)
        assert kept == [True, False]


async def test_a_run_that_comes_to_wait_while_its_schedule_is_being_paused_is_cancelled(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", overlap_behavior="queue")
        for number in (1, 2):
            place.clock.advance(hours=1)
            await place.until(schedule_id, lambda found, n=number: len(found) == n)  # type: ignore[misc]
        # As if its pause had come first in the same unit: it has cancelled what waited then.
        paused: Json = {"reason": "failures", "since": "2026-11-23T12:00:00.000Z", "text": "…"}
        await _spoil(place, schedule_id, paused=paused, next_at=None, due_at=None)
        first = (await place.until(schedule_id, lambda found: found[0]["status"] == "running"))[0]
        await place.sessions.tree.interrupt(ADMIN, first["session_id"])
        found = await place.ended(schedule_id, 2)
        assert (found[1]["status"], found[1]["reason"]) == ("cancelled", "paused")


async def test_a_workspace_that_is_deleted_leaves_no_target_twice(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        both = [TargetArgs(PROJECT), TargetArgs(PROJECT, MORE_WORKSPACE)]
        schedule_id = await place.create(targets=both)

        def delete(tx: Tx) -> None:
            schedules.workspace_deleted(tx, MORE_WORKSPACE, place.clock.now())
            workspaces.delete(tx, MORE_WORKSPACE)

        await place.sessions.store.write(delete)
        shown = await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=True))
        assert len(shown["targets"]) == 1
        place.clock.advance(hours=1)
        assert len(await place.ended(schedule_id)) == 1


async def test_a_budget_that_is_no_longer_allowed_or_can_no_longer_be_kept_fails_the_run_clearly(
    tmp_path: Path,
) -> None:
    models = {"priced": {"model": "m", "provider": "scripted", "cost": {"input": 1, "output": 1}}}
    async with open_place(tmp_path, models=models) as place:
        schedule_id = await place.create(principal=OF_PROJECT, model="priced", max_cost_usd=2)
        by_admin = await place.create(model="priced", max_cost_usd=2)
        place.clock.advance(hours=1)
        for one in (schedule_id, by_admin):
            assert (await place.ended(one))[0]["status"] == "succeeded"

        def lower(tx: Tx) -> None:
            row = projects.get(tx, PROJECT)
            assert isinstance(row, ProjectRow)
            projects.update(tx, PROJECT, settings={**row.settings, "limits": {"max_cost_usd": 1}})

        await place.sessions.store.write(lower)
        place.clock.advance(hours=1)
        run = (await place.ended(schedule_id, 2))[1]
        assert (run["status"], run["reason"]) == ("failed", "permission_denied")
        assert "at most the project's, which is 1" in run["error"]["message"]
        assert (await place.ended(by_admin, 2))[1]["status"] == "succeeded", "an admin may give more"
        place.sessions.deps.config.models.models.clear()
        place.clock.advance(hours=1)
        run = (await place.ended(by_admin, 3))[2]
        assert (run["status"], run["reason"]) == ("failed", "invalid_argument")


async def test_a_schedule_can_always_be_switched_off_by_who_may_write_to_its_targets(tmp_path: Path) -> None:
    models = {"priced": {"model": "m", "provider": "scripted", "cost": {"input": 1, "output": 1}}}
    async with open_place(tmp_path, models=models) as place:
        schedule_id = await place.create(model="priced", max_cost_usd=1_000)
        place.sessions.deps.config.models.models.clear()
        shown = await place.schedules.update(OF_PROJECT, schedule_id, ScheduleChanges(enabled=False))
        assert shown["enabled"] is False
        with pytest.raises(RequestError, match="There is no model 'priced'"):
            await place.schedules.update(OF_PROJECT, schedule_id, ScheduleChanges(enabled=True))
