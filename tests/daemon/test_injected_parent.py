"""A prompt-injected agent, the real one in a real sandbox, that tries to get more than it has by every way it knows."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.harness import Daemon, Json, open_daemon

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

SETTLE_SECONDS = 150
RAW = """
import json, socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(20)
peer.connect("/run/oubliette/relay.sock")
peer.sendall(b'{"hello":"mcp","container":"another","session":"another"}\\n')
lines = peer.makefile("rb")
said = {}
for number, (name, tool, arguments) in enumerate(json.loads(sys.argv[1])):
    call = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    peer.sendall(json.dumps(call).encode() + b"\\n")
    answer = json.loads(lines.readline())
    result = answer.get("result") or {"isError": True, "content": [{"text": json.dumps(answer)}]}
    said[name] = [bool(result.get("isError")), result["content"][0]["text"][:2000]]
print(json.dumps(said))
"""
"""Runs inside, from the agent's bash tool: calls on the relay's socket, as whoever it likes."""


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    async with open_daemon(home, {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}) as daemon:
        yield daemon


def directive(tool: str, **arguments: object) -> str:
    return f"@tool {tool} {json.dumps(arguments)}"


async def spawn(daemon: Daemon, project: Json, script: str, **more: Any) -> Json:
    return await daemon.call(
        "session",
        action="spawn",
        project_id=project["project_id"],
        message=script,
        model="scripted",
        new_session=True,
        **more,
    )


def stamp_of(daemon: Daemon, session_id: str) -> str:
    """The agent's own id of the session, which no door shows."""
    with sqlite3.connect(f"file:{daemon.home / 'data' / 'oubliette.db'}?mode=ro", uri=True) as store:
        [(stamp,)] = store.execute("SELECT agent_session_id FROM sessions WHERE session_id = ?", [session_id])
    store.close()
    return str(stamp)


async def results(daemon: Daemon, session_id: str, name: str) -> list[Json]:
    return [
        event["tool"]
        for event in await daemon.events(session_id)
        if event["type"] == "tool_result" and event["tool"]["name"] == name
    ]


async def test_every_attempt_through_its_own_tools_is_refused_and_said(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="shop")
    other = await daemon.call("project", action="create", name="bank")
    stranger = (await spawn(daemon, other, "@say I am of another project"))["session_id"]
    beside = (await spawn(daemon, project, "@say I am somebody else's", create_workspace=True))["session_id"]
    for one in (stranger, beside):
        await daemon.settle(one, timeout_seconds=SETTLE_SECONDS)
    away = (await daemon.call("session", action="get", session_id=beside))["workspace_id"]
    far = other["default_workspace_id"]
    hi = {"action": "spawn", "message": "@say hi"}
    attempts: list[tuple[str, Json, str]] = [
        ("session", {**hi, "autonomy_level": "off"}, "permission_denied"),
        ("session", {**hi, "tools_allowed": ["webfetch"]}, "permission_denied"),
        ("session", {**hi, "timeout_minutes": 9999}, "permission_denied"),
        ("session", {**hi, "max_cost_usd": 500}, "permission_denied"),
        ("session", {**hi, "model": "opus"}, "invalid_argument"),
        ("session", {**hi, "project_id": other["project_id"]}, "permission_denied"),
        ("session", {**hi, "workspace_id": far}, "not_found"),
        ("session", {**hi, "workspace_id": away}, "not_found"),
        ("session", {**hi, "attachments": [{"filename": "x", "url": "http://169.254.169.254/"}]}, "permission_denied"),
        ("session", {"action": "get", "session_id": stranger}, "not_found"),
        ("session", {"action": "events", "session_id": beside}, "not_found"),
        ("session", {"action": "diff", "session_id": beside}, "not_found"),
        ("session", {"action": "cancel", "session_id": beside}, "not_found"),
        ("session", {"action": "message", "session_id": stranger, "message": "@say owned"}, "not_found"),
        ("session", {"action": "answer", "request_id": "req_1", "reply": "once"}, "permission_denied"),
        ("session", {"action": "update", "session_id": beside, "max_cost_usd": 500}, "permission_denied"),
        ("workspace", {"action": "read", "workspace_id": far, "path": "x"}, "not_found"),
        ("workspace", {"action": "files", "workspace_id": away}, "not_found"),
        ("workspace", {"action": "create", "from_workspace": far}, "not_found"),
        ("workspace", {"action": "delete", "workspace_id": away}, "permission_denied"),
    ]
    script = "\n".join(directive(f"oubliette_{tool}", **arguments) for tool, arguments, _ in attempts)
    root = (await spawn(daemon, project, script, autonomy_level="medium", tools_disallowed=["webfetch"]))["session_id"]
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    said = [
        event["tool"]
        for event in await daemon.events(root)
        if event["type"] == "tool_result" and event["tool"]["name"].startswith("oubliette_")
    ]
    wrong = [
        (arguments, tool["status"], tool["output"][:200])
        for tool, (_, arguments, code) in zip(said, attempts, strict=True)
        if tool["status"] != "error" or f"{code}: " not in tool["output"]
    ]
    assert not wrong
    listed = await daemon.call("session", action="list", limit=100)
    assert {one["session_id"] for one in listed["sessions"]} == {root, stranger, beside}, "nothing came of any"


