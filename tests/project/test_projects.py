from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from oubliette.core.model import PlaceState, ProjectRow, SessionStatus
from oubliette.core.place_shapes import Project, Workspace
from oubliette.errors import ContainerError, RequestError
from oubliette.project import contents
from oubliette.project.clone import init_repository
from oubliette.project.projects import CreateProject
from oubliette.store import projects, sessions, workspaces
from oubliette.store.database import Tx
from tests.project.conftest import ADMIN, OpenWorld, World, project_principal
from tests.project.git_repos import git, make_repository
from tests.store.rows import session, spend


async def made(world: World, **args: Any) -> ProjectRow:
    """A project, once nothing is being done to it any more."""
    row = await world.projects.create(ADMIN, CreateProject(**{"name": "shop", **args}))
    with trio.fail_after(30):
        await world.projects.idle(row.project_id)
    return await world.projects.get(row.project_id)


def directory(world: World, row: ProjectRow) -> Path:
    return world.home.workspace_dir(row.project_id, row.default_workspace_id)


# --- making


async def test_a_project_has_an_empty_repository_and_its_container_is_warmed(world: World) -> None:
    row = await made(world)
    assert row.state is PlaceState.READY
    assert git(directory(world, row), "status", "--porcelain", "--branch") == "## No commits yet on main"
    assert world.asked == [("warm", row.project_id, row.default_workspace_id)]
    workspace = await world.projects.workspaces.get(row.default_workspace_id)
    assert (workspace.default, workspace.state) == (True, PlaceState.READY)
    assert directory(world, row).stat().st_mode & 0o777 == 0o700


async def test_a_project_without_git_begins_empty(world: World) -> None:
    row = await made(world, init_git=False)
    assert os.listdir(directory(world, row)) == []
    assert row.settings == {"init_git": False}


async def test_a_template_is_what_projects_begin_with(open_world: OpenWorld, tmp_path: Path) -> None:
    template = tmp_path / "template"
    (template / "docs").mkdir(parents=True)
    (template / "docs" / "READ.ME").write_text("read me")
    async with open_world({"defaults": {"project": {"template": str(template)}}}) as world:
        row = await made(world)
        assert (directory(world, row) / "docs" / "READ.ME").read_text() == "read me"
        assert (directory(world, row) / ".git").is_dir()


async def test_a_repository_is_really_cloned(world: World, tmp_path: Path) -> None:
    origin = make_repository(tmp_path / "origin", {"a.txt": "x\n"})
    row = await world.projects.create(ADMIN, CreateProject("shop", remote_url=str(origin), branch="main"))
    assert row.state is PlaceState.CLONING
    with trio.fail_after(30):
        await world.projects.place_ready(row.project_id, row.default_workspace_id)
    assert (directory(world, row) / "a.txt").read_text() == "x\n"
    assert (await world.projects.get(row.project_id)).state is PlaceState.READY


