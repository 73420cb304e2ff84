"""``session diff`` and ``session merge`` at the doors: who may, what is refused, how it is said."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette import clock
from oubliette.api.tools import session_changes
from oubliette.core.model import ContainerRow, ContainerState, Json, PlaceState
from oubliette.project.merge import Bundle, Merged, Repository
from oubliette.store import changes, containers, workspaces
from oubliette.store.changes import ChangeRow
from tests.api.agent_world import Agents, open_agents
from tests.api.world import Doors, open_doors
from tests.session.test_places import agent

FILES = [{"path": "a.txt", "change": "modified", "added": 1, "removed": 0}]


async def changed(doors: Doors, patch: str = "+two\n") -> str:
    """A settled session whose only turn changed a file."""
    one = await doors.world.new("hi")
    await doors.world.settle(one)
    row = ChangeRow(one, 1, 1, "a" * 40, "b" * 40, FILES, False, changes.pack(patch), len(patch), False)
    await doors.world.store.write(partial(changes.keep, row=row))
    return one


async def forked(doors: Doors, parent: str, text: str = "hi") -> str:
    """A child in a workspace of its own."""
    spawned = await doors.world.spawn(text, principal=agent(parent), workspace="fork")
    made = spawned["workspace_id"]
    await doors.world.store.write(partial(workspaces.update, workspace_id=made, state=PlaceState.READY))
    if text != "sleep":
        await doors.world.settle(spawned["session_id"])
    return str(spawned["session_id"])


def answering(monkeypatch: pytest.MonkeyPatch, merged: Merged, bundle: Bundle | None = None) -> None:
    """Sandboxes whose git says this."""

    async def known(self: Repository) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []

    async def bundled(self: Repository, known: object) -> Bundle:
        await trio.lowlevel.checkpoint()
        return bundle or Bundle("c" * 40, 2, b"x", [], 0)

    async def merge(self: Repository, data: bytes, **more: object) -> Merged:
        await trio.lowlevel.checkpoint()
        return merged

    monkeypatch.setattr(Repository, "known", known)
    monkeypatch.setattr(Repository, "bundle", bundled)
    monkeypatch.setattr(Repository, "merge", merge)


async def test_a_diff_is_read_by_whoever_may_read_and_starts_nothing(tmp_path: Path) -> None:
    async with open_doors(tmp_path) as doors:
        one = await changed(doors)
        leases = doors.world.container.leases
        for who in ("admin", "auditor", "project", "reader"):
            diff = await doors.tool("session", who, action="diff", session_id=one)
            assert diff == {
                "session_id": one,
                "base": "a" * 40,
                "head": "b" * 40,
                "files": FILES,
                "patch": "+two\n",
            }
        assert doors.world.container.leases == leases
        assert (await doors.call("session", "stranger", action="diff", session_id=one)).status_code == 404
        refused = await doors.call("session", action="diff", session_id=one, since_turn=0)
        assert refused.json()["error"]["field"] == "since_turn"


async def test_a_long_patch_is_cut_to_what_was_asked_for(tmp_path: Path) -> None:
    async with open_doors(tmp_path) as doors:
        patch = "+line\n" * 20_000
        one = await changed(doors, patch)
        diff = await doors.tool("session", action="diff", session_id=one)
        assert (diff["patch_truncated"], diff["patch_bytes"]) == (True, len(patch))
        assert len(diff["patch"]) < 20_000
        whole = await doors.tool("session", action="diff", session_id=one, max_chars=1_000_000)
        assert whole["patch"] == patch


def test_what_an_agent_wrote_stands_under_the_line_that_says_so() -> None:
    text = session_changes.diff_words({"session_id": "gogol_1", "files": FILES, "patch": "+two", "base": "a"})
    assert text.index("written by the agent") < text.index("+two")
    conflict: Json = {"path": "a\x1b[31m.txt", "kind": "content"}
    text = session_changes.merge_words(
        {"session_id": "gogol_1", "merged": False, "conflicts": [conflict], "next": "do"}
    )
    assert text.startswith("Not merged: gogol_1\n")
    assert text.index("written by the agent") < text.index("content: a")
    assert "\x1b" not in text
    assert session_changes.merge_words({"session_id": "gogol_1", "state": "running"}).startswith("Merge running")


async def test_a_merge_answers_with_what_became_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Merged(True, "a" * 40, "b" * 40, 2, FILES), Bundle("c" * 40, 2, b"x", ["loose"], 1))
    async with open_doors(tmp_path) as doors:
        root = await doors.world.new("sleep")
        child = await forked(doors, root)
        merged = await doors.tool("session", "project", action="merge", session_id=child, request_key="once")
        assert (merged["merged"], merged["commits"], merged["head"]) == (True, 2, "b" * 40)
        assert (merged["files"], merged["conflicts"], merged["uncommitted"]) == (FILES, [], ["loose"])
        assert "1 uncommitted files" in merged["next"]
        again = await doors.tool("session", "project", action="merge", session_id=child, request_key="once")
        assert again == {**merged, "deduplicated": True}


async def test_a_merge_needs_to_write(tmp_path: Path) -> None:
    async with open_doors(tmp_path) as doors:
        root = await doors.world.new("sleep")
        child = await forked(doors, root)
        for who, status in (("reader", 403), ("auditor", 403), ("stranger", 404)):
            assert (await doors.call("session", who, action="merge", session_id=child)).status_code == status
        failed = await doors.call("session", action="merge", session_id=child)
        assert failed.status_code >= 500, "the fake sandbox has no python"


async def test_an_agent_merges_forks_below_it_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = {"path": "a.txt", "kind": "content"}
    answering(monkeypatch, Merged(False, "a" * 40, "a" * 40, 2, conflicts=[conflict]))
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        root, stamp = await agents.session()
        other, _ = await agents.session()
        child = await forked(agents.doors, root)
        foreign = await forked(agents.doors, other)
        merged = await wire.result(stamp, action="merge", session_id=child)
        assert (merged["merged"], merged["conflicts"]) == (False, [conflict])
        assert f"git merge refs/oubliette/{child}" in merged["next"]
        assert (await wire.result(stamp, action="diff", session_id=child))["patch"] == ""
        for session_id, said in ((root, "names the caller itself"), (foreign, "not_found"), ("gogol_x", "not_found")):
            failed, text = await wire.call("session", stamp, action="merge", session_id=session_id)
            assert failed
            assert said in text


async def test_a_child_does_not_merge_itself_into_where_its_parent_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, Merged(True, "a" * 40, "b" * 40, 1))
    async with open_agents(tmp_path) as agents:
        root, _ = await agents.session()
        child = await forked(agents.doors, root, "sleep")
        await _in_own_container(agents, child)
        async with agents.wire("con_of_child") as wire:
            _, stamp = await agents.at_work(child)
            for session_id in (child, root):
                failed, _ = await wire.call("session", stamp, action="merge", session_id=session_id)
                assert failed


async def _in_own_container(agents: Agents, session_id: str) -> None:
    row = await agents.doors.world.row(session_id)
    one = ContainerRow(
        "con_of_child", row.project_id, row.workspace_id, "fake", 1, "key", ContainerState.READY, clock.now()
    )
    await agents.doors.world.store.write(partial(containers.insert, row=one))


async def test_an_agent_says_where_its_child_works(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session()
        made = await wire.result(stamp, action="spawn", message="hi", workspace="fork")
        assert made["workspace_created"] is True
        assert agents.doors.world.begun == [made["workspace_id"]]
        failed, text = await wire.call("session", stamp, action="spawn", message="hi", workspace="elsewhere")
        assert failed
        assert "parent, new, fork" in text
        refused = await agents.doors.call("session", action="spawn", message="hi", workspace="fork")
        assert refused.json()["error"]["field"] == "workspace"