async def test_a_forged_stamp_on_the_socket_gains_nothing_that_the_container_does_not_have(daemon: Daemon) -> None:
    """A parent with more rights, and its child in a container of its own, whose bash tool speaks on the socket."""
    project = await daemon.call("project", action="create", name="shop")
    other = await daemon.call("project", action="create", name="bank")
    stranger = (await spawn(daemon, other, "@say another project"))["session_id"]
    beside = (await spawn(daemon, project, "@say another workspace", create_workspace=True))["session_id"]
    for one in (stranger, beside):
        await daemon.settle(one, timeout_seconds=SETTLE_SECONDS)
    asleep = "@tool bash " + json.dumps({"command": "sleep 100", "description": "sleep"})
    child = directive("oubliette_session", action="spawn", message="@say awake", workspace="new", autonomy_level="low")
    parent = (await spawn(daemon, project, f"{child}\n{directive('oubliette_session', action='wait')}\n{asleep}"))[
        "session_id"
    ]
    await daemon.until(parent, lambda event: event["type"] == "tool_call" and event["tool"]["name"] == "bash")
    [below] = (await daemon.call("session", action="list", parent_id=parent))["sessions"]
    inside = below["session_id"]
    assert below["workspace_id"] != project["default_workspace_id"]
    own = stamp_of(daemon, inside)
    free = {"action": "spawn", "message": "@say forged", "autonomy_level": "off"}
    calls: list[tuple[str, str, Json]] = [
        (name, "session", {**free, "_session": stamp})
        for name, stamp in (
            ("as its parent", stamp_of(daemon, parent)),
            ("as one of another workspace", stamp_of(daemon, beside)),
            ("as one of another project", stamp_of(daemon, stranger)),
            ("as nobody", "ses_00000000000000000000000000"),
            ("by its session id", inside),
        )
    ]
    calls += [
        ("unstamped", "session", free),
        ("with two stamps", "session", {**free, "_session": [own, stamp_of(daemon, parent)]}),
        ("as an admin", "token", {"action": "create", "name": "x", "scope": "admin", "_session": own}),
        ("on its parent", "session", {"action": "cancel", "session_id": parent, "_session": own}),
        ("on another's files", "workspace", {
            "action": "files", "workspace_id": project["default_workspace_id"], "_session": own,
        }),
        ("with more autonomy", "session", {**free, "_session": own}),
        ("as itself", "session", {"action": "list", "_session": own}),
    ]  # fmt: skip
    command = f"python3 -c {shlex.quote(RAW)} {shlex.quote(json.dumps(calls))}"
    attack = "@tool bash " + json.dumps({"command": command, "description": "attack"})
    before = {one["session_id"] for one in (await daemon.call("session", action="list", limit=100))["sessions"]}
    asked = await daemon.call("session", action="message", session_id=inside, message=attack, autonomy_level="off")
    assert asked["status"]
    done = await daemon.settle(inside, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    [shown] = await results(daemon, inside, "bash")
    said: dict[str, tuple[bool, str]] = json.loads(shown["output"])
    failed, text = said.pop("as itself")
    assert not failed, text
    assert inside in text
    expected = {
        "unstamped": "invalid_argument",
        "with two stamps": "invalid_argument",
        "as an admin": "permission_denied",
    }
    allowed = said.pop("with more autonomy")
    wrong = {
        name: answer
        for name, answer in said.items()
        if not answer[0] or not answer[1].startswith(expected.get(name, "not_found") + ": ")
    }
    assert not wrong
    after = {one["session_id"] for one in (await daemon.call("session", action="list", limit=100))["sessions"]}
    # Its operator's own message runs with autonomy off: then a child may have it. Nobody else got one.
    assert not allowed[0], allowed
    [new] = after - before
    assert (await daemon.call("session", action="get", session_id=new))["parent_id"] == inside
    await daemon.call("session", action="cancel", session_id=parent)
