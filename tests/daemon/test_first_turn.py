"""The whole path: the real daemon drives the real OpenCode in a real sandbox, seen through every door."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from mcp.client.client import Client

from tests.daemon.harness import Daemon, Json, open_daemon
from tests.daemon.mcp_clients import LEGACY, MODERN, open_client

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

PLACES = ["bubblewrap-none", "bubblewrap-user", "docker-none", "docker-bridge", "bubblewrap-bridge"]

WORK = """Please make the file.
@say I will write it and run it.
@tool write {"filePath": "hello.py", "content": "print(6 * 7)\\n"}
@tool bash {"command": "python3 hello.py", "description": "run it"}
@say It printed 42.
"""


@pytest.fixture(params=PLACES)
async def daemon(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[Daemon]:
    runtime, _, way = str(request.param).partition("-")
    config: Json = {
        "server": {"address": "127.0.0.1:0"},
        "runtime": runtime,
        "defaults": {"container": {"network": way if way in ("none", "bridge") else "none"}},
    }
    home = tmp_path / "home"
    home.mkdir()
    environment = {"DOCKER_HOST": engine_host} if runtime == "docker" else {}
    async with open_daemon(home, config, environment=environment, ordinary_user=way == "user") as daemon:
        yield daemon


async def test_a_session_works_answers_and_continues(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="first turn")
    spawned = await daemon.call(
        "session", action="spawn", project_id=project["project_id"], message=WORK, model="scripted", new_session=True
    )
    session_id = spawned["session_id"]
    assert spawned["created"]
    done = await daemon.settle(session_id)
    assert done["outcome"] == "completed", done
    assert "42" in done["final_text"]
    assert [(file["path"], file["change"]) for file in done["files"]] == [("hello.py", "added")]
    assert done["usage"]["requests"] >= 3
    assert done["usage"]["output_tokens"] > 0

    log = await daemon.events(session_id)
    assert [event["index"] for event in log] == list(range(len(log)))
    calls = [event for event in log if event["type"] == "tool_call"]
    results = [event for event in log if event["type"] == "tool_result"]
    assert [call["tool"]["name"] for call in calls] == ["write", "bash"]
    assert [result["tool"]["status"] for result in results] == ["completed", "completed"]
    assert calls[1]["tool"]["input"]["command"] == "python3 hello.py"
    assert "42" in results[1]["tool"]["output"]
    assert {event["role"] for event in log if event["type"] == "message"} == {"assistant"}
    [completion] = [event for event in log if event["type"] == "completion"]
    assert completion["outcome"] == "completed"
    assert completion["usage"]["cost_usd"] >= 0

    again = await daemon.call(
        "session", action="message", session_id=session_id, message="And then?\n@recall 1\n@say That was it."
    )
    assert again["turn"] == 2
    second = await daemon.settle(session_id)
    assert "Please make the file." in second["final_text"], "the model was shown the first message again"
    assert "That was it." in second["final_text"]

    ended = await daemon.call("session", action="end", session_id=session_id)
    assert ended["status"] == "completed"


@pytest.fixture
async def sandboxed(tmp_path: Path) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    config = {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}
    async with open_daemon(home, config) as daemon:
        yield daemon


async def mcp_call(client: Client, tool: str, **arguments: Any) -> Json:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    assert result.structured_content is not None
    return dict(result.structured_content)


@pytest.mark.parametrize("era", [MODERN, LEGACY])
async def test_an_mcp_client_of_each_era_drives_it(sandboxed: Daemon, era: str) -> None:
    async with open_client(sandboxed, era) as client:
        project = await mcp_call(client, "project", action="create", name=f"era {era}")
        spawned = await mcp_call(
            client,
            "session",
            action="spawn",
            project_id=project["project_id"],
            message=WORK,
            model="scripted",
        )
        with trio.fail_after(90):
            while True:
                waited = await mcp_call(client, "session", action="wait", session_ids=[spawned["session_id"]])
                if waited["done"]:
                    break
        assert waited["sessions"][0]["outcome"] == "completed"
        assert "42" in waited["sessions"][0]["final_text"]


async def test_curl_drives_it_and_streams_every_event_once(sandboxed: Daemon) -> None:
    def curl(*words: str) -> Any:
        argv = ["curl", "-sS", "-H", f"Authorization: Bearer {sandboxed.token}", *words]
        return json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout)

    def tool(noun: str, **arguments: Any) -> Any:
        body = json.dumps(arguments)
        return curl("-H", "Content-Type: application/json", "-d", body, f"{sandboxed.url}/v1/tools/{noun}")

    project = await trio.to_thread.run_sync(lambda: tool("project", action="create", name="curl"))
    spawned = await trio.to_thread.run_sync(
        lambda: tool("session", action="spawn", project_id=project["project_id"], message=WORK, model="scripted")
    )
    url = f"{sandboxed.url}/v1/sessions/{spawned['session_id']}/events?deltas=1"
    seen: list[int] = []
    deltas = 0
    with trio.fail_after(90):
        async with (
            httpx.AsyncClient(timeout=None) as client,
            client.stream("GET", url, headers=sandboxed.headers()) as response,
        ):
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                event = json.loads(line[5:])
                if event["type"] == "delta":
                    deltas += 1
                    continue
                seen.append(event["index"])
                if event["type"] == "completion":
                    break
    assert seen == list(range(len(seen)))
    assert deltas > 0
