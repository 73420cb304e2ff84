"""Spawning, messaging and ending, cancelled at every single step: nothing is stranded and nothing is half done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from oubliette.core.model import EventType
from oubliette.store import sessions, workspaces
from tests.session.world import ADMIN, PROJECT, WORKSPACE, World, open_world
from tests.sweep import Check, Cut, Operation, cancel_sweep


async def _all_settle(world: World) -> list[str]:
    """Every open session has its task: it comes to rest by itself."""
    ids = [row.session_id for row in await world.store.read(sessions.open_all)]
    if ids:
        await world.settle(*ids)
    for one in ids:
        types = await world.types(one)
        assert types.count(EventType.COMPLETION) == types.count(EventType.TURN_STARTED) >= 1
    return ids


async def test_a_spawn_cancelled_at_any_step_happened_whole_or_not_at_all(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        before: set[str] = set()

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            async def spawn() -> None:
                await world.spawn("say hi", new_session=True)

            async def check(cut: Cut) -> None:
                after = set(await _all_settle(world))
                assert len(after - before) <= 1
                if not cut.cancelled:
                    assert len(after - before) == 1
                before.update(after)

            yield spawn, check

        assert await cancel_sweep(subject) >= 1


async def test_a_fork_spawned_and_cancelled_at_any_step_has_session_workspace_and_copy_or_none_of_them(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        root = await world.new("sleep")
        await world.until(root, "running")
        before: set[str] = set()

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            async def spawn() -> None:
                await world.spawn("say hi", parent=root, workspace="fork")

            async def check(cut: Cut) -> None:
                children = await world.store.read(partial(sessions.children, session_id=root))
                made = await world.store.read(partial(workspaces.of_project, project_id=PROJECT))
                places = {row.workspace_id for row in made} - {WORKSPACE}
                assert places == {row.workspace_id for row in children} == set(world.begun)
                assert len(places - before) == 1 or (cut.cancelled and places == before)
                before.update(places)
                if children:
                    await world.settle(*(row.session_id for row in children))

            yield spawn, check

        assert await cancel_sweep(subject) >= 1


async def test_a_message_cancelled_at_any_step_is_queued_whole_or_not_at_all(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.new("say first")
        await world.settle(one)

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            turns = (await world.row(one)).turn

            async def send() -> None:
                await world.message(one, "say more")

            async def check(cut: Cut) -> None:
                await _all_settle(world)
                assert (await world.row(one)).turn - turns in ((0, 1) if cut.cancelled else (1,))

            yield send, check

        assert await cancel_sweep(subject) >= 1


async def test_an_end_cancelled_at_any_step_is_carried_out_or_not_begun(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            root = await world.new("sleep")
            child = await world.new("sleep", parent=root)
            for one in (root, child):
                await world.until(one, "running")

            async def end() -> None:
                await world.tree.end(ADMIN, root, "cancelled")

            async def check(cut: Cut) -> None:
                row = await world.row(root)
                if cut.cancelled and row.ending is None and row.open:
                    await world.tree.end(ADMIN, root, "cancelled")
                for one in (root, child):
                    await world.until(one, "cancelled")
                assert not world.agent.running

            yield end, check

        assert await cancel_sweep(subject) >= 2
