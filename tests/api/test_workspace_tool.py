"""Workspaces made, listed, looked into and deleted, by tokens and by agents; and what nobody gets out of them."""

from __future__ import annotations

import base64
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.core.model import Json, PlaceState, ProjectRow, WorkspaceRow
from oubliette.core.place_shapes import Workspace
from oubliette.store import audit, projects, sessions, workspaces
from oubliette.store.database import Tx
from tests.api.agent_world import FOREIGN_WORKSPACE, OTHER_WORKSPACE, Agents, open_agents
from tests.api.rpc import open_rpc
from tests.api.world import OTHER_PROJECT, PROJECT, WORKSPACE, Doors
from tests.session.world import ADMIN

FOREIGN = "91aa0000-0000-4000-8000-0000000000f1"


def tree(doors: Doors, workspace_id: str = WORKSPACE, project_id: str = PROJECT) -> Path:
    """The directory of a workspace on the host, made when it is not there."""
    path = doors.services.projects.views.home.workspace_dir(project_id, workspace_id)
    path.mkdir(parents=True, exist_ok=True)
    return path


async def refused(doors: Doors, who: str = "project", **arguments: Any) -> Json:
    """The error, without the id of the request."""
    answer = await doors.call("workspace", who, **arguments)
    assert answer.status_code >= 400, answer.text
    return {name: value for name, value in answer.json()["error"].items() if name != "request_id"}


async def add_foreign(doors: Doors) -> None:
    def write(tx: Tx) -> None:
        at = doors.services.now()
        projects.insert(tx, ProjectRow(OTHER_PROJECT, "bank", PlaceState.READY, at, at, ADMIN.as_json(), FOREIGN))
        workspaces.insert(tx, WorkspaceRow(FOREIGN, OTHER_PROJECT, True, PlaceState.READY, at))

    await doors.world.store.write(write)
    (tree(doors, FOREIGN, OTHER_PROJECT) / "secret.txt").write_text("foreign")


# --- made and deleted


async def test_a_workspace_from_create_to_delete(doors: Doors) -> None:
    (tree(doors) / "a.txt").write_text("as it stands")
    with trio.fail_after(30):
        given = {"from_workspace": WORKSPACE, "external_id": "ticket-1", "source": "ci", "request_key": "k"}
        made = await doors.tool("workspace", "project", action="create", **given)
        Workspace.model_validate(made)
        assert (made["state"], made["forked_from"], made["external_id"]) == ("ready", WORKSPACE, "ticket-1")
        assert "path" not in made, "host paths are for admins"
        one = made["workspace_id"]
        again = await doors.tool("workspace", "project", action="create", **given)
        assert (again["workspace_id"], again["deduplicated"]) == (one, True)
        assert (tree(doors, one) / "a.txt").read_text() == "as it stands"
        taken = await refused(doors, action="create", external_id="ticket-1")
        assert (taken["code"], taken["field"]) == ("conflict", "external_id")

        listed = await doors.tool("workspace", "reader", action="list")
        assert [item["workspace_id"] for item in listed["workspaces"]] == [one, WORKSPACE]
        assert [item["default"] for item in listed["workspaces"]] == [False, True]
        admin = await doors.tool("workspace", "auditor", action="list", project_id=PROJECT, limit=1)
        assert admin["workspaces"][0]["path"].endswith(one)
        rest = await doors.tool("workspace", "auditor", action="list", project_id=PROJECT, cursor=admin["next_cursor"])
        assert [item["workspace_id"] for item in rest["workspaces"]] == [WORKSPACE]

        session = await doors.tool(
            "session", "project", action="spawn", message="say hi", model="scripted", workspace_id=one
        )
        await doors.world.settle(session["session_id"])
        busy = await refused(doors, action="delete", workspace_id=one)
        assert (busy["code"], busy["candidates"]) == ("conflict", [session["session_id"]])
        assert (tree(doors, one) / "a.txt").exists()
        await doors.tool("session", "project", action="end", session_id=session["session_id"])
        gone = await doors.tool("workspace", "project", action="delete", workspace_id=one, request_key="d")
        assert gone == {"workspace_id": one, "project_id": PROJECT, "deleted": True}
        retried = await doors.tool("workspace", "project", action="delete", workspace_id=one, request_key="d")
        assert retried["deduplicated"]
        assert not doors.services.projects.views.home.workspace_dir(PROJECT, one).exists()
        assert (await doors.tool("session", "project", action="get", session_id=session["session_id"]))[
            "workspace_id"
        ] == one
        assert (await refused(doors, action="delete", workspace_id=WORKSPACE))["code"] == "conflict"
        assert (await refused(doors, action="delete", workspace_id=one))["code"] == "not_found"