async def test_a_workspace_is_where_containers_see_it_only_once_it_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that all workspaces share is mounted one level up: the host must not work where it can write."""
    seen: list[tuple[Path, bool]] = []
    really = init_repository

    def look(root: Path) -> None:
        really(root)
        workspaces_dir = world.home.workspaces_dir(root.parent.parent.name)
        seen.append((root, workspaces_dir.exists()))

    monkeypatch.setattr(contents, "init_repository", look)
    row = await made(world)
    assert (directory(world, row) / ".git").is_dir()
    [(root, there)] = seen
    assert (there, root.exists()) == (False, False)


async def test_a_failed_clone_leaves_nothing_but_the_row(world: World, tmp_path: Path) -> None:
    row = await made(world, remote_url=str(tmp_path / "nothing"))
    assert row.state is PlaceState.FAILED
    assert row.error is not None
    assert row.error["code"] == "clone_failed"
    assert not world.home.project_dir(row.project_id).exists()
    assert world.asked == []
    with pytest.raises(RequestError) as caught:
        await world.projects.place_ready(row.project_id, row.default_workspace_id)
    assert caught.value.code == "clone_failed"
    deleted = await world.projects.delete(row.project_id)
    assert deleted.state is PlaceState.DELETING
    with trio.fail_after(5):
        await world.projects.idle(row.project_id)
    with pytest.raises(RequestError):
        await world.projects.get(row.project_id)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"description": "x" * 5000}, "description"),
        ({"remote_url": "ext::sh -c id"}, "remote_url"),
        ({"remote_url": "https://localhost/o/r"}, "remote_url"),
        ({"branch": "main"}, "branch"),
        ({"remote_url": "https://github.com/o/r", "branch": "-x"}, "branch"),
        ({"settings": {"nonsense": 1}}, "nonsense"),
        ({"settings": {"model": "nonsense"}}, "model"),
    ],
)
async def test_what_is_wrong_is_refused_before_anything_is_made(world: World, args: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        await world.projects.create(ADMIN, CreateProject(**{"name": "shop", **args}))
    assert caught.value.field == field
    rows, _ = await world.projects.list(ADMIN)
    assert rows == []


async def test_a_crash_in_the_middle_of_a_clone_is_made_good_by_the_next_start(
    open_world: OpenWorld, tmp_path: Path
) -> None:
    origin = make_repository(tmp_path / "origin", {"a.txt": "x\n"})
    async with open_world() as world:
        row = await made(world, remote_url=str(origin))
        # As kill -9 leaves it: half a tree, and a row that says so.
        (directory(world, row) / "a.txt").unlink()
        (directory(world, row) / "half").write_text("half")
        for unit in (
            partial(projects.update, project_id=row.project_id, state=PlaceState.CLONING),
            partial(workspaces.update, workspace_id=row.default_workspace_id, state=PlaceState.CLONING),
        ):
            await world.store.write(unit)
    async with open_world() as world:
        with trio.fail_after(30):
            await world.projects.place_ready(row.project_id, row.default_workspace_id)
        assert sorted(os.listdir(directory(world, row))) == [".git", "a.txt"]


async def test_a_start_interrupted_while_preparing_is_cancelled_and_goes_on_later(
    open_world: OpenWorld, tmp_path: Path
) -> None:
    origin = make_repository(tmp_path / "origin", {"a.txt": "x\n"})
    async with open_world() as world:
        row = await world.projects.create(ADMIN, CreateProject("shop", remote_url=str(origin)))
    async with open_world(run=False) as world:
        assert (await world.projects.get(row.project_id)).state is PlaceState.CLONING
    async with open_world() as world:
        with trio.fail_after(30):
            await world.projects.idle(row.project_id)
        assert (await world.projects.get(row.project_id)).state is PlaceState.READY


async def test_whoever_waits_for_a_place_at_a_start_waits_until_it_is_taken_up(open_world: OpenWorld) -> None:
    async with open_world() as world:
        row = await world.projects.create(ADMIN, CreateProject("shop"))
    async with open_world(run=False) as world, trio.open_nursery() as nursery:
        with trio.fail_after(30):
            nursery.start_soon(world.projects.place_ready, row.project_id, row.default_workspace_id)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await nursery.start(world.projects.run)
            await world.projects.place_ready(row.project_id, row.default_workspace_id)
        nursery.cancel_scope.cancel()


class CancelAtStep(trio.abc.Instrument):
    """Cancels ``scope`` when ``task`` takes its n-th step."""

    def __init__(self, step: int) -> None:
        self.step, self.steps = step, 0
        self.task: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.steps += 1
            if self.steps == self.step:
                self.scope.cancel()


async def cancelled_at(step: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Run it, cancelled at its n-th step; False when it has fewer."""
    instrument = CancelAtStep(step)

    async def target() -> None:
        instrument.task = trio.lowlevel.current_task()
        with instrument.scope:
            trio.lowlevel.add_instrument(instrument)
            try:
                await work()
            finally:
                trio.lowlevel.remove_instrument(instrument)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(target)
    return instrument.steps >= step


