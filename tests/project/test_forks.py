"""Copies of trees in which agents work meanwhile: nothing half made, nothing locked for ever."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette import clock
from oubliette.core.model import Autonomy, PlaceState, Reasoning, SessionRow, SessionStatus, WorkspaceRow
from oubliette.errors import RequestError
from oubliette.project import contents
from oubliette.project.copy import copy_tree, is_git_lock
from oubliette.project.projects import CreateProject
from oubliette.project.walk import TreeChangedError
from oubliette.project.workspaces import insert_new
from oubliette.store import workspaces
from tests.project.conftest import ADMIN, OpenWorld, World
from tests.project.git_repos import git, make_repository


async def ready(world: World, **settings: Any) -> tuple[str, Path]:
    """A project and the directory of its default workspace."""
    row = await world.projects.create(ADMIN, CreateProject("shop", settings=settings))
    with trio.fail_after(30):
        await world.projects.idle(row.project_id)
    return row.project_id, world.home.workspace_dir(row.project_id, row.default_workspace_id)


def fork_row(source: Path) -> WorkspaceRow:
    return WorkspaceRow(
        "91aa0000-0000-4000-8000-00000000f0f0",
        source.parent.parent.name,
        False,
        PlaceState.PREPARING,
        clock.now(),
        forked_from=source.name,
    )


async def fork(world: World, source: Path) -> WorkspaceRow:
    """As a spawn does: the row first, then the work behind it."""
    row = fork_row(source)
    await world.store.write(partial(insert_new, row=row))
    world.projects.workspaces.begin(row.workspace_id)
    with trio.fail_after(30):
        await world.projects.workspaces.idle(row.workspace_id)
    return await world.projects.workspaces.get(row.workspace_id)


def interrupting(times: int, then: Callable[[], None] = lambda: None) -> Callable[..., Any]:
    """A copy from under which a directory is moved, so many times."""
    left = [times]

    def copy(source: Path, target: Path, **more: Any) -> Any:
        copied = copy_tree(source, target, **more)
        then()
        if left[0]:
            left[0] -= 1
            raise TreeChangedError("the tree was changed while it was walked")
        return copied

    return copy


async def test_locks_of_git_commands_that_run_meanwhile_are_not_copied(tmp_path: Path) -> None:
    work = make_repository(tmp_path / "work", {"a.txt": "a\n", "yarn.lock": "mine\n"})
    nested = make_repository(work / "vendor", {"b.txt": "b\n"})
    for lock in (work / ".git/index.lock", work / ".git/refs/heads/main.lock", nested / ".git/HEAD.lock"):
        lock.write_text("")
    copied = copy_tree(work, tmp_path / "copy", max_bytes=1 << 30, leave_out=is_git_lock)
    assert copied.skipped == 3
    assert (tmp_path / "copy" / "yarn.lock").read_text() == "mine\n"
    assert git(tmp_path / "copy", "status", "--porcelain") == "?? vendor/"
    git(tmp_path / "copy", "commit", "--quiet", "--allow-empty", "-m", "works")


async def test_a_tree_that_changes_while_it_is_copied_is_copied_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = await ready(world)
    (source / "a.txt").write_text("a")
    monkeypatch.setattr(contents, "copy_tree", interrupting(contents.FORK_ATTEMPTS - 1))
    made = await fork(world, source)
    assert made.state is PlaceState.READY
    assert (source.parent / made.workspace_id / "a.txt").read_text() == "a"


async def test_a_tree_that_never_stands_still_is_said_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = await ready(world)
    monkeypatch.setattr(contents, "copy_tree", interrupting(99))
    made = await fork(world, source)
    assert made.state is PlaceState.FAILED
    assert made.error is not None
    assert made.error["code"] == "conflict"
    with pytest.raises(RequestError, match="changed all the time"):
        await world.projects.place_ready(made.project_id, made.workspace_id)
    assert not (source.parent / made.workspace_id).exists()
    assert list((world.home.project_dir(made.project_id) / "making").iterdir()) == []


async def test_a_source_that_is_deleted_while_it_is_copied_makes_no_half_copy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id, _ = await ready(world)
    middle = await world.projects.workspaces.create(ADMIN, project_id)
    await world.projects.place_ready(project_id, middle.workspace_id)
    source = world.home.workspace_dir(project_id, middle.workspace_id)
    token = trio.lowlevel.current_trio_token()

    def delete() -> None:
        trio.from_thread.run(
            world.store.write,
            partial(workspaces.update, workspace_id=middle.workspace_id, state=PlaceState.DELETING),
            trio_token=token,
        )

    monkeypatch.setattr(contents, "copy_tree", interrupting(0, delete))
    made = await fork(world, source)
    assert made.state is PlaceState.FAILED
    assert not (source.parent / made.workspace_id).exists()


async def test_a_workspace_that_is_made_is_not_made_again(world: World) -> None:
    _, source = await ready(world)
    made = await fork(world, source)
    (source.parent / made.workspace_id / "work.txt").write_text("work")
    world.projects.workspaces.begin(made.workspace_id)
    await world.projects.workspaces.idle(made.workspace_id)
    assert (source.parent / made.workspace_id / "work.txt").read_text() == "work"


async def test_a_fork_whose_daemon_died_right_after_its_row_is_made_by_the_next_start(open_world: OpenWorld) -> None:
    async with open_world() as world:
        _, source = await ready(world)
        (source / "a.txt").write_text("a")
        row = fork_row(source)
        await world.store.write(partial(insert_new, row=row))
    async with open_world() as world:
        with trio.fail_after(30):
            await world.projects.place_ready(row.project_id, row.workspace_id)
        assert (source.parent / row.workspace_id / "a.txt").read_text() == "a"


@pytest.mark.parametrize("isolated", [True, False])
async def test_results_are_looked_for_where_the_session_s_container_has_its_state(world: World, isolated: bool) -> None:
    project_id, source = await ready(world, workspace_isolation=isolated)
    at = clock.now()
    session = SessionRow(
        session_id="gogol_1",
        project_id=project_id,
        workspace_id=source.name,
        root_id="gogol_1",
        depth=1,
        title="t",
        created_by={},
        status=SessionStatus.IDLE,
        since=at,
        model="m",
        autonomy=Autonomy.OFF,
        reasoning=Reasoning.MEDIUM,
        created_at=at,
        updated_at=at,
    )
    places = world.projects.workspaces
    assert await places.results_of(session) == []
    folder = world.home.state_dir(project_id, source.name if isolated else "shared") / "results" / "gogol_1"
    folder.mkdir(parents=True)
    (folder / "big").write_bytes(os.urandom(3 << 20))
    (folder / "a.txt").write_text("text")
    assert await places.results_of(session) == [
        {"path": "results/a.txt", "bytes": 4},
        {"path": "results/big", "bytes": 3 << 20},
    ]
    assert await places.read_result(session, "results/a.txt") == {
        "session_id": "gogol_1",
        "path": "results/a.txt",
        "size_bytes": 4,
        "text": "text",
    }
    big = await places.read_result(session, "results/big", 100)
    assert (big["base64_truncated"], big["base64_bytes"]) == (True, 3 << 20)


async def test_a_fork_that_would_fill_the_host_s_disk_is_given_up_and_says_why(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = await ready(world)

    def full(_path: Path) -> None:
        raise RequestError("storage_full", "The disk that holds data is nearly full.", retryable=True)

    monkeypatch.setattr(contents, "require_room", full)
    made = await fork(world, source)
    assert made.state is PlaceState.FAILED
    assert made.error is not None
    assert made.error["code"] == "storage_full"
    assert list((world.home.project_dir(made.project_id) / "making").iterdir()) == []
    with trio.fail_after(10):
        await world.projects.workspaces.delete(made.workspace_id)
        await world.projects.workspaces.idle(made.workspace_id)
    assert await world.store.read(partial(workspaces.get, workspace_id=made.workspace_id)) is None
