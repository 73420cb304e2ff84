"""Calls of tools that clients offer to the agents of their sessions: asked, answered, ended."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette import clock
from oubliette.api import callers
from oubliette.core.caller_results import result_of
from oubliette.core.limits import MAX_CALLER_CALLS, MAX_CALLER_RESULT_BYTES
from oubliette.core.model import Json
from oubliette.store import caller_tools, requests, tokens
from oubliette.store.codec import to_micros
from oubliette.store.database import Tx
from tests.api.agent_world import PATIENCE, open_agents
from tests.api.caller_world import (
    OPEN_FILE,
    answer,
    asking,
    at_the_door,
    heard,
    names,
    page,
    pending,
    refused,
    resolution,
    spawn,
)
from tests.api.world import PROJECT, read_sse
from tests.session.fakes import FakeAgent
from tests.session.world import ADMIN, open_world


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most agents here ask for no list: their prompts need not wait for it."""
    monkeypatch.setattr(callers, "SHOWN_SECONDS", 0.1)


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


def _expires(token_id: str, tx: Tx) -> None:
    soon = to_micros(clock.now() + timedelta(seconds=0.3))
    tx.run("UPDATE tokens SET expires_at = ? WHERE token_id = ?", soon, token_id)
    tx.tell(tokens.TOPIC, token_id)


def _vanishes(token_id: str, tx: Tx) -> None:
    tx.run("DELETE FROM tokens WHERE token_id = ?", token_id)
    tx.tell(tokens.TOPIC, token_id)


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
            else:
                await agents.doors.world.store.write(partial(_expires if how == "expired" else _vanishes, token_id))
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
