"""Random lives of one schedule against a small oracle of what has to be accounted for.

Whatever happens (long gaps, kills, changes, pauses, sessions ended and deleted), every occurrence that fell into a time
in which the schedule was active has exactly one account, every run at most one turn, and nothing stays open for ever.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from oubliette.core import cron
from oubliette.core.model import EventType, Json
from oubliette.errors import RequestError
from oubliette.schedule.requests import ScheduleChanges
from oubliette.store import sessions
from tests.schedule.world import ADMIN, START, HandClock, Place, open_place
from tests.session.fakes import FakeAgent

STEPS = 40
CHOICES = ("tick", "tick", "tick", "tick", "gap", "stop", "stop", "trigger", "toggle", "end", "delete", "busy")
EVERY = "*/10 * * * *"


class Oracle:
    """Which occurrences are due an account: those that fell into the spans in which the schedule was active."""

    def __init__(self, at: datetime) -> None:
        self.expression = cron.parse(EVERY)
        self.spans: list[tuple[datetime, datetime | None]] = [(at, None)]

    def stop(self, at: datetime) -> None:
        begun, ended = self.spans[-1]
        if ended is None:
            self.spans[-1] = (begun, at)

    def begin(self, at: datetime) -> None:
        if self.spans[-1][1] is not None:
            self.spans.append((at, None))

    def expected(self, now: datetime) -> int:
        return sum(cron.due_between(self.expression, begun, ended or now).count for begun, ended in self.spans)


def _accounted(found: list[Json]) -> int:
    """How many occurrences these rows stand for."""
    counts = 0
    for run in found:
        if run["trigger"] == "cron":
            counts += run.get("missed_count", 0) + (run["status"] != "missed")
    return counts


async def _step(place: Place, chance: random.Random, schedule_id: str, oracle: Oracle, enabled: bool) -> bool:
    found = await place.runs(schedule_id)
    going = [run for run in found if run["status"] == "running"]
    what = chance.choice(CHOICES)
    if what == "tick":
        place.clock.advance(minutes=10)
    elif what == "gap":
        place.clock.advance(minutes=chance.randint(20, 700))
    elif what == "stop" and going:
        await place.sessions.tree.interrupt(ADMIN, going[0]["session_id"])
    elif what == "trigger":
        await place.schedules.trigger(ADMIN, schedule_id)
    elif what == "toggle":
        await place.asleep()
        enabled = not enabled
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=enabled))
        (oracle.begin if enabled else oracle.stop)(place.clock.now())
    elif what in ("end", "delete") and found and found[-1].get("session_id"):
        session_id = found[-1]["session_id"]
        try:
            await place.sessions.tree.end(ADMIN, session_id, "cancelled")
            if what == "delete":
                await place.sessions.store.write(partial(sessions.delete, session_id=session_id))
        except RequestError as error:
            assert error.code == "not_found", error
    elif what == "busy" and found and found[-1].get("session_id"):
        try:
            await place.sessions.message(found[-1]["session_id"], "say somebody else")
        except RequestError as error:
            assert error.code in ("not_found", "conflict"), error
    await place.asleep()
    return enabled


@pytest.mark.parametrize("seed", range(12))
async def test_every_occurrence_has_exactly_one_account(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    behavior = chance.choice([("skip", "resume"), ("queue", "resume"), ("queue", "new"), ("parallel", "new")])
    clock, agent, schedule_id = HandClock(START), None, ""
    oracle, enabled, left = Oracle(START), True, STEPS
    while left > 0:
        async with open_place(tmp_path, agent=agent, at=clock) as place:
            agent = place.sessions.agent
            schedule_id = schedule_id or await place.create(
                chance.choice(["say hello", "sleep"]),
                cron_expr=EVERY,
                overlap_behavior=behavior[0],
                session_behavior=behavior[1],
                misfire=chance.choice(["skip", "once"]),
                pause_after_failures=0,
            )
            for _ in range(min(left, chance.randint(3, 12))):
                left -= 1
                enabled = await _step(place, chance, schedule_id, oracle, enabled)
                found = await place.runs(schedule_id)
                assert _accounted(found) == oracle.expected(clock.now()), (seed, found)
        # Left without a word, as a kill does; sometimes for a long time.
        clock.advance(seconds=chance.choice([1, 30, 4_000, 40_000]))
    async with open_place(tmp_path, agent=agent, at=clock) as place:
        await place.asleep()
        oracle.stop(clock.now())
        await _bring_to_rest(place, schedule_id)
        found = await place.runs(schedule_id)
        assert _accounted(found) == oracle.expected(clock.now())
        keys = [run["planned_at"] for run in found if run["trigger"] == "cron"]
        assert len(keys) == len(set(keys))
        await _each_run_has_one_turn(place, found, agent)


async def _bring_to_rest(place: Place, schedule_id: str) -> None:
    await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=False))
    for _ in range(100):
        found = await place.runs(schedule_id)
        open_ones = [run for run in found if "ended_at" not in run]
        if not open_ones:
            return
        for run in open_ones:
            if run["status"] == "running":
                await place.sessions.tree.interrupt(ADMIN, run["session_id"])
        place.clock.advance(minutes=1)
        await place.asleep()
    raise AssertionError(f"still open: {open_ones}")


async def _each_run_has_one_turn(place: Place, found: list[Json], agent: FakeAgent | None) -> None:
    assert agent is not None
    taken = [(run["session_id"], run["turn"]) for run in found if "turn" in run]
    assert len(taken) == len(set(taken))
    for session_id in {run["session_id"] for run in found if "session_id" in run}:
        if await place.sessions.store.read(partial(sessions.get, session_id=session_id)) is None:
            continue
        told = [event for event in await place.sessions.log(session_id) if event.type is EventType.SCHEDULE_RUN_ENDED]
        ended = [event.body["data"]["run"]["run_id"] for event in told]
        assert sorted(ended) == sorted(run["run_id"] for run in found if run.get("session_id") == session_id)


def test_the_oracle_counts_only_active_time() -> None:
    oracle = Oracle(START)
    oracle.stop(START + timedelta(minutes=25))
    oracle.begin(START + timedelta(minutes=55))
    assert oracle.expected(START + timedelta(minutes=60)) == 3
