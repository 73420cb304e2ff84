"""run: from a task to an exit code, shown as it happens."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from oubliette.cli.client import Daemon, Received
from oubliette.cli.live_screen import LiveScreen
from oubliette.cli.render import PlainScreen, TurnView
from oubliette.home import Home

from .conftest import Cli
from .fake_daemon import FakeDaemon, sse

Json = dict[str, Any]
GOGOL = "gogol_20261122_081530_1a2b3c4d"
USAGE = {"input_tokens": 1200, "cache_read_tokens": 34, "output_tokens": 56, "cost_usd": 0.0123, "cost_complete": True}


def turn(outcome: str = "completed", **completion: Any) -> list[Json]:
    """A whole turn's events."""
    return [
        {"type": "turn_started", "turn": 1, "role": "user", "text": "the task"},
        {"type": "system", "code": "container_starting", "data": {"runtime": "bubblewrap"}},
        {"type": "system", "code": "container_ready", "data": {}},
        {"type": "status", "status": {"from": "starting", "to": "running"}},
        {"type": "reasoning", "turn": 1, "part": "p0", "text": "hm\nlet me see"},
        {"type": "tool_call", "turn": 1, "tool": {"id": "c1", "name": "bash", "input": {"command": "ls"}}},
        {"type": "tool_result", "turn": 1, "part": "p1", "tool": {"id": "c1", "name": "bash", "status": "completed",
         "output": "a\nb\nc\nd\ne\n", "duration_ms": 1234}},
        {"type": "delta", "turn": 1, "part": "p2", "kind": "text", "offset": 0, "text": "It is"},
        {"type": "message", "turn": 1, "part": "p2", "role": "assistant", "text": "It is done."},
        {"type": "files", "turn": 1, "files": [{"path": "src/a.py", "change": "modified", "added": 4, "removed": 3}]},
        {"type": "completion", "turn": 1, "outcome": outcome, "text": "It is done.", "usage": USAGE, **completion},
    ]  # fmt: skip


