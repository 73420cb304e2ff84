"""The noun: what may be said of a schedule, who may see and change it, its history and preview."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from oubliette.core.limits import MAX_SCHEDULE_TARGETS, RUNS_PER_SCHEDULE
from oubliette.core.place_shapes import Run, Schedule
from oubliette.core.schedule_rows import RunRow, RunStatus
from oubliette.errors import RequestError
from oubliette.schedule.requests import ScheduleChanges, TargetArgs
from oubliette.store import projects, runs
from oubliette.store.database import Tx
from tests.schedule.world import (
    ADMIN,
    MORE_WORKSPACE,
    OF_OTHER,
    OF_PROJECT,
    OTHER_PROJECT,
    OTHER_WORKSPACE,
    PROJECT,
    READER,
    START,
    open_place,
)


async def test_a_schedule_is_shown_as_shapes_says(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(
            name="weekly report",
            cron_expr="30 9 * * mon-fri",
            timezone="Europe/Berlin",
            max_cost_usd=None,
            timeout_minutes=30,
            misfire="once",
        )
        await place.schedules.trigger(ADMIN, schedule_id)
        await place.ended(schedule_id)
        shown = await place.shown(schedule_id)
        TypeAdapter(Schedule).validate_python(shown)
        for run in await place.runs(schedule_id):
            TypeAdapter(Run).validate_python(run)
        assert shown["cron_text"] == "at 09:30, Monday through Friday"
        assert shown["next_run_at"] == shown["next_runs"][0] == "2026-11-24T08:30:00.000Z"
        assert len(shown["next_runs"]) == 3
        assert shown["targets"][0]["last_run"]["trigger"] == "manual"
        assert shown["last_run_at"] == "2026-11-23T12:00:00.000Z"
        assert None not in shown.values()
        counts = await place.sessions.store.read(partial(projects.counts, project_id=PROJECT))
        assert counts["schedules"] == 1


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("name", "  ", "one line"),
        ("name", "a\nb", "one line"),
        ("message", "", "a text is needed"),
        ("cron_expr", "61 * * * *", "field 1 of 5"),
        ("timezone", "Europe/Berlim", "There is no time zone"),
        ("overlap_behavior", "pile", "one of skip, queue, parallel"),
        ("session_behavior", "fresh", "one of resume, new"),
        ("misfire", "all", "one of skip, once"),
        ("jitter_seconds", -1, "0 to 86400"),
        ("max_cost_usd", 0, "more than 0"),
        ("timeout_minutes", float("nan"), "more than 0"),
        ("pause_after_failures", 1.5, "a whole number"),
        ("model", "gpt-99", "There is no model"),
        ("targets", [], "at least one"),
        ("targets", [TargetArgs(PROJECT), TargetArgs(PROJECT)], "twice"),
        ("targets", [TargetArgs(PROJECT, str(n)) for n in range(MAX_SCHEDULE_TARGETS + 1)], "there may be 50"),
        ("targets", [TargetArgs("nowhere")], "no such project"),
        ("targets", [TargetArgs(PROJECT, OTHER_WORKSPACE)], "no such workspace"),
    ],
)
async def test_what_is_wrong_is_refused_with_its_field(tmp_path: Path, field: str, value: object, says: str) -> None:
    async with open_place(tmp_path, running=False) as place:
        with pytest.raises(RequestError) as refused:
            await place.create(**{field: value})  # type: ignore[arg-type]
        assert says in str(refused.value)
        if "no such" not in says:
            assert refused.value.field == field
        assert (await place.schedules.list_page(ADMIN))["schedules"] == []


async def test_writing_needs_every_target_and_reading_one(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        both = await place.create(targets=[TargetArgs(PROJECT), TargetArgs(OTHER_PROJECT)])
        own = await place.create(principal=OF_PROJECT)
        with pytest.raises(RequestError, match="no such project"):
            await place.create(principal=OF_PROJECT, targets=[TargetArgs(PROJECT), TargetArgs(OTHER_PROJECT)])
        with pytest.raises(RequestError, match="does not allow"):
            await place.create(principal=READER)
        shown = await place.schedules.get(OF_PROJECT, both)
        assert [one["project_id"] for one in shown["targets"]] == [PROJECT]
        for call in (
            place.schedules.update(OF_PROJECT, both, ScheduleChanges(name="mine")),
            place.schedules.delete(OF_PROJECT, both),
            place.schedules.trigger(OF_PROJECT, both),
        ):
            with pytest.raises(RequestError) as refused:
                await call
            assert refused.value.code == "permission_denied"
        with pytest.raises(RequestError) as refused:
            await place.schedules.update(READER, own, ScheduleChanges(name="mine"))
        assert refused.value.code == "permission_denied"
        for call in (place.schedules.get(OF_OTHER, own), place.schedules.history(OF_OTHER, own)):
            with pytest.raises(RequestError) as refused:
                await call
            assert refused.value.code == "not_found"
        with pytest.raises(RequestError, match="no such project"):
            await place.schedules.update(OF_PROJECT, own, ScheduleChanges(targets=[TargetArgs(OTHER_PROJECT)]))
        assert {one["schedule_id"] for one in (await place.schedules.list_page(READER))["schedules"]} == {both, own}
        assert {one["schedule_id"] for one in (await place.schedules.list_page(OF_OTHER))["schedules"]} == {both}
        await place.schedules.trigger(ADMIN, both)
        await place.ended(both, 2)
        assert [run["project_id"] for run in (await place.schedules.history(OF_OTHER, both))["runs"]] == [OTHER_PROJECT]


async def test_a_budget_must_be_one_that_can_be_kept_and_that_its_maker_may_give(tmp_path: Path) -> None:
    models = {
        "priced": {"model": "m", "provider": "scripted", "cost": {"input": 1, "output": 1}},
        "unpriced": {"model": "m", "provider": "openai-compatible", "baseUrl": "http://localhost:1"},
    }
    async with open_place(tmp_path, running=False, models=models) as place:
        with pytest.raises(RequestError, match="price of the model 'unpriced' is not known"):
            await place.create(model="unpriced", max_cost_usd=1)
        with pytest.raises(RequestError) as refused:
            await place.create(principal=OF_PROJECT, model="priced", max_cost_usd=1_000)
        assert refused.value.code == "permission_denied"
        schedule_id = await place.create(model="priced", max_cost_usd=1_000)
        assert (await place.shown(schedule_id))["max_cost_usd"] == 1_000


async def test_whoever_changes_a_schedule_answers_for_it(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        assert (await place.row(schedule_id)).authority == ADMIN.id
        await place.schedules.update(OF_PROJECT, schedule_id, ScheduleChanges(name="other"))
        assert (await place.row(schedule_id)).authority == OF_PROJECT.id
        assert (await place.shown(schedule_id))["created_by"]["id"] == ADMIN.id


async def test_changed_times_begin_now(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(cron_expr="0 13 * * *")
        place.clock.advance(minutes=30)
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(cron_expr="15 * * * *"))
        await place.asleep()
        assert await place.runs(schedule_id) == []
        place.clock.advance(minutes=45)
        assert [run["planned_at"][11:16] for run in await place.ended(schedule_id)] == ["13:15"]
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=False))
        place.clock.advance(hours=4)
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=True))
        await place.asleep()
        assert len(await place.runs(schedule_id)) == 1, "what passed while it was disabled is no gap"


async def test_other_changes_leave_the_plan_alone(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        place.clock.turn(START + timedelta(hours=1) - timedelta(microseconds=1))
        before = await place.row(schedule_id)
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(message="say bye"))
        after = await place.row(schedule_id)
        assert (after.next_at, after.accounted_until) == (before.next_at, before.accounted_until)
        place.clock.turn(START + timedelta(hours=1))
        assert (await place.ended(schedule_id))[0]["output"] == "bye"


async def test_deleting_takes_the_history_and_leaves_the_session(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep")
        place.clock.advance(hours=1)
        (run,) = await place.until(schedule_id, lambda found: bool(found) and found[0]["status"] == "running")
        assert await place.schedules.delete(ADMIN, schedule_id) == {"schedule_id": schedule_id, "deleted": True}
        with pytest.raises(RequestError, match="no such schedule"):
            await place.schedules.get(ADMIN, schedule_id)
        await place.sessions.until(run["session_id"], "running")
        place.clock.advance(hours=3)
        await place.sessions.tree.interrupt(ADMIN, run["session_id"])
        await place.sessions.until(run["session_id"], "idle")


async def test_history_is_paged_by_position_and_filtered_by_status(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create()
        for number in range(1, 6):
            place.clock.advance(hours=1)
            await place.ended(schedule_id, number)
        first = await place.schedules.history(ADMIN, schedule_id, limit=2)
        place.clock.advance(hours=1)
        await place.ended(schedule_id, 6)
        second = await place.schedules.history(ADMIN, schedule_id, limit=2, cursor=first["next_cursor"])
        hours = [run["planned_at"][11:13] for run in first["runs"] + second["runs"]]
        assert hours == ["17", "16", "15", "14"]
        assert (await place.schedules.history(ADMIN, schedule_id, status="failed"))["runs"] == []
        assert len((await place.schedules.history(ADMIN, schedule_id, status="succeeded"))["runs"]) == 6
        with pytest.raises(RequestError, match="status: one of"):
            await place.schedules.history(ADMIN, schedule_id, status="fine")
        with pytest.raises(RequestError, match="cursor"):
            await place.schedules.history(READER, schedule_id, cursor=first["next_cursor"])


async def test_a_thousand_runs_are_kept_and_open_ones_always(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep")
        place.clock.advance(hours=1)
        (first,) = await place.until(schedule_id, lambda found: bool(found) and found[0]["status"] == "running")
        target = await place.target(schedule_id)

        def fill(tx: Tx) -> None:
            for number in range(RUNS_PER_SCHEDULE):
                at = START + timedelta(hours=1, seconds=number)
                row = RunRow(
                    f"run_x{number}", schedule_id, target.target_id, PROJECT, "manual", at, at, RunStatus.SUCCEEDED,
                    ended_at=at,
                )  # fmt: skip
                runs.insert(tx, row)

        await place.sessions.store.write(fill)
        place.clock.advance(hours=1)
        await place.until(schedule_id, lambda found: found[-1]["status"] == "skipped")
        found = await place.runs(schedule_id)
        assert len(found) == RUNS_PER_SCHEDULE
        page = await place.schedules.history(ADMIN, schedule_id, limit=2_000)
        ids = [run["run_id"] for run in page["runs"]]
        assert len(ids) == RUNS_PER_SCHEDULE + 1
        assert "run_x0" not in ids
        assert first["run_id"] in ids
        await place.sessions.store.write(partial(runs.prune, schedule_id=schedule_id, keep=3))
        kept = await place.runs(schedule_id)
        assert [run["status"] for run in kept] == ["running", "succeeded", "succeeded", "skipped"]


async def test_a_preview(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        shown = await place.schedules.preview("30 2 * * *", "Europe/Berlin", 2)
        assert shown["next_runs"] == ["2026-11-24T01:30:00.000Z", "2026-11-25T01:30:00.000Z"]
        assert shown["next_runs_local"] == ["2026-11-24T02:30:00+01:00", "2026-11-25T02:30:00+01:00"]
        assert shown["cron_text"] == "at 02:30"


async def test_the_message_of_a_listed_schedule_is_cut_and_says_so(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        schedule_id = await place.create("x" * 5_000)
        (listed,) = (await place.schedules.list_page(ADMIN))["schedules"]
        assert (len(listed["message"]), listed["message_truncated"], listed["message_bytes"]) == (2_000, True, 5_000)
        assert len((await place.shown(schedule_id))["message"]) == 5_000


async def test_targets_keep_their_order_and_their_identity(tmp_path: Path) -> None:
    async with open_place(tmp_path, running=False) as place:
        places = [TargetArgs(PROJECT), TargetArgs(PROJECT, MORE_WORKSPACE), TargetArgs(OTHER_PROJECT)]
        schedule_id = await place.create(targets=places)
        before = {
            (t["project_id"], t.get("workspace_id")): t["target_id"]
            for t in (await place.shown(schedule_id))["targets"]
        }
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(targets=list(reversed(places))))
        after = (await place.shown(schedule_id))["targets"]
        assert [(t["project_id"], t.get("workspace_id")) for t in after] == list(reversed(before))
        assert {(t["project_id"], t.get("workspace_id")): t["target_id"] for t in after} == before
