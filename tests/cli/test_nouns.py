"""The tools as commands: session, project, container, config, mcp."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oubliette.cli import mcp
from oubliette.config import schema
from oubliette.home import Home, write_private

from .conftest import Cli
from .fake_daemon import FakeDaemon, sse

Json = dict[str, Any]
UUID = "7b1c0000-0000-4000-8000-000000000001"
EVENTS = [
    {"index": 0, "type": "turn_started", "turn": 1, "text": "go"},
    {"index": 1, "type": "message", "turn": 1, "role": "assistant", "text": "gone"},
    {"index": 2, "type": "completion", "turn": 1, "outcome": "completed"},
]


def paged(arguments: Json) -> Json:
    """One event a page."""
    found = [event for event in EVENTS if int(str(event["index"])) > arguments["since_index"]]
    return {"events": found[:1], "last_index": arguments["since_index"] + len(found[:1]), "more": len(found) > 1}


def test_sessions_are_listed_as_a_table_or_as_json(cli: Cli, daemon: FakeDaemon) -> None:
    found = {"sessions": [{"session_id": "gogol_1", "status": "idle", "turn": 2, "model": "opus", "title": "a\nb\x1b"}]}
    daemon.tools["session.list"] = lambda _arguments: found
    lines = cli("session", "list").out.splitlines()
    assert lines[0].split() == ["SESSION", "STATUS", "TURN", "MODEL", "SINCE", "TITLE"]
    assert lines[1].split() == ["gogol_1", "idle", "2", "opus", "-", "a", "b\\x1b"]
    assert json.loads(cli("session", "list", "--json", "--status", "open").out) == found
    assert daemon.called("session.list")[1] == {"status": "open", "limit": 20}


def test_a_session_is_shown_with_its_turns_and_its_last_words(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.get"] = lambda _arguments: {
        "session_id": "gogol_1", "status": "paused", "reason": "budget", "title": "t", "usage": {"input_tokens": 1},
        "pending": [{"kind": "question", "request_id": "req_1"}],
        "turns": [{"turn": 2, "status": "queued", "prompt": "b"}, {"turn": 1, "outcome": "completed", "prompt": "a"}],
        "last_turn": {"final_text": "Well.\x07"},
    }  # fmt: skip
    out = cli("session", "get", "gogol_1").out
    assert out.startswith("gogol_1  paused (budget)\n")
    assert out.index("turn 1") < out.index("turn 2")
    assert "waits for  question req_1" in out
    assert out.endswith("Well.\\x07\n")


def test_events_are_json_lines_over_all_pages(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.events"] = paged
    lines = [json.loads(line) for line in cli("session", "events", "gogol_1").out.splitlines()]
    assert lines == EVENTS
    assert len(daemon.called("session.events")) == 3
    only = cli("session", "events", "gogol_1", "--type", "message", "--since", "0").out
    assert [json.loads(line)["index"] for line in only.splitlines()] == [1]


def test_tail_shows_the_newest_and_with_f_what_comes(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.events"] = paged
    daemon.tools["session.get"] = lambda _arguments: {"last_index": 2}
    assert cli("session", "tail", "gogol_1", "-n", "2").out == "gone\n"
    daemon.streams = [sse(*EVENTS, end=True)]
    out = cli("session", "tail", "gogol_1", "-f").out
    assert out.startswith("> go\ngone\n")
    assert "completed in" in out
    assert daemon.stream_requests[0][0].endswith("/gogol_1/events?since=-1")


def test_a_message_can_be_left_or_watched(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.message"] = lambda _arguments: {"session_id": "gogol_1", "turn": 1, "last_event_index": 7}
    assert cli("session", "message", "gogol_1", "more", "--detach").out == "gogol_1 turn 1\n"
    daemon.streams = [sse(*EVENTS)]
    done = cli("session", "message", "gogol_1", "more", "--interrupt")
    assert done.code == 0
    assert "gone" in done.out
    assert daemon.called("session.message")[1]["delivery"] == "interrupt"
    assert "since=7" in daemon.stream_requests[0][0]
    assert daemon.called("session.end") == []


@pytest.mark.parametrize("action", ["end", "cancel", "interrupt"])
def test_sessions_are_steered(cli: Cli, daemon: FakeDaemon, action: str) -> None:
    daemon.tools[f"session.{action}"] = lambda arguments: {"session_id": arguments["session_id"]}
    assert cli("session", action, "gogol_1").code == 0
    assert daemon.called(f"session.{action}") == [{"session_id": "gogol_1"}]


def test_answers_say_whether_they_came_first(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.answer"] = lambda arguments: {"accepted": arguments.get("reply") == "once", "how": "expired"}
    assert cli("session", "answer", "req_1", "--reply", "once").code == 0
    late = cli("session", "answer", "req_1", "--choose", "q1=pg", "--choose", "q1=lite", "--choose", "q2=a=b")
    assert (late.code, late.err) == (1, "too late: expired\n")
    assert daemon.called("session.answer")[1]["answers"] == {"q1": ["pg", "lite"], "q2": ["a=b"]}
    assert cli("session", "answer", "req_1", "--choose", "q1").code == 2


def test_waiting_ends_with_the_outcome(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.wait"] = lambda _arguments: {"done": True, "sessions": [{"outcome": "failed"}]}
    assert cli("session", "wait", "gogol_1").code == 1
    daemon.tools["session.wait"] = lambda _arguments: {"done": False, "timed_out": True, "remaining": ["gogol_1"]}
    done = cli("session", "wait", "gogol_1", "--timeout", "60")
    assert (done.code, done.out) == (1, "gogol_1 not settled\n")
    assert [one["wait_seconds"] for one in daemon.called("session.wait")] == [40, 40, 20]


def test_projects_are_named_by_name_or_id(cli: Cli, daemon: FakeDaemon) -> None:
    projects = [
        {"project_id": UUID, "name": "shop", "state": "ready"},
        {"project_id": "p2", "name": "shop 2", "state": "ready"},
    ]
    daemon.tools = {
        "project.list": lambda _arguments: {"projects": projects},
        "project.get": lambda arguments: {"project_id": arguments["project_id"], "name": "shop", "state": "ready"},
        "project.create": lambda _arguments: {"project_id": "p3", "state": "preparing"},
        "project.update": lambda _arguments: {},
        "project.delete": lambda _arguments: {},
        "project.options": lambda _arguments: {"models": []},
    }
    assert UUID in cli("project", "get", "shop").out
    assert UUID in cli("project", "get", UUID).out
    assert cli("project", "get", "shopp").code == 1
    projects.append({"project_id": "p4", "name": "shop", "state": "ready"})
    assert "2 projects are named shop" in cli("project", "get", "shop").err
    projects.pop()

    assert cli("project", "create", "new", "--set", "workspace_isolation=false", "--set", "branch=main").out == "p3\n"
    assert daemon.called("project.create") == [{"name": "new", "workspace_isolation": False, "branch": "main"}]
    assert cli("project", "update", "shop", "--set", 'allowed-models=["opus"]', "--set", "model=opus").code == 0
    assert daemon.called("project.update") == [{"project_id": UUID, "allowed_models": ["opus"], "model": "opus"}]
    assert cli("project", "update", "shop").code == 1
    assert cli("project", "delete", "shop", "--yes", "--force").code == 0
    assert daemon.called("project.delete") == [{"project_id": UUID, "force": True}]
    assert json.loads(cli("project", "options").out) == {"models": []}
    assert "shop 2" in cli("project", "list").out


def test_exec_gives_output_and_exit_code_of_the_command(cli: Cli, daemon: FakeDaemon) -> None:
    answers: Iterator[Json] = iter(
        [
            {"exec_id": "exec_1", "state": "running"},
            {"exec_id": "exec_1", "state": "done", "exit_code": 3, "stdout": "out\x1b[2J\n", "stderr": "err\n"},
            {"exec_id": "exec_2", "state": "killed", "timed_out": True},
        ]
    )
    daemon.tools["container.exec"] = lambda _arguments: next(answers)
    daemon.tools["project.get"] = lambda arguments: arguments
    done = cli("container", "exec", UUID, "--", "ls", "-la")
    assert (done.code, done.out, done.err) == (3, "out\\x1b[2J\n", "err\n")
    first, second = daemon.called("container.exec")
    assert (first["command"], second["exec_id"]) == (["ls", "-la"], "exec_1")
    assert cli("container", "exec", UUID, "sleep 9", "--timeout", "1").code == 124


def test_config_check_lists_everything_and_show_masks_secrets(cli: Cli, home: Home) -> None:
    assert cli("config", "check").code == 0
    write_private(home.config_file, '{\n"server": {"adress": 1},\n"runtime": "x"}')
    done = cli("config", "check")
    assert done.code == 1
    assert [line.split(": ")[1] for line in done.out.splitlines()] == [f"{home.config_file}:2", f"{home.config_file}:3"]
    assert [one["line"] for one in json.loads(cli("config", "check", "--json").out)["errors"]] == [2, 3]
    write_private(home.config_file, '{"credentials": {"github": {"credentials": {"me": {"token": "ghp_planted"}}}}}')
    shown = cli("config", "show").out
    assert "planted" not in shown
    assert json.loads(shown)["credentials"]["github"]["credentials"]["me"]["token"] == "***"


def test_the_schema_in_the_tree_is_fresh(cli: Cli) -> None:
    written = Path(__file__).parents[2] / "config" / "oubliette.schema.json"
    assert json.loads(written.read_text()) == schema(), "run scripts/docs"
    assert json.loads(cli("config", "schema").out) == schema()


def test_clients_are_set_up_with_a_token_of_their_own_and_keep_their_other_settings(
    cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(os.environ["HOME"]) / ".cursor" / "mcp.json"
    path.parent.mkdir()
    path.write_text('{"mcpServers": {"other": {"command": "x"}}, "more": 1}')
    assert cli("mcp", "--setup", "cursor").code == 0
    settings = json.loads(path.read_text())
    assert settings["mcpServers"]["other"] == {"command": "x"}
    assert settings["more"] == 1
    entry = settings["mcpServers"]["oubliette"]
    assert entry["url"] == "http://127.0.0.1:8080/mcp?tools=split"
    first = entry["headers"]["Authorization"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.with_name("mcp.json.bak").read_text())["more"] == 1

    again = cli("mcp", "--setup", "cursor")
    assert "revoked the earlier token" in again.err
    assert json.loads(path.read_text())["mcpServers"]["oubliette"]["headers"]["Authorization"] != first

    path.write_text("// mine\n{}")
    refused = cli("mcp", "--setup", "cursor")
    assert refused.code == 1
    assert "--print" in refused.err
    assert path.read_text() == "// mine\n{}"

    monkeypatch.setenv("PATH", "/nonexistent")
    line = shlex.split(cli("mcp", "--setup", "claude-code").out)
    assert line[:8] == ["claude", "mcp", "add", "--scope", "user", "--transport", "http", "oubliette"]
    assert line[8] == "http://127.0.0.1:8080/mcp?tools=split"
    assert cli("mcp", "--setup", "emacs").code == 1
    listed = cli("mcp", "--list").out
    assert all(client.name in listed for client in mcp.CLIENTS)


@pytest.mark.parametrize("status", [0, 1])
def test_claude_code_is_set_up_by_its_own_command(
    cli: Cli, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    claude = tmp_path / "bin" / "claude"
    claude.parent.mkdir()
    claude.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\nexit {status}\n')
    claude.chmod(0o755)
    monkeypatch.setenv("PATH", f"{claude.parent}:/usr/bin:/bin")
    done = cli("mcp", "--setup", "claude-code", "--scope", "admin:ro")
    assert (done.code, done.out) == (status, "")
    called = (tmp_path / "called").read_text().splitlines()
    assert called[:2] == ["mcp", "add"]
    assert called[-1].startswith("Authorization: Bearer oub_")


@pytest.mark.parametrize("client", [client.name for client in mcp.CLIENTS])
def test_what_would_be_written_can_be_printed(cli: Cli, client: str) -> None:
    done = cli("mcp", "--setup", client, "--print", "--url", "https://o.example.org")
    assert done.code == 0
    assert "https://o.example.org/mcp" in done.out
    assert "Bearer oub_" in done.out
