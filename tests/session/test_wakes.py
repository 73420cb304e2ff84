"""Messages that put a session to work again: counted like spawns, and decided where they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from oubliette.core.model import SessionStatus
from oubliette.core.principals import Principal, Scope
from oubliette.errors import RequestError
from oubliette.session.requests import MessageArgs, TurnArgs
from oubliette.store import sessions
from tests.session.world import ADMIN, PROJECT, World, open_world

TWO = {"limits": {"max_active_sessions": 2}}


async def idle_child(world: World, root: str) -> str:
    child = await world.new("say hi", parent=root)
    await world.settle(child)
    return child


async def at_work(world: World, *, parent: str | None = None) -> str:
    one = await world.new("sleep", parent=parent)
    await world.until(one, "running")
    return one


async def refusal(world: World, one: str, principal: Principal = ADMIN) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await world.tree.message(principal, MessageArgs(TurnArgs("say again"), one))
    return caught.value


async def test_a_message_that_would_put_one_session_too_many_to_work_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults=TWO) as world:
        root = await at_work(world)
        child = await idle_child(world, root)
        other = await at_work(world, parent=root)
        agent = Principal("session", root, root, Scope("session", project_id=PROJECT, session_id=root))
        for principal in (ADMIN, agent):
            error = await refusal(world, child, principal)
            assert (error.code, error.retryable) == ("limit_reached", True)
            assert error.limit is not None
            assert (error.limit.name, error.limit.limit, error.limit.used) == ("max_active_sessions", 2, 2)
        assert (await world.row(child)).turn == 1, "nothing of it was written"
        assert (await world.message(other, "say later"))["queue_position"] == 1, "one at work takes it into its queue"
        await world.tree.end(ADMIN, other, "completed")
        await world.message(child, "say now")
        assert (await world.settle(child))[0]["final_text"] == "now"


async def test_a_session_that_had_ended_counts_when_a_message_opens_it_again(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults=TWO) as world:
        root = await at_work(world)
        child = await idle_child(world, root)
        await world.tree.end(ADMIN, child, "completed")
        await at_work(world, parent=root)
        assert (await refusal(world, child)).code == "limit_reached"
        assert (await world.row(child)).status == SessionStatus.COMPLETED


async def test_twenty_messages_at_once_wake_exactly_as_many_as_may_work(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults={"limits": {"max_active_sessions": 5}}) as world:
        root = await at_work(world)
        children = [await idle_child(world, root) for _ in range(20)]
        refused: list[str] = []

        async def wake(one: str) -> None:
            try:
                await world.message(one, "sleep")
            except RequestError as error:
                refused.append(error.code)

        async with trio.open_nursery() as nursery:
            for one in children:
                nursery.start_soon(wake, one)
        assert refused == ["limit_reached"] * 16
        counts = await world.store.read(lambda tx: sessions.tree_counts(tx, root))
        assert counts["starting"] + counts["running"] == 5


async def test_a_spawn_that_would_resume_a_tree_at_its_limit_makes_a_new_session(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults={"limits": {"max_active_sessions": 1}}) as world:
        root = (await world.spawn("say hi"))["session_id"]
        await world.settle(root)
        child = await at_work(world, parent=root)
        made = await world.spawn("say hi")
        assert (made["created"], made["resumed"]) == (True, False)
        await world.tree.end(ADMIN, child, "cancelled")
        await world.tree.end(ADMIN, made["session_id"], "completed")
        assert (await world.spawn("say hi"))["session_id"] == root


async def test_twenty_messages_to_a_place_at_once_make_one_session_and_find_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        answers: list[tuple[str, bool]] = []

        async def send(number: int) -> None:
            args = MessageArgs(TurnArgs(f"say {number}", model="scripted"), project_id=PROJECT)
            result = await world.tree.message(ADMIN, args)
            answers.append((result["session_id"], result["created"]))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(send, number)
        assert len({session for session, _ in answers}) == 1
        assert [created for _, created in answers].count(True) == 1
        await world.settle(answers[0][0])
        assert (await world.row(answers[0][0])).turn == 20


async def test_a_message_to_a_place_with_several_sessions_names_them(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ids = [await world.new("say hi") for _ in range(2)]
        await world.settle(*ids)
        with pytest.raises(RequestError) as caught:
            await world.tree.message(ADMIN, MessageArgs(TurnArgs("x"), project_id=PROJECT))
        assert caught.value.code == "ambiguous"
        assert caught.value.candidates == ids[::-1]
        await world.tree.end(ADMIN, ids[0], "completed")
        sent = await world.tree.message(ADMIN, MessageArgs(TurnArgs("sleep"), project_id=PROJECT, delivery="interrupt"))
        assert (sent["session_id"], sent["created"]) == (ids[1], False)
