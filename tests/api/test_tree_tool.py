"""``session tree`` and ``config_limits`` as tokens and agents get them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.api.tools.reply import UNTRUSTED
from oubliette.core.model import Json
from oubliette.core.shapes import Tree, TreeLimits
from tests.api.agent_world import Agents, open_agents, settings
from tests.api.rpc import open_rpc
from tests.api.world import OTHER_PROJECT, PROJECT, Doors


async def family(doors: Doors) -> tuple[str, str, str, str]:
    """A root with two children, the first of which has one of its own; all idle."""
    root = await doors.world.new("say root")
    first = await doors.world.new("say first", parent=root)
    grandchild = await doors.world.new("say grandchild", parent=first)
    second = await doors.world.new("say second", parent=root)
    await doors.world.settle(root, first, grandchild, second)
    return root, first, grandchild, second


def names(shape: Json) -> list[str]:
    return [node["session_id"] for node in shape["nodes"]]


async def test_a_token_gets_the_whole_tree_of_any_session_in_pages(doors: Doors) -> None:
    with trio.fail_after(30):
        root, first, grandchild, second = await family(doors)
        whole = await doors.tool("session", "reader", action="tree", session_id=grandchild)
        Tree.model_validate(whole)
        assert names(whole) == [root, first, grandchild, second]
        assert whole["root_id"] == root
        assert whole["seq"] == (await doors.world.row(root)).last_seq
        assert whole["counts"]["total"] == whole["counts"]["open"] == 4
        assert {node["outcome"] for node in whole["nodes"]} == {"completed"}
        assert whole["limits"]["depth"] == {"limit": 3, "used": 2, "remaining": 1}
        assert whole["limits"]["active"] == {"limit": 10, "used": 0, "remaining": 10}
        seen: list[str] = []
        cursor: str | None = None
        while True:
            more = {"cursor": cursor} if cursor is not None else {}
            page = await doors.tool("session", "reader", action="tree", session_id=root, limit=3, **more)
            seen += names(page)
            assert page["counts"]["total"] == 4, "of all pages"
            cursor = page.get("next_cursor")
            if cursor is None:
                break
            other = await doors.call("session", "project", action="tree", session_id=root, cursor=cursor)
            assert other.json()["error"]["code"] == "invalid_cursor", "it is the reader's"
        assert seen == names(whole)


async def test_a_tree_that_is_too_long_is_cut_between_sessions_and_goes_on(doors: Doors) -> None:
    with trio.fail_after(30):
        root, *_ = await family(doors)
        page = await doors.tool("session", action="tree", session_id=root, max_chars=2_000)
        assert 0 < len(page["nodes"]) < 4
        rest = await doors.tool("session", action="tree", session_id=root, cursor=page["next_cursor"])
        assert len(page["nodes"]) + len(rest["nodes"]) == 4


async def test_the_text_says_the_same_and_titles_come_last(doors: Doors) -> None:
    with trio.fail_after(30):
        root, first, grandchild, _ = await family(doors)
        async with open_rpc(doors, "project") as rpc:
            text = (await rpc.call("session", action="tree", session_id=root))["content"][0]["text"]
        lines = text.splitlines()
        assert lines[0] == f"Tree: {root}"
        assert "Depth: 2 of 3" in lines
        assert f"    {grandchild}  idle, last turn completed" in lines
        assert lines.index(UNTRUSTED) < lines.index(f"{first}: say first")


async def test_unknown_and_foreign_trees_look_alike(doors: Doors) -> None:
    with trio.fail_after(30):
        root, *_ = await family(doors)
        for tool in ({"tool": "session", "action": "tree"}, {"tool": "config_limits"}):
            answers = [await doors.call(who="stranger", session_id=one, **tool) for one in (root, "gogol_none")]
            errors = [{k: v for k, v in one.json()["error"].items() if k != "request_id"} for one in answers]
            assert [one.status_code for one in answers] == [404, 404]
            assert errors[0] == errors[1]
        needed = await doors.call("session", action="tree")
        assert (needed.status_code, needed.json()["error"]["field"]) == (400, "session_id")


async def test_limits_of_a_tree_of_a_project_and_of_none(doors: Doors) -> None:
    with trio.fail_after(30):
        root, first, *_ = await family(doors)
        tree = await doors.tool("config_limits", "reader", session_id=first)
        TreeLimits.model_validate(tree)
        assert (tree["root_id"], tree["project_id"]) == (root, PROJECT)
        assert tree["agents"] == {"limit": 50, "used": 4, "remaining": 46}
        assert tree["cost_usd"] == {"limit": 10, "used": 0, "reserved": 0, "remaining": 10}
        assert tree["cost_usd_today"] == {"limit": 50, "used": 0, "reserved": 0, "remaining": 50}
        project = await doors.tool("config_limits", "reader")
        TreeLimits.model_validate(project)
        assert "root_id" not in project
        assert project["agents"] == {"limit": 50}
        assert project["cost_usd_today"] == tree["cost_usd_today"]
        assert await doors.tool("config_limits", "admin", project_id=PROJECT) == project
        nothing = await doors.tool("config_limits", "admin")
        assert not {"root_id", "project_id", "cost_usd_today"} & set(nothing)
        assert nothing["depth"] == {"limit": 3}
        async with open_rpc(doors, "project") as rpc:
            text = (await rpc.call("config_limits", session_id=root))["content"][0]["text"]
        assert text.splitlines()[:3] == [f"Tree: {root}", "Depth: 2 of 3", "Agents: 4 of 50"]


async def answer(agents: Agents, stamp: str, tool: str, **arguments: Any) -> tuple[bool, str]:
    async with agents.wire() as wire:
        return await wire.call(tool, stamp, **arguments)


async def test_an_agent_sees_what_is_below_it_and_nothing_else(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        root, stamp = await agents.session()
        child = (await wire.result(stamp, action="spawn", message="sleep"))["session_id"]
        _, child_stamp = await agents.at_work(child)
        grandchild = (await wire.result(child_stamp, action="spawn", message="say hi"))["session_id"]
        sibling = (await wire.result(stamp, action="spawn", message="say hi"))["session_id"]
        foreign, _ = await agents.session()
        assert names(await wire.result(stamp, action="tree")) == [root, child, grandchild, sibling]
        mine = await wire.result(child_stamp, action="tree")
        assert names(mine) == [child, grandchild]
        assert mine["counts"]["total"] == 2
        assert mine["limits"]["agents"]["used"] == 4, "limits are the tree's"
        assert mine["limits"]["depth"] == {"limit": 3, "used": 1, "remaining": 2}, "as deep as it is itself"
        assert names(await wire.result(child_stamp, action="tree", session_id=grandchild)) == [grandchild]
        refusals = {
            await wire.call("session", child_stamp, action="tree", session_id=one)
            for one in (root, sibling, foreign, "gogol_none")
        }
        assert len(refusals) == 1
        assert refusals.pop()[1].startswith("not_found: ")


async def test_an_agent_asks_for_its_own_limits(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        await settings(agents, limits={"max_recursion_depth": 1, "max_active_sessions": 2})
        root, stamp = await agents.session()
        failed, text = await answer(agents, stamp, "config_limits")
        assert not failed
        shape = parsed(text)
        assert shape["root_id"] == root
        assert shape["depth"] == {"limit": 1, "used": 0, "remaining": 1}
        assert shape["active"] == {"limit": 2, "used": 1, "remaining": 1}
        async with agents.wire() as wire:
            child = (await wire.result(stamp, action="spawn", message="sleep"))["session_id"]
        _, child_stamp = await agents.at_work(child)
        below = parsed((await answer(agents, child_stamp, "config_limits"))[1])
        assert below["depth"]["remaining"] == below["active"]["remaining"] == 0
        for name, value in (("session_id", root), ("project_id", OTHER_PROJECT)):
            failed, text = await answer(agents, stamp, "config_limits", **{name: value})
            assert failed
            assert text.startswith("permission_denied: ")


def parsed(text: str) -> Json:
    return dict(json.loads(text))


@pytest.mark.parametrize("tool", ["session", "config_limits"])
async def test_an_agent_that_may_not_use_a_tool_cannot_by_calling_it(tmp_path: Path, tool: str) -> None:
    async with open_agents(tmp_path) as agents:
        _, stamp = await agents.session(tools_disallowed=[f"oubliette_{tool}"])
        failed, text = await answer(agents, stamp, tool, **({"action": "tree"} if tool == "session" else {}))
        assert failed
        assert text.startswith("permission_denied: ")


async def test_an_agents_list_is_paged_like_any_other(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, other_stamp = await agents.session()
        root, stamp = await agents.session()
        ids = [root, *[(await wire.result(stamp, action="spawn", message="say x"))["session_id"] for _ in range(5)]]
        seen: list[str] = []
        cursor: str | None = None
        while True:
            given: Json = {"cursor": cursor} if cursor is not None else {}
            page = await wire.result(stamp, action="list", limit=4, **given)
            seen += [one["session_id"] for one in page["sessions"]]
            cursor = page.get("next_cursor")
            if cursor is None:
                break
            failed, text = await wire.call("session", other_stamp, action="list", cursor=cursor)
            assert failed
            assert text.startswith("invalid_cursor: ")
        assert sorted(seen) == sorted(ids)
        assert len(seen) == len(set(seen))
        parents = await wire.result(stamp, action="list", parent_id=root, status="open")
        assert len(parents["sessions"]) == 5
