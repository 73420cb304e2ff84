"""A real agent that waits for its child longer than its own patience with a silent tool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oubliette import launcher
from oubliette.api.tools import progress
from tests.daemon.in_process import Client, inside
from tests.daemon.scripts_for_agents import tool

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

AGENT_PATIENCE_MS = 3000
CHILD_SECONDS = 9


@pytest.mark.parametrize("told", [True, False])
async def test_a_wait_outlasts_the_agents_patience_because_it_is_told_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Without the notices the same call is given up: that is what they are for."""
    monkeypatch.setitem(launcher._OWN, "timeout", AGENT_PATIENCE_MS)
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 1 if told else 1000)
    slow = "@tool bash " + json.dumps({"command": f"sleep {CHILD_SECONDS}; echo slept", "description": "sleep"})
    async with inside(tmp_path / "home", "bubblewrap") as running:
        client = Client(running)
        project = await client.call("project", action="create", name="patience")
        script = [tool(action="spawn", message=f"{slow}\n@echo-last-tool"), tool(action="wait"), "@echo-last-tool"]
        root = await client.spawn(project["project_id"], "\n".join(script))
        [done] = await client.settle(root["session_id"])
        assert done["outcome"] == "completed", done
        page = await client.call("session", action="events", session_id=root["session_id"], types=["tool_result"])
        waited = page["events"][1]["tool"]
        if told:
            assert waited["status"] == "completed", waited
            assert waited["duration_ms"] > AGENT_PATIENCE_MS
            assert "slept" in done["final_text"]
        else:
            assert waited["status"] == "error", waited
            assert "timed out" in waited["output"].lower(), waited
        await client.http.aclose()
