"""A tree of forty that is cancelled while it grows, while its canceller leaves, and while the daemon stops."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing

from oubliette.core.model import EventType, Json, Outcome, SessionRow, SessionStatus
from oubliette.errors import RequestError, StoreError
from oubliette.session import ending, units
from oubliette.store import events, sessions
from oubliette.store.database import Tx
from tests.session.fakes import FakeAgent
from tests.session.world import ADMIN, World, open_world
from tests.sweep import Check, Cut, Operation, cancel_sweep

WIDE = {"limits": {"max_active_sessions": 60, "max_agents_per_session": 60, "max_recursion_depth": 3}}
BEGINNINGS = {EventType.TURN_QUEUED, EventType.TURN_STARTED, EventType.CHILD_SPAWNED, EventType.TOOL_CALL}
"""None of these may follow the commit of ``cancel``."""


@dataclass
class Marks:
    """The newest ``seq`` of each tree at the commit that marked it as ending."""

    seqs: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Marks:
    noted = Marks()
    real = units.mark_ending

    def marking(tx: Tx, session_id: str, how: Literal["completed", "cancelled"], at: object) -> list[SessionRow]:
        taken = real(tx, session_id, how, at)  # type: ignore[arg-type]
        row = sessions.get(tx, session_id)
        root = sessions.get(tx, row.root_id) if row is not None else None
        if root is not None:
            noted.seqs.setdefault(root.session_id, root.last_seq)
        return taken

    monkeypatch.setattr(units, "mark_ending", marking)
    return noted


async def _family(world: World, *, levels: tuple[int, ...]) -> list[str]:
    """A root and its descendants, so many below each at each level, all asleep."""
    ids = level = [await world.new("sleep")]
    for width in levels:
        level = [await world.new("sleep", parent=parent) for parent in level for _ in range(width)]
        ids = ids + level
    for one in ids:
        await world.until(one, "running")
    return ids


async def _gone(world: World, root: str, marks: Marks | None = None) -> list[SessionRow]:
    """Nothing of the tree runs, and every row of it says how it ended. Returns the rows."""
    rows = await world.store.read(partial(sessions.subtree, session_id=root))
    for row in rows:
        assert (row.status, row.open) == (SessionStatus.CANCELLED, False), row
        turn = await world.turn(row.session_id, row.turn)
        assert turn.outcome is Outcome.CANCELLED
        types = await world.types(row.session_id)
        assert types.count(EventType.COMPLETION) == types.count(EventType.TURN_STARTED) <= 1
    assert not world.agent.running
    assert world.container.leases == 0
    if marks is not None:
        log = await world.store.read(
            partial(events.read_tree, root_id=root, session_ids=None, since_seq=marks.seqs[root], max_events=10_000)
        )
        assert not [event for event in log if event.type in BEGINNINGS]
        assert len([event for event in log if event.type is EventType.CHILD_ENDED]) == len(rows) - 1
    with trio.fail_after(5):
        while any(row.session_id in world.tree._live for row in rows):
            await trio.lowlevel.checkpoint()
    return rows


async def test_forty_descendants_are_gone_when_cancel_answers(tmp_path: Path, marks: Marks) -> None:
    async with open_world(tmp_path, defaults=WIDE) as world:
        ids = await _family(world, levels=(4, 3, 2))
        assert len(ids) == 41
        with trio.fail_after(10):
            ended = await world.tree.end(ADMIN, ids[0], "cancelled")
        assert set(ended["ended"]) == set(ids)
        assert len(await _gone(world, ids[0], marks)) == 41
        assert len(set(world.agent.killed)) == 41


async def test_what_an_idle_session_has_left_in_the_background_is_killed_too(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults=WIDE) as world:
        root = await world.new("sleep")
        await world.until(root, "running")
        child = await world.new("say done", parent=root)
        await world.settle(child)
        await world.tree.end(ADMIN, root, "cancelled")
        marks = {(await world.row(one)).agent_session_id for one in (root, child)}
        assert set(world.agent.killed) == marks
        assert (await world.row(child)).status == SessionStatus.CANCELLED


@pytest.mark.parametrize("seed", range(10))
async def test_spawns_in_flight_are_cancelled_or_refused(tmp_path: Path, marks: Marks, seed: int) -> None:
    """Everybody in the tree goes on spawning until it is refused; cancel comes somewhere in between."""
    chance = random.Random(seed)
    async with open_world(tmp_path, defaults=WIDE) as world:
        root = await world.new("sleep")
        refused: list[str] = []

        async def breed(parent: str, depth: int) -> None:
            while True:
                try:
                    child = await world.new("sleep", parent=parent)
                except RequestError as error:
                    refused.append(error.code)
                    return
                if depth < 3:
                    nursery.start_soon(breed, child, depth + 1)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(breed, root, 1)
                wanted = chance.randint(2, 39)
                while len(world.tree._live) < wanted:
                    await trio.lowlevel.checkpoint()
                await world.tree.end(ADMIN, root, "cancelled")
        assert set(refused) <= {"conflict", "limit_reached"}
        rows = await _gone(world, root, marks)
        assert wanted <= len(rows) <= 60


async def test_a_canceller_that_leaves_at_any_step_strands_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults=WIDE) as world:

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            ids = await _family(world, levels=(3, 2, 1))

            async def cancel() -> None:
                await world.tree.end(ADMIN, ids[0], "cancelled")

            async def check(cut: Cut) -> None:
                row = await world.row(ids[0])
                if cut.cancelled and row.ending is None and row.open:
                    await world.tree.end(ADMIN, ids[0], "cancelled")
                for one in ids:
                    await world.until(one, "cancelled")
                await _rests(world)
                assert len(await _gone(world, ids[0])) == len(ids)

            yield cancel, check

        assert await cancel_sweep(subject) >= 2


async def _rests(world: World) -> None:
    """Wait until no turn holds the container any more: outcomes are written before that is so."""
    with trio.fail_after(5):
        while world.container.leases:
            await trio.lowlevel.checkpoint()


async def test_a_daemon_that_stops_at_any_step_of_a_cancel_finishes_it_when_it_starts(tmp_path: Path) -> None:
    """The sweep cancels the whole world: the tree, its sessions and what ends them. The agent outlives it."""
    steps = iter(range(10_000))
    gone_on: list[int] = []
    async with trio.open_nursery() as outside:

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            folder = tmp_path / str(next(steps))
            folder.mkdir()
            agent = FakeAgent(outside)
            async with open_world(folder, agent=agent, defaults=WIDE) as world:
                agent._nursery = outside
                ids = await _family(world, levels=(2, 1))

            async def stop_in_the_middle() -> None:
                async with open_world(folder, agent=agent, defaults=WIDE) as world:
                    agent._nursery = outside
                    with suppress(RequestError):  # the tree was stopped before its caller was
                        await world.tree.end(ADMIN, ids[0], "cancelled")

            async def check(cut: Cut) -> None:
                async with open_world(folder, agent=agent, defaults=WIDE) as world:
                    agent._nursery = outside
                    row = await world.row(ids[0])
                    if row.open and row.ending is None:
                        assert cut.cancelled
                        await world.tree.end(ADMIN, ids[0], "cancelled")
                    elif cut.cancelled:
                        gone_on.append(cut.step)
                    for one in ids:
                        await world.until(one, "cancelled")
                    await _rests(world)
                    assert len(await _gone(world, ids[0])) == len(ids)

            yield stop_in_the_middle, check

        assert await cancel_sweep(subject, every=3) >= 10
        assert len(gone_on) >= 3, "some cuts fell between the mark and the outcomes"
        outside.cancel_scope.cancel("swept")


@asynccontextmanager
async def _being_ended(world: World, root: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[trio.Event]:
    """Until the event is set the root's agent has not stopped, and its end not come."""
    stops, real = trio.Event(), world.agent.abort

    async def abort(agent_session_id: str, directory: str) -> None:
        await stops.wait()
        await real(agent_session_id, directory)

    monkeypatch.setattr(world.agent, "abort", abort)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.tree.end, ADMIN, root, "cancelled")
        with trio.fail_after(5):
            while (await world.row(root)).ending is None:
                await trio.lowlevel.checkpoint()
        yield stops
        stops.set()


