"""Tools that clients offer to the agents of their sessions: declared, called, answered, taken back."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.agent.base import Prompt
from oubliette.api import callers
from oubliette.core.caller_results import result_of
from oubliette.core.limits import MAX_CALLER_CALLS, MAX_CALLER_RESULT_BYTES
from oubliette.core.model import EventType, Json
from oubliette.store import caller_tools, requests, sessions
from tests.api.agent_world import OTHER_WORKSPACE, PATIENCE, Agents, Wire, open_agents, settings
from tests.api.world import PROJECT, WORKSPACE, eventually, read_sse
from tests.session.fakes import FakeAgent
from tests.session.world import ADMIN, open_world

OPEN_FILE: Json = {
    "name": "open_file",
    "description": "Show a file in the editor.",
    "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
SELECTION: Json = {"name": "selection", "description": "What is selected in the editor."}
LONG = {"agent": {"caller_tool_timeout_seconds": 30}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most agents here ask for no list: their prompts need not wait for it."""
    monkeypatch.setattr(callers, "SHOWN_SECONDS", 0.1)


def named(name: str, **properties: Any) -> Json:
    return {"name": name, "description": name, "input_schema": {"type": "object", "properties": properties}}


async def spawn(
    agents: Agents, who: str = "project", caller_id: str = "ide", *tools: Json, **more: Any
) -> tuple[str, str]:
    """A session at work whose caller has these tools: its id and its agent's stamp."""
    given: Json = {"project_id": PROJECT, "message": "sleep", "model": "scripted", "new_session": True, **more}
    spawned = await agents.doors.tool(
        "session", who, action="spawn", caller_id=caller_id, caller_tools=list(tools or (OPEN_FILE,)), **given
    )
    return await agents.at_work(spawned["session_id"])


def asking(number: int, stamp: str | None, name: str = "open_file", **arguments: Any) -> Json:
    given = {**arguments, "_session": stamp} if stamp is not None else arguments
    return {"id": number, "method": "tools/call", "params": {"name": name, "arguments": given}}


async def prompted(agents: Agents, stamp: str, count: int = 1) -> Prompt:
    """The newest prompt of that agent session, once it has got so many."""
    turns = agents.doors.world.agent.turns
    with trio.fail_after(PATIENCE):
        while len(turns[stamp]) < count:
            await trio.sleep(0.01)
    return turns[stamp][-1].prompt


async def pending(agents: Agents, session_id: str, count: int = 1) -> list[Json]:
    """The calls that wait, once there are so many."""

    async def look() -> list[Json]:
        return list((await agents.doors.tool("session", action="get", session_id=session_id))["pending"])

    with trio.fail_after(PATIENCE):
        return await eventually(look, lambda found: len(found) == count)


async def answer(agents: Agents, session_id: str, request: Json, who: str = "project", **said: Any) -> Json:
    return await agents.doors.tool(
        "caller_tool_response", who, session_id=session_id, request_id=request["request_id"], **said
    )


async def heard(wire: Wire, number: int) -> tuple[bool, list[Json]]:
    """The answer to that call: (whether it is an error, its content). Other messages are passed over."""
    while (message := await wire.hear()).get("id") != number:
        assert "id" not in message
    return bool(message["result"].get("isError")), message["result"]["content"]


async def refused(wire: Wire, number: int = 1) -> str:
    """The text of the error that the agent got."""
    failed, [content] = await heard(wire, number)
    assert failed
    return str(content["text"])


async def resolution(agents: Agents, session_id: str) -> Json:
    """How the newest call was settled, as the events tell it."""
    log = await agents.doors.world.log(session_id)
    return dict([event.body["resolution"] for event in log if event.type is EventType.REQUEST_RESOLVED][-1])


async def page(wire: Wire, cursor: str | None = None) -> Json:
    """The agent's server asks for the list, or for a later page of it."""
    await wire.say({"id": "list", "method": "tools/list", "params": {"cursor": cursor} if cursor else {}})
    while (message := await wire.hear()).get("id") != "list":
        assert message["method"] == "notifications/tools/list_changed"
    return dict(message["result"])


async def names(wire: Wire) -> list[str]:
    return [tool["name"] for tool in (await page(wire))["tools"]]


