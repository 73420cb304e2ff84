"""Real agents with children: the real OpenCode in a real sandbox spawns, waits and quotes through its own tool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.daemon.harness import Daemon, Json, open_daemon

pytestmark = [pytest.mark.daemon, pytest.mark.agent]

TOOL = "oubliette_session"
SETTLE_SECONDS = 150


def tool(**arguments: object) -> str:
    """One directive line: a call of the agent's own session tool."""
    return f"@tool {TOOL} {json.dumps(arguments)}"


def lines(*directives: str) -> str:
    return "\n".join(directives)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {
        "server": {"address": "127.0.0.1:0"},
        "runtime": "bubblewrap",
        "defaults": {"limits": {"max_active_sessions": 50}},
    }
    async with open_daemon(home, config) as daemon:
        yield daemon


async def spawn(daemon: Daemon, project: Json, script: str, **more: object) -> str:
    spawned = await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        message=script,
        model="scripted",
        new_session=True,
        **more,
    )
    return str(spawned["session_id"])


async def below(daemon: Daemon, parent: str) -> list[Json]:
    """Its direct children, oldest first."""
    found = await daemon.call("session", action="list", parent_id=parent, limit=200, detail="full")
    return list(reversed(found["sessions"]))


async def outputs(daemon: Daemon, session_id: str) -> list[Json]:
    """What its session tool answered, in order."""
    return [
        event["tool"]
        for event in await daemon.events(session_id)
        if event["type"] == "tool_result" and event["tool"]["name"] == TOOL
    ]


async def test_a_parent_spawns_three_children_and_one_of_them_a_grandchild(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="a family")
    grandchild = lines(
        '@tool write {"filePath": "leaf.txt", "content": "leaf\\n"}',
        "@say the grandchild wrote leaf.txt",
    )
    branch = lines(
        tool(action="spawn", message=grandchild, title="grandchild"),
        tool(action="wait"),
        "@say the branch heard:",
        "@echo-last-tool",
    )
    root = await spawn(
        daemon,
        project,
        lines(
            tool(action="spawn", message="@say one is done", title="one"),
            tool(action="spawn", message='@tool bash {"command": "echo $((6*7))"}\n@echo-last-tool', title="two"),
            tool(action="spawn", message=branch, title="branch"),
            tool(action="wait"),
            "@say my children said:",
            "@echo-last-tool",
        ),
    )
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    results = await outputs(daemon, root)
    assert done["outcome"] == "completed", (done, results)
    assert [result["status"] for result in results] == ["completed"] * 4, results
    for said in ("one is done", "42", "the branch heard", "the grandchild wrote leaf.txt"):
        assert said in done["final_text"], done["final_text"]

    children = await below(daemon, root)
    assert [child["title"] for child in children] == ["one", "two", "branch"]
    [leaf] = await below(daemon, children[2]["session_id"])
    assert (leaf["title"], leaf["depth"], leaf["root_id"]) == ("grandchild", 2, root)
    for one in (*children, leaf):
        assert one["created_by"] == {"kind": "session", "id": one["parent_id"], "name": one["parent_id"]}
        assert (one["project_id"], one["model"], one["autonomy"]) == (project["project_id"], "scripted", "off")
        log = await daemon.events(one["session_id"])
        assert [event["index"] for event in log] == list(range(len(log)))
        assert [event["type"] for event in log].count("completion") == 1
    spawned = [event for event in await daemon.events(root) if event["type"] == "child_spawned"]
    assert [event["child"]["session_id"] for event in spawned] == [child["session_id"] for child in children]

    merged, cursor = [], None
    while True:
        place = {"cursor": cursor} if cursor else {"include_children": True}
        page = await daemon.call("session", action="events", session_id=root, max_events=20, **place)
        merged += page["events"]
        cursor = page["cursor"]
        if not page["more"]:
            break
    assert [event["seq"] for event in merged] == list(range(len(merged)))
    assert {event["session_id"] for event in merged} == {root, leaf["session_id"], *(c["session_id"] for c in children)}

    ended = await daemon.call("session", action="end", session_id=root)
    assert len(ended["ended"]) == 5
