"""What clients offer to the agents of their sessions: declared, listed, replaced, given to the agent."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from oubliette.api import callers
from oubliette.core.model import Json
from oubliette.store import sessions
from tests.api.agent_world import OTHER_WORKSPACE, PATIENCE, open_agents, settings
from tests.api.caller_world import (
    OPEN_FILE,
    SELECTION,
    answer,
    asking,
    at_the_door,
    heard,
    named,
    names,
    page,
    pending,
    prompted,
    refused,
    spawn,
)
from tests.api.world import PROJECT, WORKSPACE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most agents here ask for no list: their prompts need not wait for it."""
    monkeypatch.setattr(callers, "SHOWN_SECONDS", 0.1)


# --- the list


async def test_a_later_message_replaces_the_list_and_the_agent_is_told(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        assert await names(wire) == ["open_file"]
        await wire.say(asking(1, stamp, path="a.py"))
        await pending(agents, session_id)
        change = partial(agents.doors.tool, "session", "project", action="message", session_id=session_id, message="x")
        await change(caller_id="ide", caller_tools=[SELECTION, named("save")])
        messages = [await wire.hear()]
        while len(messages) < 2 or not any("id" in message for message in messages):
            messages.append(await wire.hear())
        assert {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"} in messages
        [ended] = [message["result"] for message in messages if "id" in message]
        assert "withdrawn by its caller" in ended["content"][0]["text"]
        assert await names(wire) == ["selection", "save"]
        await wire.say(asking(3, stamp, path="a.py"))
        assert (await refused(wire, 3)).startswith("not_found: ")
        await wire.say(asking(4, stamp, "selection"))
        [request] = await pending(agents, session_id)

        await change(caller_id="ide")
        await change()
        assert (await pending(agents, session_id)) == [request], "who declares nothing changes nothing"
        await change(caller_id="ide", caller_tools=[])
        assert "withdrawn by its caller" in await refused(wire, 4)
        assert await names(wire) == []
        log = await agents.doors.world.log(session_id)
        told = [one.body["data"]["tools"] for one in log if one.body.get("code") == "caller_tools_changed"]
        assert told == [["open_file"], ["selection", "save"], []]


async def test_two_callers_of_one_session_each_have_their_own(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire), agents.wire(caller_id="desk") as desk:
        session_id, stamp = await spawn(agents)
        message = {"action": "message", "session_id": session_id, "message": "x"}
        await agents.doors.tool("session", "admin", **message, caller_id="desk", caller_tools=[named("print")])
        assert (await names(wire), await names(desk)) == (["open_file"], ["print"])
        await desk.say(asking(1, stamp, "print"))
        [request] = await pending(agents, session_id)
        given = {"session_id": session_id, "request_id": request["request_id"], "result": "x"}
        assert (await agents.doors.call("caller_tool_response", "project", **given)).status_code == 403
        await answer(agents, session_id, request, "admin", result="printed")
        assert await heard(desk, 1) == (False, [{"type": "text", "text": "printed"}])


async def test_two_tokens_may_use_one_caller_id_in_a_workspace_but_not_in_a_session(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        await agents.doors.add_token("colleague", f"project:{PROJECT}")
        mine, stamp = await spawn(agents, "project", "ide", OPEN_FILE, named("both", a={"type": "string"}))
        theirs, their_stamp = await spawn(agents, "colleague", "ide", SELECTION, named("both", b={"type": "number"}))
        listed = {tool["name"]: tool for tool in (await page(wire))["tools"]}
        assert set(listed) == {"open_file", "selection", "both"}
        assert listed["both"]["inputSchema"]["properties"] == {"a": {"type": "string"}, "b": {"type": "number"}}

        for number, one, name in ((1, stamp, "selection"), (2, their_stamp, "open_file")):
            await wire.say(asking(number, one, name, path="x"))
            assert (await refused(wire, number)).startswith(f"not_found: This session has no tool ide_{name}")
        await wire.say(asking(3, stamp, "both", a="x"))
        await wire.say(asking(4, their_stamp, "both", b=1))
        [own], [other] = await pending(agents, mine), await pending(agents, theirs)
        given = {"session_id": mine, "request_id": own["request_id"], "result": "x"}
        assert (await agents.doors.call("caller_tool_response", "colleague", **given)).status_code == 403
        await answer(agents, theirs, other, "colleague", result="theirs")
        await answer(agents, mine, own, "project", result="mine")
        assert await heard(wire, 4) == (False, [{"type": "text", "text": "theirs"}])
        assert await heard(wire, 3) == (False, [{"type": "text", "text": "mine"}])

        message = {"action": "message", "session_id": mine, "message": "x", "caller_id": "ide", "caller_tools": []}
        clash = await agents.doors.call("session", "colleague", **message)
        assert clash.status_code == 409
        assert clash.json()["error"]["field"] == "caller_id"
        assert (await agents.doors.world.row(mine)).turn == 1, "nothing was queued"


async def test_other_workspaces_do_not_see_it(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire), agents.wire("c0ffee01", "ide") as far:
        await spawn(agents)
        _, stamp = await spawn(agents, "project", "ide", SELECTION, workspace_id=OTHER_WORKSPACE)
        assert (await names(wire), await names(far)) == (["open_file"], ["selection"])
        await wire.say(asking(1, stamp, "selection"))
        assert (await refused(wire)).startswith("not_found: No session of this container")


async def test_a_long_list_comes_in_pages(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        for number in range(6):
            tools = [
                named(f"t{number}_{one}", **{f"p{n}": {"description": "x" * 900} for n in range(10)})
                for one in range(12)
            ]
            await spawn(agents, "project", "ide", *tools)
        found: list[str] = []
        cursor = None
        while True:
            answered = await page(wire, cursor)
            found += [tool["name"] for tool in answered["tools"]]
            cursor = answered.get("nextCursor")
            if cursor is None:
                break
        assert len(found) == len(set(found)) == 72


# --- who may call


async def test_neither_a_child_nor_a_neighbour_may_call_it_nor_offer_any(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire), agents.wire() as own:
        session_id, stamp = await spawn(agents)
        child = await own.result(stamp, action="spawn", message="sleep")
        _, child_stamp = await agents.at_work(child["session_id"])
        _, neighbour = await agents.session()
        for number, one in enumerate((child_stamp, neighbour)):
            await wire.say(asking(number, one, path="a.py"))
            assert (await refused(wire, number)).startswith("not_found: This session has no tool ide_open_file")
        offers = {"caller_id": "mine", "caller_tools": [SELECTION]}
        for more in ({"action": "spawn"}, {"action": "message", "session_id": child["session_id"]}):
            failed, text = await own.call("session", stamp, message="x", **more, **offers)
            assert failed
            assert text.startswith("permission_denied: caller_")
        assert await pending(agents, session_id, 0) == []


async def test_lists_of_tools_hold_for_these_as_well(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        lists: list[Json] = [{"tools_disallowed": ["ide_open_file"]}, {"tools_allowed": ["read"]}]
        for number, given in enumerate(lists):
            _, stamp = await spawn(agents, **given)
            await wire.say(asking(number, stamp, path="x"))
            assert (await refused(wire, number)).startswith("permission_denied: ")
        _, stamp = await spawn(agents)
        await settings(agents, disabled_tools=["ide_*"])
        await wire.say(asking(7, stamp, path="x"))
        assert (await refused(wire, 7)).startswith("permission_denied: ")


async def test_a_call_that_its_own_declaration_does_not_know_is_refused(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        strict: Json = {
            **named("strict", a={}),
            "input_schema": {"properties": {"a": {}}, "additionalProperties": False},
        }
        session_id, stamp = await spawn(agents, "project", "ide", OPEN_FILE, strict)
        calls: list[tuple[str, Json, str]] = [
            ("open_file", {}, "ide_open_file needs path."),
            ("strict", {"b": 1}, "ide_strict has no argument 'b'. It takes a."),
            ("open_file", {"path": "x" * 300_000}, "larger than 256 KiB"),
            ("nothing", {}, "This session has no tool ide_nothing"),
        ]
        for number, (name, arguments, words) in enumerate(calls):
            await wire.say(asking(number, stamp, name, **arguments))
            assert words in await refused(wire, number)
        await wire.say(asking(9, None, path="x"))
        assert (await refused(wire, 9)).startswith("invalid_argument: The call does not say which session")
        assert await pending(agents, session_id, 0) == []


# --- declarations


def schema(**more: Any) -> list[Json]:
    return [{"name": "t", "input_schema": more}]


BAD_DECLARATIONS: list[tuple[Json, str]] = [
    ({"caller_tools": [OPEN_FILE]}, "caller_id is needed"),
    ({"caller_id": "IDE", "caller_tools": [OPEN_FILE]}, "small letter"),
    ({"caller_id": "x" * 25, "caller_tools": [OPEN_FILE]}, "small letter"),
    ({"caller_id": "a_b"}, "small letter"),
    ({"caller_id": "oubliette", "caller_tools": [OPEN_FILE]}, "may not be oubliette"),
    ({"caller_id": "docs", "caller_tools": [OPEN_FILE]}, "MCP server 'docs'"),
    ({"caller_id": "my", "caller_tools": [OPEN_FILE]}, "MCP server 'my.notes'"),
    ({"caller_id": "ide", "caller_tools": "no"}, "caller_tools must be an array"),
    ({"caller_id": "ide", "caller_tools": ["no"]}, "caller_tools must hold objects"),
    ({"caller_id": "ide", "caller_tools": [{}]}, "tool 1 needs a name"),
    ({"caller_id": "ide", "caller_tools": [OPEN_FILE, {"name": "a b"}]}, "tool 2 needs a name"),
    ({"caller_id": "ide", "caller_tools": [{"name": "x" * 61}]}, "longer than 64 characters"),
    ({"caller_id": "ide", "caller_tools": [OPEN_FILE, OPEN_FILE]}, "two tools named open_file"),
    ({"caller_id": "apply", "caller_tools": [{"name": "patch"}]}, "apply_patch"),
    ({"caller_id": "ide", "caller_tools": [{"name": "t", "strict": True}]}, "'strict'"),
    ({"caller_id": "ide", "caller_tools": [{"name": "t", "description": 7}]}, "must be a string"),
    ({"caller_id": "ide", "caller_tools": [{"name": "t", "description": "x" * 5000}]}, "longer than 4 KiB"),
    ({"caller_id": "ide", "caller_tools": [{"name": "t", "input_schema": []}]}, "JSON Schema object"),
    ({"caller_id": "ide", "caller_tools": schema(type="string")}, "type object"),
    ({"caller_id": "ide", "caller_tools": schema(anyOf=[])}, "anyOf"),
    ({"caller_id": "ide", "caller_tools": schema(properties=[])}, "properties of t"),
    ({"caller_id": "ide", "caller_tools": schema(properties={"a b": {}})}, "'a b'"),
    ({"caller_id": "ide", "caller_tools": schema(properties={"_session": {}})}, "'_session'"),
    ({"caller_id": "ide", "caller_tools": schema(required="a")}, "required must be a list"),
    ({"caller_id": "ide", "caller_tools": schema(description="x" * 40_000)}, "larger than 32 KiB"),
    ({"caller_id": "ide", "caller_tools": [named(f"t{n}", a={"x": "y" * 20_000}) for n in range(8)]}, "128 KiB"),
    ({"caller_id": "ide", "caller_tools": [{"name": f"t{n}"} for n in range(65)]}, "64"),
]


async def test_a_bad_declaration_is_one_clear_sentence_and_changes_nothing(tmp_path: Path) -> None:
    servers = {
        "docs": {"type": "remote", "url": "https://docs.example"},
        "my.notes": {"type": "local", "command": ["x"]},
    }
    async with open_agents(tmp_path) as agents:
        await settings(agents, mcp_servers=servers)
        for declared, words in BAD_DECLARATIONS:
            given = {"action": "spawn", "project_id": PROJECT, "message": "sleep", "model": "scripted", **declared}
            answered = await agents.doors.call("session", "project", **given)
            error = answered.json()["error"]
            assert answered.status_code in (400, 409, 413, 429), (declared, error)
            assert error["field"] in ("caller_id", "caller_tools"), error
            assert words in error["message"], error
        assert await agents.doors.world.store.read(sessions.open_count) == 0


async def test_mcps_own_spelling_and_json_text_are_understood(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        tools = json.dumps([{"name": "save", "inputSchema": {"properties": {"all": {"type": "boolean"}}}}])
        given = {"project_id": PROJECT, "message": "sleep", "model": "scripted", "caller_id": "ide"}
        await agents.doors.tool("session", "project", action="spawn", caller_tools=tools, **given)
        [tool] = (await page(wire))["tools"]
        assert tool["inputSchema"] == {"type": "object", "properties": {"all": {"type": "boolean"}}}


async def test_there_may_be_only_so_many_callers(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        session_id, _ = await spawn(agents, caller_id="c0")
        message = {"action": "message", "session_id": session_id, "message": "x", "caller_tools": [SELECTION]}
        for number in range(1, 8):
            await agents.doors.tool("session", "project", caller_id=f"c{number}", **message)
        many = await agents.doors.call("session", "project", caller_id="c8", **message)
        assert many.json()["error"]["limit"] == {"name": "callers_per_session", "limit": 8, "used": 8}
        other, _ = await spawn(agents, caller_id="d0")
        for number in range(1, 8):
            await agents.doors.tool("session", "project", caller_id=f"d{number}", **{**message, "session_id": other})
        given: Json = {"project_id": PROJECT, "message": "sleep", "model": "scripted", "new_session": True}
        full = await agents.doors.call("session", action="spawn", caller_id="e", caller_tools=[SELECTION], **given)
        assert full.json()["error"]["limit"]["name"] == "callers_per_project"
        await agents.doors.tool("session", action="end", session_id=other)
        await agents.doors.tool("session", action="spawn", caller_id="e", caller_tools=[SELECTION], **given)


# --- what the agent is given


async def test_the_agent_gets_a_server_for_each_caller_and_gets_it_again_when_it_was_lost(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        agent = agents.doors.world.agent
        directory = f"/workspaces/{WORKSPACE}"
        session_id, stamp = await spawn(agents)
        prompt = await prompted(agents, stamp)
        assert prompt.spec is not None
        assert prompt.spec.caller_tools == ["ide_open_file"]
        [(where, name, config)] = agent.added
        assert (where, name, config["command"][-1], config["timeout"]) == (directory, "ide", "ide", 90_000)
        assert json.loads(agents.doors.world.container.files["stamped.json"]) == ["ide"]

        _, other = await spawn(agents)
        await prompted(agents, other)
        assert len(agent.added) == 1, "a server that is there is left alone"
        agent.servers.clear()  # as after a restart of the agent
        await agents.doors.tool("session", action="interrupt", session_id=session_id)
        await agents.doors.tool("session", action="message", session_id=session_id, message="sleep")
        await prompted(agents, stamp, 2)
        assert [one[1] for one in agent.added] == ["ide", "ide"]
        _, plain = await agents.session()
        spec = (await prompted(agents, plain)).spec
        assert spec is not None
        assert (spec.caller_tools, spec.mcp_servers) == ([], [])
        assert len(agent.added) == 2, "whose session has no callers needs no server"


async def test_a_server_that_nobody_uses_any_more_is_taken_away(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        servers = agents.doors.world.agent.servers
        servers[f"/workspaces/{WORKSPACE}"] = {"oubliette": True}
        first, stamp = await spawn(agents, caller_id="one")
        await prompted(agents, stamp)
        await agents.doors.tool("session", action="end", session_id=first)
        _, stamp = await spawn(agents, caller_id="two")
        await prompted(agents, stamp)
        assert servers[f"/workspaces/{WORKSPACE}"] == {"oubliette": True, "one": False, "two": True}


async def test_a_server_that_cannot_be_had_is_said_and_the_turn_goes_on(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        agents.doors.world.agent.refuses_servers = True
        session_id, stamp = await spawn(agents)
        await prompted(agents, stamp)
        [event] = [one for one in await agents.doors.world.log(session_id) if one.type == "error"]
        assert "The tools of caller ide could not be given to the agent" in event.body["error"]["message"]


async def test_a_server_that_the_project_gets_later_wins_its_name(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        session_id, stamp = await spawn(agents)
        await prompted(agents, stamp)
        await settings(agents, mcp_servers={"ide": {"type": "remote", "url": "https://ide.example"}})
        agents.doors.world.agent.servers.clear()
        await agents.doors.tool("session", action="interrupt", session_id=session_id)
        await agents.doors.tool("session", action="message", session_id=session_id, message="sleep")
        await prompted(agents, stamp, 2)
        assert len(agents.doors.world.agent.added) == 1
        [event] = [one for one in await agents.doors.world.log(session_id) if one.type == "error"]
        assert "has got an MCP server of that name" in event.body["error"]["message"]


async def test_a_prompt_waits_until_the_agent_has_the_newest_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "SHOWN_SECONDS", PATIENCE)
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        assert await names(wire) == ["open_file"]
        await prompted(agents, stamp)
        await agents.doors.tool("session", action="interrupt", session_id=session_id)
        await agents.doors.world.until(session_id, "idle")
        message = {"action": "message", "session_id": session_id, "message": "sleep"}
        await agents.doors.tool("session", "project", **message, caller_id="ide", caller_tools=[SELECTION])
        assert (await wire.hear())["method"] == "notifications/tools/list_changed"
        await agents.doors.world.until(session_id, "running")
        assert len(agents.doors.world.agent.turns[stamp]) == 1, "the prompt was not sent yet"
        assert await names(wire) == ["selection"]
        await prompted(agents, stamp, 2)
