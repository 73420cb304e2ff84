"""Death, cuts and restarts: nothing is told twice, nothing is left out, nobody waits for ever."""

from __future__ import annotations

import pytest
import trio

from oubliette.agent.base import AgentAsk, AgentDelta, AgentIdle, AgentLost, AgentSessionSpec
from oubliette.agent.toolkit import Toolkit
from oubliette.core.model import Autonomy, EventType
from oubliette.errors import AgentProtocolError, AgentUnreachable
from tests.agent.fake_model import script
from tests.agent.rig import Rig, follow, is_tool_call, open_rig, start

pytestmark = pytest.mark.agent


async def test_a_killed_process_is_told_to_everybody_and_calls_fail_at_once(own_rig: Rig) -> None:
    rig, directory = own_rig, own_rig.process.directory("w")
    session, other = await rig.session(directory), await rig.session(directory)
    text = script({"call": [["bash", {"command": "sleep 600"}]]})
    async with rig.agent.events(session, directory) as stream, rig.agent.events(other, directory) as idle_stream:
        await rig.agent.prompt(session, directory, rig.prompt(text))
        await follow(stream, is_tool_call)
        rig.process.kill()
        with trio.fail_after(15):
            (lost,) = [event async for event in stream if not isinstance(event, AgentDelta)]
            (other_lost,) = [event async for event in idle_stream]
    assert isinstance(lost, AgentLost)
    assert isinstance(other_lost, AgentLost)
    with trio.fail_after(0.2), pytest.raises(AgentUnreachable):
        await rig.agent.create_session(AgentSessionSpec(title="t", directory=directory))
    async with rig.agent.events(session, directory) as stream:
        assert [type(event) async for event in stream] == [AgentLost]


async def test_a_process_declared_lost_ends_the_streams_at_once(own_rig: Rig) -> None:
    directory = own_rig.process.directory("w")
    session = await own_rig.session(directory)
    async with own_rig.agent.events(session, directory) as stream:
        own_rig.agent.mark_lost("exit 137")
        with trio.fail_after(1):
            assert [event async for event in stream] == [AgentLost("exit 137")]


