"""``agent_scope`` with the real agent in a real sandbox: it widens what the agent may do, and ends with its granter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.daemon.harness import Daemon, Json, open_daemon
from tests.daemon.scripts_for_agents import spawn

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

SETTLE_SECONDS = 150


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    async with open_daemon(home, {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}) as daemon:
        yield daemon


def directive(tool: str, **arguments: object) -> str:
    return f"@tool oubliette_{tool} {json.dumps(arguments)}"


async def told(daemon: Daemon, session_id: str, *directives: str) -> list[Json]:
    """What our tools answered in one more turn."""
    before = (await daemon.events(session_id))[-1]["index"]
    await daemon.call("session", action="message", session_id=session_id, message="\n".join(directives))
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    return await answers(daemon, session_id, before)


async def answers(daemon: Daemon, session_id: str, since: int = -1) -> list[Json]:
    return [
        event["tool"]
        for event in await daemon.events(session_id)
        if event["index"] > since and event["type"] == "tool_result" and event["tool"]["name"].startswith("oubliette_")
    ]


async def test_a_scope_counts_in_the_next_container_and_every_call_is_the_sessions_own(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="shop")
    other = await daemon.call("project", action="create", name="bank")
    root = await spawn(daemon, project, "@tools?")
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert "oubliette_project" not in done["final_text"]
    before = (await daemon.call("container", action="status", project_id=project["project_id"]))["container_id"]
    shown = await daemon.call(
        "project", action="update", project_id=project["project_id"], agent_scope="project", detail="full"
    )
    assert shown["agent_scope"] == "project"
    stranger = await spawn(daemon, project, "@say a stranger", create_workspace=True)
    await daemon.settle(stranger, timeout_seconds=SETTLE_SECONDS)
    said = await told(
        daemon,
        root,
        directive("session", action="get", session_id=stranger),
        directive("project", action="get"),
        directive("project", action="get", project_id=other["project_id"]),
        directive("session", action="spawn", message="@say free", autonomy_level="off"),
        directive("session", action="spawn", message="@say apart", project_id=project["project_id"], model="scripted"),
        directive("project", action="update", agent_scope="admin"),
        "@tools?",
    )
    assert [one["status"] for one in said] == ["completed", "completed", "error", "completed", "completed", "error"]
    assert "not_found" in said[2]["output"]
    assert "permission_denied" in said[5]["output"]
    after = (await daemon.call("container", action="status", project_id=project["project_id"]))["container_id"]
    assert after != before, "what ran there before was trusted with less"
    apart = json.loads(said[4]["output"])["session_id"]
    made = await daemon.call("session", action="get", session_id=apart, detail="full")
    assert made["created_by"] == {"kind": "session", "id": root, "name": root}
    assert "parent_id" not in made
    final = (await daemon.settle(root))["final_text"]
    assert "oubliette_project" in final
    assert "oubliette_token" not in final
    for token in (await daemon.call("token", action="list"))["tokens"]:
        if token["kind"] == "agent":
            assert token["scope"] == f"project:{project['project_id']}"


async def test_it_ends_with_its_granters_token_also_in_the_middle_of_a_call(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="shop")
    granter = await daemon.call("token", action="create", name="granter", scope="admin")
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {granter['secret']}"}) as client:
        asked = {"action": "update", "project_id": project["project_id"], "agent_scope": "project"}
        assert (await client.post(f"{daemon.url}/v1/tools/project", json=asked)).status_code == 200
    sleep = "@tool bash " + json.dumps({"command": "sleep 60", "description": "sleep"})
    stranger = await spawn(daemon, project, sleep, create_workspace=True)
    root = await spawn(
        daemon,
        project,
        "\n".join(
            (
                directive("session", action="wait", session_ids=[stranger], wait_seconds=200),
                directive("session", action="cancel", session_id=stranger),
                directive("session", action="spawn", message="@say my own child"),
                directive("session", action="wait"),
            )
        ),
    )
    await daemon.until(root, lambda event: event["type"] == "tool_call")
    await daemon.call("token", action="revoke", name="granter")
    done = await daemon.settle(root, timeout_seconds=60)
    said = await answers(daemon, root)
    assert done["outcome"] == "completed", (done, said)
    assert [one["status"] for one in said] == ["error", "error", "completed", "completed"], said
    assert "unauthenticated" in said[0]["output"] or "not_found" in said[0]["output"]
    assert "not_found" in said[1]["output"]
    assert "my own child" in said[3]["output"]
    shown = await daemon.call("project", action="get", project_id=project["project_id"], detail="full")
    assert shown["agent_scope"] == "none"
    assert (await daemon.call("session", action="get", session_id=stranger))["status"] == "running"
