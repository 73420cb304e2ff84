"""Turns of the real OpenCode: what it is asked, what it tells, in which order, and exactly once."""

from __future__ import annotations

import pytest
import trio

from oubliette.agent.base import AgentBusy, AgentDelta, AgentIdle, AgentRetry
from oubliette.core.model import EventType
from tests.agent.fake_model import script
from tests.agent.rig import Rig, Turn, follow, is_tool_call, read, write

pytestmark = pytest.mark.agent


async def test_a_turn_tells_text_and_tool_in_order_and_ends_once(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    turn = await rig.turn(
        session,
        directory,
        script(
            {
                "think": "I must write",
                "say": "I will run it",
                "call": [["bash", {"command": "echo hi > a.txt; cat a.txt"}]],
            },
            {"say": "It says hi."},
        ),
    )
    assert turn.types() == [
        EventType.REASONING,
        EventType.MESSAGE,
        EventType.TOOL_CALL,
        EventType.TOOL_RESULT,
        EventType.MESSAGE,
    ]
    reasoning, first, call, result, last = [durable.body for durable in turn.durables]
    assert reasoning["text"] == "I must write"
    assert first == {"part": first["part"], "role": "assistant", "text": "I will run it"}
    assert call["tool"]["name"] == "bash"
    assert call["tool"]["input"] == {"command": "echo hi > a.txt; cat a.txt"}
    assert result["part"] == call["part"]
    assert result["tool"]["id"] == call["tool"]["id"]
    assert result["tool"]["status"] == "completed"
    assert result["tool"]["output"] == "hi\n"
    assert result["tool"]["duration_ms"] >= 0
    assert last["text"] == "It says hi."
    assert turn.idle == AgentIdle(final_text="It says hi.")
    assert turn.events[-1] is turn.idle
    assert len(turn.sources) == len(set(turn.sources))
    assert len(turn.of(AgentBusy)) == 1
    assert read(directory, "a.txt") == "hi\n"


async def test_deltas_are_previews_with_running_offsets(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    text = "Ein längerer Text über Türme. " * 4
    turn = await rig.turn(session, directory, script({"think": "Hm, also", "say": text.strip()}))
    for kind, event_type in (("text", EventType.MESSAGE), ("reasoning", EventType.REASONING)):
        (body,) = turn.bodies(event_type)
        shown = ""
        for delta in (delta for delta in turn.of(AgentDelta) if delta.kind == kind):
            assert (delta.part, delta.offset) == (body["part"], len(shown))
            shown += delta.text
        assert shown == body["text"]


async def test_a_second_prompt_continues_the_conversation(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    await rig.turn(session, directory, script({"say": "Bees hum."}))
    turn = await rig.turn(session, directory, script({"say": "Wasps too."}), system="Be brief about insects.")
    assert turn.idle.final_text == "Wasps too."
    messages = rig.model.of(session)[-1].messages
    assert any("Bees hum." in str(message["content"]) for message in messages if message["role"] == "assistant")
    assert "Be brief about insects." in str(messages[0]["content"])


async def test_two_tools_at_once_each_have_one_call_and_one_result(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    turn = await rig.turn(
        session,
        directory,
        script(
            {
                "call": [
                    ["bash", {"command": "sleep 0.3; echo a"}],
                    ["bash", {"command": "echo b"}],
                    ["nothing", {"x": 1}],
                ]
            },
            {"say": "done"},
        ),
    )
    calls, results = turn.bodies(EventType.TOOL_CALL), turn.bodies(EventType.TOOL_RESULT)
    assert [call["tool"]["name"] for call in calls] == ["bash", "bash", "nothing"]
    assert {result["part"] for result in results} == {call["part"] for call in calls}
    assert len(results) == 3
    outputs = {result["tool"]["output"] for result in results}
    assert {"a\n", "b\n"} < outputs


async def test_searching_needs_no_network(rig: Rig, directory: str) -> None:
    write(directory, "needle.txt", "a needle in here\n")
    session = await rig.session(directory)
    turn = await rig.turn(
        session,
        directory,
        script({"call": [["glob", {"pattern": "*.txt"}], ["grep", {"pattern": "needle"}]]}, {"say": "found"}),
    )
    for result in turn.bodies(EventType.TOOL_RESULT):
        assert result["tool"]["status"] == "completed"
        assert "needle.txt" in result["tool"]["output"]


async def test_todos_are_told(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    todos = [
        {"content": "plan", "status": "completed", "priority": "high"},
        {"content": "do", "status": "pending", "priority": "low"},
    ]
    turn = await rig.turn(session, directory, script({"call": [["todowrite", {"todos": todos}]]}, {"say": "ok"}))
    (todo,) = turn.bodies(EventType.TODO)
    assert todo["data"]["items"] == [
        {"id": "1", "text": "plan", "status": "completed"},
        {"id": "2", "text": "do", "status": "pending"},
    ]


async def test_an_error_of_the_provider_is_a_model_error_with_its_status(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    turn = await rig.turn(session, directory, script({"status": 400, "body": {"error": {"message": "bad thing"}}}))
    error = turn.idle.error
    assert error is not None
    assert error["code"] == "model_error"
    assert "400" in error["message"]
    assert "bad thing" in error["message"]
    again = await rig.turn(session, directory, script({"say": "fine again"}))
    assert again.idle == AgentIdle(final_text="fine again")


async def test_a_busy_provider_is_asked_again_and_an_abort_ends_the_waiting(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    async with rig.agent.events(session, directory) as stream:
        text = script({"status": 429, "body": {"error": {"message": "slow down"}}})
        await rig.agent.prompt(session, directory, rig.prompt(text))
        turn = await follow(stream, lambda event: isinstance(event, AgentRetry))
        (retry,) = turn.of(AgentRetry)
        assert (retry.attempt, retry.message) == (1, "slow down")
        assert retry.retry_at_ms > 0
        await rig.agent.abort(session, directory)
        assert (await follow(stream)).idle.aborted


async def test_a_cut_model_stream_is_asked_again_and_goes_on(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    step = {"say": "one two three", "call": [["bash", {"command": "echo x"}]], "delay": 0.03, "cut": 1}
    turn = await rig.turn(session, directory, script(step, {"say": "over"}, {"say": "over"}))
    assert len(turn.sources) == len(set(turn.sources))
    assert turn.idle == AgentIdle(final_text="over")
    (retry,) = turn.of(AgentRetry)
    broken = Turn(turn.events[: turn.events.index(retry)])
    assert not broken.bodies(EventType.MESSAGE)
    assert broken.bodies(EventType.TOOL_CALL), "a call that was complete when the answer broke off is run, and told"
    assert [body["text"] for body in turn.bodies(EventType.MESSAGE)] == ["one two three", "over"]
    assert len(turn.bodies(EventType.TOOL_CALL)) == len(turn.bodies(EventType.TOOL_RESULT)) == 2


async def test_an_abort_during_a_long_command_ends_the_turn_with_the_result_before_it(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    async with rig.agent.events(session, directory) as stream:
        text = script({"say": "going", "call": [["bash", {"command": "sleep 600"}]]})
        await rig.agent.prompt(session, directory, rig.prompt(text))
        before = await follow(stream, is_tool_call)
        with trio.fail_after(5):
            await rig.agent.abort(session, directory)
        after = await follow(stream)
    (call,) = before.bodies(EventType.TOOL_CALL)
    (result,) = after.bodies(EventType.TOOL_RESULT)
    assert result["part"] == call["part"]
    assert after.idle.aborted
    assert after.idle.error is None
    following = await rig.turn(session, directory, script({"say": "next"}))
    assert following.idle == AgentIdle(final_text="next")


@pytest.mark.parametrize("milliseconds", [1, 5, 15, 40, 80])
async def test_a_prompt_cancelled_at_any_moment_and_then_aborted_runs_nothing(
    rig: Rig, directory: str, milliseconds: int
) -> None:
    session = await rig.session(directory)
    text = script({"call": [["bash", {"command": "sleep 5; touch survived"}]]})
    with trio.move_on_after(milliseconds / 1000):
        await rig.agent.prompt(session, directory, rig.prompt(text))
    with trio.fail_after(5):
        await rig.agent.abort(session, directory)
    assert not await rig.agent._queries.is_running(session, directory)
    assert (await rig.turn(session, directory, script({"say": "next"}))).idle == AgentIdle(final_text="next")
    assert read(directory, "survived") is None


async def test_an_abort_without_a_turn_is_fine_and_its_idle_ends_no_later_turn(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    await rig.agent.abort(session, directory)
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.abort(session, directory)
        await rig.agent.prompt(session, directory, rig.prompt(script({"say": "still here", "delay": 0.2})))
        await rig.agent.has_message(session, directory, "msg_none")
        turn = await follow(stream)
    assert turn.idle == AgentIdle(final_text="still here")


async def test_a_long_conversation_is_compacted_within_its_turn(own_small: Rig) -> None:
    rig, directory = own_small, own_small.process.directory("w")
    session = await rig.session(directory)
    await rig.turn(session, directory, script({"say": "first turn"}))
    usage = {"prompt_tokens": 39_000, "completion_tokens": 500, "total_tokens": 39_500}
    turn = await rig.turn(
        session,
        directory,
        script({"say": "step", "call": [["bash", {"command": "echo 1"}]], "usage": usage}, {"say": "never"}),
    )
    assert [durable.body.get("code") for durable in turn.durables].count("compacted") == 1
    assert turn.idle.error is None
    assert turn.idle.final_text == "no script"  # what the model says to OpenCode's own "continue"
    assert [body["text"] for body in turn.bodies(EventType.MESSAGE)] == ["step", "no script"]


async def test_twenty_sessions_at_once_keep_apart(rig: Rig, directory: str) -> None:
    finals: dict[int, str] = {}

    async def one(number: int) -> None:
        session = await rig.session(directory)
        command = f"echo number-{number}"
        turn = await rig.turn(
            session,
            directory,
            script({"say": f"s{number}", "call": [["bash", {"command": command}]]}, {"say": f"end {number}"}),
        )
        (call,) = turn.bodies(EventType.TOOL_CALL)
        (result,) = turn.bodies(EventType.TOOL_RESULT)
        assert call["tool"]["input"] == {"command": command}
        assert result["tool"]["output"] == f"number-{number}\n"
        assert [body["text"] for body in turn.bodies(EventType.MESSAGE)] == [f"s{number}", f"end {number}"]
        finals[number] = turn.idle.final_text

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
    assert finals == {number: f"end {number}" for number in range(20)}
