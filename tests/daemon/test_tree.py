"""Trees of real agents: what each says reaches its parent, one log in one order, limits that hold to the number."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.harness import Daemon, Json, open_daemon
from tests.daemon.processes import appear, vanish
from tests.daemon.scripts_for_agents import TOOL, bash, lines, tool, tools

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

SETTLE_SECONDS = 180


@pytest.fixture
async def daemon(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[Daemon]:
    runtime = getattr(request, "param", "bubblewrap")
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {"server": {"address": "127.0.0.1:0"}, "runtime": runtime}
    environment = {"DOCKER_HOST": engine_host} if runtime == "docker" else {}
    async with open_daemon(home, config, environment=environment) as daemon:
        yield daemon


async def spawn(daemon: Daemon, project: Json, script: str) -> str:
    spawned = await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        message=script,
        model="scripted",
        new_session=True,
        title="root",
    )
    return str(spawned["session_id"])


async def merged(daemon: Daemon, root: str, page: int) -> list[Json]:
    """Everything of the tree, by cursor."""
    found: list[Json] = []
    place: dict[str, Any] = {"include_children": True}
    while True:
        got = await daemon.call("session", action="events", session_id=root, max_events=page, **place)
        found += got["events"]
        place = {"cursor": got["cursor"]}
        if not got["more"]:
            return found


async def answers(daemon: Daemon, session_id: str, action: str) -> list[Json]:
    """What the agent's session tool said to that action, in order."""
    log = await daemon.events(session_id)
    asked = {
        event["tool"]["id"]
        for event in log
        if event["type"] == "tool_call" and event["tool"]["name"] == TOOL and event["tool"]["input"]["action"] == action
    }
    return [event["tool"] for event in log if event["type"] == "tool_result" and event["tool"]["id"] in asked]


FAMILY = lines(
    tools(
        {
            "action": "spawn",
            "title": "writer",
            "message": lines(
                '@tool write {"filePath": "poem.txt", "content": "roses are red\\n"}',
                bash("cat poem.txt"),
                "@echo-last-tool",
            ),
        },
        {"action": "spawn", "title": "counter", "message": lines(bash("seq 100 | wc -l"), "@echo-last-tool")},
        {
            "action": "spawn",
            "title": "branch",
            "message": lines(
                tool(action="spawn", title="leaf", message=lines(bash("echo leaf $((6*7))"), "@echo-last-tool")),
                tool(action="wait"),
                "@quote outcome final_text",
            ),
        },
    ),
    tool(action="wait"),
    "@say My children:",
    "@quote outcome final_text",
)


@pytest.mark.parametrize("daemon", ["bubblewrap", "docker"], indirect=True)
async def test_a_family_is_one_tree_with_one_log_in_one_order(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="a family")
    root = await spawn(daemon, project, FAMILY)
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    for quoted in ("- completed: roses are red", "- completed: 100", "- completed: - completed: leaf 42"):
        assert quoted in done["final_text"], done["final_text"]

    # The tree, as its owner and as its root's agent see it.
    tree = await daemon.call("session", action="tree", session_id=root, detail="full")
    nodes = {node["title"]: node for node in tree["nodes"]}
    assert next(iter(nodes)) == "root"
    assert set(nodes) == {"root", "writer", "counter", "branch", "leaf"}
    assert [node["title"] for node in tree["nodes"]].index("leaf") == list(nodes).index("branch") + 1
    assert nodes["leaf"]["parent_id"] == nodes["branch"]["session_id"]
    assert tree["counts"]["total"] == 5
    assert tree["limits"]["depth"]["used"] == 2
    ids = {node["session_id"] for node in tree["nodes"]}
    look = lines(
        tool(action="tree"), tool(action="events", session_id=root, include_children=True, types=["completion"])
    )
    await daemon.call("session", action="message", session_id=root, message=look)
    looked = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert (looked["turn"], looked["outcome"]) == (2, "completed")
    [seen] = await answers(daemon, root, "tree")
    assert {node["session_id"] for node in json.loads(seen["output"])["nodes"]} == ids
    [told] = await answers(daemon, root, "events")
    ended = [event["session_id"] for event in json.loads(told["output"])["events"]]
    assert set(ended) == ids
    assert ended[-1] == root, "it was the last one to be done"
    assert ended.index(nodes["leaf"]["session_id"]) < ended.index(nodes["branch"]["session_id"])

    await daemon.call("session", action="end", session_id=root)
    log = await merged(daemon, root, page=7)
    assert [event["seq"] for event in log] == list(range(len(log)))
    for node in tree["nodes"]:
        one = node["session_id"]
        own = [event for event in log if event["session_id"] == one]
        assert own == await daemon.events(one)
        assert [event["index"] for event in own] == list(range(len(own)))
        types = [event["type"] for event in own]
        assert types.count("turn_started") == types.count("completion") == (2 if one == root else 1)
        assert types.index("turn_started") < types.index("completion")
        if one != root:
            about = [event for event in log if event.get("child", {}).get("session_id") == one]
            assert [event["type"] for event in about] == ["child_spawned", "child_ended"]
            assert {event["session_id"] for event in about} == {node["parent_id"]}
            assert about[0]["seq"] < own[0]["seq"]
            assert own[-1]["seq"] < about[1]["seq"]
        calls = {event["tool"]["id"]: event["seq"] for event in own if event["type"] == "tool_call"}
        results = {event["tool"]["id"]: event["seq"] for event in own if event["type"] == "tool_result"}
        assert set(calls) == set(results)
        assert all(calls[one] < results[one] for one in calls)


@pytest.mark.parametrize(
    ("limits", "name", "made"),
    [
        ({"max_recursion_depth": 0}, "max_recursion_depth", 0),
        ({"max_agents_per_session": 6}, "max_agents_per_session", 5),
        ({"max_active_sessions": 4}, "max_active_sessions", 3),
    ],
)
async def test_twenty_spawns_at_once_reach_a_limit_exactly_and_the_rest_are_told(
    daemon: Daemon, limits: Json, name: str, made: int
) -> None:
    project = await daemon.call("project", action="create", name="limits", limits=limits)
    spawns: list[dict[str, object]] = [
        {"action": "spawn", "title": f"child {n}", "message": bash("sleep 600")} for n in range(20)
    ]
    root = await spawn(daemon, project, lines(tools(*spawns), "@say that was all"))
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    said = await answers(daemon, root, "spawn")
    assert len(said) == 20
    refused = [tool for tool in said if tool["status"] == "error"]
    assert len(refused) == 20 - made, refused
    children = (await daemon.call("session", action="list", parent_id=root, limit=200))["sessions"]
    assert len(children) == made
    for tool_ in refused:
        assert "limit_reached" in tool_["output"], tool_
        assert name in tool_["output"] or "level" in tool_["output"] or "at work" in tool_["output"]
    cancelled = await daemon.call("session", action="cancel", session_id=root)
    assert len(cancelled["ended"]) == made + 1


async def test_what_a_settled_child_has_sent_to_the_background_ends_with_its_tree(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="background")
    sleep = f"sleep 600.{os.getpid()}"  # found by these words on the whole host
    child = lines(bash(f"setsid nohup {sleep} >/dev/null 2>&1 & echo begun"), "@echo-last-tool")
    root = await spawn(daemon, project, lines(tool(action="spawn", message=child), tool(action="wait"), "@say done"))
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    await appear(sleep)
    await daemon.call("session", action="end", session_id=root)
    await vanish(sleep, timeout_seconds=5)
