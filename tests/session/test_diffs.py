"""What a session changed, read from rows that its turns have left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette.core.model import Json
from oubliette.project.git import Snapshots
from oubliette.session import diffs
from oubliette.session import turn as driver
from oubliette.store import changes, requests, turns
from oubliette.store.changes import ChangeRow
from oubliette.store.database import Tx
from tests.project.git_repos import make_repository, run_here
from tests.session.fakes import FakeAgent, FakeContainer
from tests.session.world import ADMIN, World, open_world


class Here(FakeContainer):
    """A container whose commands run here, in a directory of the test."""

    def __init__(self, agent: FakeAgent, place: Path) -> None:
        super().__init__(agent)
        self.place = place

    def directory(self, workspace_id: str) -> str:
        return str(self.place)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    make_repository(tmp_path / "work", {"a.txt": "one\n", "b.txt": "b\n"})
    monkeypatch.setattr(diffs, "KEPT_PATCH_BYTES", 2000)
    async with open_world(tmp_path) as opened:
        yield opened


async def turn(world: World, place: Path, session_id: str, number: int, files: dict[str, str | None]) -> None:
    """Let a turn that is over have changed these files, as the driver writes it down."""
    snapshots = Snapshots(run_here, str(place / "snapshots.git"))
    work = place / "work"
    before = await snapshots.snapshot(str(work))
    await world.store.write(partial(turns.update, session_id=session_id, turn=number, tree_before=before))
    for name, text in files.items():
        if text is None:
            (work / name).unlink()
        else:
            (work / name).write_text(text)
    after = await snapshots.snapshot(str(work))
    row = await world.turn(session_id, number)
    for change in await diffs.of_turn(world.store, snapshots, row, before, after):
        await world.store.write(partial(changes.keep, row=change))


async def shown(world: World, session_id: str, since_turn: int | None = None) -> Json:
    row = await world.row(session_id)
    return await world.store.read(partial(diffs.diff_result, row=row, since_turn=since_turn))


async def turns_of(world: World, number: int) -> str:
    """A session with so many turns that are over, without any change."""
    one = await world.new("say hi")
    await world.settle(one)
    for _ in range(number - 1):
        await world.message(one, "say more")
        await world.settle(one)
    return one


async def test_a_session_that_changed_nothing_has_an_empty_diff(world: World) -> None:
    one = await turns_of(world, 1)
    assert await shown(world, one) == {"session_id": one, "files": [], "patch": ""}


async def test_one_turn_is_its_own_change(world: World, tmp_path: Path) -> None:
    one = await turns_of(world, 1)
    await turn(world, tmp_path, one, 1, {"a.txt": "one\ntwo\n", "b.txt": None})
    diff = await shown(world, one)
    assert diff["files"] == [
        {"path": "a.txt", "change": "modified", "added": 1, "removed": 0},
        {"path": "b.txt", "change": "deleted", "added": 0, "removed": 1},
    ]
    assert "+two" in diff["patch"]
    assert len(diff["base"]) == len(diff["head"]) == 40
    assert "patch_truncated" not in diff


async def test_several_turns_are_shown_as_one_change_or_from_any_of_them(world: World, tmp_path: Path) -> None:
    one = await turns_of(world, 4)
    await turn(world, tmp_path, one, 1, {"a.txt": "two\n", "new.txt": "x\n"})
    await turn(world, tmp_path, one, 3, {"a.txt": "three\n", "other.txt": "y\n"})
    await turn(world, tmp_path, one, 4, {"a.txt": "four\n", "new.txt": None})
    whole = await shown(world, one)
    assert [(file["path"], file["change"]) for file in whole["files"]] == [
        ("a.txt", "modified"),
        ("other.txt", "added"),
    ]
    assert "+four" in whole["patch"]
    assert "three" not in whole["patch"]
    assert await shown(world, one, 1) == whole
    late = await shown(world, one, 2)
    assert [(file["path"], file["change"]) for file in late["files"]] == [
        ("a.txt", "modified"),
        ("new.txt", "deleted"),
        ("other.txt", "added"),
    ]
    assert late["patch"].index("+three") < late["patch"].index("+four")
    assert late["head"] == whole["head"]
    last = await shown(world, one, 4)
    assert [file["path"] for file in last["files"]] == ["a.txt", "new.txt"]
    assert await shown(world, one, 5) == {"session_id": one, "files": [], "patch": ""}


async def test_a_long_patch_is_cut_and_says_so(world: World, tmp_path: Path) -> None:
    one = await turns_of(world, 2)
    await turn(world, tmp_path, one, 1, {"a.txt": "x" * 5000 + "\n"})
    diff = await shown(world, one)
    assert diff["patch_truncated"] is True
    assert len(diff["patch"]) == 2000
    assert diff["patch_bytes"] > 5000
    await turn(world, tmp_path, one, 2, {"b.txt": "y" * 5000 + "\n"})
    both = await shown(world, one)
    assert len(both["patch"]) == 2000
    assert both["patch_bytes"] > 10_000


async def test_of_many_long_patches_only_as_many_are_read_as_are_shown(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await turns_of(world, 5)
    for number in range(1, 6):
        await turn(world, tmp_path, one, number, {f"{number}.txt": "x" * 1000 + "\n"})
    read: list[int] = []

    def text_of(tx: Tx, row: ChangeRow) -> str:
        read.append(row.turn)
        return real(tx, row)

    real = changes.text_of
    monkeypatch.setattr(changes, "text_of", text_of)
    monkeypatch.setattr(diffs, "MAX_FILES", 3)
    late = await shown(world, one, 2)
    assert read == [2, 3]
    assert (len(late["patch"]), late["patch_truncated"]) == (2000, True)
    assert late["patch_bytes"] > 4 * 1000
    assert ([file["path"] for file in late["files"]], late["files_truncated"]) == (["2.txt", "3.txt", "4.txt"], True)


async def test_a_running_turn_is_told_to_be_waited_for(world: World) -> None:
    one = await world.new("sleep")
    await world.until(one, "running")
    diff = await shown(world, one)
    assert "session wait" in diff["next"]


async def test_the_driver_writes_down_what_a_turn_changed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: a turn during which a file is written."""
    container = Here(world.agent, tmp_path / "work")
    monkeypatch.setattr(container, "exec", run_here)
    monkeypatch.setattr(world.container, "exec", run_here)
    monkeypatch.setattr(world.container, "directory", container.directory)
    monkeypatch.setattr(driver, "Snapshots", lambda run: Snapshots(run, str(tmp_path / "snapshots.git")))
    one = await world.new("ask me")
    with trio.fail_after(10):
        while (await world.turn(one, 1)).tree_before is None:
            await trio.sleep(0.02)
    (tmp_path / "work" / "made.txt").write_text("made\n")
    row = await world.until(one, "waiting")
    [asked] = await world.store.read(partial(requests.pending, session_id=row.session_id))
    await world.tree.answer(ADMIN, asked.request_id, "once", None)
    [waited] = await world.settle(one)
    assert waited["files"] == [{"path": "made.txt", "change": "added", "added": 1, "removed": 0}]
    assert "+made" in (await shown(world, one))["patch"]
