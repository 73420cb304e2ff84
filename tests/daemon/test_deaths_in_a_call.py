"""Whatever carries a call of an agent may die in the middle of it: the call ends clearly, and later ones work."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.daemon.harness import Daemon, Json, open_daemon, ready, start
from tests.daemon.processes import running
from tests.daemon.scripts_for_agents import TOOL, tool

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

SETTLE_SECONDS = 150


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    async with open_daemon(home, {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}) as daemon:
        yield daemon


def bash(command: str) -> str:
    return "@tool bash " + json.dumps({"command": command, "description": "work"})


def inside(daemon: Daemon, words: str) -> list[int]:
    """Processes of this daemon's sandboxes by their command line: told apart by the home in their mount table."""
    found = []
    for pid in running(words):
        try:
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError:
            continue
        if str(daemon.home / "data") in mounts:
            found.append(pid)
    return found


async def spawn(daemon: Daemon, *directives: str) -> str:
    project = await daemon.call("project", action="create", name="deaths")
    spawned = await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        message="\n".join(directives),
        model="scripted",
        new_session=True,
    )
    return str(spawned["session_id"])


async def waiting(daemon: Daemon, session_id: str) -> None:
    """In the middle of the call: the child that it waits for is at work."""

    def waits(event: Json) -> bool:
        return bool(event["type"] == "tool_call" and event["tool"]["input"].get("action") == "wait")

    await daemon.until(session_id, waits)
    listed = await daemon.call("session", action="list", parent_id=session_id)
    child = listed["sessions"][0]["session_id"]
    await daemon.until(child, lambda event: event["type"] == "tool_call")


async def results(daemon: Daemon, session_id: str) -> list[tuple[str, str]]:
    """What its session tool answered: (status, text)."""
    return [
        (event["tool"]["status"], event["tool"].get("output", ""))
        for event in await daemon.events(session_id)
        if event["type"] == "tool_result" and event["tool"]["name"] == TOOL
    ]


SLOW_CHILD = bash("sleep 8; echo slept") + "\n@echo-last-tool"


async def test_the_client_is_killed_and_the_turn_goes_on(daemon: Daemon) -> None:
    """The agent starts it only once; it is started again for it."""
    root = await spawn(
        daemon,
        tool(action="spawn", message=SLOW_CHILD),
        tool(action="wait"),
        bash("sleep 4"),
        tool(action="wait"),
        "@echo-last-tool",
    )
    await waiting(daemon, root)
    [client] = inside(daemon, "oubliette_client")
    os.kill(client, signal.SIGKILL)
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    answers = await results(daemon, root)
    assert done["outcome"] == "completed", (done, answers)
    assert [status for status, _ in answers] == ["completed", "error", "completed"], answers
    assert "Connection closed" in answers[1][1]
    assert "slept" in done["final_text"]
    [again] = inside(daemon, "oubliette_client")
    assert again != client


async def test_a_client_that_is_killed_while_nobody_calls_is_back_for_the_next_call(daemon: Daemon) -> None:
    root = await spawn(daemon, tool(action="list"))
    await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    [client] = inside(daemon, "oubliette_client")
    os.kill(client, signal.SIGKILL)
    with trio.fail_after(20):
        while "the agent's tools were gone and are back" not in daemon.log.read_text():
            await trio.sleep(0.05)
    await daemon.call("session", action="message", session_id=root, message=tool(action="list"))
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed"
    assert [status for status, _ in await results(daemon, root)] == ["completed"] * 2


async def test_the_relay_is_killed_and_the_session_goes_on(daemon: Daemon) -> None:
    """It is the container's own process: the turn ends with it and says so, and the next one has a new container."""
    root = await spawn(daemon, tool(action="spawn", message=SLOW_CHILD), tool(action="wait"))
    await waiting(daemon, root)
    for relay in inside(daemon, "oubliette_relay"):
        os.kill(relay, signal.SIGKILL)
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "interrupted", done
    assert done["error"]["code"], done
    await daemon.call(
        "session",
        action="message",
        session_id=root,
        message=tool(action="spawn", message="@say later") + "\n" + tool(action="wait") + "\n@echo-last-tool",
    )
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    assert "later" in done["final_text"]


async def test_the_daemon_is_killed_and_the_call_that_comes_while_it_is_away_is_answered_by_the_next(
    daemon: Daemon,
) -> None:
    """Nothing of that call has been sent, so it waits; the one in progress is told that it broke."""
    root = await spawn(
        daemon,
        tool(action="spawn", message=SLOW_CHILD),
        tool(action="wait"),
        tool(action="wait"),
        "@echo-last-tool",
    )
    await waiting(daemon, root)
    daemon.kill()
    again = await ready(start(daemon.home))
    daemon.process, daemon.url, daemon.token = again.process, again.url, again.token
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    answers = await results(daemon, root)
    assert done["outcome"] == "completed", (done, answers)
    assert [status for status, _ in answers] == ["completed", "error", "completed"], answers
    assert "The connection to Oubliette broke" in answers[1][1]
    assert "slept" in done["final_text"]
    log = await daemon.events(root)
    assert [event["index"] for event in log] == list(range(len(log)))