async def test_a_list_in_full_tells_size_and_commit_too(doors: Doors) -> None:
    place = tree(doors)
    (place / ".git").mkdir()
    (place / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (place / "data").write_bytes(b"x" * 100_000)
    with trio.fail_after(20):
        [full] = (await doors.tool("workspace", "reader", action="list", detail="full"))["workspaces"]
        Workspace.model_validate(full)
        assert full["size_bytes"] >= 100_000
        assert full["git"] == {"branch": "main"}
        [brief] = (await doors.tool("workspace", "reader", action="list"))["workspaces"]
        assert not {"size_bytes", "git", "container"} & set(brief)


async def test_what_was_done_is_in_the_audit_trail(doors: Doors) -> None:
    with trio.fail_after(20):
        one = (await doors.tool("workspace", "project", action="create"))["workspace_id"]
        await doors.tool("workspace", "project", action="delete", workspace_id=one)
        await refused(doors, "reader", action="delete", workspace_id=WORKSPACE)
        while True:
            entries, _ = await doors.world.store.read(partial(audit.list_page, limit=10))
            if len(entries) == 3:
                break
            await trio.sleep(0.02)
    told = {(one.action, one.target, one.outcome) for one in entries}
    assert told == {
        ("workspace.create", PROJECT, "ok"),
        ("workspace.delete", one, "ok"),
        ("workspace.delete", None, "permission_denied"),
    }


async def test_a_workspace_that_cannot_be_made_says_why(doors: Doors) -> None:
    with trio.fail_after(20):
        made = await doors.tool("workspace", "project", action="create", from_workspace=WORKSPACE)
        assert made["state"] == "failed", "there is nothing to copy yet"
        assert made["error"]["code"] == "internal"
        assert (await refused(doors, action="read", workspace_id=made["workspace_id"], path="a"))["code"] == "not_ready"
        gone = await doors.tool("workspace", "project", action="delete", workspace_id=made["workspace_id"])
        assert gone["deleted"]


async def test_foreign_and_unknown_workspaces_look_alike(doors: Doors) -> None:
    await add_foreign(doors)
    nowhere = FOREIGN[:-2] + "99"
    with trio.fail_after(30):
        for asked in (
            {"action": "read", "path": "secret.txt"},
            {"action": "files"},
            {"action": "delete"},
            {"action": "read", "path": "secret.txt", "project_id": PROJECT},
        ):
            errors = [await refused(doors, **asked, workspace_id=one) for one in (FOREIGN, nowhere)]
            assert errors[0] == errors[1]
            assert errors[0]["code"] == "not_found"
        copies = [await refused(doors, action="create", from_workspace=one) for one in (FOREIGN, nowhere)]
        assert copies[0] == copies[1]
        places = [await refused(doors, action="list", project_id=one) for one in (OTHER_PROJECT, nowhere)]
        assert places[0] == places[1]
        assert len((await doors.tool("workspace", "project", action="list"))["workspaces"]) == 1
        everything = await doors.tool("workspace", "admin", action="list")
        assert {one["project_id"] for one in everything["workspaces"]} == {PROJECT, OTHER_PROJECT}
        assert (await refused(doors, "reader", action="create"))["code"] == "permission_denied"


# --- looked into


async def test_a_text_file_is_shown_and_a_long_one_is_cut_and_says_so(doors: Doors) -> None:
    place = tree(doors)
    (place / "src").mkdir()
    (place / "src" / "a.py").write_text("print('ü')\n")
    (place / "long.txt").write_text("ä" * 50_000)
    (place / "huge.txt").write_bytes(b"x" * (3 << 20))
    (place / "empty").touch()
    with trio.fail_after(20):
        shown = await doors.tool("workspace", "reader", action="read", path="./src//a.py")
        assert shown == {
            "workspace_id": WORKSPACE,
            "path": "./src//a.py",
            "size_bytes": 12,
            "text": "print('ü')\n",
        }
        cut = await doors.tool("workspace", "reader", action="read", path="long.txt")
        assert cut["text_truncated"]
        assert (cut["text_bytes"], cut["size_bytes"]) == (100_000, 100_000)
        assert 10_000 < len(cut["text"]) < 20_000
        huge = await doors.tool("workspace", "reader", action="read", path="huge.txt", max_chars=1_000_000)
        assert (huge["text_truncated"], huge["text_bytes"]) == (True, 3 << 20)
        assert len(json.dumps(huge)) <= 1_000_000
        async with open_rpc(doors, "reader") as rpc:
            text = (await rpc.call("workspace", action="read", path="long.txt"))["content"][0]["text"]
            assert text.startswith(f"Workspace: {WORKSPACE}\nPath: long.txt\nSize: 100,000 bytes (cut: ")
            assert text.splitlines()[3].startswith("--- written by the agent")
            empty = (await rpc.call("workspace", action="read", path="empty"))["content"][0]["text"]
            assert empty.endswith("It is empty.")


async def test_of_a_file_that_is_no_text_the_size_is_shown_and_with_full_detail_its_bytes(doors: Doors) -> None:
    place = tree(doors)
    data = bytes(range(256)) * 200
    (place / "image.png").write_bytes(data)
    (place / "dot.png").write_bytes(data[:100])
    with trio.fail_after(20):
        brief = await doors.tool("workspace", "reader", action="read", path="image.png")
        assert brief == {"workspace_id": WORKSPACE, "path": "image.png", "size_bytes": 51_200, "binary": True}
        full = await doors.tool("workspace", "reader", action="read", path="image.png", detail="full")
        assert (full["base64_truncated"], full["base64_bytes"]) == (True, 51_200)
        kept = base64.b64decode(full["base64"], validate=True)
        assert data.startswith(kept)
        assert len(kept) > 12_000
        assert len(json.dumps(full)) <= 20_000
        whole = await doors.tool(
            "workspace", "reader", action="read", path="image.png", detail="full", max_chars=90_000
        )
        assert base64.b64decode(whole["base64"]) == data
        assert "base64_truncated" not in whole
        dot = await doors.tool("workspace", "reader", action="read", path="dot.png", detail="full")
        assert base64.b64decode(dot["base64"]) == data[:100]
        assert "base64_truncated" not in dot


async def test_files_are_listed_by_glob(doors: Doors) -> None:
    place = tree(doors)
    for name in ("src/a.py", "src/deep/b.py", "README.md", ".git/config"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    (place / "link").symlink_to("/etc/passwd")
    with trio.fail_after(20):
        every = await doors.tool("workspace", "reader", action="files")
        kinds = {one["path"]: one["kind"] for one in every["files"]}
        assert kinds == {
            "README.md": "file",
            "link": "symlink",
            "src": "directory",
            "src/a.py": "file",
            "src/deep": "directory",
            "src/deep/b.py": "file",
        }
        some = await doors.tool("workspace", "reader", action="files", glob="src/**/*.py")
        assert [one["path"] for one in some["files"]] == ["src/a.py", "src/deep/b.py"]
        assert some["files"][0]["size_bytes"] == 1
        for number in range(1_200):
            (place / f"n{number:04d}").touch()
        many = await doors.tool("workspace", "reader", action="files", max_chars=1_000_000)
        assert (len(many["files"]), many["files_truncated"]) == (1_000, True)
        few = await doors.tool("workspace", "reader", action="files", glob="n*")
        assert few["files_truncated"]
        assert len(json.dumps(few)) <= 20_500
        async with open_rpc(doors, "reader") as rpc:
            text = (await rpc.call("workspace", action="files", glob="src*"))["content"][0]["text"]
        assert text.splitlines()[-1] == "src/"


HOSTILE = [
    "../secret",
    "src/../../x",
    "/etc/passwd",
    "/",
    ".",
    "a/" * 300 + "b",
    "..",
    "a\x00b",
    "a\nb",
    "\x1b[2J",
]


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: ascii(path[:12]))
async def test_a_path_that_leads_out_is_refused_whatever_is_there(doors: Doors, path: str) -> None:
    place = tree(doors)
    (place.parent / "secret").write_text("outside")
    (place / "src").mkdir()
    with trio.fail_after(20):
        body = json.dumps({"action": "read", "path": path})
        async with doors.client("reader") as client:
            answer = await client.post("/v1/tools/workspace", content=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].get("field") == "path", answer.text


@pytest.mark.parametrize("glob", ["../*", "/etc/*", "a//b", "x" * 1_001, "a/" * 60 + "b", "", "a\x00"])
async def test_a_glob_that_leads_out_is_refused(doors: Doors, glob: str) -> None:
    tree(doors)
    with trio.fail_after(20):
        error = await refused(doors, "reader", action="files", glob=glob)
        assert error["field"] == "glob", error


async def test_what_is_no_regular_file_in_the_tree_itself_looks_like_nothing(doors: Doors) -> None:
    place = tree(doors)
    outside = place.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("outside")
    (place / "folder").mkdir()
    (place / "to_file").symlink_to(outside / "secret")
    (place / "to_folder").symlink_to(outside)
    (place / "to_nothing").symlink_to(outside / "nothing")
    (place / "to_itself").symlink_to("to_itself")
    os.mkfifo(place / "fifo")
    with trio.fail_after(10):
        nothing = await refused(doors, "reader", action="read", path="no_such")
        assert nothing["code"] == "not_found"
        for path in ("to_file", "to_folder/secret", "to_nothing", "to_itself", "fifo", "folder"):
            assert await refused(doors, "reader", action="read", path=path) == nothing, path
        listed = await doors.tool("workspace", "reader", action="files", glob="**")
        assert not any(one["path"].startswith("to_folder/") for one in listed["files"])
        kinds = {one["path"]: (one["kind"], one["size_bytes"]) for one in listed["files"]}
        assert kinds["fifo"] == ("other", 0)
    os.rename(place, place.with_name("moved"))
    place.symlink_to(outside)
    with trio.fail_after(10):
        assert (await refused(doors, "reader", action="read", path="secret"))["code"] == "not_found"
        assert (await doors.call("workspace", "reader", action="files")).status_code >= 400


# --- agents


async def said(agents: Agents, stamp: str | None, **arguments: Any) -> Json:
    async with agents.wire() as wire:
        failed, text = await wire.call("workspace", stamp, **arguments)
    assert not failed, text
    return dict(json.loads(text))


async def no(agents: Agents, stamp: str, **arguments: Any) -> str:
    async with agents.wire() as wire:
        failed, text = await wire.call("workspace", stamp, **arguments)
    assert failed, text
    return text


async def test_an_agent_has_its_own_workspace_and_those_that_its_tree_made(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        doors = agents.doors
        (tree(doors) / "mine.txt").write_text("mine")
        (tree(doors, OTHER_WORKSPACE) / "theirs.txt").write_text("theirs")
        (tree(doors, FOREIGN_WORKSPACE, OTHER_PROJECT) / "foreign.txt").write_text("foreign")
        _, stamp = await agents.session()
        _, neighbour = await agents.session()
        assert (await said(agents, stamp, action="read", path="mine.txt"))["text"] == "mine"
        assert [one["path"] for one in (await said(agents, stamp, action="files"))["files"]] == ["mine.txt"]
        made = await said(agents, stamp, action="create", from_workspace=WORKSPACE)
        assert made["state"] == "ready"
        one = made["workspace_id"]
        assert (await said(agents, stamp, action="read", path="mine.txt", workspace_id=one))["text"] == "mine"
        mine = await said(agents, stamp, action="list")
        assert [item["workspace_id"] for item in mine["workspaces"]] == [one, WORKSPACE]
        page = await said(agents, stamp, action="list", limit=1)
        rest = await said(agents, stamp, action="list", cursor=page["next_cursor"])
        assert [item["workspace_id"] for item in rest["workspaces"]] == [WORKSPACE]
        theirs = await said(agents, neighbour, action="list")
        assert [item["workspace_id"] for item in theirs["workspaces"]] == [WORKSPACE]
        gone = {
            await no(agents, stamp, action="read", path="x", workspace_id=place)
            for place in (OTHER_WORKSPACE, FOREIGN_WORKSPACE, "no_such")
        }
        gone |= {await no(agents, neighbour, action="read", path="mine.txt", workspace_id=one)}
        gone |= {await no(agents, neighbour, action="files", workspace_id=one)}
        assert len(gone) == 1
        assert gone.pop().startswith("not_found: ")
        copies = {
            await no(agents, neighbour, action="create", from_workspace=place)
            for place in (one, OTHER_WORKSPACE, FOREIGN_WORKSPACE, "no_such")
        }
        assert len(copies) == 1
        for name, value in (("project_id", OTHER_PROJECT), ("external_id", "x"), ("source", "x")):
            assert (await no(agents, stamp, action="create", **{name: value})).startswith("permission_denied: ")
        for action in ({"action": "delete", "workspace_id": one}, {"action": "push"}, {"action": "export"}):
            assert (await no(agents, stamp, **action)).startswith(("permission_denied: ", "unknown_action: "))


async def test_a_parent_reads_what_a_child_left_for_it_and_nobody_elses(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        doors = agents.doors
        root, stamp = await agents.session()
        _, neighbour = await agents.session()
        child = (await wire.result(stamp, action="spawn", message="sleep"))["session_id"]
        _, child_stamp = await agents.at_work(child)
        state = doors.services.projects.views.home.state_dir(PROJECT, WORKSPACE)
        for session, text in ((child, "for you"), (root, "the parent's own")):
            folder = state / "results" / session
            (folder / "more").mkdir(parents=True)
            (folder / "report.md").write_text(text)
            (folder / "more" / "data.csv").write_text("1,2")
        (state / "secret.json").write_text("conversation")
        (state / "results" / child / "link").symlink_to(state / "secret.json")
        listed = await said(agents, stamp, action="files", session_id=child)
        assert listed == {
            "session_id": child,
            "files": [
                {"path": "results/more/data.csv", "kind": "file", "size_bytes": 3},
                {"path": "results/report.md", "kind": "file", "size_bytes": 7},
            ],
        }
        some = await said(agents, stamp, action="files", session_id=child, glob="results/*.md")
        assert [one["path"] for one in some["files"]] == ["results/report.md"]
        for path in ("results/report.md", "report.md"):
            assert (await said(agents, stamp, action="read", session_id=child, path=path))["text"] == "for you"
        outside = ("../" + root + "/report.md", "../../secret.json", "/state/secret.json")
        for path in outside:
            assert (await no(agents, stamp, action="read", session_id=child, path=path)).startswith(
                "invalid_argument: "
            )
        assert (await no(agents, stamp, action="read", session_id=child, path="link")).startswith("not_found: ")
        foreign = {
            await no(agents, who, action="read", session_id=one, path="report.md")
            for who, one in ((child_stamp, root), (neighbour, child), (neighbour, "gogol_none"))
        }
        assert len(foreign) == 1
        assert foreign.pop().startswith("not_found: ")
        both = await no(agents, stamp, action="read", session_id=child, workspace_id=WORKSPACE, path="report.md")
        assert both.startswith("invalid_argument: workspace_id")
        token = await doors.tool("workspace", "reader", action="read", session_id=child, path="results/report.md")
        assert token["text"] == "for you"
        assert (
            await doors.call("workspace", "stranger", action="read", session_id=child, path="report.md")
        ).status_code == 404


async def test_what_a_session_made_stays_its_trees_when_it_has_ended(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        (tree(agents.doors) / "a").write_text("a")
        root, stamp = await agents.session()
        child = (await wire.result(stamp, action="spawn", message="sleep"))["session_id"]
        _, child_stamp = await agents.at_work(child)
        made = (await said(agents, child_stamp, action="create", from_workspace=WORKSPACE))["workspace_id"]
        await wire.result(stamp, action="end", session_id=child)
        assert (await said(agents, stamp, action="read", workspace_id=made, path="a"))["text"] == "a"
        spawned = await wire.result(stamp, action="spawn", message="say hi")
        row = await agents.doors.world.store.read(partial(sessions.get, session_id=spawned["session_id"]))
        assert row is not None
        assert row.parent_id == root


async def test_many_copies_at_once_leave_room_for_everybody_else(doors: Doors) -> None:
    """More than there are threads: all are made, and meanwhile files are still read."""
    (tree(doors) / "a").write_text("a")
    made: list[Json] = []

    async def copy() -> None:
        made.append(await doors.tool("workspace", "project", action="create", from_workspace=WORKSPACE))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(45):
                nursery.start_soon(copy)
            assert (await doors.tool("workspace", "reader", action="read", path="a"))["text"] == "a"
        assert [one["state"] for one in made] == ["ready"] * 45
        page = await doors.tool("workspace", "reader", action="list", limit=200, max_chars=200_000)
        assert len(page["workspaces"]) == 46
