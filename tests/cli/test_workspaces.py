"""Workspaces, trees, limits and what sessions changed, as commands."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cli
from .fake_daemon import FakeDaemon, Refusal, sse

Json = dict[str, Any]
UUID = "7b1c0000-0000-4000-8000-000000000001"
EVIL = "\x1b]0;owned\x07[bold]x[/]\u202egnp\x9b2J"


@pytest.fixture(autouse=True)
def project(daemon: FakeDaemon) -> None:
    daemon.tools["project.get"] = lambda arguments: {"project_id": arguments["project_id"], "name": "shop"}


def clean(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\u202e\x9b")


# --- workspaces


def test_workspaces_are_listed_made_and_deleted(cli: Cli, daemon: FakeDaemon) -> None:
    found = {
        "workspaces": [
            {"workspace_id": "w2", "state": "ready", "open_sessions": 1, "forked_from": "w1", "external_id": EVIL},
            {"workspace_id": "w1", "state": "ready", "default": True},
        ],
        "next_cursor": "c",
    }
    daemon.tools["workspace.list"] = lambda _arguments: found
    listed = cli("workspace", "list", "--project", UUID)
    assert listed.out.splitlines()[0].split()[:3] == ["WORKSPACE", "STATE", "OPEN"]
    assert listed.out.splitlines()[2].endswith("default")
    assert "copy of w1" in listed.out
    assert clean(listed.out)
    assert "there are more" in listed.err
    assert daemon.called("workspace.list") == [{"project_id": UUID, "limit": 50}]
    assert json.loads(cli("workspace", "list", "--json").out) == found
    assert daemon.called("workspace.list")[1] == {"limit": 50, "detail": "full"}

    daemon.tools["workspace.create"] = lambda _arguments: {"workspace_id": "w3", "state": "ready"}
    assert cli("workspace", "create", UUID, "--from", "w1", "--external-id", "t-1").out == "w3\n"
    given = {"project_id": UUID, "from_workspace": "w1", "external_id": "t-1"}
    assert daemon.called("workspace.create") == [given]
    failed = {"workspace_id": "w4", "state": "failed", "error": {"message": "No room.", "hint": "Delete some."}}
    daemon.tools["workspace.create"] = lambda _arguments: failed
    done = cli("workspace", "create", UUID)
    assert (done.code, done.err) == (1, "it could not be made: No room. Delete some.\n")

    daemon.tools["workspace.delete"] = lambda arguments: {**arguments, "deleted": True}
    assert cli("workspace", "delete", "w3", "--yes").err == "deleted w3\n"
    assert daemon.called("workspace.delete") == [{"workspace_id": "w3"}]
    assert cli("workspace", "delete", "w3").code != 0, "nobody answers"
    assert len(daemon.called("workspace.delete")) == 1

    def refuse(_arguments: Json) -> Json:
        raise Refusal(409, "conflict", "1 sessions are open in the workspace.", "End them first.")

    daemon.tools["workspace.delete"] = refuse
    assert cli("workspace", "delete", "w3", "--yes").err == (
        "oubliette: 1 sessions are open in the workspace.\n  End them first.\n"
    )


def test_files_of_a_workspace_or_of_what_a_session_left(cli: Cli, daemon: FakeDaemon) -> None:
    entries = [
        {"path": "src", "kind": "directory", "size_bytes": 0},
        {"path": f"src/{EVIL}", "kind": "file", "size_bytes": 1234},
        {"path": "link", "kind": "symlink", "size_bytes": 0},
    ]
    daemon.tools["workspace.files"] = lambda _arguments: {"files": entries, "files_truncated": True}
    done = cli("workspace", "files", "w1", "src/**")
    assert [line.split()[0] for line in done.out.splitlines()] == ["BYTES", "directory", "1,234", "symlink"]
    assert "src/\n" in done.out
    assert clean(done.out)
    assert done.err == "there may be more: narrow the pattern\n"
    cli("workspace", "files", "gogol_1")
    assert daemon.called("workspace.files") == [{"workspace_id": "w1", "glob": "src/**"}, {"session_id": "gogol_1"}]
    assert json.loads(cli("workspace", "files", "w1", "--json").out)["files"] == entries


def test_a_file_is_printed_for_people_and_written_as_it_is(cli: Cli, daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.tools["workspace.read"] = lambda _arguments: {"size_bytes": 20, "text": f"one\n{EVIL}\n"}
    shown = cli("workspace", "read", "w1", "a.txt")
    assert shown.out.startswith("one\n\\x1b]0;owned")
    assert clean(shown.out)
    target = tmp_path / "out.txt"
    assert cli("workspace", "read", "gogol_1", "results/a.txt", "-o", str(target)).code == 0
    assert target.read_text() == f"one\n{EVIL}\n"
    assert daemon.called("workspace.read")[1] == {"session_id": "gogol_1", "path": "results/a.txt", "detail": "full"}
    again = cli("workspace", "read", "w1", "a.txt", "-o", str(target))
    assert (again.code, target.read_text()) == (1, f"one\n{EVIL}\n")
    assert "exists already" in again.err

    daemon.tools["workspace.read"] = lambda arguments: {
        "size_bytes": 3, "binary": True, **({"base64": "AAEC"} if arguments.get("detail") else {}),
    }  # fmt: skip
    refused = cli("workspace", "read", "w1", "b.png")
    assert (refused.code, refused.out) == (1, "")
    assert "no text (3 bytes)" in refused.err
    assert cli("workspace", "read", "w1", "b.png", "-o", str(tmp_path / "b.png")).code == 0
    assert (tmp_path / "b.png").read_bytes() == base64.b64decode("AAEC")

    daemon.tools["workspace.read"] = lambda _arguments: {"size_bytes": 9_000_000, "text": "x", "text_truncated": True}
    cut = cli("workspace", "read", "w1", "long")
    assert (cut.code, cut.out, cut.err) == (1, "x\n", "that is its beginning: it has 9,000,000 bytes\n")


# --- trees


def node(session_id: str, parent_id: str | None, depth: int, **more: Any) -> Json:
    shape: Json = {"session_id": session_id, "depth": depth, "title": session_id, "status": "idle", "pending": 0}
    usage = {"requests": 1, "input_tokens": 1000, "output_tokens": 10, "cost_usd": 0.25, "cost_complete": True}
    shape |= {"outcome": "completed", "usage": usage, **({"parent_id": parent_id} if parent_id else {})}
    shape |= {"started_at": "2026-11-22T08:15:00.000Z", "ended_at": "2026-11-22T08:15:07.000Z"}
    return {**shape, **more}


NODES = [
    node("gogol_root", None, 0, title="Add JWT auth"),
    node("gogol_a", "gogol_root", 1, status="waiting", reason="question", pending=2, title=EVIL),
    node("gogol_b", "gogol_a", 2, status="failed", outcome="failed"),
    node("gogol_c", "gogol_root", 1),
]
TREE: Json = {
    "root_id": "gogol_root",
    "seq": 41,
    "counts": {"total": 4, "open": 3, "waiting": 1, "failed": 1},
    "usage": {"requests": 4, "input_tokens": 4000, "output_tokens": 40, "cost_usd": 1.0, "cost_complete": True},
    "limits": {"depth": {"limit": 3, "used": 2, "remaining": 1}, "cost_usd": {"used": 1.0, "reserved": 0.5}},
}


def pages(arguments: Json) -> Json:
    """Two nodes a page."""
    start = int(arguments.get("cursor", 0))
    more = {"next_cursor": str(start + 2)} if start + 2 < len(NODES) else {}
    return {**TREE, "nodes": NODES[start : start + 2], **more}


def test_a_tree_is_drawn_from_all_its_pages(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.tree"] = pages
    done = cli("session", "tree", "gogol_b")
    lines = done.out.splitlines()
    assert lines[0] == "gogol_root  4 sessions (3 open, 1 waiting, 1 failed)"
    assert "  depth      2 of 3, 1 left" in lines
    assert "  USD        1.0 of no limit, 0.5 reserved" in lines
    assert lines[-4].startswith("gogol_root  ")
    assert lines[-3].startswith("├─ gogol_a")
    assert "waiting (question), 2 asks" in lines[-3]
    assert lines[-2].startswith("│  └─ gogol_b")
    assert lines[-1].startswith("└─ gogol_c")
    assert "7 s" in lines[-1]
    assert clean(done.out)
    assert [one.get("cursor") for one in daemon.called("session.tree")] == [None, "2"]
    whole = json.loads(cli("session", "tree", "gogol_b", "--json").out)
    assert whole == {**TREE, "nodes": NODES}


def test_a_tree_that_is_followed_goes_on_where_it_was_read(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.tree"] = pages
    events = [
        {"session_id": "gogol_c", "type": "turn_started", "turn": 2, "seq": 42, "ts": "2026-11-22T08:16:00.000Z"},
        {
            "session_id": "gogol_c",
            "type": "child_spawned",
            "seq": 43,
            "child": {"session_id": "gogol_d", "title": EVIL},
        },
        {
            "session_id": "gogol_c",
            "type": "completion",
            "seq": 44,
            "outcome": "completed",
            "ts": "2026-11-22T08:16:02.500Z",
        },
    ]
    daemon.streams = [sse(*events, end=True)]
    done = cli("session", "tree", "gogol_b", "-f")
    assert daemon.stream_requests == [("/v1/sessions/gogol_root/events?since=41&children=1", None)]
    lines = done.out.splitlines()
    assert lines[0].startswith("gogol_c: + \\x1b")
    assert lines[1] == "gogol_c: completed in 2.5 s"
    assert lines[2].startswith("gogol_root  4 sessions"), "the rows have the last word"
    assert clean(done.out)
    daemon.streams = [sse(*events, end=True)]
    printed = cli("session", "tree", "gogol_b", "-f", "--json").out.splitlines()
    assert [json.loads(line)["seq"] for line in printed] == [42, 43, 44]


def test_limits_of_a_tree_a_project_or_the_daemon(cli: Cli, daemon: FakeDaemon) -> None:
    found = {
        "root_id": "gogol_root",
        **TREE["limits"],
        "cost_usd_today": {"limit": 50, "used": 0.25, "remaining": 49.75},
    }
    daemon.tools["config_limits"] = lambda _arguments: found
    assert cli("limits", "--session", "gogol_b").out.splitlines() == [
        "gogol_root",
        "  depth      2 of 3, 1 left",
        "  USD        1.0 of no limit, 0.5 reserved",
        "  USD today  0.25 of 50, 49.75 left",
    ]
    assert json.loads(cli("limits", "--project", UUID, "--json").out) == found
    cli("limits")
    assert daemon.called("config_limits") == [{"session_id": "gogol_b"}, {"project_id": UUID}, {}]


# --- what was changed


def test_a_diff_is_printed_as_a_patch_or_as_a_list_of_files(cli: Cli, daemon: FakeDaemon) -> None:
    files = [{"path": f"src/{EVIL}", "change": "modified", "added": 40, "removed": 3}]
    found: Json = {"files": files, "patch": f"--- a\n+++ b\n+{EVIL}\n", "patch_truncated": True, "patch_bytes": 300_000}
    daemon.tools["session.diff"] = lambda _arguments: found
    done = cli("session", "diff", "gogol_1", "--since-turn", "2")
    assert done.out.startswith("--- a\n+++ b\n+\\x1b]0;owned")
    assert clean(done.out)
    assert "300,000 bytes" in done.err
    assert daemon.called("session.diff") == [{"session_id": "gogol_1", "since_turn": 2}]
    stat = cli("session", "diff", "gogol_1", "--stat")
    assert stat.out.splitlines()[1].split()[:3] == ["modified", "40", "3"]
    assert clean(stat.out)
    assert json.loads(cli("session", "diff", "gogol_1", "--json").out) == found
    daemon.tools["session.diff"] = lambda _arguments: {"files": [], "patch": ""}
    empty = cli("session", "diff", "gogol_1")
    assert (empty.code, empty.out, empty.err) == (0, "", "nothing was changed\n")


def test_a_merge_is_waited_for_and_its_conflicts_are_the_exit_code(cli: Cli, daemon: FakeDaemon) -> None:
    answers: Iterator[Json] = iter(
        [
            {"state": "running", "merged": False},
            {"state": "done", "merged": True, "commits": 2, "head": "f00ba4", "uncommitted": [EVIL]},
            {"state": "done", "merged": False, "conflicts": [{"path": EVIL, "kind": "content"}]},
            {"state": "done", "merged": True, "commits": 0},
            {"state": "done", "merged": False, "conflicts": []},
        ]
    )
    daemon.tools["session.merge"] = lambda _arguments: next(answers)
    done = cli("session", "merge", "gogol_1")
    assert done.code == 0
    assert done.err.startswith("2 commits merged, head f00ba4\nnot committed in the fork: \\x1b")
    assert clean(done.err)
    assert len(daemon.called("session.merge")) == 2
    conflict = cli("session", "merge", "gogol_1")
    assert (conflict.code, conflict.err) == (1, "not merged: nothing was changed\n")
    assert conflict.out.startswith("conflict  content  \\x1b")
    assert cli("session", "merge", "gogol_1").err == "there was nothing to merge\n"
    printed = cli("session", "merge", "gogol_1", "--json")
    assert (printed.code, json.loads(printed.out)["merged"]) == (1, False)


def test_a_session_is_changed_by_what_is_given_and_by_nothing_else(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.tools["session.update"] = lambda arguments: {"session_id": "gogol_1", "status": "running", "dropped": 2}
    given = ("--max-cost-usd", "20", "--title", "t", "--autonomy", "off", "--drop-queued")
    done = cli(
        "session", "update", "gogol_1", *given, "--limit", "max_active_sessions=20", "--limit", "max-cost-usd=null"
    )
    assert (done.code, done.err) == (0, "gogol_1 is running, 2 messages dropped\n")
    assert daemon.called("session.update") == [
        {
            "session_id": "gogol_1",
            "title": "t",
            "autonomy_level": "off",
            "max_cost_usd": 20.0,
            "limits": {"max_active_sessions": 20, "max_cost_usd": None},
            "drop_queued": True,
        }
    ]
    assert json.loads(cli("session", "update", "gogol_1", "--model", "opus", "--json").out)["status"] == "running"
    nothing = cli("session", "update", "gogol_1")
    assert (nothing.code, "nothing to change" in nothing.err) == (1, True)
    for wrong in ("max_active_sessions", "max_active_sessions=many"):
        assert cli("session", "update", "gogol_1", "--limit", wrong).code == 2
    assert len(daemon.called("session.update")) == 2


def test_the_events_of_a_whole_tree_are_json_lines_over_all_pages(cli: Cli, daemon: FakeDaemon) -> None:
    log = [{"session_id": f"gogol_{seq % 2}", "index": seq // 2, "seq": seq, "type": "message"} for seq in range(5)]

    def page(arguments: Json) -> Json:
        start = int(arguments.get("cursor", 0))
        return {"events": log[start : start + 2], "cursor": str(start + 2), "more": start + 2 < len(log)}

    daemon.tools["session.events"] = page
    printed = cli("session", "events", "gogol_0", "--children", "--since", "0", "--type", "message").out
    assert [json.loads(line) for line in printed.splitlines()] == log[1:]
    first = daemon.called("session.events")[0]
    assert first == {"session_id": "gogol_0", "include_children": True, "types": ["message"], "max_events": 200}
    assert [one.get("cursor") for one in daemon.called("session.events")] == [None, "2", "4"]
    daemon.streams = [sse(*log, end=True)]
    followed = cli("session", "events", "gogol_0", "--children", "-f", "--since", "3").out
    assert len(followed.splitlines()) == 5
    assert daemon.stream_requests == [("/v1/sessions/gogol_0/events?since=3&children=1", None)]
