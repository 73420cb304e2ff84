"""Real agents with children: the real OpenCode in a real sandbox spawns, waits and quotes through its own tool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.harness import Daemon, Json, open_daemon, ready, start
from tests.daemon.scripts_for_agents import TOOL, below, lines, spawn, tool

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

SETTLE_SECONDS = 150


@pytest.fixture
async def daemon(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[Daemon]:
    runtime = getattr(request, "param", "bubblewrap")
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {
        "server": {"address": "127.0.0.1:0"},
        "runtime": runtime,
        "defaults": {"limits": {"max_active_sessions": 50}},
    }
    environment = {"DOCKER_HOST": engine_host} if runtime == "docker" else {}
    async with open_daemon(home, config, environment=environment) as daemon:
        yield daemon


async def outputs(daemon: Daemon, session_id: str) -> list[Json]:
    """What its session tool answered, in order."""
    return [
        event["tool"]
        for event in await daemon.events(session_id)
        if event["type"] == "tool_result" and event["tool"]["name"] == TOOL
    ]


@pytest.mark.parametrize("daemon", ["bubblewrap", "docker"], indirect=True)
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


async def test_two_sessions_of_one_workspace_that_spawn_at_once_each_get_their_own(daemon: Daemon) -> None:
    """In one agent process, whose calls all come through one stream: only the stamp tells them apart."""
    project = await daemon.call("project", action="create", name="neighbours")

    def script(name: str) -> str:
        calls = [{"name": TOOL, "arguments": {"action": "spawn", "message": f"@say {name} {n}"}} for n in range(8)]
        return lines(f"@tools {json.dumps(calls)}", tool(action="wait"), "@echo-last-tool")

    roots = {name: await spawn(daemon, project, script(name)) for name in ("left", "right")}
    for name, root in roots.items():
        done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
        assert done["outcome"] == "completed", done
        children = await below(daemon, root)
        assert sorted(child["title"] for child in children) == [f"@say {name} {n}" for n in range(8)]
        for number in range(8):
            assert f'"{name} {number}"' in done["final_text"]
        spawned = [event["child"]["session_id"] for event in await daemon.events(root) if event.get("child")]
        assert set(spawned) == {child["session_id"] for child in children}


async def test_an_agent_gets_no_more_than_it_has_and_is_told(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="walls")
    stranger = await spawn(daemon, project, "@say I am nobody's child")
    root = await spawn(
        daemon,
        project,
        lines(
            tool(action="spawn", message="@say free", autonomy_level="off"),
            tool(action="get", session_id=stranger),
            tool(action="spawn", message="@say forged", _session="ses_of_somebody_else"),
            tool(action="wait"),
            "@echo-last-tool",
        ),
        autonomy_level="medium",
    )
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    results = await outputs(daemon, root)
    assert [result["status"] for result in results] == ["error", "error", "completed", "completed"], results
    assert "permission_denied" in results[0]["output"]
    assert "not_found" in results[1]["output"]
    assert "forged" in done["final_text"], "the plugin writes the stamp over what the model wrote"
    [child] = await below(daemon, root)
    assert child["autonomy"] == "medium"


async def test_children_end_with_their_parent(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="the end")
    sleeper = '@tool bash {"command": "sleep 300", "description": "sleep"}'
    root = await spawn(
        daemon,
        project,
        lines(
            tool(action="spawn", message=sleeper, title="tied"),
            tool(action="spawn", message=sleeper, title="apart", detach=True),
            tool(action="wait"),
        ),
    )

    def at_work(event: Json) -> bool:
        return bool(event["type"] == "tool_call" and event["tool"]["name"] == "bash")

    await daemon.until(root, lambda event: event["type"] == "tool_call" and event["tool"]["input"]["action"] == "wait")
    for child in await below(daemon, root):
        await daemon.until(child["session_id"], at_work)
    ended = await daemon.call("session", action="end", session_id=root)
    tied, apart = await below(daemon, root)
    assert set(ended["ended"]) == {root, tied["session_id"]}
    assert (tied["status"], tied["reason"]) == ("completed", "ended_by_parent")
    assert apart["status"] == "running"
    cancelled = await daemon.call("session", action="cancel", session_id=root)
    assert cancelled["ended"] == [apart["session_id"]]


async def test_a_daemon_that_dies_in_the_middle_of_a_wait_is_found_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}
    async with open_daemon(home, config) as daemon:
        project = await daemon.call("project", action="create", name="twice")
        slow = '@tool bash {"command": "sleep 8; echo slept", "description": "sleep"}\n@echo-last-tool'
        root = await spawn(
            daemon,
            project,
            lines(
                tool(action="spawn", message=slow),
                tool(action="wait"),
                tool(action="spawn", message="@say a later one"),
                tool(action="wait"),
                "@echo-last-tool",
            ),
        )
        await daemon.until(
            root, lambda event: event["type"] == "tool_call" and event["tool"]["input"]["action"] == "wait"
        )
        daemon.kill()
        again = await ready(start(home))
        daemon.process, daemon.url, daemon.token = again.process, again.url, again.token
        done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
        results = await outputs(daemon, root)
        assert done["outcome"] == "completed", (done, results)
        assert [result["status"] for result in results] == ["completed", "error", "completed", "completed"], results
        assert "The connection to Oubliette broke" in results[1]["output"]
        assert "slept" in done["final_text"]
        assert "a later one" in done["final_text"]
