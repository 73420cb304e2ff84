"""Merges as rows and tasks: the real git in directories of the test, behind the fake containers."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.core.model import Json, PlaceState
from oubliette.core.principals import Principal, Scope
from oubliette.errors import RequestError, StoreError
from oubliette.project import merge as project_merge
from oubliette.runtime.base import ExecResult
from oubliette.session import merges as session_merges
from oubliette.store import merges, workspaces
from oubliette.store.database import Tx
from tests.project.git_repos import git, make_repository, run_here
from tests.session.fakes import FakeAgent
from tests.session.world import ADMIN, PROJECT, WORKSPACE, World, open_world
from tests.sweep import Check, Cut, Operation, cancel_sweep


def agent(session_id: str) -> Principal:
    return Principal("session", session_id, session_id, Scope("session", project_id=PROJECT, session_id=session_id))


@dataclass
class Trees:
    """A directory for each workspace; ``gate`` holds up every merge into one of them."""

    world: World
    place: Path
    gate: trio.Event
    arrived: trio.Event
    at_once: int = 0
    most: int = 0
    failing: bool = False

    def of(self, workspace_id: str) -> Path:
        return self.place / workspace_id

    async def fork(self, root: str, text: str = "hi") -> str:
        """A settled child in a copy of the root's workspace."""
        child = await self.world.spawn(text, principal=agent(root), workspace="fork")
        made = child["workspace_id"]
        shutil.copytree(self.of(WORKSPACE), self.of(made))
        await self.world.store.write(partial(workspaces.update, workspace_id=made, state=PlaceState.READY))
        if text != "sleep":
            await self.world.settle(child["session_id"])
        return str(child["session_id"])

    async def commit(self, session_id: str, name: str, text: str) -> None:
        where = self.of((await self.world.row(session_id)).workspace_id)
        (where / name).write_text(text)
        git(where, "add", "--all")
        git(where, "commit", "--quiet", "-m", text)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        if "merge" in argv:
            self.arrived.set()
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            try:
                await self.gate.wait()
            finally:
                self.at_once -= 1
        if self.failing:
            return ExecResult(1, b"", b"the sandbox is on fire", 0, 22)
        return await run_here(
            argv,
            env=env or {},
            cwd=cwd or "/",
            stdin=stdin,
            timeout_seconds=timeout_seconds,
            max_output_bytes=max_output_bytes,
        )

    async def merge(self, session_id: str, seconds: float = 30) -> Json:
        merge_id = await self.world.tree.merges.begin(ADMIN, session_id)
        await self.world.tree.merges.wait(merge_id, seconds)
        return await self.world.tree.merges.shown(merge_id)


@asynccontextmanager
async def open_trees(
    path: Path, monkeypatch: pytest.MonkeyPatch, agent: FakeAgent | None = None
) -> AsyncIterator[Trees]:
    async with open_world(path, agent=agent) as world:
        trees = Trees(world, path, trio.Event(), trio.Event())
        trees.gate.set()
        (path / "state").mkdir(exist_ok=True)
        monkeypatch.setattr(project_merge.Repository.__init__, "__kwdefaults__", {"scratch": str(path / "state")})
        monkeypatch.setattr(world.container, "directory", lambda one: str(trees.of(one)))
        monkeypatch.setattr(world.container, "exec", trees.exec)
        yield trees


@pytest.fixture
async def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Trees]:
    make_repository(tmp_path / WORKSPACE, {"a.txt": "one\n"})
    async with open_trees(tmp_path, monkeypatch) as opened:
        yield opened


async def test_a_fork_s_commits_arrive_and_a_second_merge_finds_nothing_new(trees: Trees) -> None:
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    await trees.commit(child, "new.txt", "new")
    merged = await trees.merge(child)
    assert (merged["merged"], merged["commits"], merged["state"]) == (True, 1, "done")
    assert merged["workspace_id"] == WORKSPACE
    assert (trees.of(WORKSPACE) / "new.txt").read_text() == "new"
    again = await trees.merge(child)
    assert (again["merged"], again["commits"]) == (False, 0)
    assert again["next"].startswith("Nothing new")
    assert again["merge_id"] != merged["merge_id"]


async def test_a_fork_that_did_not_commit_is_told_to(trees: Trees) -> None:
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    (trees.of((await trees.world.row(child)).workspace_id) / "loose.txt").write_text("x")
    merged = await trees.merge(child)
    assert (merged["merged"], merged["uncommitted"]) == (False, ["loose.txt"])
    assert f"message {child} to commit" in merged["next"]


async def test_who_cannot_be_merged_is_told_why(trees: Trees) -> None:
    world = trees.world
    root = await world.new("sleep")
    beside = (await world.spawn("hi", principal=agent(root)))["session_id"]
    await world.settle(beside)
    busy = await trees.fork(root, "sleep")
    gone = await trees.fork(root)
    await world.store.write(
        partial(workspaces.update, workspace_id=(await world.row(gone)).workspace_id, state=PlaceState.DELETING)
    )
    for session_id, code, said in (
        (root, "conflict", "nobody's child"),
        (beside, "conflict", "parent's own workspace"),
        (busy, "busy", "at work"),
        (gone, "conflict", "deleting"),
        ("gogol_x", "not_found", "no session"),
    ):
        with pytest.raises(RequestError, match=said) as caught:
            await trees.merge(session_id)
        assert caught.value.code == code
    assert await world.store.read(merges.running) == []


