"""The commands against the real daemon, a real sandbox and the real agent with the scripted model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from oubliette.cli.init import make_home
from oubliette.home import Home
from tests.daemon.harness import toolkit_cache

pytestmark = [pytest.mark.daemon, pytest.mark.agent]

COMMAND_SECONDS = 180
SCRIPT = (
    '@tool bash {"command": "echo $((6 * 7)) > answer.txt; cat answer.txt", "description": "count"}\n@say It is done.'
)


@dataclass
class Shell:
    """Runs ``oubliette`` as a user does."""

    home: Home
    cwd: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "oubliette", "--dir", str(self.home.root), *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            cwd=self.cwd,
            env=self.environment,
        )
        log = self.home.logs / "oubliette.log"
        words = log.read_text()[-4000:] if log.exists() else ""
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr, words)
        return done


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A home with the machine's cached agent; whatever happens, no daemon and no container is left."""
    work = tmp_path / "shop"
    work.mkdir()
    home = Home(tmp_path / "home")
    home.root.mkdir(mode=0o700)
    home.toolkit.symlink_to(toolkit_cache())
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "LANG"}}
    environment = {**kept, "HOME": str(tmp_path), "CONTAINER_RUNTIME": "bubblewrap", "PYTHONPATH": _paths()}
    make_home(home)
    shell = Shell(home, work, environment)
    try:
        yield shell
    finally:
        if home.holder() is None:
            shell("serve", "--daemon", "--address", "127.0.0.1:0")
        for project in json.loads(shell("project", "list", "--json").stdout)["projects"]:
            shell("project", "delete", project["project_id"], "--force", "--yes")
        shell("stop")


def _paths() -> str:
    root = Path(__file__).parents[2]
    return os.pathsep.join(str(path) for path in (root, root / "relay", root / "client"))


def test_a_daemon_in_the_background_from_start_to_stop(shell: Shell) -> None:
    started = shell("serve", "--daemon", "--address", "127.0.0.1:0")
    assert started.stdout.startswith("oubliette runs at http://127.0.0.1:")
    assert "already running (pid " in shell("serve", code=1).stderr
    status = json.loads(shell("status", "--json").stdout)
    assert status["running"] is True
    assert status["ready"] is True

    ran = shell("run", SCRIPT, "--model", "scripted", "--keep")
    lines = ran.stdout.splitlines()
    assert any(line.startswith("→ bash echo $((6 * 7))") for line in lines)
    assert "  42" in lines
    assert "It is done." in lines
    assert any(line.startswith("completed in ") and "tokens in" in line for line in lines)
    assert "  A answer.txt +1" in [line.removesuffix(" -0") for line in lines]
    session = lines[-1]

    again = shell("session", "message", session, "@recall 1")
    assert "echo $((6 * 7))" in again.stdout
    (listed,) = json.loads(shell("session", "list", "--json").stdout)["sessions"]
    assert (listed["session_id"], listed["status"], listed["turn"]) == (session, "idle", 2)
    events = [json.loads(line) for line in shell("session", "events", session).stdout.splitlines()]
    assert [event["index"] for event in events] == list(range(len(events)))
    assert sum(event["type"] == "completion" for event in events) == 2
    assert "It is done." in shell("session", "tail", session, "-n", "1000").stdout
    shell("session", "update", session, "--title", "Counted", "--max-cost-usd", "5")
    limits = json.loads(shell("limits", "--session", session, "--json").stdout)
    assert (limits["root_id"], limits["cost_usd"]["limit"]) == (session, 5)
    (place,) = json.loads(shell("workspace", "list", "--project", "shop", "--json").stdout)["workspaces"]
    assert "answer.txt" in shell("workspace", "files", place["workspace_id"]).stdout
    assert shell("workspace", "read", place["workspace_id"], "answer.txt").stdout == "42\n"
    assert "+42" in shell("session", "diff", session).stdout.splitlines()
    shell("session", "end", session)
    assert json.loads(shell("session", "get", session, "--json").stdout)["status"] == "completed"
    assert f"{session}  completed  completed" in shell("session", "tree", session).stdout
    assert "Counted" in shell("session", "tree", session, "-f").stdout, "nothing more to come: it returns"

    cat = shell("container", "exec", "shop", "--", "sh", "-c", "cat answer.txt; exit 3", code=3)
    assert cat.stdout == "42\n"
    secret = shell("token", "create", "ci", "--scope", "admin:ro").stdout.strip()
    assert secret.startswith("oub_")
    assert "ci" in shell("token", "list").stdout
    stopped = time.monotonic()
    shell("stop")
    assert time.monotonic() - stopped < 20
    shell("status", code=3)
    assert "ci" in shell("token", "list").stdout, "the same store, offline"


