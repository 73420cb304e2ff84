"""Where children work: beside their parent, in an empty workspace, in a copy; and who may use which workspace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette import clock
from oubliette.core.model import PlaceState, WorkspaceRow
from oubliette.core.principals import Principal, Scope
from oubliette.errors import RequestError
from oubliette.session import places
from oubliette.store import projects, workspaces
from oubliette.store.database import Tx
from tests.session.world import PROJECT, WORKSPACE, World, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as opened:
        yield opened


def agent(session_id: str) -> Principal:
    return Principal("session", session_id, session_id, Scope("session", project_id=PROJECT, session_id=session_id))


async def place(world: World, workspace_id: str) -> WorkspaceRow:
    row = await world.store.read(partial(workspaces.get, workspace_id=workspace_id))
    assert row is not None
    return row


async def usable(world: World, session_id: str) -> set[str]:
    root_id = (await world.row(session_id)).root_id
    return await world.store.read(partial(places.workspaces_of_tree, root_id=root_id, session_id=session_id))


async def test_a_child_works_where_its_parent_does_unless_it_asks_for_more(world: World) -> None:
    root = await world.new("sleep")
    child = await world.spawn("hi", principal=agent(root))
    assert (child["workspace_id"], child["workspace_created"]) == (WORKSPACE, False)
    assert world.begun == []


@pytest.mark.parametrize("kind", ["new", "fork"])
async def test_a_child_s_own_workspace_is_written_with_its_row_and_made_behind_the_answer(
    world: World, kind: str
) -> None:
    root = await world.new("sleep")
    child = await world.spawn("hi", principal=agent(root), workspace=kind)
    made = await place(world, child["workspace_id"])
    assert child["workspace_created"] is True
    assert world.begun == [made.workspace_id]
    assert made.workspace_id != WORKSPACE
    assert (made.project_id, made.default, made.state) == (PROJECT, False, PlaceState.PREPARING)
    assert made.forked_from == (WORKSPACE if kind == "fork" else None)
    assert made.created_by == {"kind": "session", "id": root, "name": root}
    assert (await world.row(child["session_id"])).workspace_id == made.workspace_id


async def test_a_fork_of_a_fork_is_a_copy_of_the_nearer_one(world: World) -> None:
    root = await world.new("sleep")
    child = await world.spawn("sleep", principal=agent(root), workspace="fork")
    await world.store.write(partial(workspaces.update, workspace_id=child["workspace_id"], state=PlaceState.READY))
    below = await world.spawn("hi", principal=agent(child["session_id"]), workspace="fork")
    assert (await place(world, below["workspace_id"])).forked_from == child["workspace_id"]
    beside = await world.spawn("hi", principal=agent(child["session_id"]))
    assert beside["workspace_id"] == child["workspace_id"]


async def test_the_hundredth_workspace_is_the_last_and_a_refused_spawn_leaves_nothing(world: World) -> None:
    root = await world.new("sleep")

    def fill(tx: Tx) -> None:
        for number in range(98):
            workspaces.insert(tx, WorkspaceRow(f"ws-{number}", PROJECT, False, PlaceState.READY, clock.now()))

    await world.store.write(fill)
    results: list[str] = []

    async def one() -> None:
        try:
            results.append((await world.spawn("hi", principal=agent(root), workspace="new"))["session_id"])
        except RequestError as error:
            results.append(error.code)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert sorted(results)[1:] == ["limit_reached"] * 4
    assert min(results).startswith("gogol_")
    assert len(world.begun) == 1
    counts = await world.store.read(partial(projects.counts, project_id=PROJECT))
    assert (counts["workspaces"], counts["sessions"]) == (100, 2)


async def test_a_refused_child_leaves_no_workspace(world: World) -> None:
    root = await world.new("sleep")
    with pytest.raises(RequestError, match="levels deep"):
        deep = root
        for _ in range(5):
            deep = (await world.spawn("sleep", principal=agent(deep), workspace="new"))["session_id"]
            at = (await world.row(deep)).workspace_id
            await world.store.write(partial(workspaces.update, workspace_id=at, state=PlaceState.READY))
    counts = await world.store.read(partial(projects.counts, project_id=PROJECT))
    assert counts["workspaces"] == counts["sessions"] == len(world.begun) + 1


async def test_only_children_have_a_parent_to_copy(world: World) -> None:
    with pytest.raises(RequestError) as caught:
        await world.spawn("hi", workspace="fork")
    assert caught.value.field == "workspace"


async def test_a_place_that_is_not_ready_is_not_copied(world: World) -> None:
    root = await world.new("sleep")
    child = await world.spawn("sleep", principal=agent(root), workspace="new")
    with pytest.raises(RequestError) as caught:
        await world.spawn("hi", principal=agent(child["session_id"]), workspace="fork")
    assert caught.value.code == "not_ready"


async def test_a_session_may_use_what_it_and_those_below_it_made_and_nothing_else(world: World) -> None:
    root = await world.new("sleep")
    child = await world.spawn("sleep", principal=agent(root), workspace="new")
    sibling = await world.spawn("sleep", principal=agent(root), workspace="new")
    own = child["session_id"]
    made = WorkspaceRow(
        "made", PROJECT, False, PlaceState.READY, clock.now(), created_by=agent(own).as_json(), source="agent"
    )
    await world.store.write(partial(workspaces.insert, row=made))
    other = await world.new("sleep")
    stranger = replace(made, workspace_id="stranger", created_by=agent(other).as_json())
    await world.store.write(partial(workspaces.insert, row=stranger))
    assert await usable(world, own) == {child["workspace_id"], "made"}
    assert await usable(world, root) == {WORKSPACE, child["workspace_id"], sibling["workspace_id"], "made"}

    there = await world.spawn("hi", principal=agent(own), workspace_id="made")
    assert (there["workspace_id"], there["workspace_created"]) == ("made", False)
    for foreign in ("stranger", WORKSPACE, sibling["workspace_id"]):
        with pytest.raises(RequestError) as caught:
            await world.spawn("hi", principal=agent(own), workspace_id=foreign)
        assert (caught.value.code, caught.value.field) == ("permission_denied", "workspace_id")
    with pytest.raises(RequestError) as caught:
        await world.spawn("hi", principal=agent(own), workspace_id="made", workspace="fork")
    assert caught.value.code == "invalid_argument"


async def test_what_a_child_leaves_is_told_by_wait_and_by_its_turn(world: World) -> None:
    root = await world.new("sleep")
    world.left["hi"] = [{"path": "results/report.md", "bytes": 12}]
    child = await world.spawn("hi", principal=agent(root))
    [waited] = await world.settle(child["session_id"])
    assert waited["results"] == [{"path": "results/report.md", "bytes": 12}]
    assert (await world.turn(child["session_id"], 1)).results == waited["results"]


async def test_a_child_is_told_where_to_leave_files(world: World) -> None:
    root = await world.new("sleep")
    child = (await world.spawn("hi", principal=agent(root)))["session_id"]
    await world.settle(child)
    told = [turn.prompt.system or "" for turns in world.agent.turns.values() for turn in turns]
    assert [f"/state/results/{child}" in text for text in told] == [False, True]
