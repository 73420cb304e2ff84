"""The agents' door: streams served without a handshake, and whose call a call is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import lockstep_stream_pair

from oubliette.api import line_stream
from oubliette.api.tools import progress
from oubliette.core.model import EventType, SessionStatus
from oubliette_relay import protocol
from tests.api.agent_world import (
    CONTAINER,
    FOREIGN_CONTAINER,
    FOREIGN_WORKSPACE,
    OTHER_CONTAINER,
    OTHER_WORKSPACE,
    Agents,
    Wire,
    calling,
    open_agents,
    settings,
)
from tests.api.world import OTHER_PROJECT

MAY = {"spawn", "message", "wait", "get", "list", "tree", "events", "diff", "merge", "interrupt", "end", "cancel"}


async def test_a_stream_is_served_without_a_handshake_and_takes_one_all_the_same(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        session_id, stamp = await agents.session()
        assert (await wire.result(stamp, action="get", session_id=session_id))["status"] == "running"
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        answer = await wire.ask("initialize", hello)
        assert answer["result"]["serverInfo"]["name"] == "oubliette"
        await wire.say({"method": "notifications/initialized"})
        assert (await wire.result(stamp, action="get", session_id=session_id))["session_id"] == session_id


async def test_the_list_is_short_and_holds_only_what_an_agent_can_use(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        answer = await wire.ask("tools/list")
        tools = answer["result"]["tools"]
        assert len(json.dumps(tools)) / 4 < 2_500
        [session] = [tool for tool in tools if tool["name"] == "session"]
        assert set(session["inputSchema"]["properties"]["action"]["enum"]) == MAY
        given = set(session["inputSchema"]["properties"])
        assert {"message", "title", "context", "detach", "session_ids", "any"} <= given
        for not_theirs in ("project_id", "attachments", "max_cost_usd", "create_workspace", "external_id", "reply"):
            assert not_theirs not in given
        assert "outputSchema" not in session


async def test_a_call_is_made_by_the_session_of_its_stamp(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        mine, stamp = await agents.session()
        other, other_stamp = await agents.session()
        for parent, one in ((mine, stamp), (other, other_stamp)) * 3:
            child = await wire.result(one, action="spawn", message="say hi")
            assert (await agents.doors.world.row(child["session_id"])).parent_id == parent


async def test_two_sessions_of_one_container_that_spawn_at_once_each_get_their_own(tmp_path: Path) -> None:
    """A hundred times; each child is announced in its own parent's log."""
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        await settings(agents, limits={"max_active_sessions": 250, "max_agents_per_session": 250})
        families = [await agents.session() for _ in range(2)]
        mine: list[list[str]] = [[], []]
        for number in range(0, 200, 2):
            for which in (0, 1):
                await wire.say(calling(number + which, families[which][1], action="spawn", message="say hi"))
            for answer in [await wire.hear() for _ in range(2)]:
                child = json.loads(answer["result"]["content"][0]["text"])["session_id"]
                mine[answer["id"] % 2].append(child)
        for (parent, _), children in zip(families, mine, strict=True):
            assert len(children) == 100
            for child in children:
                assert (await agents.doors.world.row(child)).parent_id == parent
            log = await agents.doors.world.log(parent)
            announced = [event.body["child"]["session_id"] for event in log if event.type is EventType.CHILD_SPAWNED]
            assert sorted(announced) == sorted(children)
            assert [event.index for event in log] == list(range(len(log)))


