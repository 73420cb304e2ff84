from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.errors import ContainerError
from oubliette.project import git as project_git
from oubliette.project.git import Exec, Snapshots
from oubliette.runtime.base import ExecResult
from tests.project.git_repos import git, make_repository, run_here


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "work", {"a.txt": "one\ntwo\n", "src/b.py": "x = 1\n", "gone.txt": "x\n"})


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(run_here, str(tmp_path / "state" / "snapshots.git"))


@pytest.fixture(autouse=True)
def _state(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()


async def test_what_changed_between_two_snapshots_is_listed(work: Path, snapshots: Snapshots) -> None:
    before = await snapshots.snapshot(str(work))
    assert await snapshots.snapshot(str(work)) == before
    (work / "a.txt").write_text("one\n2\nthree\n")
    (work / "new file.txt").write_text("n\n")
    (work / "gone.txt").unlink()
    (work / "bin").write_bytes(bytes(range(256)))
    after = await snapshots.snapshot(str(work))
    changes = await snapshots.changes(before, after)
    assert changes.files == [
        {"path": "a.txt", "change": "modified", "added": 2, "removed": 1},
        {"path": "bin", "change": "added"},
        {"path": "gone.txt", "change": "deleted", "added": 0, "removed": 1},
        {"path": "new file.txt", "change": "added", "added": 1, "removed": 0},
    ]
    assert not changes.truncated
    assert (await snapshots.changes(after, after)).files == ()
    patch = await snapshots.patch(before, after, 100_000)
    assert "+three" in patch.text
    assert "deleted file" in patch.text
    assert not patch.truncated
    assert patch.size_bytes == len(patch.text.encode())
    cut = await snapshots.patch(before, after, 50)
    assert cut.truncated
    assert len(cut.text) == 50
    assert cut.size_bytes == patch.size_bytes


async def test_a_snapshot_leaves_the_workspaces_own_repository_alone(work: Path, snapshots: Snapshots) -> None:
    (work / "staged").write_text("x")
    git(work, "add", "staged")
    (work / "untracked").write_text("x")
    before = git(work, "status", "--porcelain"), git(work, "rev-parse", "HEAD")
    index = (work / ".git" / "index").stat()
    await snapshots.snapshot(str(work))
    assert (work / ".git" / "index").stat().st_mtime_ns == index.st_mtime_ns
    assert (git(work, "status", "--porcelain"), git(work, "rev-parse", "HEAD")) == before


async def test_ignored_files_are_left_out(work: Path, snapshots: Snapshots) -> None:
    before = await snapshots.snapshot(str(work))
    (work / ".gitignore").write_text("build/\n*.log\n")
    (work / "build").mkdir()
    (work / "build" / "x").write_text("x")
    (work / "a.log").write_text("x")
    changes = await snapshots.changes(before, await snapshots.snapshot(str(work)))
    assert [one["path"] for one in changes.files] == [".gitignore"]


async def test_hostile_configuration_in_the_tree_runs_nothing(work: Path, snapshots: Snapshots, tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    script = tmp_path / "trap.sh"
    script.write_text(f"#!/bin/sh\ntouch {trap}\ncat\n")
    script.chmod(0o755)
    before = await snapshots.snapshot(str(work))
    (work / ".gitattributes").write_text("* filter=evil diff=evil\n*.txt text eol=crlf working-tree-encoding=UTF-16\n")
    with (work / ".git" / "config").open("a") as config:
        config.write(f'[core]\n\tfsmonitor = {script}\n\thooksPath = {tmp_path}\n[filter "evil"]\n\tclean = {script}\n')
        config.write(f'\tsmudge = {script}\n[diff "evil"]\n\ttextconv = {script}\n\tcommand = {script}\n')
    (work / "a.txt").write_text("one\nchanged\n")
    after = await snapshots.snapshot(str(work))
    changes = await snapshots.changes(before, after)
    assert {"path": "a.txt", "change": "modified", "added": 1, "removed": 1} in changes.files
    assert "+changed" in (await snapshots.patch(before, after, 10_000)).text
    assert not trap.exists()


async def test_hostile_trees_do_not_prevent_a_snapshot(work: Path, snapshots: Snapshots) -> None:
    before = await snapshots.snapshot(str(work))
    os.mkfifo(work / "fifo")
    (work / "link").symlink_to("/etc/passwd")
    (work / "unreadable").write_text("x")
    (work / "unreadable").chmod(0)
    (work / os.fsdecode(b"caf\xe9\n\t")).write_text("x")
    make_repository(work / "nested", {"inner": "x"})
    (work / "empty-repo").mkdir()
    git(work / "empty-repo", "init", "--quiet")
    (work / "empty-repo" / "f").write_text("x")
    (work / "-rf").write_text("x")
    with (work / "big [file]#\\").open("wb") as file:
        file.truncate(100 << 20)
    with trio.fail_after(30):
        after = await snapshots.snapshot(str(work))
    paths = {one["path"] for one in (await snapshots.changes(before, after)).files}
    assert {"link", "-rf", "nested", "caf\ufffd\n\t"} <= paths
    assert not {"fifo", "big [file]#\\"} & paths


async def test_a_long_list_of_changes_is_cut_and_says_so(work: Path, snapshots: Snapshots) -> None:
    before = await snapshots.snapshot(str(work))
    for number in range(600):
        (work / f"f{number:04d}").write_text("x\n")
    changes = await snapshots.changes(before, await snapshots.snapshot(str(work)))
    assert len(changes.files) == 500
    assert changes.truncated
    assert changes.files[0] == {"path": "f0000", "change": "added", "added": 1, "removed": 0}


async def test_exactly_the_limit_is_not_cut(work: Path, snapshots: Snapshots) -> None:
    before = await snapshots.snapshot(str(work))
    for number in range(500):
        (work / f"f{number:04d}").write_text("x\n")
    changes = await snapshots.changes(before, await snapshots.snapshot(str(work)))
    assert (len(changes.files), changes.truncated) == (500, False)


async def test_snapshots_at_once_of_several_workspaces_do_not_disturb_each_other(
    tmp_path: Path, snapshots: Snapshots
) -> None:
    works = [make_repository(tmp_path / f"w{number}", {"a": f"{number}\n"}) for number in range(3)]
    found: list[tuple[int, str]] = []

    async def take(number: int) -> None:
        found.append((number, await snapshots.snapshot(str(works[number]))))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(take, number % 3)
    assert len({tree for _, tree in found}) == 3
    assert len(set(found)) == 3
    left = [name for name in os.listdir(tmp_path / "state" / "snapshots.git") if name.startswith("index-")]
    assert len(left) == 3


async def test_a_file_changed_within_the_same_tick_is_noticed(work: Path, snapshots: Snapshots) -> None:
    for number in range(5):
        (work / "a.txt").write_text(f"{number}\n")
        before = await snapshots.snapshot(str(work))
        (work / "a.txt").write_text(f"{number + 1}\n")
        assert await snapshots.snapshot(str(work)) != before


def answering(**fields: Any) -> Exec:
    async def run(argv: object, **_: object) -> ExecResult:
        await trio.lowlevel.checkpoint()
        given = {"exit_code": 0, "stdout": b"", "stderr": b"", "stdout_bytes": 0, "stderr_bytes": 0, **fields}
        return ExecResult(**given)

    return run


A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ({"exit_code": 128, "stderr": b"fatal: no"}, "128: fatal: no"),
        ({"timed_out": True}, "not done after"),
        ({"stdout": b"; rm -rf /"}, "where a tree's hash was due"),
        ({"stdout": b"\xff" * 100}, "where a tree's hash was due"),
        ({"exit_code": 127, "stderr": b"no such program"}, "127"),
    ],
)
async def test_what_the_sandbox_answers_is_not_believed(answer: dict[str, Any], match: str) -> None:
    with pytest.raises(ContainerError, match=match):
        await Snapshots(answering(**answer)).snapshot("/workspaces/w")


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"\0",
        b":",
        b":M\0",
        b":a b c d M\0",
        b"garbage\0more\0",
        b"1\t2\tx\0",
        b":x M\0p\0" + b"9" * 99 + b"\t1\tp\0",
    ],
)
async def test_garbage_in_a_listing_is_skipped(output: bytes) -> None:
    changes = await Snapshots(answering(stdout=output)).changes(A, B)
    assert all(set(one) == {"path", "change"} for one in changes.files)


@pytest.mark.parametrize("tree", ["", "HEAD", "--output=/x", "a" * 39, "A" * 40, "a" * 40 + "\n"])
async def test_only_hashes_of_trees_are_handed_to_git(tree: str) -> None:
    called = answering()
    for operation in (
        partial(Snapshots(called).changes, tree, B),
        partial(Snapshots(called).patch, A, tree, 100),
    ):
        with pytest.raises(ContainerError):
            await operation()


async def test_a_tree_that_is_gone_is_an_error_and_not_no_change(snapshots: Snapshots, work: Path) -> None:
    here = await snapshots.snapshot(str(work))
    with pytest.raises(ContainerError, match="list changed files"):
        await snapshots.changes(A, here)
    with pytest.raises(ContainerError, match="make a patch"):
        await snapshots.patch(here, B, 1000)


def test_the_promised_bounds_fit_in_a_line_of_the_relay() -> None:
    assert project_git.MAX_FILES == 500
    assert project_git.MAX_PATCH_BYTES * 4 / 3 < 1 << 20
