"""Workspaces at their limits: what agents have made too many of, retries after a death, callers that are gone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.api.shared import Shared
from oubliette.api.tools import workspace as tool
from oubliette.api.tools.registry import Call
from oubliette.core.principals import Principal, Scope
from oubliette.store import workspaces
from tests.api.agent_world import open_agents
from tests.api.test_workspace_tool import refused, tree
from tests.api.world import PROJECT, Doors


async def test_what_agents_have_forked_is_deleted_by_an_operator_once_its_sessions_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces, "MAX_PER_PROJECT", 4)
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        doors = agents.doors
        tree(doors)
        root, stamp = await agents.session()

        async def fork() -> tuple[bool, str]:
            return await wire.call("session", stamp, action="spawn", message="sleep", workspace="fork")

        made = [await wire.result(stamp, action="spawn", message="sleep", workspace="fork") for _ in range(2)]
        failed, text = await fork()
        assert failed
        assert "limit_reached: A project may have 4 workspaces; 4 exist." in text
        assert "workspace delete" in text
        # Their copies have not even begun.
        fork_id, session_id = made[0]["workspace_id"], made[0]["session_id"]
        with trio.fail_after(30):
            busy = await refused(doors, action="delete", workspace_id=fork_id)
            assert busy["candidates"] == [session_id]
            await doors.tool("session", "project", action="end", session_id=session_id)
            gone = await doors.tool("workspace", "project", action="delete", workspace_id=fork_id)
            assert gone["deleted"]
        assert not (await fork())[0]
        with trio.fail_after(30):
            await doors.tool("session", "project", action="cancel", session_id=root)
            for one in (await doors.tool("workspace", "project", action="list"))["workspaces"]:
                if one.get("forked_from"):
                    await doors.tool("workspace", "project", action="delete", workspace_id=one["workspace_id"])
            assert len((await doors.tool("workspace", "project", action="list"))["workspaces"]) == 2


async def test_a_retry_after_a_death_right_behind_the_row_makes_no_second_workspace(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: Any) -> Any:
        raise RuntimeError("the daemon dies here")

    monkeypatch.setattr(tool, "_shown", dies)
    with trio.fail_after(30):
        assert (await refused(doors, action="create", request_key="k"))["code"] == "internal"
        monkeypatch.undo()
        again = await doors.tool("workspace", "project", action="create", request_key="k")
        assert again["deduplicated"]
        listed = await doors.tool("workspace", "project", action="list")
    assert [one["workspace_id"] for one in listed["workspaces"] if not one["default"]] == [again["workspace_id"]]


@pytest.mark.parametrize("session_id", [None, "gogol_gone"])
async def test_an_agent_whose_session_is_gone_has_no_workspaces(doors: Doors, session_id: str | None) -> None:
    scope = Scope("session", project_id=PROJECT, session_id=session_id)
    call = Call(Shared(doors.services), Principal("session", "gogol_gone", "gogol_gone", scope), "r")
    assert await doors.world.store.read(partial(tool._own, call=call)) == set()
