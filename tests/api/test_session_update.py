"""``session update``: who may change what, and that bad input changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest

from oubliette.api.frames import thin_shape
from oubliette.core.model import EventRow, EventType
from oubliette.session.tree import SessionTree
from oubliette.store import sessions
from tests.api.rpc import open_rpc
from tests.api.world import Doors


async def spawned(doors: Doors, text: str = "say hello", **more: Any) -> str:
    result = await doors.tool(
        "session", "project", action="spawn", message=text, model="scripted", new_session=True, **more
    )
    return str(result["session_id"])


async def update(doors: Doors, session_id: str, who: str = "project", **changes: Any) -> httpx.Response:
    return await doors.call("session", who, action="update", session_id=session_id, **changes)


async def full(doors: Doors, session_id: str) -> dict[str, Any]:
    return await doors.tool("session", action="get", session_id=session_id, detail="full")


async def test_title_model_and_way_of_working_are_changed_for_the_next_turn(doors: Doors) -> None:
    one = await spawned(doors)
    await doors.world.settle(one)
    answer = await update(
        doors,
        one,
        title="Another name",
        model="scripted-openai",
        autonomy_level="low",
        reasoning_level="max",
        timeout_minutes=5,
    )
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["title"], shown["model"], shown["autonomy"], shown["reasoning"]) == (
        "Another name",
        "scripted-openai",
        "low",
        "max",
    )
    await doors.world.message(one, "say again")
    await doors.world.settle(one)
    prompt = doors.world.agent.turns["ses_1"][-1].prompt
    assert prompt.spec is not None
    assert (prompt.model, str(prompt.reasoning), str(prompt.spec.autonomy)) == ("scripted-openai", "max", "low")
    row = await doors.world.row(one)
    assert row.settings["timeout_minutes"] == 5
    assert all(event.body.get("code") != "limits_changed" for event in await doors.world.log(one))


async def test_limits_hold_for_the_whole_tree_and_are_changed_on_its_root(doors: Doors) -> None:
    root = await spawned(doors, "sleep")
    await doors.world.until(root, "running")
    child = await doors.world.new("say one", parent=root)
    refused = await update(doors, child, limits={"max_recursion_depth": 1})
    assert refused.status_code == 400
    assert root in refused.json()["error"]["hint"]
    assert (await update(doors, child, title="a child")).status_code == 200
    changed = await update(doors, root, max_cost_usd=2.5, limits={"max_recursion_depth": 1, "max_active_sessions": 3})
    assert changed.status_code == 200, changed.text
    for one in (root, child):
        limits = (await full(doors, one))["limits"]
        assert (limits["max_cost_usd"], limits["max_recursion_depth"], limits["max_active_sessions"]) == (2.5, 1, 3)
    [event] = [event for event in await doors.world.log(root) if event.type is EventType.SYSTEM]
    assert event.body["data"]["limits"] == {"max_cost_usd": 2.5, "max_recursion_depth": 1, "max_active_sessions": 3}
    assert event.body["data"]["before"] == {"max_cost_usd": 10, "max_recursion_depth": 3, "max_active_sessions": 10}
    again = await update(doors, root, max_cost_usd=2.5)
    assert again.status_code == 200
    events = [event for event in await doors.world.log(root) if event.type is EventType.SYSTEM]
    assert len(events) == 1, "nothing has changed"
    back = await update(doors, root, limits={"max_cost_usd": None})
    assert back.json()["limits"]["max_cost_usd"] == 10


async def test_only_an_admin_may_give_a_tree_more_than_its_project_has(doors: Doors) -> None:
    one = await spawned(doors)
    refused = await update(doors, one, max_cost_usd=11)
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert (error["code"], error["limit"]["name"], error["limit"]["limit"]) == ("permission_denied", "max_cost_usd", 10)
    assert (await update(doors, one, "admin", max_cost_usd=50)).status_code == 200
    assert (await update(doors, one, max_cost_usd=40)).status_code == 200, "less than it has"
    assert (await update(doors, one, max_cost_usd=45)).status_code == 403
    assert (await update(doors, one, limits={"max_tokens_per_session": 10**9})).status_code == 200, "there is no limit"
    for who, status in (("reader", 403), ("auditor", 403), ("stranger", 404)):
        assert (await update(doors, one, who, title="mine")).status_code == status
    spawn = {"action": "spawn", "message": "say hi", "model": "scripted", "new_session": True, "max_cost_usd": 11}
    assert (await doors.call("session", "project", **spawn)).status_code == 403
    assert (await doors.call("session", "admin", project_id=(await full(doors, one))["project_id"], **spawn)).is_success


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"limits": {"max_cost_usd_per_day": 5}}, "limits"),
        ({"limits": {"nonsense": 5}}, "limits"),
        ({"limits": {"max_active_sessions": 0}}, "limits.max_active_sessions"),
        ({"limits": {"max_active_sessions": 1.5}}, "limits.max_active_sessions"),
        ({"limits": {"max_cost_usd": "a lot"}}, "limits.max_cost_usd"),
        ({"limits": [1]}, "limits"),
        ({"limits": {"max_cost_usd": 1}, "max_cost_usd": 2}, "max_cost_usd"),
        ({"max_cost_usd": 0}, "max_cost_usd"),
        ({"max_cost_usd": -1}, "max_cost_usd"),
        ({"model": "nobody"}, "model"),
        ({"autonomy_level": "total"}, "autonomy_level"),
        ({"title": "two\nlines"}, "title"),
        ({"timeout_minutes": 0}, "timeout_minutes"),
    ],
)
async def test_bad_input_changes_nothing(doors: Doors, changes: dict[str, Any], field: str) -> None:
    one = await spawned(doors)
    await doors.world.settle(one)
    before = await full(doors, one)
    refused = await update(doors, one, **{"title": "good", "reasoning_level": "low", **changes})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["field"] == field
    assert await full(doors, one) == before


async def test_waiting_messages_are_dropped_on_request(doors: Doors) -> None:
    one = await spawned(doors, "sleep")
    await doors.world.until(one, "running")
    for number in range(3):
        await doors.world.message(one, f"say {number}")
    answer = await update(doors, one, drop_queued=True)
    assert answer.json()["dropped"] == 3
    shown = await full(doors, one)
    assert (shown["queued"], shown["status"]) == (0, "running")
    await doors.tool("session", "project", action="interrupt", session_id=one)
    await doors.world.settle(one)
    assert (await update(doors, one, drop_queued=True)).json()["dropped"] == 0


async def test_the_text_says_what_the_object_says_and_a_retry_changes_nothing_again(doors: Doors) -> None:
    one = await spawned(doors)
    async with open_rpc(doors, "project") as rpc:
        arguments = {"action": "update", "session_id": one, "max_cost_usd": 3, "request_key": "k"}
        result = await rpc.call("session", **arguments)
        assert not result["isError"], result
        text = result["content"][0]["text"]
        assert text.startswith(f"Session: {one}")
        assert "max_cost_usd 3" in text
        assert (await rpc.call("session", **arguments))["structuredContent"]["deduplicated"]


def test_the_stream_of_everything_says_by_which_limit_a_tree_is_held_and_no_more() -> None:
    limit = {"name": "max_cost_usd", "limit": 1.0, "used": 0.9, "needed": 0.2, "note": "words"}
    body = {
        "status": {"from": "running", "to": "paused", "reason": "budget"},
        "data": {"limit": limit, "root_id": "gogol_1", "more": "words"},
    }
    row = EventRow("gogol_1", "gogol_1", "p1", 3, 4, datetime(2026, 11, 22, tzinfo=UTC), EventType.STATUS, body=body)
    shape = thin_shape(row)
    assert shape["data"] == {"limit": {"name": "max_cost_usd", "limit": 1.0, "used": 0.9, "needed": 0.2}}
    assert shape["status"]["reason"] == "budget"


async def test_a_death_right_after_the_commit_does_not_lose_the_key(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_tree: object, _row: object) -> None:
        raise RuntimeError("the daemon is gone")

    arguments = {"action": "spawn", "message": "say hello", "model": "scripted", "new_session": True}
    with monkeypatch.context() as patch:
        patch.setattr(SessionTree, "_start", dies)
        assert (await doors.call("session", "project", **arguments, request_key="k")).status_code == 500
    again = await doors.tool("session", "project", **arguments, request_key="k")
    assert again["deduplicated"]
    rows, _ = await doors.world.store.read(partial(sessions.list_page, limit=200))
    assert [row.session_id for row in rows] == [again["session_id"]]
    with monkeypatch.context() as patch:
        patch.setattr(SessionTree, "_start", dies)
        message = {"action": "message", "session_id": again["session_id"], "message": "say more", "request_key": "m"}
        assert (await doors.call("session", "project", **message)).status_code == 500
    assert (await doors.tool("session", "project", **message))["turn"] == 2
    assert (await doors.world.row(again["session_id"])).turn == 2