async def test_a_stamp_that_names_no_session_of_the_container_is_refused(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        _, near = await agents.session(workspace_id=OTHER_WORKSPACE)
        _, far = await agents.session(project_id=OTHER_PROJECT, workspace_id=FOREIGN_WORKSPACE)
        _, mine = await agents.session()
        async with agents.wire() as wire:
            nothings: list[Any] = [None, "", 7, ["x"], {}]
            for nothing in nothings:
                given = {"name": "session", "arguments": {"action": "list", "_session": nothing}}
                answer = await wire.ask("tools/call", given)
                assert answer["result"]["isError"]
                assert answer["result"]["content"][0]["text"].startswith("invalid_argument: ")
            refusals = {await wire.call("session", one, action="list") for one in ("ses_forged", near, far)}
            assert len(refusals) == 1, "foreign and unknown look alike"
            [(failed, text)] = refusals
            assert failed
            assert text.startswith("not_found: ")
            assert len((await wire.result(mine, action="list"))["sessions"]) == 1
        for container, stamp in ((OTHER_CONTAINER, near), (FOREIGN_CONTAINER, far)):
            async with agents.wire(container) as wire:
                assert len((await wire.result(stamp, action="list"))["sessions"]) == 1
                assert (await wire.call("session", mine, action="list"))[0]


async def test_a_session_that_ends_can_do_nothing_more(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        session_id, stamp = await agents.session()
        await agents.doors.tool("session", action="end", session_id=session_id)
        for action in ({"action": "spawn", "message": "say hi"}, {"action": "list"}, {"action": "wait"}):
            failed, text = await wire.call("session", stamp, **action)
            assert failed
            assert text.startswith("conflict: This session is being ended")


async def test_a_session_that_may_not_use_the_tool_cannot_by_calling_it_directly(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        lists: list[dict[str, Any]] = [{"tools_disallowed": ["oubliette_*"]}, {"tools_allowed": ["read", "bash"]}]
        for given in lists:
            _, stamp = await agents.session(**given)
            failed, text = await wire.call("session", stamp, action="list")
            assert failed
            assert text.startswith("permission_denied: ")


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_calls_are_the_same_however_the_bytes_are_split(tmp_path: Path, size: int) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        session_id, stamp = await agents.session()
        lines = b"".join(
            json.dumps({"jsonrpc": "2.0", **calling(number, stamp, action="get", session_id=session_id)}).encode()
            + b"\r\n\n"
            for number in (1, 2)
        )
        for at in range(0, len(lines), size):
            await wire.stream.send_all(lines[at : at + size])
        assert {(await wire.hear())["id"], (await wire.hear())["id"]} == {1, 2}


async def test_lines_that_are_no_message_are_answered_and_break_nothing(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session()
        for line, expected in (
            (b"nope", (None, -32700)),
            (b"\xff\xfe", (None, -32700)),
            (b"[" * 100_000, (None, -32700)),
            (b'"text"', (None, -32600)),
            (b'{"jsonrpc":"2.0","id":5}', (5, -32600)),
            (b'{"jsonrpc":"1.0","id":"x","method":"tools/list"}', ("x", -32600)),
        ):
            await wire.stream.send_all(line + b"\n")
            answer = await wire.hear()
            assert (answer["id"], answer["error"]["code"]) == expected, line[:40]
        unknown = await wire.ask("nonsense/method")
        assert unknown["error"]["code"] == -32601
        failed, text = await wire.call("nonsense", stamp)
        assert failed
        assert text.startswith(("unknown_action: ", "permission_denied: "))
        assert await wire.result(stamp, action="list")


async def test_a_line_that_is_too_long_ends_the_stream(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await wire.stream.send_all(b"x" * (protocol.LINE_BYTES + 10))
            await wire.hear()
        assert "a line of more than" in agents.refused[0]


async def test_an_answer_that_fits_no_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        session_id, stamp = await agents.session()
        monkeypatch.setattr(protocol, "LINE_BYTES", 1_000)
        await wire.say(calling(1, stamp, action="get", session_id=session_id, detail="full"))
        answer = await wire.hear()
        assert answer["id"] == 1
        assert answer["error"]["message"].startswith("too_large: ")


async def _waiting(agents: Agents, wire: Wire) -> str:
    """A parent that waits for its child on that stream; its id in the middle of the call."""
    _, stamp = await agents.session()
    await wire.result(stamp, action="spawn", message="sleep")
    await wire.say(calling(77, stamp, action="wait", wait_seconds=40))
    with trio.fail_after(5):
        while not agents.desk.shared.live.principals():
            await trio.sleep(0.01)
    return stamp


async def test_a_cut_stream_ends_its_calls_and_the_next_one_works_at_once(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        async with agents.wire() as wire:
            stamp = await _waiting(agents, wire)
        await agents.no_calls()
        async with agents.wire() as wire:
            with trio.fail_after(2):
                assert len((await wire.result(stamp, action="list"))["sessions"]) == 2


async def test_a_call_that_is_taken_back_ends_and_is_not_answered(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        stamp = await _waiting(agents, wire)
        await wire.say({"method": "notifications/cancelled", "params": {"requestId": 77}})
        await agents.no_calls()
        assert await wire.result(stamp, action="list"), "the next answer is the next call's"


async def test_no_more_is_read_than_can_be_at_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_stream, "OPEN_CALLS", 2)
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        session_id, stamp = await agents.session()
        for number in range(12):
            await wire.say(calling(number, stamp, action="get", session_id=session_id))
        assert {(await wire.hear())["id"] for _ in range(12)} == set(range(12))
        await wire.result(stamp, action="spawn", message="sleep")
        await wire.say(calling(90, stamp, action="wait", wait_seconds=40))
        await wire.say(calling(90, stamp, action="wait", wait_seconds=40))
        with pytest.raises(EOFError):
            while True:
                await wire.hear()
    assert agents.refused == ["a second call with the id of one in progress"]


async def test_a_peer_that_takes_no_answer_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_stream, "SEND_SECONDS", 0.2)
    async with open_agents(tmp_path) as agents:
        ours, theirs = lockstep_stream_pair()
        async with ours, trio.open_nursery() as nursery:
            nursery.start_soon(agents.serve, theirs, CONTAINER, "")
            with trio.fail_after(5):
                await ours.send_all(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}\n')
        assert agents.refused == ["no line was taken for 0.2 s"]


async def test_a_long_wait_tells_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0.05)
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session()
        await wire.result(stamp, action="spawn", message="sleep")
        call = calling(1, stamp, action="wait", wait_seconds=1)
        call["params"]["_meta"] = {"progressToken": "p1"}
        await wire.say(call)
        told = await wire.hear()
        assert told["method"] == "notifications/progress"
        assert told["params"]["progressToken"] == "p1"
        while "id" not in (answer := await wire.hear()):
            assert answer["method"] == "notifications/progress"
        assert json.loads(answer["result"]["content"][0]["text"])["timed_out"]


async def test_streams_wait_for_the_doors_and_end_with_them(tmp_path: Path) -> None:
    async with open_agents(tmp_path, opened=False) as agents, agents.wire() as early:
        _, stamp = await agents.session()
        await early.say(calling(1, stamp, action="list"))
        with trio.move_on_after(0.1) as patience:
            await early.stream.receive_some()
        assert patience.cancelled_caught
        async with agents.door.open(agents.desk):
            assert (await early.hear())["id"] == 1
        with pytest.raises(EOFError):
            while True:
                await early.hear()
        async with agents.wire() as late:
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await late.ask("tools/list")


async def test_no_caller_of_an_impossible_name_is_served_and_no_unknown_container(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        for container, caller_id in (("c0ffee00", "../IDE"), ("nothing", "")):
            async with agents.wire(container, caller_id) as wire:
                with pytest.raises((EOFError, trio.BrokenResourceError)):
                    await wire.ask("tools/list")
        assert len(agents.refused) == 2


async def test_waiting_without_ids_follows_the_callers_children(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        root, stamp = await agents.session()
        assert (await wire.result(stamp, action="wait"))["sessions"] == []
        ids = [(await wire.result(stamp, action="spawn", message=f"say {n}"))["session_id"] for n in range(3)]
        waited = await wire.result(stamp, action="wait")
        assert waited["done"]
        assert [one["session_id"] for one in waited["sessions"]] == ids
        assert [one["final_text"] for one in waited["sessions"]] == ["0", "1", "2"]
        failing = await wire.result(stamp, action="spawn", message="fail no such model")
        [failed] = (await wire.result(stamp, action="wait", session_ids=[failing["session_id"]]))["sessions"]
        assert failed["outcome"] == "failed", "a child's failure is a result"
        assert (await agents.doors.world.row(root)).status == SessionStatus.RUNNING
