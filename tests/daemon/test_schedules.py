"""Schedules with real agents: the same conversation run after run, whatever ends, goes or dies in between."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette.config import load_config
from oubliette.daemon import Running, run_tiers
from oubliette.home import Home
from oubliette.schedule.wall import Wall
from tests.daemon.harness import Daemon, Json, open_daemon, ready, start, write_config
from tests.daemon.in_process import Client
from tests.schedule.world import HandClock

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

RUN_SECONDS = 120
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
PRICED = {"model": "scripted", "provider": "scripted", "cost": {"input": 0, "output": 100}, "maxOutputTokens": 2_000}
"""A tenth of a dollar for what says ``@usage 10 1000``; a fifth is reserved for each of its requests."""
RUN_USD = 0.5
CONFIG: Json = {
    "server": {"address": "127.0.0.1:0"},
    "runtime": "bubblewrap",
    "models": {"models": {"priced": PRICED}},
}


@asynccontextmanager
async def running_by(hand: HandClock, home: Home) -> AsyncIterator[tuple[Running, Client]]:
    """The real daemon in this process, its schedules going by that clock."""
    config, _ = load_config(home.config_file, os.environ)
    stop = trio.Event()
    wall = Wall(hand.now, hand.sleep_until)
    async with trio.open_nursery() as nursery:
        running: Running = await nursery.start(partial(run_tiers, home, config, os.environ, stop, wall=wall))
        client = Client(running)
        try:
            yield running, client
        finally:
            with trio.CancelScope(shield=True):
                await client.http.aclose()
                stop.set()


async def _history(client: Client | Daemon, schedule_id: str) -> list[Json]:
    """Oldest first."""
    found = await client.call("schedule", action="history", schedule_id=schedule_id, limit=50)
    return list(reversed(found["runs"]))


async def _until(
    client: Client | Daemon, schedule_id: str, fits: Callable[[list[Json]], bool], seconds: float = RUN_SECONDS
) -> list[Json]:
    """Look again and again, as a client from outside must."""
    found: list[Json] = []
    with trio.move_on_after(seconds):
        while True:
            found = await _history(client, schedule_id)
            if fits(found):
                return found
            await trio.sleep(0.05)
    raise AssertionError(f"the runs of {schedule_id} are not what they should be after {seconds} s: {found}")


def _over(number: int) -> Callable[[list[Json]], bool]:
    return lambda found: len(found) == number and all("ended_at" in run for run in found)


async def test_runs_by_the_clock_go_on_with_one_conversation_whatever_happens_in_between(tmp_path: Path) -> None:
    word = f"heron-{secrets.token_hex(4)}"
    root = tmp_path / "home"
    root.mkdir()
    write_config(root, CONFIG)
    home = Home(root)
    home.create()
    hand = HandClock(START)
    async with running_by(hand, home) as (running, client):
        project = (await client.call("project", action="create", name="by the clock"))["project_id"]
        made = await client.call(
            "schedule",
            action="create",
            name="hourly",
            cron_expr="@hourly",
            targets=[{"project_id": project}],
            message=f"The word is {word}.\n@usage 10 1000\n@say I keep it in mind",
            model="priced",
            max_cost_usd=RUN_USD,
        )
        schedule_id = made["schedule_id"]

        async def next_run(number: int, message: str | None = None) -> Json:
            if message is not None:
                await client.call("schedule", action="update", schedule_id=schedule_id, message=message)
            hand.advance(hours=1)
            found = await _until(client, schedule_id, _over(number))
            assert found[-1]["status"] == "succeeded", found[-1]
            assert found[-1]["planned_at"].startswith((START + timedelta(hours=number)).strftime("%Y-%m-%dT%H:00:00"))
            return found[-1]

        first = await next_run(1)
        assert first["session"] == "new"
        session_id = first["session_id"]
        await next_run(2, "And now?\n@usage 10 1000\n@say Still there")
        third = await next_run(3, "Which was it?\n@usage 10 1000\n@recall 1")
        assert word in third["output"], "the third run quotes what the first was told"

        # Ended by hand.
        await client.call("session", action="end", session_id=session_id)
        fourth = await next_run(4)
        assert (fourth["session"], fourth["session_id"]) == ("resumed", session_id)
        assert word in fourth["output"]

        # Its container removed.
        await running.containers.remove(project, None)
        fifth = await next_run(5)
        assert (fifth["session"], fifth["session_id"]) == ("pinned", session_id)
        assert word in fifth["output"]

    # The daemon restarted.
    async with running_by(hand, home) as (_, client):
        for number in (6, 7):
            hand.advance(hours=1)
            found = await _until(client, schedule_id, _over(number))
            assert (found[-1]["status"], found[-1]["session_id"]) == ("succeeded", session_id)
            assert word in found[-1]["output"]
        # By now the tree has spent more than a run may: what counts is each run by itself.
        assert [round(run["usage"]["cost_usd"], 1) for run in found[1:]] == [0.1] * 6
        session = await client.call("session", action="get", session_id=session_id, detail="full")
        assert session["tree_usage"]["cost_usd"] > RUN_USD
        assert session["schedule_id"] == schedule_id
        kinds = [event["type"] for event in await _events(client, session_id)]
        assert kinds.count("schedule_run_started") == kinds.count("schedule_run_ended") == 7
        await client.call("project", action="delete", project_id=project, force=True)
        with trio.fail_after(60):
            while (await client.call("project", action="list"))["projects"]:
                await trio.sleep(0.05)
        shown = await client.call("schedule", action="get", schedule_id=schedule_id)
        assert shown["paused"]["reason"] == "project_deleted"
        assert len(await _history(client, schedule_id)) == 7


async def _events(client: Client, session_id: str) -> list[Json]:
    found: list[Json] = []
    since = -1
    while True:
        page = await client.call("session", action="events", session_id=session_id, since_index=since)
        found += page["events"]
        since = page["last_index"]
        if not page["more"]:
            return found


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    async with open_daemon(home, CONFIG) as daemon:
        yield daemon


async def _killed_and_started_again(daemon: Daemon) -> None:
    daemon.kill()
    again = await ready(start(daemon.home, environment=daemon.environment))
    daemon.process, daemon.url, daemon.token = again.process, again.url, again.token


async def test_in_real_time_a_daemon_that_is_killed_at_any_point_accounts_for_every_occurrence_once(
    daemon: Daemon,
) -> None:
    project = (await daemon.call("project", action="create", name="real time"))["project_id"]
    made = await daemon.call(
        "schedule",
        action="create",
        name="every minute",
        cron_expr="* * * * *",
        targets=[{"project_id": project}],
        message="@delay 2\n@say one more",
        model="scripted",
    )
    schedule_id = made["schedule_id"]
    planned = datetime.fromisoformat(made["next_run_at"])

    # Between the claim and the start: its row is there, its turn has not begun.
    found = await _until(daemon, schedule_id, lambda found: len(found) == 1, seconds=75)
    assert datetime.fromisoformat(found[0]["planned_at"]) == planned
    late = datetime.fromisoformat(found[0]["claimed_at"]) - planned
    assert timedelta(0) <= late < timedelta(seconds=5)
    await _killed_and_started_again(daemon)
    # No further occurrence: what follows is asked for by hand.
    await daemon.call("schedule", action="update", schedule_id=schedule_id, enabled=False)
    found = await _until(daemon, schedule_id, lambda found: "ended_at" in found[0])
    first = found[0]
    assert first["status"] == "succeeded", first

    # Between the start and the end.
    (run_id,) = (await daemon.call("schedule", action="trigger", schedule_id=schedule_id))["run_ids"]
    await _until(daemon, schedule_id, lambda found: _of(found, run_id)["status"] == "running")
    await _killed_and_started_again(daemon)
    found = await _until(daemon, schedule_id, lambda found: "ended_at" in _of(found, run_id))
    second = _of(found, run_id)
    assert (second["status"], second["session_id"], second["session"]) == ("succeeded", first["session_id"], "pinned")

    # As soon as it is acknowledged.
    (run_id,) = (await daemon.call("schedule", action="trigger", schedule_id=schedule_id))["run_ids"]
    await _killed_and_started_again(daemon)
    found = await _until(daemon, schedule_id, lambda found: "ended_at" in _of(found, run_id))
    assert _of(found, run_id)["status"] == "succeeded"

    by_cron = [run for run in found if run["trigger"] == "cron"]
    assert len({run["planned_at"] for run in by_cron}) == len(by_cron)
    log = await daemon.events(first["session_id"])
    assert [event["index"] for event in log] == list(range(len(log)))
    done = [event["data"]["run"]["run_id"] for event in log if event["type"] == "schedule_run_ended"]
    began = [event["data"]["run"]["run_id"] for event in log if event["type"] == "schedule_run_started"]
    assert sorted(done) == sorted(began) == sorted(set(done))
    completions = [event for event in log if event["type"] == "completion"]
    assert len(completions) == len(done), "no occurrence has had a turn twice"


def _of(found: list[Json], run_id: str) -> Json:
    (run,) = (one for one in found if one["run_id"] == run_id)
    return run
