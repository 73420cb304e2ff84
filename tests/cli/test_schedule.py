"""``oubliette schedule``: the schedule tool as commands, times in the schedule's zone and in UTC."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from oubliette.cli import schedule as commands
from oubliette.cli.schedule_times import both, short

from .conftest import Cli
from .fake_daemon import FakeDaemon

Json = dict[str, Any]
PROJECT = "7b1c0000-0000-4000-8000-000000000001"
NIGHTLY: Json = {
    "schedule_id": "sched_1",
    "name": "nightly",
    "cron_expr": "0 3 * * *",
    "cron_text": "At 03:00",
    "timezone": "Europe/Berlin",
    "message": "Tidy up.\x1b",
    "enabled": True,
    "overlap_behavior": "skip",
    "session_behavior": "resume",
    "misfire": "skip",
    "jitter_seconds": 0,
    "pause_after_failures": 3,
    "max_cost_usd": 2.0,
    "consecutive_failures": 2,
    "created_by": {"kind": "token", "id": "tok_1", "name": "laptop"},
    "next_run_at": "2026-11-24T02:00:00.000Z",
    "next_runs": ["2026-11-24T02:00:00.000Z", "2026-11-25T02:00:00.000Z"],
    "targets": [
        {
            "target_id": "tgt_1",
            "project_id": PROJECT,
            "workspace_id": "91aa",
            "session_id": "gogol_1",
            "last_run": {"run_id": "run_9", "status": "failed", "reason": "timeout"},
        }
    ],
}


def test_making_one_sends_what_was_said_and_nothing_else(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["project.list"] = lambda _arguments: {"projects": [{"project_id": PROJECT, "name": "shop"}]}
    daemon.tools["schedule.create"] = lambda _arguments: NIGHTLY
    made = cli(
        "schedule", "create", "nightly", "--cron", "0 3 * * *", "--message", "Tidy up.", "--target", "shop",
        "--target", "shop:91aa", "--timezone", "Europe/Berlin", "--max-cost", "2", "--disabled",
    )  # fmt: skip
    assert (made.code, made.out) == (0, "sched_1\n")
    assert "next run Tue 2026-11-24 03:00 Europe/Berlin (02:00 UTC)" in made.err
    assert daemon.called("schedule.create") == [
        {
            "name": "nightly",
            "cron_expr": "0 3 * * *",
            "message": "Tidy up.",
            "targets": [{"project_id": PROJECT}, {"project_id": PROJECT, "workspace_id": "91aa"}],
            "timezone": "Europe/Berlin",
            "max_cost_usd": 2.0,
            "enabled": False,
        }
    ]


def test_a_prompt_can_come_from_stdin(cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a long\nprompt"))
    daemon.tools["project.get"] = lambda _arguments: {"project_id": PROJECT}
    daemon.tools["schedule.create"] = lambda _arguments: NIGHTLY
    cli("schedule", "create", "n", "--cron", "@daily", "--message", "-", "--target", PROJECT)
    assert daemon.called("schedule.create")[0]["message"] == "a long\nprompt"


def test_a_list_shows_the_next_run_in_both_times_and_what_is_amiss(cli: Cli, daemon: FakeDaemon) -> None:
    paused = {
        **NIGHTLY,
        "schedule_id": "sched_2",
        "timezone": "UTC",
        "paused": {"reason": "failures", "text": "3 runs failed in a row"},
        "notice": {"reason": "token_expires", "text": "The token laptop expires on 2026-11-30."},
    }
    daemon.tools["schedule.list"] = lambda _arguments: {"schedules": [NIGHTLY, paused]}
    done = cli("schedule", "list")
    header, first, second = done.out.splitlines()
    assert header.split() == ["SCHEDULE", "STATE", "WHEN", "NEXT", "LAST", "TARGETS", "NAME"]
    assert "2026-11-24 03:00 (02:00Z)" in first
    assert "paused (failures)" in second
    assert "2026-11-24 02:00Z" in second
    assert "sched_2: The token laptop expires" in done.err
    assert json.loads(cli("schedule", "list", "--json").out)["schedules"][0] == NIGHTLY


def test_one_is_shown_by_its_name_with_targets_and_prompt_made_safe(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["schedule.list"] = lambda _arguments: {"schedules": [NIGHTLY]}
    daemon.tools["schedule.get"] = lambda _arguments: NIGHTLY
    out = cli("schedule", "get", "nightly").out
    assert out.startswith("sched_1  nightly  enabled\n")
    assert "next run   Tue 2026-11-24 03:00 Europe/Berlin (02:00 UTC)" in out
    assert "Wed 2026-11-25 03:00 Europe/Berlin (02:00 UTC)" in out
    assert "gogol_1  failed (timeout)" in out
    assert "2 in a row" in out
    assert out.endswith("Tidy up.\\x1b\n")


def test_a_name_that_several_have_is_refused_with_their_ids(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["schedule.list"] = lambda _arguments: {
        "schedules": [{"schedule_id": "sched_1", "name": "n"}, {"schedule_id": "sched_2", "name": "n"}]
    }
    refused = cli("schedule", "get", "n")
    assert (refused.code, "sched_1, sched_2" in refused.err) == (1, True)
    assert "there is no schedule other" in cli("schedule", "get", "other").err


def test_an_update_changes_what_was_named_and_enabling_ends_a_pause(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["schedule.update"] = lambda _arguments: NIGHTLY
    done = cli("schedule", "update", "sched_1", "--enable", "--cron", "@hourly", "--set", "model=null")
    assert done.code == 0, done.err
    assert daemon.calls == [
        ("schedule.update", {"schedule_id": "sched_1", "cron_expr": "@hourly", "enabled": True, "model": None})
    ]
    assert cli("schedule", "update", "sched_1").code == 1


def test_deleting_asks_unless_told_not_to(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["schedule.delete"] = lambda _arguments: {"schedule_id": "sched_1", "deleted": True}
    assert cli("schedule", "delete", "sched_1", "--yes").code == 0
    assert daemon.called("schedule.delete") == [{"schedule_id": "sched_1"}]


def test_a_triggered_run_can_be_waited_for_and_its_outcome_is_the_exit_code(
    cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "POLL_SECONDS", 0.0)
    daemon.tools["schedule.trigger"] = lambda _arguments: {
        "schedule_id": "sched_1", "run_ids": ["run_1"], "runs": [{"run_id": "run_1", "status": "claimed"}],
    }  # fmt: skip
    states = iter(["running", "succeeded", "running", "failed"])
    daemon.tools["schedule.history"] = lambda _arguments: {
        "runs": [{"run_id": "run_1", "status": next(states), "session_id": "gogol_1", "output": "All tidy."}]
    }
    assert cli("schedule", "trigger", "sched_1").out == "run_1  claimed\n"
    good = cli("schedule", "trigger", "sched_1", "--wait")
    assert (good.code, good.out) == (0, "run_1  succeeded  gogol_1\nAll tidy.\n")
    bad = cli("schedule", "trigger", "sched_1", "--wait", "--json")
    assert (bad.code, json.loads(bad.out)["runs"][0]["status"]) == (1, "failed")


def test_runs_that_are_waited_for_are_looked_for_on_every_page_and_one_that_is_lost_is_no_success(
    cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "POLL_SECONDS", 0.0)
    daemon.tools["schedule.trigger"] = lambda _arguments: {"schedule_id": "sched_1", "run_ids": ["run_1", "run_2"]}
    first: Json = {"runs": [{"run_id": "run_2", "status": "succeeded"}], "next_cursor": "older"}
    second: Json = {"runs": [{"run_id": "run_1", "status": "failed"}]}
    daemon.tools["schedule.history"] = lambda arguments: second if arguments.get("cursor") else first
    spread = cli("schedule", "trigger", "sched_1", "--wait")
    assert (spread.code, spread.out) == (1, "run_1  failed\nrun_2  succeeded\n")
    second["runs"] = []
    lost = cli("schedule", "trigger", "sched_1", "--wait")
    assert lost.code == 1
    assert "1 of 2 runs" in lost.err


def test_the_history_has_skipped_and_missed_runs_with_their_reasons(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["schedule.get"] = lambda _arguments: NIGHTLY
    daemon.tools["schedule.history"] = lambda _arguments: {
        "runs": [
            {"run_id": "run_2", "status": "missed", "missed_count": 12, "planned_at": "2026-11-23T02:00:00.000Z"},
            {"run_id": "run_1", "status": "succeeded", "turn": 4, "output": "Done.\nmore", "session_id": "gogol_1"},
        ]
    }
    _, missed, good = cli("schedule", "history", "sched_1").out.splitlines()
    assert "missed ×12" in missed
    assert "2026-11-23 03:00 (02:00Z)" in missed
    assert good.endswith("Done.")


def test_a_preview_needs_no_schedule(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["schedule.preview"] = lambda _arguments: {
        "cron_expr": "0 3 * * *", "cron_text": "At 03:00", "timezone": "America/New_York",
        "next_runs": ["2026-11-24T08:00:00.000Z"],
    }  # fmt: skip
    out = cli("schedule", "preview", "0 3 * * *", "--timezone", "America/New_York").out
    assert out == "At 03:00\n  Tue 2026-11-24 03:00 America/New_York (08:00 UTC)\n"


def test_times_name_the_other_date_where_it_differs() -> None:
    assert both("2026-11-24T23:30:00.000Z", "Asia/Tokyo") == "Wed 2026-11-25 08:30 Asia/Tokyo (2026-11-24 23:30 UTC)"
    assert short("2026-11-24T23:30:00.000Z", "Asia/Tokyo") == "2026-11-25 08:30 (2026-11-24 23:30Z)"
    assert both("2026-11-24T23:30:00.000Z", "No/Such").startswith("Tue 2026-11-24 23:30 UTC")
    assert (both(None, "UTC"), short("", None)) == ("", "")
