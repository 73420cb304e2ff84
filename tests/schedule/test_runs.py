"""Runs from the claim to the end: sessions, rows, events."""

from __future__ import annotations

from pathlib import Path

from oubliette.core.model import EventType
from tests.schedule.world import open_place


async def test_runs_of_a_schedule_continue_one_session(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("say hello")
        for number in (1, 2, 3):
            place.clock.advance(hours=1)
            found = await place.ended(schedule_id, number)
        assert [run["status"] for run in found] == ["succeeded"] * 3
        assert [run["session"] for run in found] == ["new", "pinned", "pinned"]
        assert [run["turn"] for run in found] == [1, 2, 3]
        assert len({run["session_id"] for run in found}) == 1
        assert [run["planned_at"][11:16] for run in found] == ["13:00", "14:00", "15:00"]
        assert all(run["output"] == "hello" for run in found)
        session_id = found[0]["session_id"]
        row = await place.sessions.row(session_id)
        assert (row.schedule_id, row.status, row.created_by["kind"]) == (schedule_id, "idle", "schedule")
        log = await place.sessions.log(session_id)
        told = [event for event in log if event.type in (EventType.SCHEDULE_RUN_STARTED, EventType.SCHEDULE_RUN_ENDED)]
        assert [event.body["data"]["run"]["status"] for event in told] == ["running", "succeeded"] * 3
        assert [event.body["data"]["run"]["run_id"] for event in told[::2]] == [run["run_id"] for run in found]