async def test_a_call_cancelled_at_any_step_strands_no_project(world: World) -> None:
    step = 1
    with trio.fail_after(60):
        while await cancelled_at(step, partial(world.projects.create, ADMIN, CreateProject(f"p{step}"))):
            step += 1
        rows, _ = await world.projects.list(ADMIN)
        for row in rows:
            await world.projects.place_ready(row.project_id, row.default_workspace_id)
        assert len(os.listdir(world.home.projects)) == len(rows) >= 1
        for number, row in enumerate(rows, start=1):
            await cancelled_at(number, partial(world.projects.delete, row.project_id))
            found = await world.store.read(partial(projects.get, project_id=row.project_id))
            if found is not None and found.state is PlaceState.READY:  # cancelled before it had begun
                await world.projects.delete(row.project_id)
            await world.projects.idle(row.project_id)
        assert await world.projects.list(ADMIN) == ([], None)
        assert os.listdir(world.home.projects) == []


# --- guarded keys, secrets


async def test_guarded_keys_need_an_admin_also_in_create(world: World) -> None:
    row = await made(world)
    writer = project_principal(row.project_id)
    for settings in (
        {"model": "scripted"},
        {"allowed_models": ["scripted"]},
        {"network": "bridge"},
        {"container_type": "base"},
        {"protected_paths": ["ci"]},
        {"agent_scope": "admin"},
        {"github_token": "ghp_x"},
        {"limits": {"max_cost_usd": 11}},
    ):
        with pytest.raises(RequestError) as caught:
            await world.projects.update(writer, row.project_id, settings=settings)
        assert caught.value.code == "permission_denied", settings
        with pytest.raises(RequestError) as caught:
            await world.projects.create(writer, CreateProject("mine", settings=settings))
        assert caught.value.code == "permission_denied", settings
        assert (await world.projects.update(ADMIN, row.project_id, settings=settings)).settings
    allowed = {
        "autonomy": "low",
        "reasoning": "max",
        "disabled_tools": ["web*"],
        "limits": {"max_agents_per_session": 5},
    }
    changed = await world.projects.update(writer, row.project_id, name="new", settings=allowed)
    assert changed.name == "new"
    assert changed.settings["limits"] == {"max_cost_usd": 11, "max_agents_per_session": 5}
    # Saying what is so already is no change.
    await world.projects.update(writer, row.project_id, settings={"network": "bridge"})


async def test_what_is_fixed_at_create_stays(world: World) -> None:
    row = await made(world)
    with pytest.raises(RequestError) as caught:
        await world.projects.update(ADMIN, row.project_id, settings={"workspace_isolation": False})
    assert caught.value.field == "workspace_isolation"
    with pytest.raises(RequestError) as caught:
        await world.projects.update(ADMIN, "nothing", name="x")
    assert caught.value.code == "not_found"


async def test_secrets_are_masked_for_everybody_and_known_to_the_log(open_world: OpenWorld) -> None:
    servers = {"docs": {"type": "remote", "url": "https://x.example", "headers": {"Authorization": "Bearer s3cret-1"}}}
    local = {"type": "local", "command": ["x"], "environment": {"KEY": "s3cret-2"}}
    settings = {"github_token": "ghp_s3cret", "mcp_servers": {**servers, "own": local}}
    async with open_world() as world:
        row = await made(world, settings=settings)
        view = await world.store.read(lambda tx: world.projects.views.project(tx, row, ADMIN))
        assert "s3cret" not in str(view)
        assert view["mcp_servers"]["docs"]["headers"] == {"Authorization": "***"}
        assert view["mcp_servers"]["own"]["environment"] == {"KEY": "***"}
        assert view["credentials"] == {"github_token_set": True}
        assert world.hidden == {"ghp_s3cret", "Bearer s3cret-1", "s3cret-2"}
    async with open_world() as world:
        assert world.hidden == {"ghp_s3cret", "Bearer s3cret-1", "s3cret-2"}


