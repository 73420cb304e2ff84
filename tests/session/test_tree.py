"""Spawning under cancellation, ending subtrees, restarting."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette.core.model import EventType, Outcome, PlaceState, SessionStatus
from oubliette.errors import RequestError
from oubliette.store import projects, sessions
from tests.session.fakes import FakeAgent
from tests.session.world import ADMIN, PROJECT, World, open_world


async def test_cancelled_spawns_strand_no_session(tmp_path: Path) -> None:
    """200 requests that leave at random moments: every row has its task, and every one of them is done."""
    chance = random.Random(7)
    async with open_world(tmp_path) as world:

        async def impatient(delay: float) -> None:
            with trio.move_on_after(delay):
                await world.spawn("say hi", new_session=True)

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(impatient, chance.random() * 0.2)
        rows = await world.store.read(sessions.open_all)
        assert rows
        await world.settle(*[row.session_id for row in rows], timeout_seconds=60)


async def _family(world: World, text: str, *, wide: int, deep: int) -> list[str]:
    """A root and its descendants, ``wide`` at each of ``deep`` levels under the first of the level above."""
    ids = [await world.new(text)]
    parents = ids[:]
    for _ in range(deep):
        level = [await world.new(text, parent=parent) for parent in parents for _ in range(wide)]
        ids += level
        parents = level[:2]
    return ids


async def test_cancelling_a_parent_stops_all_below_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults={"limits": {"max_active_sessions": 50}}) as world:
        ids = await _family(world, "sleep", wide=4, deep=3)
        for one in ids:
            await world.until(one, "running")
        with trio.fail_after(10):
            result = await world.tree.end(ADMIN, ids[0], "cancelled")
        assert set(result["ended"]) == set(ids)
        assert not world.agent.running
        for one in ids:
            row = await world.row(one)
            assert row.status == SessionStatus.CANCELLED
            assert (await world.turn(one, 1)).outcome == Outcome.CANCELLED
            assert (await world.types(one)).count(EventType.COMPLETION) == 1
        assert len(world.agent.killed) == len(ids)
        assert world.container.leases == 0


async def test_children_have_their_outcome_before_their_parent(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ids = await _family(world, "sleep", wide=2, deep=2)
        for one in ids:
            await world.until(one, "running")
        order: list[str] = []
        with world.feed.subscribe(lambda event: event.type is EventType.STATUS) as subscription:
            await world.tree.end(ADMIN, ids[0], "cancelled")
            while len(order) < len(ids):
                with trio.fail_after(5):
                    batch = await subscription.next_batch()
                order += [event.session_id for event in batch if event.body["status"]["to"] == "cancelled"]  # type: ignore[union-attr]
        depth = {one: (await world.row(one)).depth for one in ids}
        assert [depth[one] for one in order] == sorted((depth[one] for one in order), reverse=True)


async def test_a_session_that_is_being_ended_refuses_messages_and_reopens_afterwards(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("sleep")
        await world.until(one, "running")
        await world.tree.end(ADMIN, one, "completed")
        assert (await world.row(one)).status == SessionStatus.COMPLETED
        await world.message(one, "say again")
        [done] = await world.settle(one)
        assert done["final_text"] == "again"
        assert (await world.row(one)).open


async def test_ending_twice_is_fine(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("say hi")
        await world.settle(one)
        await world.tree.end(ADMIN, one, "completed")
        again = await world.tree.end(ADMIN, one, "cancelled")
        assert again == {"session_id": one, "status": "completed", "ended": []}


async def test_an_agent_that_ignores_the_abort_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("stuck")
        await world.until(one, "running")
        with trio.fail_after(12):
            await world.tree.end(ADMIN, one, "cancelled")
        assert (await world.row(one)).status == SessionStatus.CANCELLED


async def test_a_turn_goes_on_over_a_restart(tmp_path: Path) -> None:
    agent: FakeAgent
    async with open_world(tmp_path) as world:
        agent = world.agent
        one = await world.new("sleep")
        waiting = await world.message(one, "say later")
        assert waiting["queue_position"] >= 0
        with trio.fail_after(5):
            while "ses_1" not in agent.running:
                await trio.sleep(0.01)
    async with open_world(tmp_path, agent=agent) as world:
        await world.until(one, "running")
        with trio.fail_after(5):
            while not agent._channels["ses_1"]:
                await trio.sleep(0.01)
        agent._emit("ses_1", *_words("after the restart"))
        await world.settle(one)
        assert (await world.turn(one, 1)).final_text == "after the restart"
        assert (await world.turn(one, 2)).final_text == "later"
        assert len(agent.turns["ses_1"]) == 2, "the prompt was not sent again"
        log = await world.log(one)
        assert [event.index for event in log] == list(range(len(log)))


def _words(text: str) -> list:  # type: ignore[type-arg]
    from oubliette.agent.base import AgentDurable, AgentIdle

    return [
        AgentDurable(EventType.MESSAGE, {"part": "prt_x", "role": "assistant", "text": text}, "prt_x:text"),
        AgentIdle(final_text=text),
    ]


async def test_a_turn_that_ended_while_the_daemon_was_away_is_found_ended(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        agent = world.agent
        one = await world.new("sleep")
        await world.until(one, "running")
        with trio.fail_after(5):
            while "ses_1" not in agent.running:
                await trio.sleep(0.01)
    agent._emit("ses_1", *_words("meanwhile"))
    async with open_world(tmp_path, agent=agent) as world:
        [done] = await world.settle(one)
        assert done["outcome"] == "completed"
        assert done["final_text"] == "meanwhile"
        assert (await world.types(one)).count(EventType.MESSAGE) == 1


async def test_an_unknown_session_is_said_to_be_unknown(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for call in (
            partial(world.tree.end, ADMIN, "gogol_nope", "completed"),
            partial(world.message, "gogol_nope", "hi"),
            partial(world.tree.wait, ADMIN, ["gogol_nope"], False, 1),
        ):
            with pytest.raises(RequestError) as caught:
                await call()
            assert caught.value.code == "not_found"


async def test_a_session_whose_rows_are_deleted_under_it_ends_and_harms_nobody(tmp_path: Path) -> None:

    async with open_world(tmp_path) as world:
        one = await world.new("sleep")
        await world.until(one, "running")
        task = world.tree._live[one]
        await world.store.write(partial(projects.delete, project_id=PROJECT))
        with trio.fail_after(10):
            assert task.stop_turn(Outcome.CANCELLED, kill=True)
            await task.finished.wait()


async def test_a_session_of_a_project_that_is_being_deleted_is_not_opened_again(tmp_path: Path) -> None:

    async with open_world(tmp_path) as world:
        one = await world.new("say hi")
        await world.settle(one)
        await world.tree.end(ADMIN, one, "completed")
        at = world.deps.now()
        deleting = partial(projects.set_state, project_id=PROJECT, state=PlaceState.DELETING, error=None, at=at)
        await world.store.write(deleting)
        with pytest.raises(RequestError, match="being deleted"):
            await world.message(one, "say more")
        assert not (await world.row(one)).open


async def test_a_message_without_a_session_finds_the_only_one_or_says_which_there_are(tmp_path: Path) -> None:
    from oubliette.session.requests import MessageArgs, TurnArgs

    async with open_world(tmp_path) as world:
        one = await world.new("say one")
        await world.settle(one)
        found = await world.tree.message(ADMIN, MessageArgs(TurnArgs("say two"), project_id=PROJECT))
        assert found["session_id"] == one
        two = await world.new("say three")
        with pytest.raises(RequestError) as caught:
            await world.tree.message(ADMIN, MessageArgs(TurnArgs("say four"), project_id=PROJECT))
        assert caught.value.code == "ambiguous"
        assert set(caught.value.candidates or ()) == {one, two}


@pytest.mark.parametrize(
    ("limits", "name", "used"),
    [
        ({"max_recursion_depth": 1, "max_active_sessions": 50}, "max_recursion_depth", 1),
        ({"max_agents_per_session": 5, "max_active_sessions": 50}, "max_agents_per_session", 5),
        ({"max_active_sessions": 4}, "max_active_sessions", 4),
    ],
)
async def test_a_limit_of_a_tree_is_reached_exactly_and_never_exceeded(
    tmp_path: Path, limits: dict[str, int], name: str, used: int
) -> None:
    refused = []
    async with open_world(tmp_path, defaults={"limits": limits}) as world:
        root = await world.new("sleep")
        child = await world.new("sleep", parent=root)
        parent = child if name == "max_recursion_depth" else root

        async def one() -> None:
            try:
                await world.new("sleep", parent=parent)
            except RequestError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        rows = await world.store.read(partial(sessions.subtree, session_id=root))
        assert len(rows) == (2 if name == "max_recursion_depth" else limits[name])
        assert {error.code for error in refused} == {"limit_reached"}
        assert {error.limit.name for error in refused if error.limit} == {name}
        assert {error.limit.used for error in refused if error.limit} == {used}


async def test_a_child_is_announced_before_anything_of_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        root = await world.new("sleep")
        child = await world.new("say hi", parent=root)
        await world.settle(child)
        announced = [event.seq for event in await world.log(root) if event.type is EventType.CHILD_SPAWNED]
        first = (await world.log(child))[0].seq
        assert announced[0] < first


async def test_ending_a_project_reaches_a_detached_child_whose_root_has_ended(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        root = await world.new("sleep")
        child = await world.new("sleep", parent=root, detach=True)
        await world.until(child, "running")
        await world.tree.end(ADMIN, root, "completed")
        assert (await world.row(child)).open
        await world.tree.end_project(PROJECT)
        assert (await world.row(child)).status == SessionStatus.CANCELLED