async def test_what_had_ended_is_not_opened_again_below_a_parent_that_is_being_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path, defaults=WIDE) as world:
        root = await world.new("sleep")
        await world.until(root, "running")
        child = await world.new("say done", parent=root)
        await world.settle(child)
        await world.tree.end(ADMIN, child, "completed")
        async with _being_ended(world, root, monkeypatch):
            with pytest.raises(RequestError, match="above it is being ended"):
                await world.message(child, "sleep")
        await world.until(root, "cancelled")
        await world.message(child, "say more")
        [done] = await world.settle(child)
        assert done["final_text"] == "more"


async def test_whoever_ends_what_is_being_ended_is_answered_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path, defaults=WIDE) as world:
        root = await world.new("sleep")
        await world.until(root, "running")
        async with _being_ended(world, root, monkeypatch) as stops, trio.open_nursery() as nursery:
            told: list[Json] = []

            async def again() -> None:
                told.append(await world.tree.end(ADMIN, root, "completed"))

            nursery.start_soon(again)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not told
            stops.set()
        assert told == [{"session_id": root, "status": "cancelled", "ended": []}]


async def test_an_end_whose_outcome_could_not_be_written_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path, defaults=WIDE) as world:
        ids = await _family(world, levels=(2,))

        def full(*_: object, **__: object) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as broken:
            broken.setattr(units, "finish_sessions", full)
            with pytest.raises(RequestError, match="Could not end"):
                await world.tree.end(ADMIN, ids[0], "cancelled")
        monkeypatch.setattr(ending, "REST_SECONDS", 0.1)
        await world.tree.end(ADMIN, ids[0], "cancelled")
        assert len(await _gone(world, ids[0])) == 3