def test_run_without_a_daemon_starts_one_and_leaves_nothing_running(shell: Shell) -> None:
    failed = shell("run", "@fail 400 the model is broken", "--model", "scripted", code=1)
    assert "the model is broken" in failed.stdout
    assert "failed in" in failed.stdout
    assert "one is started for this" in failed.stderr
    shell("status", code=3)
    result = json.loads(shell("run", SCRIPT, "--model", "scripted", "--json").stdout)
    assert (result["outcome"], result["final_text"]) == ("completed", "It is done.")
    refused = shell("run", "hello", code=1)
    assert "No model is configured" in refused.stderr
    shell("status", code=3)


def test_a_port_that_is_taken_is_said_in_one_line(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = shell("serve", "--address", address, code=1)
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-2].startswith(f"oubliette: listen on {address}: Address already in use")
        assert "Address already in use" in shell("serve", "--daemon", "--address", address, code=1).stderr


def test_the_demo_runs_twice_and_the_second_time_takes_seconds(shell: Shell) -> None:
    first = shell("demo")
    assert "6 28 496" in first.stdout
    assert "completed in" in first.stdout
    started = time.monotonic()
    second = shell("demo")
    assert time.monotonic() - started < 60
    assert "6 28 496" in second.stdout
    assert json.loads(shell("project", "list", "--json", code=3).stdout or "{}") == {}


def test_a_schedule_from_its_making_over_a_restart_to_its_third_run_in_one_session(shell: Shell) -> None:
    shell("serve", "--daemon", "--address", "127.0.0.1:0")
    shell("project", "create", "shop")
    made = shell(
        "schedule", "create", "nightly", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin", "--target", "shop",
        "--message", "say the night was quiet", "--model", "scripted",
    )  # fmt: skip
    schedule_id = made.stdout.strip()
    assert "Europe/Berlin (" in made.stderr
    assert "at 03:00" in made.stderr
    first = shell("schedule", "trigger", "nightly", "--wait").stdout
    assert first.endswith("the night was quiet\n")
    shell("stop")
    shell("serve", "--daemon", "--address", "127.0.0.1:0")
    second = json.loads(shell("schedule", "trigger", schedule_id, "--wait", "--json").stdout)["runs"][0]
    assert (second["status"], second["session"], second["turn"]) == ("succeeded", "pinned", 2)
    shell("session", "end", second["session_id"])
    third = json.loads(shell("schedule", "trigger", schedule_id, "--wait", "--json").stdout)["runs"][0]
    assert (third["session_id"], third["session"], third["turn"]) == (second["session_id"], "resumed", 3)
    assert len(json.loads(shell("schedule", "history", "nightly", "--json").stdout)["runs"]) == 3
    assert "there are more" in shell("schedule", "history", "nightly", "--limit", "2").stderr
    shown = shell("schedule", "get", "nightly").stdout
    assert shown.startswith(f"{schedule_id}  nightly  enabled\n")
    shell("schedule", "update", "nightly", "--disable")
    assert "disabled" in shell("schedule", "list").stdout
    shell("schedule", "delete", "nightly", "--yes")
    assert "no schedules" in shell("schedule", "list").stderr
