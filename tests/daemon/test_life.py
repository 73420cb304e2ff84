"""Cancelling, dying and restarting with the real agent in a real sandbox."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.daemon.harness import Daemon, open_daemon, ready, start
from tests.daemon.processes import appear, running, vanish

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

PROMISED_CANCEL_SECONDS = 2.0
CONFIG = {"server": {"address": "127.0.0.1:0"}}


@pytest.fixture(params=["bubblewrap", "docker"])
async def daemon(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"DOCKER_HOST": engine_host} if request.param == "docker" else {}
    async with open_daemon(home, {**CONFIG, "runtime": request.param}, environment=environment) as daemon:
        yield daemon


def odd_seconds() -> str:
    """A duration nobody else sleeps for, so that its process can be told from all others."""
    return f"6{secrets.randbelow(10**8):08d}"


async def spawn(daemon: Daemon, message: str) -> str:
    project = await daemon.call("project", action="create", name="life")
    result = await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        message=message,
        model="scripted",
        new_session=True,
    )
    return str(result["session_id"])


async def test_cancel_ends_everything_a_turn_started_within_two_seconds(daemon: Daemon) -> None:
    mark = odd_seconds()
    command = f"(setsid nohup sleep {mark} >/dev/null 2>&1 &) ; sleep {mark}"
    session_id = await spawn(daemon, f'@tool bash {{"command": "{command}", "description": "wait"}}')
    await appear(f"sleep {mark}", 2)
    began = trio.current_time()
    result = await daemon.call("session", action="cancel", session_id=session_id)
    assert result["status"] == "cancelled"
    await vanish(f"sleep {mark}", timeout_seconds=5 * PROMISED_CANCEL_SECONDS - (trio.current_time() - began))
    took = trio.current_time() - began
    assert took < 5 * PROMISED_CANCEL_SECONDS
    log = await daemon.events(session_id)
    [completion] = [event for event in log if event["type"] == "completion"]
    assert completion["outcome"] == "cancelled"


async def test_a_killed_agent_takes_its_tools_along_and_the_session_goes_on(daemon: Daemon) -> None:
    mark = odd_seconds()
    command = f"(setsid nohup sleep {mark} >/dev/null 2>&1 &) ; sleep {mark}"
    session_id = await spawn(daemon, f'@tool bash {{"command": "{command}", "description": "wait"}}')
    await appear(f"sleep {mark}", 2)
    agents = _agents_of(daemon)
    assert agents
    for pid in agents:
        os.kill(pid, signal.SIGKILL)
    done = await daemon.settle(session_id)
    assert done["outcome"] == "interrupted"
    await vanish(f"sleep {mark}", timeout_seconds=5)
    await daemon.call("session", action="message", session_id=session_id, message="@say still here")
    done = await daemon.settle(session_id)
    assert done["outcome"] == "completed"
    assert done["final_text"] == "still here"


def _agents_of(daemon: Daemon) -> list[int]:
    """The agent processes of this daemon's containers: told apart by the mounted home in their mount table."""
    own = []
    for pid in running("opencode serve"):
        try:
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError:
            continue
        if str(daemon.home / "data") in mounts:
            own.append(pid)
    return own


async def test_sigterm_during_a_turn_leaves_the_work_running_and_the_next_start_takes_it_up(daemon: Daemon) -> None:
    mark = odd_seconds()
    script = f'@tool bash {{"command": "sleep {mark[:1]}; echo done {mark}", "description": "wait"}}\n@say finished'
    session_id = await spawn(daemon, script)
    await daemon.until(session_id, lambda event: event["type"] == "tool_call")
    containers = _agents_of(daemon)
    assert daemon.terminate() == 0
    assert _agents_of(daemon) == containers, "the sandbox goes on without the daemon"
    again = await ready(start(daemon.home, environment=daemon.environment))
    daemon.process, daemon.url, daemon.token = again.process, again.url, again.token
    done = await daemon.settle(session_id)
    assert done["outcome"] == "completed", done
    assert done["final_text"] == "finished"
    assert _agents_of(daemon) == containers, "the same container was adopted"
    log = await daemon.events(session_id)
    assert [event["index"] for event in log] == list(range(len(log)))
    assert [event["type"] for event in log].count("tool_result") == 1
    assert [event["type"] for event in log].count("completion") == 1


async def test_a_killed_daemon_loses_nothing_it_acknowledged(daemon: Daemon) -> None:
    session_id = await spawn(daemon, "@say one")
    await daemon.settle(session_id)
    queued = await daemon.call("session", action="message", session_id=session_id, message="@delay 2\n@say two")
    daemon.kill()
    again = await ready(start(daemon.home, environment=daemon.environment))
    daemon.process, daemon.url, daemon.token = again.process, again.url, again.token
    done = await daemon.settle(session_id)
    assert done["turn"] == queued["turn"]
    assert done["outcome"] == "completed", done
    assert done["final_text"] == "two"
