"""Calls of callers' tools at the session: cut off at any step, held to one answer, listed anew after a loss."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette.core.caller_results import result_of
from oubliette.core.caller_tools import declaration
from oubliette.core.model import EventType, RequestRow
from oubliette.errors import RequestError, StoreError
from oubliette.session import callers
from oubliette.session.requests import MessageArgs, SpawnArgs, TurnArgs
from oubliette.store import caller_tools, requests
from tests.session.world import ADMIN, PROJECT, World, open_world
from tests.sweep import Check, Cut, Operation, cancel_sweep

IDE = declaration("ide", [{"name": "open_file"}])


async def at_work(world: World) -> str:
    """A session whose caller has a tool."""
    args = SpawnArgs(TurnArgs("sleep", model="scripted", caller=IDE), PROJECT, new_session=True)
    spawned = await world.tree.spawn(ADMIN, args)
    await world.until(spawned["session_id"], "running")
    return str(spawned["session_id"])


async def waiting(world: World, session_id: str) -> RequestRow:
    await world.until(session_id, "waiting")
    [request] = await world.store.read(partial(requests.pending, session_id=session_id))
    return request


async def test_a_call_that_is_cut_off_at_any_step_leaves_nothing_pending(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        session_id = await at_work(world)

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            async def answering() -> None:
                request = await waiting(world, session_id)
                await world.tree.callers.respond(ADMIN, session_id, request.request_id, result_of("x"))

            async def call() -> None:
                result = await world.tree.callers.call(session_id, "ide", "open_file", {})
                assert result.content == [{"type": "text", "text": "x"}]

            async def check(cut: Cut) -> None:
                nursery.cancel_scope.cancel("the call is over")
                assert await world.store.read(partial(requests.pending, session_id=session_id)) == []
                assert (await world.row(session_id)).status == "running"
                types = await world.types(session_id)
                assert types.count(EventType.CALLER_TOOL_REQUEST) == types.count(EventType.REQUEST_RESOLVED)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answering)
                yield call, check

        assert await cancel_sweep(subject) >= 2


async def test_an_answer_that_is_cut_off_at_any_step_is_given_whole_or_not_at_all(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        session_id = await at_work(world)

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            got: list[str] = []

            async def call() -> None:
                result = await world.tree.callers.call(session_id, "ide", "open_file", {})
                got.append(str(result.content[0]["text"]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                request = await waiting(world, session_id)
                respond = partial(world.tree.callers.respond, ADMIN, session_id, request.request_id)

                async def answer() -> None:
                    await respond(result_of("first"))

                async def check(cut: Cut) -> None:
                    second = await respond(result_of("second"))
                    with trio.fail_after(5):
                        while not got:
                            await trio.sleep(0.01)
                    assert got == ["second" if second["accepted"] else "first"]

                yield answer, check

        assert await cancel_sweep(subject) >= 1


async def test_events_that_were_missed_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed forgets what its reader is too slow for."""
    async with open_world(tmp_path) as world:
        session_id = await at_work(world)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(RequestError, match="was ended"):
                    await world.tree.callers.call(session_id, "ide", "open_file", {})

            nursery.start_soon(call)
            await waiting(world, session_id)
            monkeypatch.setattr("oubliette.session.feed.STREAM_BACKLOG_EVENTS", 0)
            with trio.fail_after(10):
                await world.tree.interrupt(ADMIN, session_id)


async def test_a_store_that_cannot_be_read_for_a_moment_keeps_no_call_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def unreadable(*_: object, **__: object) -> None:
        tried.append("")
        raise StoreError("read from the store: the disk is gone")

    async with open_world(tmp_path) as world:
        session_id = await at_work(world)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(RequestError, match="was ended"):
                    await world.tree.callers.call(session_id, "ide", "open_file", {})

            nursery.start_soon(call)
            await waiting(world, session_id)
            monkeypatch.setattr(callers, "TROUBLE_SECONDS", 0.01)
            monkeypatch.setattr("oubliette.session.feed.STREAM_BACKLOG_EVENTS", 0)
            with monkeypatch.context() as broken:
                broken.setattr(callers, "_requests", unreadable)
                broken.setattr(caller_tools, "ended_principals", unreadable)
                await world.tree.interrupt(ADMIN, session_id)
                with trio.fail_after(5):
                    while len(tried) < 4:
                        await trio.sleep(0.005)  # both try again


async def test_a_message_to_a_session_that_has_ended_finds_its_tools_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        session_id = await at_work(world)
        await world.tree.end(ADMIN, session_id, "completed")
        world.agent.servers.clear()
        await world.tree.message(ADMIN, MessageArgs(TurnArgs("sleep"), session_id))
        await world.until(session_id, "running")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.tree.callers.call, session_id, "ide", "open_file", {})
            request = await waiting(world, session_id)
            told = await world.tree.callers.respond(ADMIN, session_id, request.request_id, result_of("x"))
            assert told["accepted"]
        assert [name for _, name, _ in world.agent.added] == ["ide", "ide"]