async def test_the_view_is_the_documented_shape_and_shows_paths_to_admins_only(world: World) -> None:
    row = await made(world, description="a shop", settings={"limits": {"max_cost_usd": 3}})

    def spent(tx: Tx) -> None:
        spend(tx, "a", 1, 250_000)
        tx.run("UPDATE model_requests SET project_id = ?", row.project_id)

    await world.store.write(spent)
    for principal, shows in ((ADMIN, True), (project_principal(row.project_id), False)):
        view = await world.store.read(partial(world.projects.views.project, row=row, principal=principal))
        Project.model_validate(view)
        assert ("path" in view) is shows
        assert view["limits"]["max_cost_usd"] == 3
        assert view["limits"]["max_agents_per_session"] == 50
        assert view["usage"]["cost_usd"] == 0.25
        assert view["counts"] == {"workspaces": 1, "sessions": 0, "open": 0, "schedules": 0}
        workspace = await world.projects.workspaces.get(row.default_workspace_id)
        place = await world.store.read(partial(world.projects.views.workspace, row=workspace, principal=principal))
        Workspace.model_validate(place)
        assert ("path" in place) is shows
        assert "None" not in str(view) + str(place)


async def test_a_project_token_lists_its_own_project(world: World) -> None:
    rows = [await made(world, name=name) for name in ("Shop", "Blog")]
    assert [row.name for row in (await world.projects.list(ADMIN))[0]] == ["Blog", "Shop"]
    assert [row.name for row in (await world.projects.list(ADMIN, name_contains="sho"))[0]] == ["Shop"]
    mine, _ = await world.projects.list(project_principal(rows[0].project_id))
    assert [row.name for row in mine] == ["Shop"]


# --- deleting


async def open_session(world: World, row: ProjectRow, session_id: str = "s", **more: Any) -> None:
    one = session(session_id, project_id=row.project_id, workspace_id=row.default_workspace_id, **more)
    await world.store.write(partial(sessions.insert, row=one))


async def test_a_project_with_open_sessions_is_kept_unless_forced(world: World) -> None:
    row = await made(world)
    await open_session(world, row)
    with pytest.raises(RequestError) as caught:
        await world.projects.delete(row.project_id)
    assert caught.value.code == "conflict"
    assert caught.value.candidates == ["s"]
    assert (await world.projects.get(row.project_id)).state is PlaceState.READY
    assert directory(world, row).exists()
    assert world.asked == [("warm", row.project_id, row.default_workspace_id)]

    def still_there() -> None:
        assert directory(world, row).exists()

    world.before_containers_are_removed = still_there
    await world.projects.delete(row.project_id, force=True)
    with pytest.raises(RequestError) as caught:
        await world.projects.place_ready(row.project_id, row.default_workspace_id)
    assert caught.value.code == "not_found"
    with trio.fail_after(10):
        await world.projects.idle(row.project_id)
    assert world.asked[1:] == [("end", row.project_id), ("remove", row.project_id, "-")]
    assert not world.home.project_dir(row.project_id).exists()
    with pytest.raises(RequestError):
        await world.projects.get(row.project_id)
    assert await world.store.read(partial(sessions.get, session_id="s")) is None


