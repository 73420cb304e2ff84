"""One session over its life: turns, messages, asks, interruption, the agent's death."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette.core.model import EventType, Outcome, SessionStatus
from oubliette.errors import ContainerError, RequestError
from oubliette.session.deps import Deps, ReadyContainer
from oubliette.store import requests
from tests.session.world import ADMIN, open_world


async def test_a_turn_is_stored_in_order_with_one_completion(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        result = await world.spawn("say hello")
        assert result["created"]
        assert result["turn"] == 1
        [done] = await world.settle(result["session_id"])
        assert done["outcome"] == "completed"
        assert done["final_text"] == "hello"
        log = await world.log(result["session_id"])
        assert [event.index for event in log] == list(range(len(log)))
        types = [event.type for event in log]
        assert types.count(EventType.COMPLETION) == 1
        assert types.index(EventType.TURN_QUEUED) < types.index(EventType.TURN_STARTED) < types.index(EventType.MESSAGE)
        assert types.index(EventType.MESSAGE) < types.index(EventType.COMPLETION)
        assert types[-1] == EventType.STATUS
        row = await world.row(result["session_id"])
        assert row.status == SessionStatus.IDLE


async def test_a_second_message_goes_to_the_same_agent_session(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("say first")
        await world.settle(one)
        await world.message(one, "say second")
        [done] = await world.settle(one)
        assert done["final_text"] == "second"
        assert len(world.agent.sessions) == 1
        assert [turn.prompt.text for turn in world.agent.turns["ses_1"]] == ["say first", "say second"]


async def test_messages_to_a_busy_session_wait_their_turn_in_order(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("sleep")
        await world.until(one, "running")
        positions = [(await world.message(one, f"say {n}"))["queue_position"] for n in range(5)]
        assert positions == [1, 2, 3, 4, 5]
        await world.tree.interrupt(ADMIN, one)
        await world.settle(one)
        assert [turn.prompt.text for turn in world.agent.turns["ses_1"]][1:] == [f"say {n}" for n in range(5)]


async def test_the_queue_holds_fifty(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("sleep")
        await world.until(one, "running")
        for n in range(50):
            await world.message(one, f"say {n}")
        with pytest.raises(RequestError) as caught:
            await world.message(one, "say too much")
        assert caught.value.code == "queue_full"
        assert caught.value.retryable


async def test_an_interrupt_stops_the_turn_and_keeps_the_session(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("sleep")
        await world.until(one, "running")
        await world.tree.interrupt(ADMIN, one)
        await world.settle(one)
        assert (await world.turn(one, 1)).outcome == Outcome.CANCELLED
        assert world.agent.aborted == ["ses_1"]
        assert world.agent.killed == []
        assert (await world.row(one)).status == SessionStatus.IDLE


async def test_delivery_interrupt_stops_the_present_turn_for_the_new_message(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("sleep")
        await world.until(one, "running")
        await world.message(one, "say instead", delivery="interrupt")
        [done] = await world.settle(one)
        assert done["final_text"] == "instead"


async def test_a_failed_model_fails_the_turn_and_leaves_the_session_idle(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("fail no such model")
        [done] = await world.settle(one)
        assert done["outcome"] == "failed"
        assert done["error"]["code"] == "model_error"
        assert done["status"] == "idle"


async def test_a_turn_whose_container_does_not_start_says_why_without_the_hosts_paths(tmp_path: Path) -> None:
    def broken(project_id: str, workspace_id: str) -> AbstractAsyncContextManager[ReadyContainer]:
        raise ContainerError(
            "start a container: /srv/secret-place/run/c/1: no room", hint="Make room in /srv/secret-place."
        )

    def adjust(deps: Deps) -> Deps:
        return replace(deps, lease=broken, public_text=lambda text: text.replace("/srv/secret-place", "<home>"))

    async with open_world(tmp_path, adjust=adjust) as world:
        [done] = await world.settle(await world.new("say hello"))
        assert done["outcome"] == "failed"
        assert done["error"]["message"] == "start a container: <home>/run/c/1: no room"
        assert done["error"]["hint"] == "Make room in <home>."
        assert not any("secret-place" in str(event.body) for event in await world.log(done["session_id"]))


async def test_the_death_of_the_agent_interrupts_the_turn_and_the_session_goes_on(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("die")
        [done] = await world.settle(one)
        assert done["outcome"] == "interrupted"
        assert done["error"]["retryable"]
        await world.message(one, "say back again")
        [done] = await world.settle(one)
        assert done["final_text"] == "back again"


async def test_a_turn_that_takes_too_long_is_timed_out(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        args = {"new_session": True}
        result = await world.spawn("sleep", **args)  # type: ignore[arg-type]
        one = result["session_id"]
        await world.until(one, "running")
        await world.tree.end(ADMIN, one, "cancelled")
        from oubliette.session.requests import SpawnArgs, TurnArgs
        from tests.session.world import PROJECT

        short = TurnArgs("sleep", model="scripted", timeout_minutes=0.005)
        result = await world.tree.spawn(ADMIN, SpawnArgs(short, PROJECT, new_session=True))
        [done] = await world.settle(result["session_id"])
        assert done["outcome"] == "timed_out"
        assert done["error"]["code"] == "timed_out"
        assert done["status"] == "idle"


async def test_an_ask_waits_for_an_answer_and_the_first_one_wins(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("ask")
        await world.until(one, "waiting")
        [waiting] = await world.settle(one)
        [pending] = waiting["pending"]
        assert pending["permission"]["action"] == "bash"
        won = await world.tree.answer(ADMIN, pending["request_id"], "once", None)
        lost = await world.tree.answer(ADMIN, pending["request_id"], "reject", None)
        assert won["accepted"] is True
        assert lost["accepted"] is False
        assert lost["reply"] == "once"
        with trio.fail_after(5):
            await world.until(one, "idle")
        [done] = await world.settle(one)
        assert done["final_text"] == "once"
        types = await world.types(one)
        assert types.count(EventType.PERMISSION_REQUEST) == types.count(EventType.REQUEST_RESOLVED) == 1


async def test_an_ask_that_nobody_answers_is_rejected_in_time(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults={"agent": {"ask_timeout_minutes": 0.005}}) as world:
        one = await world.new("ask")
        await world.until(one, "idle")
        [done] = await world.settle(one)
        assert done["final_text"] == "reject"
        resolved = [event for event in await world.log(one) if event.type is EventType.REQUEST_RESOLVED]
        assert [event.body["resolution"]["how"] for event in resolved] == ["expired"]
        assert await world.store.read(partial(requests.pending, session_id=one)) == []


async def test_an_ask_from_before_a_restart_is_rejected_in_time_though_the_agent_does_not_repeat_it(
    tmp_path: Path,
) -> None:
    soon = {"agent": {"ask_timeout_minutes": 0.02}}
    async with open_world(tmp_path, defaults=soon) as world:
        agent = world.agent
        one = await world.new("ask")
        await world.until(one, "waiting")
    async with open_world(tmp_path, agent=agent, defaults=soon) as world:
        with trio.fail_after(10):
            while not agent.replied:
                await trio.sleep(0.01)
        assert [reply for _, reply in agent.replied] == ["reject"]
        assert await world.store.read(partial(requests.pending, session_id=one)) == []
        resolved = [event for event in await world.log(one) if event.type is EventType.REQUEST_RESOLVED]
        assert [event.body["resolution"]["how"] for event in resolved] == ["expired"]
        statuses = [event.body["status"]["to"] for event in await world.log(one) if event.type is EventType.STATUS]
        assert statuses[-1] in ("running", "idle")
        assert statuses.count("waiting") == 2, "once before and once after the restart"


async def test_the_time_limit_stands_still_while_somebody_is_asked(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        from oubliette.session.requests import SpawnArgs, TurnArgs
        from tests.session.world import PROJECT

        limit = timedelta(seconds=0.3)
        short = TurnArgs("ask", model="scripted", timeout_minutes=limit.total_seconds() / 60)
        result = await world.tree.spawn(ADMIN, SpawnArgs(short, PROJECT, new_session=True))
        one = result["session_id"]
        await world.until(one, "waiting")
        await trio.sleep(2 * limit.total_seconds())
        [waiting] = await world.settle(one)
        await world.tree.answer(ADMIN, waiting["pending"][0]["request_id"], "once", None)
        await world.until(one, "idle")
        [done] = await world.settle(one)
        assert done["outcome"] == "completed"


async def test_spawn_resumes_an_idle_session_of_the_same_kind_of_caller(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.spawn("say one")
        await world.settle(first["session_id"])
        second = await world.spawn("say two")
        assert second["resumed"]
        assert second["session_id"] == first["session_id"]
        await world.settle(first["session_id"])
        third = await world.spawn("say three", new_session=True)
        assert third["created"]
        assert third["session_id"] != first["session_id"]


async def test_nothing_is_resumed_while_it_works(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.spawn("sleep")
        second = await world.spawn("say two")
        assert second["session_id"] != first["session_id"]


async def test_no_model_is_a_clear_refusal(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        from oubliette.session.requests import SpawnArgs, TurnArgs
        from tests.session.world import PROJECT

        with pytest.raises(RequestError) as caught:
            await world.tree.spawn(ADMIN, SpawnArgs(TurnArgs("hello"), PROJECT))
        assert caught.value.code == "not_ready"
        assert "models" in caught.value.hint
