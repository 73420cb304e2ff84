"""Tools of clients, called by real agents: the real OpenCode in a real sandbox, the MCP SDK's client in both eras."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.daemon.caller_clients import (
    SELECTION,
    SETTLE_SECONDS,
    lines,
    new_caller,
    offered,
    outputs,
    resolutions,
    tool,
    wait_for,
)
from tests.daemon.harness import Daemon, Json, open_daemon, ready, start
from tests.daemon.mcp_clients import LEGACY, MODERN, open_client

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

TIMEOUT_SECONDS = 4.0


@pytest.fixture
async def daemon(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[Daemon]:
    runtime, seconds = getattr(request, "param", ("bubblewrap", 60))
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {
        "server": {"address": "127.0.0.1:0"},
        "runtime": runtime,
        "defaults": {"agent": {"caller_tool_timeout_seconds": seconds}},
    }
    environment = {"DOCKER_HOST": engine_host} if runtime == "docker" else {}
    async with open_daemon(home, config, environment=environment) as daemon:
        yield daemon


# --- a call and its answer


@pytest.mark.parametrize(
    ("daemon", "era"),
    [(("bubblewrap", 60), LEGACY), (("bubblewrap", 60), MODERN), (("docker", 60), MODERN)],
    indirect=["daemon"],
)
async def test_an_agent_calls_a_clients_tool_and_gets_its_answer(daemon: Daemon, era: str) -> None:
    project = await daemon.call("project", action="create", name="ide")
    caller = await new_caller(daemon, project)
    noticed: list[Any] = []

    async def note(params: Any) -> None:
        await trio.lowlevel.checkpoint()
        if params.logger == "oubliette.caller_tool":
            noticed.append(params.data["request"]["request_id"])

    async with open_client(daemon, era, caller.secret, logging_callback=note) as client:

        async def ask(tool: str, **arguments: Any) -> Json:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, result.content
            return dict(result.structured_content or {})

        spawned = await ask(
            "session",
            action="spawn",
            project_id=project["project_id"],
            model="scripted",
            message=lines(tool("ide_open_file", path="src/a.py"), "@echo-last-tool"),
            **caller.declared(),
        )
        session_id = spawned["session_id"]
        with trio.fail_after(SETTLE_SECONDS):
            while not (waited := await ask("session", action="wait", session_ids=[session_id]))["sessions"]:
                pass
        [waiting] = waited["sessions"]
        assert waiting["status"] == "waiting", waiting
        [request] = waiting["pending"]
        assert request["caller_tool"] == {"caller_id": "ide", "name": "open_file", "arguments": {"path": "src/a.py"}}
        answered = await ask(
            "caller_tool_response",
            session_id=session_id,
            request_id=request["request_id"],
            result={"shown": True, "line": 12},
        )
        assert answered["accepted"]
        if era == LEGACY:
            assert noticed == [request["request_id"]]
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    assert '{"shown":true,"line":12}' in done["final_text"]
    [output] = await outputs(daemon, session_id, "ide_open_file")
    assert (output["status"], output["output"]) == ("completed", '{"shown":true,"line":12}')
    [call] = [event for event in await daemon.events(session_id) if event["type"] == "tool_call"]
    assert call["tool"]["input"] == {"path": "src/a.py"}, "the stamp is nobody's business"


async def test_twenty_calls_at_once_are_answered_in_any_order(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="many")
    caller = await new_caller(daemon, project)
    calls = [{"name": "ide_open_file", "arguments": {"path": f"f{n}"}} for n in range(20)]
    session_id = await caller.spawn(f"@tools {json.dumps(calls)}", "@say done")
    for request in reversed(await caller.pending(session_id, 20)):
        path = request["caller_tool"]["arguments"]["path"]
        assert (await caller.answer(session_id, request, result=f"{path} is open"))["accepted"]
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    got = [one["output"] for one in await outputs(daemon, session_id, "ide_open_file")]
    assert sorted(got) == sorted(f"f{n} is open" for n in range(20))


async def test_images_reach_the_model(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="pictures")
    caller = await new_caller(daemon, project, tools=[SELECTION])
    session_id = await caller.spawn(tool("ide_selection"), "@echo-last-tool", "@images")
    [request] = await caller.pending(session_id)
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    content = [{"type": "text", "text": "the selection"}, {"type": "image", "data": pixel, "mimeType": "image/png"}]
    await caller.answer(session_id, request, result=content)
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert "the selection" in done["final_text"], done
    assert "image/png" in done["final_text"], done


async def test_a_long_result_is_shortened_by_the_agent_for_its_model(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="long")
    caller = await new_caller(daemon, project, tools=[SELECTION])
    session_id = await caller.spawn(tool("ide_selection"), "@say done")
    [request] = await caller.pending(session_id)
    text = "\n".join(f"line {number} {'x' * 80}" for number in range(5_000))
    await caller.answer(session_id, request, result=text)
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    page = await daemon.call("session", action="events", session_id=session_id, types=["tool_result"], max_chars=10**6)
    [event] = page["events"]
    output = event["tool"]["output"]
    assert len(output) < 60_000
    assert output.startswith("line 0 ")
    assert "Full output saved to:" in output[-800:], output[-800:]


async def test_the_examples_of_the_page_work(daemon: Daemon, tmp_path: Path) -> None:
    project = await daemon.call("project", action="create", name="docs")
    caller = await new_caller(daemon, project)
    page = Path(__file__).parents[2].joinpath("docs/caller-tools.md").read_text()
    program = tmp_path / "example.py"
    program.write_text(page.partition("```python\n")[2].partition("```")[0])
    env = {"PATH": "/usr/bin:/bin", "URL": daemon.url, "TOKEN": caller.secret, "PROJECT": project["project_id"]}
    with trio.fail_after(SETTLE_SECONDS):
        done = await trio.run_process(
            [sys.executable, str(program)], env=env, capture_stdout=True, capture_stderr=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, b"src/a.py is open at line 12.\n"), done.stderr.decode()
        function, *commands = page.partition("```sh\n")[2].partition("```")[0].split("\ncall ")
        ids: Json = {}
        for command in commands:
            text = f"{function}\ncall {command}"
            for name, value in ids.items():
                text = text.replace(f"{name}_…", value)
            ran = await trio.run_process(["sh", "-c", text], env=env, capture_stdout=True)
            told = json.loads(ran.stdout)
            assert "error" not in told, (command, told)
            ids.setdefault("gogol", told.get("session_id"))
            for session in told.get("sessions", ()):
                for request in session["pending"]:
                    ids["req"] = request["request_id"]
    [last] = told["sessions"]
    assert last["final_text"] == "It is open at line 12."


# --- how else it ends


@pytest.mark.parametrize("daemon", [("bubblewrap", TIMEOUT_SECONDS)], indirect=True)
async def test_each_failure_is_told_to_the_agent_and_the_turn_goes_on(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="failures")
    caller = await new_caller(daemon, project)
    session_id = await caller.spawn(
        tool("ide_open_file", path="slow"),
        tool("ide_open_file", path="broken"),
        tool("ide_open_file"),
        tool("ide_open_file", path="fine"),
        "@echo-last-tool",
    )
    [slow] = await caller.pending(session_id)
    broken = slow
    with trio.fail_after(SETTLE_SECONDS):
        while broken["request_id"] == slow["request_id"]:
            [broken] = await caller.pending(session_id)
    late = await caller.answer(session_id, slow, result="too late")
    assert (late["accepted"], late["how"]) == (False, "expired")
    await caller.answer(session_id, broken, error="no such file: broken")
    fine = broken
    with trio.fail_after(SETTLE_SECONDS):
        while fine["request_id"] == broken["request_id"]:
            [fine] = await caller.pending(session_id)
    stranger = await new_caller(daemon, project)
    given = {"session_id": session_id, "request_id": fine["request_id"], "result": "not yours"}
    assert (await stranger.post("caller_tool_response", **given))[0] == 403
    await caller.answer(session_id, fine, result="opened")
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    results = await outputs(daemon, session_id, "ide_open_file")
    assert [one["status"] for one in results] == ["error", "error", "error", "completed"], results
    said = [one["output"] for one in results]
    assert f"Nobody answered the call of ide_open_file in {TIMEOUT_SECONDS:g} s." in said[0]
    assert said[1].endswith("no such file: broken")
    assert "ide_open_file needs path" in said[2]
    assert said[3] == "opened"
    assert [one["how"] for one in await resolutions(daemon, session_id)] == ["expired", "answered", "answered"]


async def test_a_stopped_turn_and_an_ended_token_end_the_call(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="ends")
    caller = await new_caller(daemon, project)
    script = (tool("ide_open_file", path="a"), "@say after", tool("ide_open_file", path="b"), "@echo-last-tool")
    session_id = await caller.spawn(*script)
    [request] = await caller.pending(session_id)
    await caller.call("session", action="interrupt", session_id=session_id)
    over = await daemon.until(session_id, lambda event: event["type"] == "completion")
    assert over["outcome"] == "cancelled"
    late = await caller.answer(session_id, request, result="too late")
    assert (late["accepted"], late["how"]) == (False, "cancelled")

    await caller.call("session", action="message", session_id=session_id, message=lines(*script))
    await caller.pending(session_id)
    await daemon.call("token", action="revoke", token_id=caller.token_id)
    await daemon.until(session_id, lambda event: event["type"] == "completion" and event["turn"] == 2)
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", "the session goes on"
    results = [one["output"] for one in await outputs(daemon, session_id, "ide_open_file")]
    assert "The caller is gone" in results[-2], results
    assert "This session has no tool ide_open_file" in results[-1], results
    assert "ide_open_file" in done["final_text"], done
    log = await daemon.events(session_id)
    changes = [event["data"] for event in log if event.get("code") == "caller_tools_changed"]
    assert [one["tools"] for one in changes] == [["open_file"], []]


# --- whose tools they are


async def test_other_sessions_of_the_workspace_never_see_it_not_even_those_that_run(
    daemon: Daemon, tmp_path: Path
) -> None:
    project = await daemon.call("project", action="create", name="neighbours")
    caller = await new_caller(daemon, project)
    work = Path(
        (await daemon.call("workspace", action="list", project_id=project["project_id"]))["workspaces"][0]["path"]
    )
    running = await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        model="scripted",
        message=lines(wait_for("go"), "@tools?", tool("ide_open_file", path="x"), "@echo-last-tool"),
    )
    await daemon.until(running["session_id"], lambda event: event["type"] == "tool_call")

    child = tool("oubliette_session", action="spawn", message=lines("@tools?", tool("ide_open_file", path="x")))
    session_id = await caller.spawn("@tools?", child, tool("ide_open_file", path="a"), "@echo-last-tool")
    [request] = await caller.pending(session_id)
    (work / "go").touch()
    neighbour = await daemon.settle(running["session_id"], timeout_seconds=SETTLE_SECONDS)
    [born] = (await daemon.call("session", action="list", parent_id=session_id))["sessions"]
    below = await daemon.settle(born["session_id"], timeout_seconds=SETTLE_SECONDS)
    await caller.answer(session_id, request, result="mine alone")
    own = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert "mine alone" in own["final_text"]

    assert "ide_open_file" in await offered(daemon, session_id)
    for other in (neighbour, below):
        tools = await offered(daemon, other["session_id"])
        assert {"bash", "oubliette_session"} <= tools
        assert "ide_open_file" not in tools
    assert await resolutions(daemon, running["session_id"]) == []


async def test_callers_of_one_workspace_keep_to_themselves(daemon: Daemon) -> None:
    """Other caller ids, and one id from two tokens with other tools."""
    project = await daemon.call("project", action="create", name="two")
    first = await new_caller(daemon, project)
    second = await new_caller(daemon, project, tools=[SELECTION])
    third = await new_caller(daemon, project, caller_id="desk", tools=[SELECTION])
    mine = {first: ("ide_open_file", {"path": "x"}), second: ("ide_selection", {}), third: ("desk_selection", {})}
    sessions = {
        caller.token_id: await caller.spawn("@tools?", tool(name, **arguments), "@echo-last-tool")
        for caller, (name, arguments) in mine.items()
    }
    for caller, (name, _) in mine.items():
        session_id = sessions[caller.token_id]
        [request] = await caller.pending(session_id)
        for other in set(mine) - {caller}:
            given = {"session_id": session_id, "request_id": request["request_id"], "result": "stolen"}
            assert (await other.post("caller_tool_response", **given))[0] == 403
        await caller.answer(session_id, request, result=f"answered by {caller.token_id}")
        done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
        assert f"answered by {caller.token_id}" in done["final_text"], done
        names = {"ide_open_file", "ide_selection", "desk_selection"}
        assert names & await offered(daemon, session_id) == {name}


async def test_a_list_that_changes_while_the_turn_runs(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="changes")
    caller = await new_caller(daemon, project)
    work = Path(
        (await daemon.call("workspace", action="list", project_id=project["project_id"]))["workspaces"][0]["path"]
    )
    session_id = await caller.spawn(wait_for("go"), tool("ide_open_file", path="x"), "@echo-last-tool")
    await daemon.until(session_id, lambda event: event["type"] == "tool_call")
    script = lines(tool("ide_selection"), "@echo-last-tool")
    caller.tools = [SELECTION]
    message = {"action": "message", "session_id": session_id, "message": script}
    await caller.call("session", **message, **caller.declared())
    (work / "go").touch()
    [request] = await caller.pending(session_id)
    assert request["caller_tool"]["name"] == "selection"
    await caller.answer(session_id, request, result="four lines")
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert "four lines" in done["final_text"], done
    log = await daemon.events(session_id)
    first = next(event for event in log if event["type"] == "completion")
    assert "ide_open_file" in first["text"], first
    assert not [event for event in log if event["type"] == "caller_tool_request" and event["turn"] == 1]


# --- deaths


async def test_an_agent_that_was_killed_has_the_tools_again(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="killed")
    caller = await new_caller(daemon, project)
    session_id = await caller.spawn(tool("ide_open_file", path="a"), "@say unreachable")
    await caller.pending(session_id)
    killer = await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        model="scripted",
        new_session=True,
        message=tool("bash", command="kill -9 $PPID", description="kill the agent"),
    )
    over = await daemon.until(session_id, lambda event: event["type"] == "completion")
    assert over["outcome"] == "interrupted"
    await daemon.settle(killer["session_id"], timeout_seconds=SETTLE_SECONDS)
    assert [one["how"] for one in await resolutions(daemon, session_id)] == ["cancelled"]
    script = lines(tool("ide_open_file", path="b"), "@echo-last-tool")
    await caller.call("session", action="message", session_id=session_id, message=script)
    [request] = await caller.pending(session_id)
    await caller.answer(session_id, request, result="back again")
    done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
    assert "back again" in done["final_text"], done


async def test_a_daemon_that_dies_while_a_call_waits_is_found_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}
    async with open_daemon(home, config) as daemon:
        project = await daemon.call("project", action="create", name="twice")
        caller = await new_caller(daemon, project)
        session_id = await caller.spawn(
            tool("ide_open_file", path="a"), tool("ide_open_file", path="b"), "@echo-last-tool"
        )
        [before] = await caller.pending(session_id)
        daemon.kill()
        again = await ready(start(home))
        daemon.process, daemon.url, daemon.token = again.process, again.url, again.token
        late = await caller.answer(session_id, before, result="too late")
        assert (late["accepted"], late["how"]) == (False, "cancelled")
        [request] = await caller.pending(session_id)
        assert request["caller_tool"]["arguments"] == {"path": "b"}
        await caller.answer(session_id, request, result="after the restart")
        done = await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)
        results = await outputs(daemon, session_id, "ide_open_file")
        assert done["outcome"] == "completed", (done, results)
        assert [one["status"] for one in results] == ["error", "completed"], results
        assert "The connection to Oubliette broke" in results[0]["output"]
        assert "after the restart" in done["final_text"]