async def test_deleting_cuts_a_clone_short(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = trio.Event()

    async def for_ever(*_: object, **__: object) -> None:
        begun.set()
        await trio.sleep_forever()

    monkeypatch.setattr(contents, "clone", for_ever)
    row = await world.projects.create(ADMIN, CreateProject("shop", remote_url=str(tmp_path)))
    with trio.fail_after(10):
        await begun.wait()
        await world.projects.delete(row.project_id)
        await world.projects.idle(row.project_id)
    with pytest.raises(RequestError):
        await world.projects.get(row.project_id)
    assert not world.home.project_dir(row.project_id).exists()


async def test_a_deletion_that_was_interrupted_is_finished_by_the_next_start(open_world: OpenWorld) -> None:
    async with open_world() as world:
        row = await made(world)
        await world.store.write(partial(projects.update, project_id=row.project_id, state=PlaceState.DELETING))
    async with open_world() as world:
        with trio.fail_after(10):
            await world.projects.idle(row.project_id)
        with pytest.raises(RequestError):
            await world.projects.get(row.project_id)
        assert not world.home.project_dir(row.project_id).exists()


async def test_a_deletion_that_fails_says_so_and_can_be_tried_again(world: World) -> None:
    row = await made(world)

    def broken() -> None:
        raise ContainerError("remove the container: the engine is gone")

    world.before_containers_are_removed = broken
    await world.projects.delete(row.project_id)
    with trio.fail_after(10):
        await world.projects.idle(row.project_id)
    failed = await world.projects.get(row.project_id)
    assert failed.state is PlaceState.FAILED
    assert failed.error is not None
    assert "engine is gone" in failed.error["message"]
    assert directory(world, row).exists()
    world.before_containers_are_removed = lambda: None
    await world.projects.delete(row.project_id)
    with trio.fail_after(10):
        await world.projects.idle(row.project_id)
    with pytest.raises(RequestError):
        await world.projects.get(row.project_id)


async def test_one_places_bug_does_not_end_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(contents, "init_repository", lambda *_: 1 / 0)
        row = await made(world)
    assert row.state is PlaceState.PREPARING  # the next start tries again
    with pytest.raises(RequestError) as caught:
        await world.projects.place_ready(row.project_id, row.default_workspace_id)
    assert caught.value.code == "not_ready"
    assert (await made(world)).state is PlaceState.READY


# --- workspaces


async def test_a_workspace_begins_as_its_project_does(world: World, tmp_path: Path) -> None:
    origin = make_repository(tmp_path / "origin", {"a.txt": "x\n"})
    row = await made(world, remote_url=str(origin))
    places = world.projects.workspaces
    place = await places.create(ADMIN, row.project_id, external_id="e", source="ci")
    assert place.state is PlaceState.CLONING
    with trio.fail_after(30):
        await world.projects.place_ready(row.project_id, place.workspace_id)
    assert (world.home.workspace_dir(row.project_id, place.workspace_id) / "a.txt").exists()
    found, cursor = await places.list(row.project_id, 10)
    assert [one.workspace_id for one in found] == [place.workspace_id, row.default_workspace_id]
    assert cursor is None


async def test_a_workspace_may_be_a_copy_of_another_as_it_stands(world: World) -> None:
    row = await made(world)
    (directory(world, row) / "work.txt").write_text("mine")
    (directory(world, row) / "link").symlink_to("/etc/passwd")
    places = world.projects.workspaces
    place = await places.create(ADMIN, row.project_id, from_workspace=row.default_workspace_id)
    with trio.fail_after(30):
        await world.projects.place_ready(row.project_id, place.workspace_id)
    copy = world.home.workspace_dir(row.project_id, place.workspace_id)
    assert (copy / "work.txt").read_text() == "mine"
    assert os.readlink(copy / "link") == "/etc/passwd"
    assert (copy / ".git" / "HEAD").exists()
    assert (await places.get(place.workspace_id)).forked_from == row.default_workspace_id
    other = await made(world, name="other")
    for source in (other.default_workspace_id, "nothing"):
        with pytest.raises(RequestError) as caught:
            await places.create(ADMIN, row.project_id, from_workspace=source)
        assert caught.value.code == "not_found"


async def test_files_of_a_workspace_are_read_and_listed_without_leaving_it(world: World) -> None:
    row = await made(world)
    root = directory(world, row)
    (root / "a.txt").write_text("héllo")
    (root / "bin").write_bytes(b"\0\1\2")
    (root / "link").symlink_to("/etc/passwd")
    places = world.projects.workspaces
    place = await places.get(row.default_workspace_id)
    whole = await places.read(place, "a.txt")
    assert whole == {"workspace_id": place.workspace_id, "path": "a.txt", "size_bytes": 6, "text": "héllo"}
    cut = await places.read(place, "a.txt", 2)  # in the middle of é
    assert (cut["text"], cut["text_truncated"], cut["text_bytes"]) == ("h", True, 6)
    assert (await places.read(place, "bin"))["base64"] == "AAEC"
    with pytest.raises(RequestError) as caught:
        await places.read(place, "link")
    assert caught.value.code == "not_found"
    listed = await places.files(place, "*")
    assert [one["path"] for one in listed["files"]] == ["a.txt", "bin", "link"]
    assert "files_truncated" not in listed
    assert (await places.files(place, "*", limit=1))["files_truncated"] is True
    assert await places.size_bytes(place) > 0
    with pytest.raises(RequestError) as caught:
        await places.read(replace(place, state=PlaceState.CLONING), "a.txt")
    assert caught.value.code == "not_ready"


async def test_default_and_busy_workspaces_are_not_deleted(world: World) -> None:
    row = await made(world)
    places = world.projects.workspaces
    with pytest.raises(RequestError, match="default"):
        await places.delete(row.default_workspace_id)
    place = await places.create(ADMIN, row.project_id)
    await world.projects.place_ready(row.project_id, place.workspace_id)
    one = session("s", project_id=row.project_id, workspace_id=place.workspace_id)
    await world.store.write(partial(sessions.insert, row=one))
    with pytest.raises(RequestError) as caught:
        await places.delete(place.workspace_id)
    assert caught.value.candidates == ["s"]
    await world.store.write(partial(sessions.update, session_id="s", status=SessionStatus.COMPLETED))
    await places.delete(place.workspace_id)
    with trio.fail_after(10):
        await places.idle(place.workspace_id)
    with pytest.raises(RequestError):
        await places.get(place.workspace_id)
    assert not world.home.workspace_dir(row.project_id, place.workspace_id).exists()
    assert ("remove", row.project_id, place.workspace_id) in world.asked
    assert await world.store.read(partial(sessions.get, session_id="s")) is not None  # its history stays
    with pytest.raises(RequestError):
        await places.delete(place.workspace_id)


async def test_where_workspaces_share_a_container_it_survives_the_deletion_of_one(world: World) -> None:
    row = await made(world, settings={"workspace_isolation": False})
    places = world.projects.workspaces
    place = await places.create(ADMIN, row.project_id)
    await world.projects.place_ready(row.project_id, place.workspace_id)
    await places.delete(place.workspace_id)
    with trio.fail_after(10):
        await places.idle(place.workspace_id)
    assert not [one for one in world.asked if one[0] == "remove"]


async def test_workspaces_of_a_project_that_is_not_ready_are_refused(world: World, tmp_path: Path) -> None:
    row = await made(world, remote_url=str(tmp_path / "nothing"))
    with pytest.raises(RequestError) as caught:
        await world.projects.workspaces.create(ADMIN, row.project_id)
    assert caught.value.code == "not_ready"
    with pytest.raises(RequestError) as caught:
        await world.projects.workspaces.create(ADMIN, "nothing")
    assert caught.value.code == "not_found"


async def test_a_workspace_interrupted_in_the_making_or_deleting_is_finished(open_world: OpenWorld) -> None:
    async with open_world() as world:
        row = await made(world)
        places = [await world.projects.workspaces.create(ADMIN, row.project_id) for _ in range(2)]
        for place, state in zip(places, (PlaceState.PREPARING, PlaceState.DELETING), strict=True):
            await world.projects.place_ready(row.project_id, place.workspace_id)
            await world.store.write(partial(workspaces.update, workspace_id=place.workspace_id, state=state))
    async with open_world() as world:
        with trio.fail_after(10):
            for place in places:
                await world.projects.workspaces.idle(place.workspace_id)
        assert (await world.projects.workspaces.get(places[0].workspace_id)).state is PlaceState.READY
        with pytest.raises(RequestError):
            await world.projects.workspaces.get(places[1].workspace_id)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs agents as somebody else")
async def test_everything_belongs_to_the_agents_uid_when_the_daemon_is_root(world: World, tmp_path: Path) -> None:
    origin = make_repository(tmp_path / "origin", {"src/a.txt": "x\n"})
    object.__setattr__(world.projects._trees, "owner", 10001)
    row = await made(world, remote_url=str(origin))
    place = await world.projects.workspaces.create(ADMIN, row.project_id, from_workspace=row.default_workspace_id)
    await world.projects.place_ready(row.project_id, place.workspace_id)
    for workspace_id in (row.default_workspace_id, place.workspace_id):
        root = world.home.workspace_dir(row.project_id, workspace_id)
        for folder, directories, names in os.walk(root):
            for name in [*directories, *names, "."]:
                assert os.lstat(Path(folder) / name).st_uid == 10001
    assert world.home.workspaces_dir(row.project_id).stat().st_uid == 0