@asynccontextmanager
async def at_the_door(path: Path, **defaults: Any) -> AsyncIterator[tuple[Agents, Wire]]:
    """The doors, and the stream of the agent's server of the caller ``ide``."""
    async with open_agents(path, defaults={**LONG, **defaults}) as agents, agents.wire(caller_id="ide") as wire:
        yield agents, wire


# --- a call and its answer


async def test_a_call_reaches_the_caller_and_its_answer_the_agent(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        [tool] = (await page(wire))["tools"]
        assert (tool["name"], tool["description"]) == (OPEN_FILE["name"], OPEN_FILE["description"])
        assert tool["inputSchema"] == OPEN_FILE["input_schema"]

        await wire.say(asking(1, stamp, path="a.py"))
        waited = await agents.doors.tool("session", action="wait", session_ids=[session_id], wait_seconds=20)
        [waiting] = waited["sessions"]
        assert waiting["status"] == "waiting"
        [request] = waiting["pending"]
        assert request["kind"] == "caller_tool"
        assert request["caller_tool"] == {"caller_id": "ide", "name": "open_file", "arguments": {"path": "a.py"}}
        assert request["expires_at"] > request["created_at"]
        shown = await agents.doors.tool("session", action="get", session_id=session_id)
        assert (shown["status"], shown["reason"], shown["pending"]) == ("waiting", "caller_tool", [request])
        [event] = [one for one in await agents.doors.world.log(session_id) if one.type == "caller_tool_request"]
        assert event.body["request"] == request
        assert event.turn == 1

        told = await answer(agents, session_id, request, result="shown")
        assert (told["accepted"], told["how"], told["reply"]) == (True, "answered", "result")
        assert await heard(wire, 1) == (False, [{"type": "text", "text": "shown"}])
        settled = await resolution(agents, session_id)
        assert settled["by"]["id"] == "tok_api_project"
        assert "shown" not in json.dumps(settled), "what was answered is in the agent's own log"
        assert (await agents.doors.world.row(session_id)).status == "running"


PIXEL = base64.b64encode(b"\x89PNG").decode()
RESULTS: list[tuple[Any, list[Json]]] = [
    ("plain words", [{"type": "text", "text": "plain words"}]),
    ("", [{"type": "text", "text": ""}]),
    ({"line": 3, "name": "Grün"}, [{"type": "text", "text": '{"line":3,"name":"Grün"}'}]),
    ([], [{"type": "text", "text": ""}]),
    (
        [{"type": "text", "text": "a"}, {"type": "image", "data": PIXEL, "mimeType": "image/png"}],
        [{"type": "text", "text": "a"}, {"type": "image", "data": PIXEL, "mimeType": "image/png"}],
    ),
    (
        [{"type": "resource", "resource": {"uri": "file:///a", "text": "t", "blob": "x"}}],
        [{"type": "resource", "resource": {"uri": "file:///a", "text": "t"}}],
    ),
]


@pytest.mark.parametrize(("result", "content"), RESULTS)
async def test_what_the_caller_answers_is_what_the_agent_gets(tmp_path: Path, result: Any, content: list[Json]) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        await wire.say(asking(1, stamp, path="a.py"))
        [request] = await pending(agents, session_id)
        await answer(agents, session_id, request, result=result)
        assert await heard(wire, 1) == (False, content)


async def test_an_error_of_the_caller_is_an_error_of_the_tool(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        await wire.say(asking(1, stamp, path="a.py"))
        [request] = await pending(agents, session_id)
        assert (await answer(agents, session_id, request, error="no such file"))["reply"] == "error"
        assert await refused(wire) == "no such file"


BAD_ANSWERS: list[tuple[Json, str]] = [
    ({}, "result or error is needed"),
    ({"result": "x", "error": "y"}, "exclude each other"),
    ({"error": "  "}, "error needs a text"),
    ({"result": [{"type": "audio", "data": "x", "mimeType": "audio/wav"}]}, "item 1"),
    ({"result": [{"type": "text", "text": "a"}, {"type": "image", "data": "?", "mimeType": "image/png"}]}, "item 2"),
    ({"result": [{"rows": 3}]}, "item 1"),
    ({"result": [1, 2]}, "must hold objects"),
    ({"result": 7}, "must be a string or an array or an object"),
    ({"result": "x" * (MAX_CALLER_RESULT_BYTES + 1)}, "larger than 512 KiB"),
]


async def test_an_answer_that_cannot_be_given_on_is_refused_and_the_call_waits_on(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        await wire.say(asking(1, stamp, path="a.py"))
        [request] = await pending(agents, session_id)
        for said, words in BAD_ANSWERS:
            given = {"session_id": session_id, "request_id": request["request_id"], **said}
            answered = await agents.doors.call("caller_tool_response", "project", **given)
            error = answered.json()["error"]
            assert answered.status_code in (400, 413), error
            assert words in error["message"]
            assert error["field"] in ("result", "error")
        await answer(agents, session_id, request, result="at last")
        assert await heard(wire, 1) == (False, [{"type": "text", "text": "at last"}])


async def test_twenty_calls_at_once_do_not_wait_for_one_another(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        for number in range(20):
            await wire.say(asking(number, stamp, path=str(number)))
        for request in reversed(await pending(agents, session_id, 20)):
            assert (await agents.doors.world.row(session_id)).status == "waiting"
            path = request["caller_tool"]["arguments"]["path"]
            await answer(agents, session_id, request, result=f"{path} it is")
            assert await heard(wire, int(path)) == (False, [{"type": "text", "text": f"{path} it is"}])
        assert (await agents.doors.world.row(session_id)).status == "running"


async def test_a_session_may_leave_only_so_many_calls_open(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        for number in range(MAX_CALLER_CALLS + 1):
            await wire.say(asking(number, stamp, path="x"))
        while "id" not in (message := await wire.hear()):
            assert message["method"] == "notifications/tools/list_changed"
        assert message["result"]["isError"]
        assert message["result"]["content"][0]["text"].startswith("limit_reached: ")
        await pending(agents, session_id, MAX_CALLER_CALLS)


# --- who answers


async def test_only_the_token_that_declared_it_or_an_admin_answers(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        await agents.doors.add_token("colleague", f"project:{PROJECT}")
        session_id, stamp = await spawn(agents)
        other, _ = await spawn(agents, caller_id="else")
        for number, last in ((1, "project"), (2, "admin")):
            await wire.say(asking(number, stamp, path="a.py"))
            [request] = await pending(agents, session_id)
            for who, session, request_id, status in (
                ("colleague", session_id, request["request_id"], 403),
                ("reader", session_id, request["request_id"], 403),
                ("stranger", session_id, request["request_id"], 404),
                ("project", session_id, "req_nothing", 404),
                ("project", other, request["request_id"], 404),
                ("project", "gogol_nothing", request["request_id"], 404),
            ):
                given = {"session_id": session, "request_id": request_id, "result": "mine"}
                answered = await agents.doors.call("caller_tool_response", who, **given)
                assert answered.status_code == status, (who, answered.text)
                assert len((await agents.doors.tool("session", action="get", session_id=session_id))["pending"]) == 1
            await answer(agents, session_id, request, last, result="yours")
            assert await heard(wire, number) == (False, [{"type": "text", "text": "yours"}])


async def test_a_second_answer_learns_who_won(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        await wire.say(asking(1, stamp, path="a.py"))
        [request] = await pending(agents, session_id)
        results = []

        async def one(who: str) -> None:
            results.append(await answer(agents, session_id, request, who, result=who))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "project")
            nursery.start_soon(one, "admin")
        [winner] = [one for one in results if one["accepted"]]
        [loser] = [one for one in results if not one["accepted"]]
        assert loser["by"] == winner["by"]
        assert loser["how"] == "answered"
        assert await heard(wire, 1) == (False, [{"type": "text", "text": winner["by"]["name"]}])


async def test_an_ask_of_the_agent_is_not_answered_by_that(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        asking_session = await agents.doors.world.new("ask")
        await agents.doors.world.until(asking_session, "waiting")
        [request] = await agents.doors.world.store.read(partial(requests.pending, session_id=asking_session))
        given = {"session_id": asking_session, "request_id": request.request_id, "result": "x"}
        answered = await agents.doors.call("caller_tool_response", **given)
        assert answered.status_code == 400
        assert answered.json()["error"]["hint"] == "Use session answer."


# --- how else a call ends


async def test_a_call_that_nobody_answers_ends_in_time_and_says_so_on_both_sides(tmp_path: Path) -> None:
    async with at_the_door(tmp_path, agent={"caller_tool_timeout_seconds": 0.2}) as (agents, wire):
        session_id, stamp = await spawn(agents)
        await wire.say(asking(1, stamp, path="a.py"))
        text = await refused(wire)
        assert text.startswith("timed_out: Nobody answered the call of ide_open_file in 0.2 s.")
        settled = await resolution(agents, session_id)
        assert (settled["how"], settled["accepted"]) == ("expired", False)
        assert "0.2 s" in settled["message"]
        assert (await agents.doors.world.row(session_id)).status == "running"
        late = await answer(agents, session_id, settled, result="too late")
        assert (late["accepted"], late["how"]) == (False, "expired")


@pytest.mark.parametrize("how", ["interrupt", "end", "cancel"])
async def test_a_turn_that_is_stopped_takes_its_calls_back(tmp_path: Path, how: str) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        await wire.say(asking(1, stamp, path="a.py"))
        [request] = await pending(agents, session_id)
        await agents.doors.tool("session", action=how, session_id=session_id)
        assert (await refused(wire)).startswith("cancelled: ")
        await agents.doors.world.until(session_id, {"end": "completed", "cancel": "cancelled"}.get(how, "idle"))
        late = await answer(agents, session_id, request, result="too late")
        assert (late["accepted"], late["how"]) == (False, "cancelled")


async def test_an_agent_that_goes_away_takes_its_call_back(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        await wire.say(asking(1, stamp, path="a.py"))
        await wire.say(asking(2, stamp, path="b.py"))
        waiting = await pending(agents, session_id, 2)
        second = next(one for one in waiting if one["caller_tool"]["arguments"]["path"] == "b.py")
        await wire.say({"method": "notifications/cancelled", "params": {"requestId": 1}})
        assert await pending(agents, session_id) == [second]
        await wire.stream.aclose()
        await agents.doors.world.until(session_id, "running")
        assert (await resolution(agents, session_id))["how"] == "cancelled"
        await agents.no_calls()


async def test_the_clock_of_the_turn_stands_while_a_call_waits(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents, timeout_minutes=1 / 60)
        await wire.say(asking(1, stamp, path="a.py"))
        await wire.say(asking(2, stamp, path="b.py"))
        first, second = await pending(agents, session_id, 2)
        await answer(agents, session_id, first, result="x")
        with trio.move_on_after(1.5):
            await agents.doors.world.until(session_id, "idle")
        assert (await agents.doors.world.row(session_id)).status == "waiting"
        await answer(agents, session_id, second, result="x")
        await agents.doors.world.until(session_id, "idle")
        assert (await agents.doors.world.turn(session_id, 1)).outcome == "timed_out"


# --- the caller goes


@pytest.mark.parametrize("how", ["revoked", "expired", "deleted"])
async def test_the_tools_of_a_token_end_with_it_and_its_calls_within_a_second(tmp_path: Path, how: str) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        kept, _ = await spawn(agents, "admin", "desk")
        assert await names(wire) == ["open_file"]
        await wire.say(asking(1, stamp, path="a.py"))
        [request] = await pending(agents, session_id)
        token_id = "tok_api_project"
        with trio.fail_after(1):
            if how == "revoked":
                await agents.doors.tool("token", action="revoke", token_id=token_id)
            elif how == "expired":
                await agents.doors.world.store.write(
                    lambda tx: tx.run("UPDATE tokens SET expires_at = 1 WHERE token_id = ?", token_id)
                )
            else:
                await agents.doors.world.store.write(
                    lambda tx: tx.run("DELETE FROM tokens WHERE token_id = ?", token_id)
                )
            text = await refused(wire)
        assert text == (
            "cancelled: The call of ide_open_file was ended. The caller is gone: its token was revoked or has expired."
        )
        log = await agents.doors.world.log(session_id)
        [*_, changed] = [one.body["data"] for one in log if one.body.get("code") == "caller_tools_changed"]
        assert changed == {"caller_id": "ide", "tools": [], "why": "token_ended"}
        assert (await resolution(agents, session_id))["how"] == "cancelled"
        assert (await agents.doors.world.row(session_id)).status == "running", "the session goes on"
        assert await names(wire) == []
        await wire.say(asking(2, stamp, path="a.py"))
        assert (await refused(wire, 2)).startswith("not_found: This session has no tool ide_open_file")
        late = await answer(agents, session_id, request, "admin", result="too late")
        assert not late["accepted"]
        left = await agents.doors.world.store.read(partial(caller_tools.of_session, session_id=kept))
        assert [one.caller_id for one in left] == ["desk"]


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
    ({"caller_id": "ide", "caller_tools": schema(required="a")}, "required of t"),
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


# --- what others see, and what outlives a restart


@pytest.mark.filterwarnings("ignore:resources/subscribe")
@pytest.mark.parametrize("how", ["spawned", "subscribed"])
async def test_a_handshake_client_hears_of_a_call(tmp_path: Path, how: str) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        heard_of: list[Any] = []
        noticed = trio.Event()

        async def note(params: Any) -> None:
            await trio.lowlevel.checkpoint()
            if params.logger == "oubliette.caller_tool":
                heard_of.append(params.data)
                noticed.set()

        async with agents.doors.mcp("project", logging_callback=note) as client:
            given = {"project_id": PROJECT, "message": "sleep", "model": "scripted", "new_session": True}
            declared = {"caller_id": "ide", "caller_tools": [OPEN_FILE]}
            if how == "spawned":
                spawned = await client.call_tool("session", {"action": "spawn", **given, **declared})
                session_id = str((spawned.structured_content or {})["session_id"])
            else:
                session_id, _ = await spawn(agents)
                await client.session.subscribe_resource(f"oubliette://sessions/{session_id}")
            _, stamp = await agents.at_work(session_id)
            await wire.say(asking(1, stamp, path="a.py"))
            with trio.fail_after(PATIENCE):
                await noticed.wait()
            [event] = heard_of
            request_id = event["request"]["request_id"]
            assert event["request"]["caller_tool"]["arguments"] == {"path": "a.py"}
            told = await client.call_tool(
                "caller_tool_response", {"session_id": session_id, "request_id": request_id, "result": "shown"}
            )
            assert "Answer accepted" in told.content[0].text  # type: ignore[union-attr]
        assert await heard(wire, 1) == (False, [{"type": "text", "text": "shown"}])


async def test_event_streams_carry_the_call_and_the_one_of_everything_no_arguments(tmp_path: Path) -> None:
    async with at_the_door(tmp_path) as (agents, wire):
        session_id, stamp = await spawn(agents)
        async with agents.doors.client("project") as client:
            for path, whole in ((f"/v1/sessions/{session_id}/events", True), ("/v1/events", False)):
                async with client.stream("GET", path) as response:
                    await wire.say(asking(int(whole), stamp, path="a.py"))
                    with trio.fail_after(PATIENCE):
                        async for event in read_sse(response):
                            if event.event == "caller_tool_request":
                                break
                    assert event.data["request"]["kind"] == "caller_tool"
                    assert ("caller_tool" in event.data["request"]) == whole


async def test_a_restart_keeps_declarations_and_ends_the_calls_of_before(tmp_path: Path) -> None:
    later = tmp_path / "later"
    later.mkdir()

    def as_the_power_went_out() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "oubliette.db")) as connection:
            connection.execute("VACUUM INTO ?", [str(later / "oubliette.db")])

    async with trio.open_nursery() as nursery:
        agent = FakeAgent(nursery)
        async with at_the_door(tmp_path) as (agents, wire):
            session_id, stamp = await spawn(agents)
            await wire.say(asking(1, stamp, path="a.py"))
            [request] = await pending(agents, session_id)
            await trio.to_thread.run_sync(as_the_power_went_out)
        async with open_world(later, agent=agent) as world:
            told = await world.tree.callers.respond(ADMIN, session_id, request["request_id"], result_of("x"))
            assert not told["accepted"]
            assert (told["how"], told["message"]) == ("cancelled", "The daemon was restarted.")
            kept = await world.store.read(partial(caller_tools.of_session, session_id=session_id))
            assert [(one.caller_id, one.principal_id) for one in kept] == [("ide", "tok_api_project")]
        nursery.cancel_scope.cancel("the test is over")