@pytest.fixture
def ready(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon that makes projects and runs one turn."""
    spawned = {"session_id": GOGOL, "workspace_id": "w", "turn": 1, "last_event_index": -1}
    daemon.tools = {
        "project.list": lambda _arguments: {"projects": [{"project_id": "p-old", "name": "shop-old"}]},
        "project.create": lambda _arguments: {"project_id": "p-new"},
        "session.spawn": lambda _arguments: spawned,
        "session.end": lambda _arguments: {"session_id": GOGOL},
        "session.cancel": lambda _arguments: {"session_id": GOGOL},
        "session.interrupt": lambda _arguments: {"session_id": GOGOL},
    }
    daemon.streams = [sse(*turn())]
    return daemon


def test_a_run_shows_what_happens_and_ends_the_session(cli: Cli, ready: FakeDaemon) -> None:
    done = cli("run", "the task", "--model", "scripted")
    assert done.code == 0
    assert done.out.splitlines()[:-2] == [
        "· starting the sandbox (bubblewrap)",
        "~ hm let me see",
        "→ bash ls",
        "✓ done in 1.2 s",
        "  … 1 lines before",
        "  b",
        "  c",
        "  d",
        "  e",
        "It is done.",
        "",
        "  M src/a.py +4 -3",
    ]
    assert done.out.splitlines()[-2].endswith("1,234 tokens in, 56 out, $0.0123")
    assert done.out.splitlines()[-1] == GOGOL
    (spawn,) = ready.called("session.spawn")
    assert spawn == {
        "project_id": "p-new", "message": "the task", "model": "scripted", "new_session": True, "source": "cli",
    }  # fmt: skip
    assert ready.called("project.create") == [{"name": "shop"}], "named after the directory"
    assert ready.called("session.end") == [{"session_id": GOGOL}]
    (request,) = ready.stream_requests
    assert request == (f"/v1/sessions/{GOGOL}/events?since=-1&deltas=1", None)


@pytest.mark.parametrize(
    ("outcome", "code"), [("completed", 0), ("failed", 1), ("cancelled", 1), ("timed_out", 1), ("budget", 1)]
)
def test_the_exit_code_is_the_outcome(cli: Cli, ready: FakeDaemon, outcome: str, code: int) -> None:
    ready.streams = [sse(*turn(outcome, error={"code": "model_error", "message": "No.", "hint": "Pay."}))]
    done = cli("run", "x", "--project", "shop-old")
    assert done.code == code
    assert "! No. Pay." in done.out
    assert ready.called("project.create") == []


def test_kept_sessions_are_not_ended(cli: Cli, ready: FakeDaemon) -> None:
    done = cli("run", "x", "--keep")
    assert done.code == 0
    assert ready.called("session.end") == []
    assert f"oubliette session message {GOGOL}" in done.err


def test_a_broken_stream_goes_on_where_it_broke_and_shows_nothing_twice(cli: Cli, ready: FakeDaemon) -> None:
    events = turn()
    ready.streams = [sse(*events[:6]), b": nothing new\n\n", sse(*events[6:], start=6)]
    done = cli("run", "x")
    assert done.code == 0
    assert [cursor for _path, cursor in ready.stream_requests] == [None, "5", "5"]
    assert done.out.count("→ bash ls") == 1
    assert done.out.count("✓ done") == 1


def test_a_session_that_was_cancelled_elsewhere_ends_the_run(cli: Cli, ready: FakeDaemon) -> None:
    ready.streams = [sse({"type": "status", "status": {"from": "starting", "to": "cancelled"}}, end=True)]
    done = cli("run", "x")
    assert done.code == 1
    assert "unknown in" in done.out


@pytest.mark.parametrize(("options", "action"), [([], "session.cancel"), (["--keep"], "session.interrupt")])
def test_ctrl_c_stops_the_agent_and_ends_with_130(
    cli: Cli, ready: FakeDaemon, monkeypatch: pytest.MonkeyPatch, options: list[str], action: str
) -> None:
    def interrupted(*_arguments: object, **_named: object) -> Iterator[Received]:
        yield Received("message", turn()[0], "0")
        raise KeyboardInterrupt

    monkeypatch.setattr(Daemon, "events", interrupted)
    assert cli("run", "x", *options).code == 130
    assert ready.called(action) == [{"session_id": GOGOL}]
    assert ready.called("session.end") == []


def test_for_programs_a_run_prints_its_result_alone(cli: Cli, ready: FakeDaemon) -> None:
    answers = iter(
        [
            {"done": False, "sessions": [], "remaining": [GOGOL]},
            {"done": True, "sessions": [{"session_id": GOGOL, "outcome": "completed", "final_text": "42\x1b"}]},
        ]
    )
    ready.tools["session.wait"] = lambda _arguments: next(answers)
    done = cli("run", "x", "--json")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert json.loads(done.out)["final_text"] == "42\x1b"


def test_hostile_text_reaches_neither_the_terminal_nor_the_markup(cli: Cli, ready: FakeDaemon) -> None:
    evil = "\x1b]0;owned\x07[bold red]x[/]\u202egnp\x9b2J"
    events = turn()
    events[5]["tool"]["input"] = {"command": evil}
    events[6]["tool"]["output"] = evil
    events[8]["text"] = evil
    events[9]["files"][0]["path"] = evil
    ready.streams = [sse(*events)]
    out = cli("run", "x").out
    for character in "\x1b\x07\u202e\x9b":
        assert character not in out
    assert out.count("\\x1b]0;owned\\x07[bold red]x[/]\\u202egnp\\x9b2J") == 4

    written = io.StringIO()
    console = Console(file=written, force_terminal=True, markup=False, emoji=False, highlight=False, width=200)
    screen = LiveScreen(console)
    view = TurnView(screen, turn=1)
    for event in events:
        view.show(event["type"], event)
    screen.close()
    view.summarise()
    drawn = written.getvalue()
    assert "[bold red]x[/]" in drawn
    for character in "\x07\u202e\x9b":
        assert character not in drawn
    assert "\x1b]0" not in drawn


def test_a_terminal_sees_text_while_it_is_written_and_once_when_it_is_final() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, markup=False, width=100, height=30)
    screen = LiveScreen(console)
    view = TurnView(screen, turn=1)
    view.show("delta", {"type": "delta", "turn": 1, "part": "p", "kind": "text", "text": "Once upon"})
    view.show("delta", {"type": "delta", "turn": 2, "part": "q", "kind": "text", "text": "not this turn"})
    screen._live.refresh()
    assert "Once upon" in written.getvalue()
    view.show("message", {"type": "message", "turn": 1, "part": "p", "role": "assistant", "text": "Once upon a time."})
    screen._live.refresh()
    screen.close()
    assert "not this turn" not in written.getvalue()
    assert written.getvalue().count("Once upon a time.") == 1


def test_every_type_of_event_can_be_shown() -> None:
    lines: list[str] = []
    view = TurnView(PlainScreen(lines.append))
    events: list[Json] = [
        {"type": "turn_queued", "turn": 1, "text": "t"},
        {"type": "turn_started", "turn": 1, "text": "do it"},
        {"type": "todo", "data": {"items": [{"id": "1", "text": "first", "status": "completed"}, {"text": "second"}]}},
        {"type": "permission_request", "request": {"request_id": "req_1", "expires_at": "soon", "on_expiry": "reject",
         "permission": {"action": "bash", "text": "git push"}}},
        {"type": "question", "request": {"request_id": "req_2", "questions": [
            {"text": "Which?", "options": [{"id": "pg", "label": "PostgreSQL"}, {"id": "lite"}]}]}},
        {"type": "request_resolved", "resolution": {"how": "answered", "reply": "once"}},
        {"type": "child_spawned", "child": {"session_id": "gogol_c", "title": "sub"}},
        {"type": "child_ended", "child": {"session_id": "gogol_c", "outcome": "completed"}},
        {"type": "error", "error": {"message": "Oh.", "hint": "Hm."}},
        {"type": "status", "status": {"to": "paused", "reason": "budget"}},
        {"type": "system", "code": "model_retry", "data": {"message": "429"}},
        {"type": "system", "code": "container_starting",
         "data": {"progress": {"what": "pulling", "done": 5_000_000, "total": 20_000_000, "unit": "bytes"}}},
        {"type": "usage", "usage": USAGE}, {"type": "something_new"}, {"type": "__init__"}, {},
    ]  # fmt: skip
    for event in events:
        view.show(str(event.get("type", "")), event)
    assert lines == [
        "· waiting for its turn", "> do it", "  [x] first", "  [ ] second", "? may it: bash git push",
        "  request req_1, until soon: then reject", "? Which? (PostgreSQL, lite)",
        "  request req_2, until : then ", "  answered: once", "+ gogol_c sub", "- gogol_c completed", "! Oh. Hm.",
        "· paused: budget", "· model retry: 429", "· pulling 5 of 20 MB",
    ]  # fmt: skip
    assert [ask["request_id"] for ask in view.asks] == ["req_1", "req_2"]


def test_a_task_may_come_from_stdin_and_an_empty_one_is_refused(
    cli: Cli, ready: FakeDaemon, monkeypatch: pytest.MonkeyPatch, home: Home
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert cli("run", "-").code == 0
    assert ready.called("session.spawn")[0]["message"] == "from a pipe"
    assert cli("run", "  ").code == 1
