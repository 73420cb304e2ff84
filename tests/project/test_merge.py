"""Commits carried from one workspace into another: real git, no container around it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio

from oubliette.errors import ContainerError, RequestError
from oubliette.project import merge as project_merge
from oubliette.project.merge import Bundle, Merged, Repository
from oubliette.runtime.base import ExecResult
from tests.project.git_repos import ENV, git, make_repository, run_here

REF = "refs/oubliette/gogol_1"


class Pair:
    """A parent's workspace and a fork of it."""

    def __init__(self, place: Path, files: Mapping[str, str] | None = None) -> None:
        (place / "state").mkdir()
        self.scratch = place / "state"
        self.parent = place / "parent"
        self.fork = place / "fork"
        if files is None:
            self.parent.mkdir()
            git(self.parent, "init", "--quiet", "-b", "main")
        else:
            make_repository(self.parent, files)
        shutil.copytree(self.parent, self.fork, symlinks=True)

    def repository(self, where: Path) -> Repository:
        return Repository(run_here, str(where), scratch=str(self.scratch))

    async def bundle(self, **more: int) -> Bundle:
        known = await self.repository(self.parent).known()
        return await self.repository(self.fork).bundle(known, **more)

    async def merge(self, protected: Sequence[str] = ()) -> Merged:
        packed = await self.bundle()
        assert packed.data
        return await self.repository(self.parent).merge(
            packed.data, ref=REF, message="Merge a fork", protected=protected
        )

    def state(self) -> tuple[str, ...]:
        """All that must not change when a merge does not happen."""
        seen = [git(self.parent, "rev-parse", "--verify", "-q", "HEAD") if self.has_commits else ""]
        seen += [git(self.parent, "status", "--porcelain", "--ignored"), git(self.parent, "stash", "list")]
        for path in sorted(self.parent.rglob("*")):
            if ".git" not in path.parts and path.is_file():
                seen.append(f"{path}: {path.read_bytes()!r}")
        return tuple(seen)

    @property
    def has_commits(self) -> bool:
        return any((self.parent / ".git" / "refs" / "heads").iterdir())


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, {"a.txt": "one\ntwo\nthree\n", "src/b.py": "x = 1\n", "old.txt": "o\n"})


def commit(where: Path, message: str, files: Mapping[str, str | None]) -> str:
    for name, text in files.items():
        path = where / name
        if text is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(where, "add", "--all")
    git(where, "commit", "--quiet", "-m", message)
    return git(where, "rev-parse", "HEAD")


async def test_a_fork_s_commits_arrive_as_they_are_when_the_parent_has_stood_still(pair: Pair) -> None:
    base = git(pair.parent, "rev-parse", "HEAD")
    commit(pair.fork, "first", {"a.txt": "one\n2\nthree\n"})
    head = commit(pair.fork, "second", {"new/c.txt": "c\n", "old.txt": None})
    merged = await pair.merge()
    assert (merged.merged, merged.commits, merged.base, merged.head) == (True, 2, base, head)
    assert merged.files == [
        {"path": "a.txt", "change": "modified", "added": 1, "removed": 1},
        {"path": "new/c.txt", "change": "added", "added": 1, "removed": 0},
        {"path": "old.txt", "change": "deleted", "added": 0, "removed": 1},
    ]
    assert git(pair.parent, "log", "--format=%s") == "second\nfirst\nfirst"
    assert git(pair.parent, "status", "--porcelain") == ""
    assert (pair.parent / "new" / "c.txt").read_text() == "c\n"
    assert git(pair.parent, "for-each-ref", "refs/oubliette") == ""
    assert list(pair.scratch.iterdir()) == []
    assert (await pair.bundle()).data == b""


async def test_two_histories_become_one_commit_with_both_as_parents(pair: Pair) -> None:
    theirs = commit(pair.fork, "fork", {"a.txt": "one\ntwo\n3\n"})
    ours = commit(pair.parent, "parent", {"src/b.py": "x = 2\n"})
    packed = await pair.bundle()
    assert packed.commits == 1
    merged = await pair.merge()
    assert merged.merged
    assert git(pair.parent, "log", "-1", "--format=%P %s %cn", merged.head) == f"{ours} {theirs} Merge a fork a"
    assert (pair.parent / "a.txt").read_text() == "one\ntwo\n3\n"
    assert (pair.parent / "src" / "b.py").read_text() == "x = 2\n"


