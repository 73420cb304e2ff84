"""Budgets with real agents: the real OpenCode waits, in a real sandbox, for money that a person allows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.daemon.harness import Daemon, Json, open_daemon, ready, start
from tests.daemon.scripts_for_agents import TOOL, lines, tool

pytestmark = [pytest.mark.daemon, pytest.mark.agent]

CENT = "@usage 10 100"
"""An answer that costs one cent: an output token of the model costs a hundredth of one."""
MODEL = {"model": "scripted", "provider": "scripted", "cost": {"input": 0, "output": 100}, "maxOutputTokens": 2_000}
PATIENCE_SECONDS = 120


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {
        "server": {"address": "127.0.0.1:0"},
        "runtime": "bubblewrap",
        "models": {"models": {"priced": MODEL}},
        "defaults": {"limits": {"max_active_sessions": 50, "max_cost_usd": 100, "max_cost_usd_per_day": 100}},
    }
    async with open_daemon(home, config) as daemon:
        yield daemon


async def spawn(daemon: Daemon, project: Json, script: str, **more: Any) -> str:
    spawned = await daemon.call(
        "session", action="spawn", project_id=project["project_id"], message=script, new_session=True, **more
    )
    return str(spawned["session_id"])


async def below(daemon: Daemon, parent: str) -> list[Json]:
    found = await daemon.call("session", action="list", parent_id=parent, limit=200, detail="full", max_chars=1_000_000)
    return list(found["sessions"])


async def paused(daemon: Daemon, session_id: str) -> Json:
    """The status event that says so, once it is there."""
    return await daemon.until(
        session_id,
        lambda event: event["type"] == "status" and event["status"]["to"] == "paused",
        timeout_seconds=PATIENCE_SECONDS,
    )


async def finished(daemon: Daemon, session_id: str) -> Json:
    """Its completion, however often it was paused on the way."""
    return await daemon.until(session_id, lambda event: event["type"] == "completion", timeout_seconds=PATIENCE_SECONDS)


async def spent(daemon: Daemon, root: str) -> float:
    return float((await daemon.call("session", action="get", session_id=root, detail="full"))["tree_usage"]["cost_usd"])


async def test_twenty_children_at_the_edge_of_a_budget_pause_and_go_on_when_it_is_raised(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="an edge")
    until_told = '@tool bash {"command": "until [ -e go ]; do sleep 0.1; done"}'
    child = lines(CENT, until_told, "@usage 10 1500", "@say a child is done")
    calls = [{"name": TOOL, "arguments": {"action": "spawn", "message": child}} for _ in range(20)]
    script = lines(
        CENT,
        f"@tools {json.dumps(calls)}",
        CENT,
        '@tool bash {"command": "touch go"}',
        CENT,
        tool(action="wait", wait_seconds=45),
        CENT,
        "@say all were asked",
    )
    root = await spawn(daemon, project, script, max_cost_usd=1.1)
    event = await paused(daemon, root)
    told = event["data"]["limit"]
    assert (event["status"]["reason"], told["name"], told["limit"]) == ("budget", "max_cost_usd", 1.1)
    assert told["needed"] == 0.2
    assert 0 < told["limit"] - told["used"] < 0.2
    await trio.sleep(2)  # whoever may still spend, does
    assert await spent(daemon, root) <= 1.1
    children = await below(daemon, root)
    assert len(children) == 20
    assert {(one["status"], one.get("reason")) for one in children} == {("paused", "budget"), ("idle", None)}
    assert sum(one["status"] == "idle" for one in children) in (4, 5), "what there was money for"

    changed = await daemon.call("session", action="update", session_id=root, max_cost_usd=50)
    assert changed["limits"]["max_cost_usd"] == 50
    for one in (root, *(one["session_id"] for one in children)):
        completion = await finished(daemon, one)
        assert completion["outcome"] == "completed", completion
    for one in await below(daemon, root):
        assert one["last_turn"]["final_text"] == "a child is done"
        assert one["usage"]["cost_usd"] == 0.16, one["usage"]
    log = await daemon.events(root)
    assert [event["index"] for event in log] == list(range(len(log)))
    assert [event["status"]["to"] for event in log if event["type"] == "status"][-1] == "idle"
    assert any(event.get("code") == "limits_changed" for event in log)


async def test_a_paused_tree_is_cancelled_and_nothing_of_it_runs_or_spends_on(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="given up")
    script = lines(
        tool(action="spawn", message=lines("@usage 10 1500", tool(action="list"), "@say never")),
        tool(action="wait", wait_seconds=45),
        "@say never",
    )
    root = await spawn(daemon, project, script, max_cost_usd=0.3)
    await paused(daemon, root)
    other = await spawn(daemon, project, "@say the others go on")
    assert (await finished(daemon, other))["text"] == "the others go on"
    began = trio.current_time()
    ended = await daemon.call("session", action="cancel", session_id=root)
    assert trio.current_time() - began < 10
    assert ended["status"] == "cancelled"
    assert len(ended["ended"]) == 2
    before = await spent(daemon, root)
    for one in ended["ended"]:
        [completion] = [event for event in await daemon.events(one) if event["type"] == "completion"]
        assert completion["outcome"] == "cancelled"
    await trio.sleep(1)
    assert await spent(daemon, root) == before


async def test_a_paused_turn_is_interrupted_and_its_session_goes_on_when_there_is_money(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="one of them")
    script = lines("@usage 10 1500", '@tool bash {"command": "true"}', "@say never")
    root = await spawn(daemon, project, script, max_cost_usd=0.3)
    await paused(daemon, root)
    await daemon.call("session", action="interrupt", session_id=root)
    assert (await finished(daemon, root))["outcome"] == "cancelled"
    await daemon.call("session", action="update", session_id=root, max_cost_usd=2)
    await daemon.call("session", action="message", session_id=root, message="@recall 1")
    done = await daemon.settle(root)
    assert "bash" in done["final_text"], "the conversation is kept"


async def test_a_daemon_that_is_killed_while_a_tree_is_paused_finds_it_so_and_lets_it_go_on(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="it survives")
    script = lines("@usage 10 1500", '@tool bash {"command": "echo $((6*7))"}', "@echo-last-tool")
    root = await spawn(daemon, project, script, max_cost_usd=0.3)
    await paused(daemon, root)
    daemon.kill()
    again = await ready(start(daemon.home))
    daemon.process, daemon.url, daemon.token = again.process, again.url, again.token
    row = await daemon.call("session", action="get", session_id=root)
    assert (row["status"], row["reason"]) == ("paused", "budget"), row
    await trio.sleep(8)  # the agent notices that its request broke off, and asks again
    row = await daemon.call("session", action="get", session_id=root)
    assert (row["status"], row.get("reason")) == ("paused", "budget"), await daemon.events(root)
    await daemon.call("session", action="update", session_id=root, max_cost_usd=2)
    completion = await finished(daemon, root)
    assert completion["outcome"] == "completed", completion
    assert "42" in completion["text"]


async def test_a_daemon_stops_in_time_while_trees_are_paused(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="goodbye")
    root = await spawn(daemon, project, lines("@usage 10 1500", '@tool bash {"command": "true"}'), max_cost_usd=0.3)
    await paused(daemon, root)
    began = trio.current_time()
    assert await trio.to_thread.run_sync(daemon.terminate) == 0
    assert trio.current_time() - began < 15
    with pytest.raises(httpx.HTTPError):
        await daemon.call("project", action="list")