async def test_a_cut_event_stream_is_filled_up_without_doubles(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    steps = [
        {"say": f"step {number}", "call": [["bash", {"command": f"sleep 0.2; echo {number}"}]]} for number in range(6)
    ]
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(session, directory, rig.prompt(script(*steps, {"say": "the end"})))
        first = await follow(stream, is_tool_call)
        rig.line.broken = True
        rig.line.cut()
        await trio.sleep(1)  # the agent goes on meanwhile, and nobody hears it
        rig.line.broken = False
        rest = await follow(stream)
    events = [*first.durables, *rest.durables]
    assert len({event.source for event in events}) == len(events)
    results = [event.body["tool"]["output"] for event in events if event.type is EventType.TOOL_RESULT]
    assert results == [f"{number}\n" for number in range(6)]
    kinds = [event.type for event in events]
    assert kinds == [EventType.MESSAGE, EventType.TOOL_CALL, EventType.TOOL_RESULT] * 6 + [EventType.MESSAGE]
    assert rest.idle == AgentIdle(final_text="the end")


async def test_an_end_that_nobody_heard_is_found(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    async with rig.agent.events(session, directory) as stream:
        text = script({"call": [["bash", {"command": "sleep 0.5"}]]}, {"say": "unheard"})
        await rig.agent.prompt(session, directory, rig.prompt(text))
        await follow(stream, is_tool_call)
        rig.line.broken = True
        rig.line.cut()
        await trio.sleep(2)
        rig.line.broken = False
        turn = await follow(stream)
    assert turn.idle == AgentIdle(final_text="unheard")
    assert turn.types() == [EventType.TOOL_RESULT, EventType.MESSAGE]


async def test_an_ask_that_nobody_heard_is_told_later(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, autonomy=Autonomy.LOW)
    async with rig.agent.events(session, directory) as stream:
        rig.model.release = trio.Event()
        await rig.agent.prompt(
            session,
            directory,
            rig.prompt(script({"hang": True, "call": [["bash", {"command": "make"}]]}, {"say": "x"})),
        )
        rig.line.broken = True
        rig.line.cut()
        rig.model.release.set()
        await trio.sleep(1)
        rig.line.broken = False
        (ask,) = (await follow(stream, lambda event: isinstance(event, AgentAsk))).of(AgentAsk)
        await rig.agent.reply_permission(ask.agent_ref, directory, "reject", None)
        assert (await follow(stream)).idle.final_text == "x"


async def test_a_turn_can_be_read_from_the_history(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    await rig.turn(session, directory, script({"say": "before"}))
    prompt = rig.prompt(script({"think": "hm", "say": "a", "call": [["bash", {"command": "echo 1"}]]}, {"say": "b"}))
    assert not await rig.agent.has_message(session, directory, prompt.message_id)
    with pytest.raises(AgentProtocolError):
        await rig.agent.backfill(session, directory, prompt.message_id)
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(session, directory, prompt)
        turn = await follow(stream)
    await rig.turn(session, directory, script({"say": "after"}))
    assert await rig.agent.has_message(session, directory, prompt.message_id)
    durables, idle = await rig.agent.backfill(session, directory, prompt.message_id)
    assert [(one.source, one.type, one.body) for one in durables] == [
        (one.source, one.type, one.body) for one in turn.durables
    ]
    assert idle == turn.idle


async def test_another_daemon_takes_up_a_running_turn(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, autonomy=Autonomy.HIGH)
    prompt = rig.prompt(script({"say": "a", "call": [["bash", {"command": "sleep 1; echo 1"}]]}, {"say": "b"}))
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(session, directory, prompt)
        await follow(stream, is_tool_call)
    async with open_rig(rig.process, rig.model) as other, other.agent.events(session, directory) as stream:
        assert await other.agent.has_message(session, directory, prompt.message_id)
        missed, idle = await other.agent.backfill(session, directory, prompt.message_id)
        assert idle is None
        assert [one.type for one in missed] == [EventType.MESSAGE, EventType.TOOL_CALL]
        turn = await follow(stream)
    assert turn.types() == [EventType.TOOL_RESULT, EventType.MESSAGE]
    assert not {one.source for one in missed} & set(turn.sources)
    assert turn.idle == AgentIdle(final_text="b")


async def test_a_pending_ask_is_told_to_who_takes_the_turn_up(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, autonomy=Autonomy.LOW)
    prompt = rig.prompt(script({"call": [["bash", {"command": "make"}]]}, {"say": "b"}))
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(session, directory, prompt)
        (ask,) = (await follow(stream, lambda event: isinstance(event, AgentAsk))).of(AgentAsk)
    async with open_rig(rig.process, rig.model) as other, other.agent.events(session, directory) as stream:
        _, idle = await other.agent.backfill(session, directory, prompt.message_id)
        assert idle is None
        assert (await follow(stream, lambda event: isinstance(event, AgentAsk))).of(AgentAsk) == [ask]
        await other.agent.reply_permission(ask.agent_ref, directory, "reject", "no")
        assert (await follow(stream)).idle.final_text == "b"


async def test_after_a_crash_the_history_closes_the_turn_and_the_session_goes_on(
    own_rig: Rig, toolkit: Toolkit
) -> None:
    rig, directory = own_rig, own_rig.process.directory("w")
    session = await rig.session(directory)
    prompt = rig.prompt(script({"say": "go", "call": [["bash", {"command": "sleep 600"}]]}))
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(session, directory, prompt)
        await follow(stream, is_tool_call)
    rig.process.kill()
    again = start(toolkit, rig.process.root, rig.model.port)
    try:
        async with open_rig(again, rig.model) as other:
            durables, idle = await other.agent.backfill(session, directory, prompt.message_id)
            assert [one.type for one in durables] == [EventType.MESSAGE, EventType.TOOL_CALL, EventType.TOOL_RESULT]
            assert durables[-1].body["tool"]["status"] == "error"
            assert idle is not None
            assert idle.error is not None
            assert idle.error["retryable"] is True
            turn = await other.turn(session, directory, script({"say": "alive"}))
            assert turn.idle == AgentIdle(final_text="alive")
    finally:
        again.kill()


async def test_warming_makes_the_first_turn_quick_and_leaves_nothing(own_rig: Rig) -> None:
    rig, directory = own_rig, own_rig.process.directory("w")
    with trio.fail_after(30):
        await rig.agent.warm(directory)
    assert not rig.model.requests
    session = await rig.session(directory)
    waits = []
    for _ in range(3):
        began = trio.current_time()
        await rig.turn(session, directory, script({"say": "quick"}))
        waits.append(rig.model.of(session)[-1].at - began)
    assert waits[0] < 5 * max(0.15, *waits[1:])
