"""An occurrence that comes while an earlier run of its target is still open."""

from __future__ import annotations

from pathlib import Path

import pytest

from oubliette.core.limits import MAX_QUEUED_RUNS
from oubliette.core.model import Json
from oubliette.errors import RequestError
from oubliette.schedule.requests import ScheduleChanges, TargetArgs
from tests.schedule.world import ADMIN, OTHER_PROJECT, PROJECT, Place, open_place


def _said(found: list[Json]) -> list[tuple[str, str | None]]:
    return [(run["status"], run.get("reason")) for run in found]


async def _stop(place: Place, run: Json) -> None:
    """End the turn of a run by hand, as ``session interrupt`` does."""
    await place.sessions.tree.interrupt(ADMIN, run["session_id"])


@pytest.mark.parametrize("session_behavior", ["resume", "new"])
async def test_skip_records_what_it_skips(tmp_path: Path, session_behavior: str) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", overlap_behavior="skip", session_behavior=session_behavior)
        place.clock.advance(hours=1)
        first = await place.until(schedule_id, lambda found: bool(found) and found[0]["status"] == "running")
        place.clock.advance(hours=1)
        found = await place.until(schedule_id, lambda found: len(found) == 2)
        assert _said(found)[1] == ("skipped", "overlap")
        assert "session_id" not in found[1]
        await _stop(place, first[0])
        await place.ended(schedule_id, 2)
        place.clock.advance(hours=1)
        found = await place.until(schedule_id, lambda found: len(found) == 3 and found[2]["status"] == "running")
        assert (found[2]["session_id"] == first[0]["session_id"]) == (session_behavior == "resume")


@pytest.mark.parametrize("session_behavior", ["resume", "new"])
async def test_queue_runs_them_in_order_one_at_a_time(tmp_path: Path, session_behavior: str) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", overlap_behavior="queue", session_behavior=session_behavior)
        for number in range(1, 5):
            place.clock.advance(hours=1)
            await place.until(schedule_id, lambda found, n=number: len(found) == n)  # type: ignore[misc]
        for number in range(4):
            found = await place.until(schedule_id, lambda found, n=number: found[n]["status"] == "running")  # type: ignore[misc]
            statuses = [run["status"] for run in found]
            assert statuses == ["cancelled"] * number + ["running"] + ["queued"] * (3 - number)
            await _stop(place, found[number])
        found = await place.ended(schedule_id, 4)
        assert [run["planned_at"][11:13] for run in found] == ["13", "14", "15", "16"]
        started = [run["started_at"] for run in found]
        assert started == sorted(started)
        assert len({run["session_id"] for run in found}) == (1 if session_behavior == "resume" else 4)


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", overlap_behavior="queue")
        for number in range(1, MAX_QUEUED_RUNS + 3):
            place.clock.advance(hours=1)
            found = await place.until(schedule_id, lambda found, n=number: len(found) == n)  # type: ignore[misc]
        assert _said(found)[-2:] == [("queued", None), ("skipped", "queue_full")]
        assert sum(run["status"] == "queued" for run in found) == MAX_QUEUED_RUNS


async def test_parallel_runs_side_by_side_in_sessions_of_their_own(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", overlap_behavior="parallel", session_behavior="new")
        for number in range(1, 4):
            place.clock.advance(hours=1)
            await place.until(schedule_id, lambda found, n=number: len(found) == n)  # type: ignore[misc]
        found = await place.until(schedule_id, lambda found: all(run["status"] == "running" for run in found))
        assert len({run["session_id"] for run in found}) == 3


async def test_parallel_needs_new_sessions(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        with pytest.raises(RequestError, match="parallel needs session_behavior new"):
            await place.create(overlap_behavior="parallel")
        schedule_id = await place.create(overlap_behavior="parallel", session_behavior="new")
        with pytest.raises(RequestError, match="parallel needs session_behavior new"):
            await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(session_behavior="resume"))


async def test_targets_run_side_by_side_and_overlap_apart(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", targets=[TargetArgs(PROJECT), TargetArgs(OTHER_PROJECT)])
        place.clock.advance(hours=1)
        found = await place.until(
            schedule_id, lambda found: len(found) == 2 and all(run["status"] == "running" for run in found)
        )
        assert {run["project_id"] for run in found} == {PROJECT, OTHER_PROJECT}
        await _stop(place, found[0])
        await place.until(schedule_id, lambda found: any(run["status"] == "cancelled" for run in found))
        place.clock.advance(hours=1)
        again = await place.until(schedule_id, lambda found: len(found) == 4)
        at_two = {run["project_id"]: run for run in again if run["planned_at"][11:13] == "14"}
        assert at_two[found[1]["project_id"]]["reason"] == "overlap"
        assert at_two[found[0]["project_id"]]["status"] in ("claimed", "running")


async def test_a_run_by_hand_keeps_to_the_overlap_rule_and_works_while_disabled_or_paused(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", enabled=False)
        first = await place.schedules.trigger(ADMIN, schedule_id)
        assert len(first["run_ids"]) == 1
        await place.until(schedule_id, lambda found: found[0]["status"] == "running")
        second = await place.schedules.trigger(ADMIN, schedule_id)
        assert second["runs"][0]["reason"] == "overlap"
        place.clock.advance(hours=5)
        await place.asleep()
        found = await place.runs(schedule_id)
        assert [run["trigger"] for run in found] == ["manual", "manual"]
