"""What the real agent gets from the tools beside its session tool, and what is read of what it left behind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.harness import Daemon, Json, open_daemon

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

SETTLE_SECONDS = 150


@pytest.fixture
async def daemon(tmp_path: Path, engine_host: str) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}
    async with open_daemon(home, config) as daemon:
        yield daemon


def tool(name: str, **arguments: object) -> str:
    return f"@tool {name} {json.dumps(arguments)}"


async def outputs(daemon: Daemon, session_id: str, name: str) -> list[Json]:
    """What that tool answered, in order."""
    found = []
    for event in await daemon.events(session_id):
        if event["type"] == "tool_result" and event["tool"]["name"] == name:
            assert event["tool"]["status"] == "completed", event["tool"]
            found.append(json.loads(event["tool"]["output"]))
    return found


async def test_an_agent_looks_at_its_tree_its_limits_and_its_files_and_others_at_what_it_left(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="reads")
    traps = "ln -s /etc/passwd to_passwd; ln -s / to_root; mkfifo fifo; head -c 3000 /dev/urandom > noise.bin"
    script = "\n".join(
        [
            tool("write", filePath="notes.md", content="from the agent\n"),
            tool("bash", command=traps, description="set traps"),
            tool("oubliette_session", action="spawn", message="@say hi", title="one"),
            tool("oubliette_session", action="wait"),
            tool("oubliette_session", action="tree"),
            tool("oubliette_config_limits"),
            tool("oubliette_workspace", action="read", path="notes.md"),
            tool("oubliette_workspace", action="files", glob="*.md"),
            tool("oubliette_workspace", action="list"),
            "@say done",
        ]
    )
    spawned = await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        message=script,
        model="scripted",
    )
    root, workspace = spawned["session_id"], spawned["workspace_id"]
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert (done["outcome"], done["final_text"]) == ("completed", "done"), done

    *_, tree = await outputs(daemon, root, "oubliette_session")
    assert [(node["depth"], node["title"]) for node in tree["nodes"]][1] == (1, "one")
    assert tree["nodes"][0]["session_id"] == root
    assert tree["nodes"][1]["outcome"] == "completed"
    assert tree["usage"]["requests"] >= 6
    [limits] = await outputs(daemon, root, "oubliette_config_limits")
    assert limits["agents"] == {"limit": 50, "used": 2, "remaining": 48}
    assert limits["depth"] == {"limit": 3, "used": 0, "remaining": 3}
    assert limits["cost_usd"]["limit"] == 10
    read, files, places = await outputs(daemon, root, "oubliette_workspace")
    assert read["text"] == "from the agent\n"
    assert [one["path"] for one in files["files"]] == ["notes.md"]
    assert [one["workspace_id"] for one in places["workspaces"]] == [workspace]

    # Nothing needs to run for it to be read.
    await daemon.call("container", action="stop", project_id=project["project_id"], force=True)
    shown = await daemon.call("workspace", action="read", workspace_id=workspace, path="notes.md")
    assert shown["text"] == "from the agent\n"
    noise = await daemon.call("workspace", action="read", workspace_id=workspace, path="noise.bin")
    assert (noise["binary"], noise["size_bytes"]) == (True, 3000)
    for path in ("to_passwd", "to_root/etc/passwd", "fifo"):
        status, body = await daemon.try_call("workspace", action="read", workspace_id=workspace, path=path)
        assert (status, body["error"]["code"]) == (404, "not_found"), path
    container = await daemon.call("container", action="status", project_id=project["project_id"])
    assert container["state"] in ("stopped", "hibernated", "absent"), "a read starts nothing"

    whole = await daemon.call("session", action="tree", session_id=tree["nodes"][1]["session_id"])
    assert [node["session_id"] for node in whole["nodes"]] == [node["session_id"] for node in tree["nodes"]]
    made = await daemon.call("workspace", action="create", project_id=project["project_id"], from_workspace=workspace)
    assert made["state"] == "ready"
    copied = await daemon.call("workspace", action="files", workspace_id=made["workspace_id"])
    assert {one["path"]: one["kind"] for one in copied["files"]} == {
        "noise.bin": "file",
        "notes.md": "file",
        "to_passwd": "symlink",
        "to_root": "symlink",
    }
    gone = await daemon.call("workspace", action="delete", workspace_id=made["workspace_id"])
    assert gone["deleted"]