async def test_a_merge_outlives_its_call_and_the_next_call_is_told_how_it_ended(trees: Trees) -> None:
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    await trees.commit(child, "new.txt", "new")
    trees.gate = trio.Event()
    running = await trees.merge(child, seconds=0.05)
    assert (running["state"], running["merged"]) == ("running", False)
    assert f"session merge session_id={child}" in running["next"]
    joined = await trees.world.tree.merges.begin(ADMIN, child)
    assert joined == running["merge_id"]
    trees.gate.set()
    await trees.world.tree.merges.wait(joined, 30)
    told = await trees.merge(child)
    assert (told["merge_id"], told["merged"], told["commits"]) == (joined, True, 1)
    assert (await trees.merge(child))["merge_id"] != joined


async def test_an_outcome_that_nobody_heard_is_stale_once_the_fork_has_worked_again(trees: Trees) -> None:
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    await trees.commit(child, "new.txt", "new")
    merges_of = trees.world.tree.merges
    unheard = await merges_of.begin(ADMIN, child)
    await merges_of.wait(unheard, 30)
    await trees.world.message(child, "say more")
    await trees.world.settle(child)
    await trees.commit(child, "more.txt", "more")
    merged = await trees.merge(child)
    assert merged["merge_id"] != unheard
    assert (merged["merged"], merged["commits"]) == (True, 1)


async def test_two_merges_into_one_workspace_follow_each_other(trees: Trees) -> None:
    root = await trees.world.new("sleep")
    children = [await trees.fork(root) for _ in range(3)]
    for number, child in enumerate(children):
        await trees.commit(child, f"{number}.txt", str(number))
    trees.gate = trio.Event()
    results: list[Json] = []

    async def one(child: str) -> None:
        results.append(await trees.merge(child))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for child in children:
                nursery.start_soon(one, child)
            await trees.arrived.wait()
            trees.gate.set()
    assert [result["merged"] for result in results] == [True] * 3, results
    assert trees.most == 1
    assert sorted(path.name for path in trees.of(WORKSPACE).glob("?.txt")) == ["0.txt", "1.txt", "2.txt", "a.txt"]
    assert trees.world.tree.merges._places == {}


async def test_a_sandbox_that_fails_fails_the_merge_and_not_the_daemon(trees: Trees) -> None:
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    trees.failing = True
    with pytest.raises(RequestError) as caught:
        await trees.merge(child)
    assert (caught.value.code, caught.value.retryable) == ("unavailable", True)
    assert "on fire" not in str(caught.value), "what was not written for callers is for the log"
    trees.failing = False
    assert (await trees.merge(child))["commits"] == 0


async def test_a_merge_that_a_restart_interrupts_is_said_to_be_and_can_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(tmp_path / WORKSPACE, {"a.txt": "one\n"})
    async with open_trees(tmp_path, monkeypatch) as trees:
        root = await trees.world.new("sleep")
        child = await trees.fork(root)
        await trees.commit(child, "new.txt", "new")
        trees.gate = trio.Event()
        assert (await trees.merge(child, seconds=0.05))["state"] == "running"
    async with open_trees(tmp_path, monkeypatch, agent=trees.world.agent) as again:
        with pytest.raises(RequestError) as caught:
            await again.merge(child)
        assert (caught.value.code, caught.value.retryable) == ("unavailable", True)
        assert (await again.merge(child))["merged"]


async def test_a_merge_that_takes_for_ever_is_given_up(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_merges, "LONGEST_SECONDS", 0.2)
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    await trees.commit(child, "new.txt", "new")
    trees.gate = trio.Event()
    with trio.fail_after(30), pytest.raises(RequestError) as caught:
        await trees.merge(child)
    assert (caught.value.code, caught.value.retryable) == ("timed_out", True)


async def test_a_merge_whose_end_cannot_be_written_is_waited_for_until_it_can(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_merges, "WRITE_AGAIN_SECONDS", 0.01)
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    await trees.commit(child, "new.txt", "new")
    full = 3

    def update(tx: Tx, merge_id: str, **fields: Any) -> bool:
        nonlocal full
        if full and "ended_at" in fields:
            full -= 1
            raise StoreError("commit to the store: the disk is full", code="storage_full", retryable=True)
        return real(tx, merge_id, **fields)

    real = merges.update
    monkeypatch.setattr(merges, "update", update)
    with trio.fail_after(30):
        merged = await trees.merge(child)
    assert (merged["state"], merged["merged"], full) == ("done", True, 0)


async def test_only_the_newest_merges_of_a_session_are_kept(trees: Trees) -> None:
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    for _ in range(merges.KEPT + 3):
        await trees.merge(child)
    count = await trees.world.store.read(lambda tx: tx.rows("SELECT count(*) FROM merges")[0][0])
    assert count == merges.KEPT


async def test_a_merge_cancelled_at_any_step_is_carried_out_or_not_begun(trees: Trees) -> None:
    root = await trees.world.new("sleep")
    child = await trees.fork(root)
    number = 0

    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        nonlocal number
        number += 1
        name = f"{number}.txt"
        await trees.commit(child, name, name)

        async def operation() -> None:
            await trees.merge(child)

        async def check(cut: Cut) -> None:
            with trio.fail_after(30):
                for row in await trees.world.store.read(merges.running):
                    await trees.world.tree.merges.wait(row.merge_id, 30)
            last = await trees.world.store.read(partial(merges.last, session_id=child))
            begun = last is not None and (last.result or {}).get("merged") and (trees.of(WORKSPACE) / name).exists()
            assert begun or cut.cancelled
            assert await trees.world.store.read(merges.running) == []
            await trees.merge(child)  # whatever was not told is told now
            await trees.merge(child)
            assert (trees.of(WORKSPACE) / name).exists()

        yield operation, check

    assert await cancel_sweep(subject) >= 2