async def test_conflicts_are_named_and_nothing_is_changed(pair: Pair) -> None:
    commit(
        pair.fork, "fork", {"a.txt": "one\nfork\nthree\n", "both.txt": "f\n", "old.txt": None, "src/b.py": "x = 3\n"}
    )
    commit(pair.parent, "parent", {"a.txt": "one\nparent\nthree\n", "both.txt": "p\n", "old.txt": "p\n"})
    git(pair.parent, "rm", "--quiet", "src/b.py")
    git(pair.parent, "commit", "--quiet", "-m", "gone")
    (pair.parent / "untracked.txt").write_text("mine\n")
    before = pair.state()
    merged = await pair.merge()
    assert not merged.merged
    assert sorted((one["path"], one["kind"]) for one in merged.conflicts) == [
        ("a.txt", "content"),
        ("both.txt", "both_added"),
        ("old.txt", "deleted_in_fork"),
        ("src/b.py", "deleted_in_parent"),
    ]
    assert pair.state() == before
    assert git(pair.parent, "log", "-1", "--format=%s", REF) == "fork", "the commits are there to be merged by hand"


async def test_an_older_git_merges_file_by_file(pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before 2.38 there is no merge-tree that writes trees; a git that refuses it stands in for one."""
    real = shutil.which("git")
    (tmp_path / "bin").mkdir()
    old = tmp_path / "bin" / "git"
    old.write_text(
        f'#!/bin/sh\nfor one in "$@"; do [ "$one" != --write-tree ] || '
        f"{{ echo 'usage: git merge-tree <base> <one> <two>' >&2; exit 129; }}; done\nexec {real} \"$@\"\n"
    )
    old.chmod(0o755)

    async def run_old(argv: Sequence[str], *, env: Mapping[str, str], **more: object) -> ExecResult:
        return await run_here(argv, env={**env, "PATH": f"{tmp_path / 'bin'}:{env['PATH']}"}, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pair, "repository", lambda where: Repository(run_old, str(where), scratch=str(pair.scratch)))
    commit(pair.fork, "fork", {"a.txt": "1\ntwo\nthree\n", "new.txt": "n\n"})
    commit(pair.parent, "parent", {"a.txt": "one\ntwo\n3\n", "old.txt": None})
    assert (await pair.merge()).merged
    assert (pair.parent / "a.txt").read_text() == "1\ntwo\n3\n"
    assert not (pair.parent / "old.txt").exists()
    assert git(pair.parent, "status", "--porcelain") == ""
    commit(pair.fork, "fork again", {"a.txt": "fork\ntwo\nthree\n"})
    commit(pair.parent, "parent again", {"a.txt": "parent\ntwo\n3\n"})
    before = pair.state()
    assert (await pair.merge()).conflicts == [{"path": "a.txt", "kind": "content"}]
    assert pair.state() == before


@pytest.mark.parametrize("how", ["changed", "staged", "untracked", "ignored", "deleted", "a directory"])
async def test_what_the_parent_has_not_committed_is_never_overwritten(pair: Pair, how: str) -> None:
    commit(pair.fork, "fork", {"a.txt": "fork\n", "new.txt": "fork\n"})
    path = "a.txt" if how in ("changed", "staged", "deleted") else "new.txt"
    mine = pair.parent / path
    match how:
        case "deleted":
            mine.unlink()
        case "a directory":
            mine.mkdir()
            (mine / "inner").write_text("mine\n")
        case _:
            mine.write_text("mine\n")
    if how == "staged":
        git(pair.parent, "add", path)
    if how == "ignored":
        (pair.parent / ".git" / "info" / "exclude").write_text("new.txt\n")
    before = pair.state()
    merged = await pair.merge()
    assert not merged.merged
    assert [one["kind"] for one in merged.conflicts] == ["uncommitted"]
    assert merged.conflicts[0]["path"].startswith(path)
    assert pair.state() == before


async def test_what_the_merge_does_not_touch_may_be_uncommitted(pair: Pair) -> None:
    commit(pair.fork, "fork", {"a.txt": "fork\n"})
    commit(pair.parent, "parent", {"c.txt": "c\n"})
    (pair.parent / "src" / "b.py").write_text("x = 'not committed'\n")
    (pair.parent / "old.txt").write_text("staged\n")
    git(pair.parent, "add", "old.txt")
    (pair.parent / "mine.txt").write_text("mine\n")
    assert (await pair.merge()).merged
    assert (pair.parent / "src" / "b.py").read_text() == "x = 'not committed'\n"
    assert git(pair.parent, "status", "--porcelain") == "M  old.txt\n M src/b.py\n?? mine.txt"


@pytest.mark.parametrize("in_the_way", [False, True])
async def test_a_parent_without_commits_gets_those_of_its_fork(tmp_path: Path, in_the_way: bool) -> None:
    pair = Pair(tmp_path)
    head = commit(pair.fork, "first", {"a.txt": "a\n", "b/c.txt": "c\n"})
    if in_the_way:
        (pair.parent / "a.txt").write_text("mine\n")
        (pair.parent / ".git" / "info" / "exclude").write_text("a.txt\n")
    before = pair.state()
    merged = await pair.merge()
    assert (merged.merged, merged.commits) == (not in_the_way, 1)
    if in_the_way:
        assert merged.conflicts == [{"path": "a.txt", "kind": "uncommitted"}]
        assert pair.state() == before
    else:
        assert git(pair.parent, "rev-parse", "HEAD") == head
        assert git(pair.parent, "status", "--porcelain") == ""


async def test_names_that_are_no_utf8_are_seen_and_shown_readably(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    name = os.fsdecode(b"caf\xe9.txt")
    commit(pair.fork, "first", {name: "theirs\n", "ok.txt": "x\n"})
    (pair.fork / os.fsdecode(b"l\xf6se")).write_text("x")
    (pair.parent / name).write_text("mine\n")
    (pair.parent / ".git" / "info" / "exclude").write_text("*.txt\n")
    packed = await pair.bundle()
    assert packed.uncommitted == ["l\ufffdse"]
    assert (await pair.merge()).conflicts == [{"path": "caf\ufffd.txt", "kind": "uncommitted"}]
    assert (pair.parent / name).read_text() == "mine\n"
    (pair.parent / name).unlink()
    assert (await pair.merge()).merged
    assert (pair.parent / name).read_text() == "theirs\n"


async def test_protected_paths_are_not_written(pair: Pair) -> None:
    commit(pair.fork, "fork", {"src/b.py": "x = 9\n", "a.txt": "fork\n"})
    before = pair.state()
    merged = await pair.merge(protected=["src", "a.tx"])
    assert merged.conflicts == [{"path": "src/b.py", "kind": "protected"}]
    assert pair.state() == before


async def test_what_the_fork_has_not_committed_stays_there_and_is_named(pair: Pair) -> None:
    (pair.fork / "a.txt").write_text("not committed\n")
    (pair.fork / "new.txt").write_text("new\n")
    (pair.fork / "many").mkdir()
    for number in range(20):
        (pair.fork / "many" / str(number)).write_text("x")
    packed = await pair.bundle()
    assert (packed.data, packed.commits) == (b"", 0)
    assert (packed.uncommitted, packed.left_behind) == (["a.txt", "many/", "new.txt"], 3)


async def test_too_many_bytes_are_refused(pair: Pair) -> None:
    (pair.fork / "big").write_bytes(os.urandom(1 << 20))
    git(pair.fork, "add", "--all")
    git(pair.fork, "commit", "--quiet", "-m", "big")
    with pytest.raises(RequestError) as caught:
        await pair.bundle(max_bytes=1 << 19)
    assert caught.value.code == "too_large"
    assert list(pair.scratch.iterdir()) == []


async def test_a_workspace_without_a_repository_is_said_to_have_none(pair: Pair) -> None:
    shutil.rmtree(pair.fork / ".git")
    make_repository(pair.fork.parent / "outer", {"x": "x"})  # git would look further up
    with pytest.raises(RequestError, match="is no git repository"):
        await pair.bundle()


async def test_workspaces_without_a_common_history_are_not_merged(pair: Pair) -> None:
    shutil.rmtree(pair.fork)
    make_repository(pair.fork, {"z.txt": "z\n"})
    before = pair.state()
    with pytest.raises(RequestError, match="no common history"):
        await pair.merge()
    assert pair.state() == before


async def test_neither_hooks_nor_monitors_nor_editors_of_either_side_run(pair: Pair, tmp_path: Path) -> None:
    spy = tmp_path / "spy"
    ran = tmp_path / "ran"
    spy.write_text(f'#!/bin/sh\necho "$0 $*" >> {ran}\nexit 1\n')
    spy.chmod(0o755)
    commit(pair.fork, "fork", {"a.txt": "fork\n"})
    commit(pair.parent, "parent", {"src/b.py": "x = 5\n"})
    for where in (pair.parent, pair.fork):
        hooks = where / ".git" / "hooks"
        hooks.mkdir(exist_ok=True)
        for name in ("post-merge", "pre-merge-commit", "post-checkout", "reference-transaction", "commit-msg"):
            shutil.copy(spy, hooks / name)
        for key in ("core.fsmonitor", "core.editor", "diff.external", "merge.tool", "core.sshCommand", "gpg.program"):
            git(where, "config", key, str(spy))
        git(where, "config", "commit.gpgSign", "true")
        git(where, "config", "merge.autoStash", "true")
    assert (await pair.merge()).merged
    assert not ran.exists(), ran.read_text()


async def test_somebody_else_at_work_in_the_parent_s_repository_is_said(pair: Pair) -> None:
    commit(pair.fork, "fork", {"a.txt": "fork\n"})
    (pair.parent / ".git" / "index.lock").touch()
    before = pair.state()
    with pytest.raises(RequestError) as caught:
        await pair.merge()
    assert (caught.value.code, caught.value.retryable) == ("busy", True)
    assert pair.state() == before


async def test_the_answers_of_a_sandbox_are_not_believed(pair: Pair) -> None:
    answers = iter(
        [
            b"no json\n",
            b"[]\n",
            b"[" * 100_000 + b"\n",
            b'{"outcome": "looked", "known": ["ok", 5, "../x", null]}\n',
            b'{"outcome": "x", "conflicts": [{"path": "\\ud800", "kind": {}}, "x"], "base": [], "head": "a b"}\n',
            b'{"outcome": "merged", "conflicts": 5, "files": 5, "files_total": -1, "commits": 1e300}\n',
        ]
    )

    async def lying(argv: Sequence[str], **more: object) -> ExecResult:
        out = next(answers)
        return ExecResult(0, out, b"", len(out), 0)

    repository = Repository(lying, "/workspaces/x")
    for _ in range(3):
        with pytest.raises(ContainerError, match="no line of JSON"):
            await repository.known()
    assert await repository.known() == ["ok"]
    merged = await repository.merge(b"x", ref=REF, message="m")
    assert merged.conflicts == [{"path": "\ufffd", "kind": "other"}]
    assert (merged.merged, merged.commits, merged.base, merged.head) == (False, 0, "", "")
    merged = await repository.merge(b"x", ref=REF, message="m")
    assert (merged.merged, merged.conflicts, merged.conflicts_truncated, merged.files) == (True, [], False, [])


def begin(argv: Sequence[str], env: Mapping[str, str], stdin: bytes) -> subprocess.Popen[bytes]:
    """A command in a process group of its own."""
    process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    return process


async def test_going_forward_is_finished_though_nobody_waits_for_it_any_more(pair: Pair, tmp_path: Path) -> None:
    """A daemon that is killed takes its commands along; a work tree must not be left half written."""
    head = commit(pair.fork, "fork", {"a.txt": "fork\n", "b.txt": "b\n"})
    packed = await pair.bundle()
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "git"
    slow.write_text(
        f'#!/bin/sh\nfor one in "$@"; do\n'
        f'[ "$one" != --ff-only ] || {{ echo > {tmp_path}/arrived; cat {tmp_path}/go; }}\n'
        f'done\nexec {shutil.which("git")} "$@"\n'
    )
    slow.chmod(0o755)
    os.mkfifo(tmp_path / "arrived")
    os.mkfifo(tmp_path / "go")
    source = Path(project_merge.__file__).with_name("merge_inside.py").read_text()
    asked = {"ref": REF, "message": "m", "protected": [], "scratch": str(pair.scratch)}
    process = begin(
        [sys.executable, "-I", "-c", source, "merge", str(pair.parent)],
        {**ENV, "PATH": f"{tmp_path / 'bin'}:{ENV['PATH']}"},
        json.dumps(asked).encode() + b"\n" + packed.data,
    )
    with trio.fail_after(20):
        await trio.to_thread.run_sync((tmp_path / "arrived").read_text)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    await trio.to_thread.run_sync((tmp_path / "go").write_text, "")
    with trio.fail_after(20):
        while git(pair.parent, "rev-parse", "HEAD") != head or (pair.parent / ".git" / "index.lock").exists():
            await trio.sleep(0.02)
    assert git(pair.parent, "status", "--porcelain") == ""
    [left] = pair.scratch.iterdir()
    os.utime(left, (0, 0))
    commit(pair.fork, "more", {"c.txt": "c\n"})
    assert (await pair.merge()).merged
    assert list(pair.scratch.iterdir()) == [], "what a killed one left is forgotten"


def test_the_program_for_the_sandbox_runs_on_the_oldest_python_that_images_may_have() -> None:
    source = Path(project_merge.__file__).with_name("merge_inside.py").read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    assert len(source.encode()) < 100 << 10, "it is one argument of a command"
