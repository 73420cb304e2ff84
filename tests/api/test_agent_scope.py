"""``agent_scope``: what agents of a project may do beyond their own sessions, and that it opens nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette import clock
from oubliette.core.model import Json
from oubliette.core.principals import AGENT_GRANT
from oubliette.core.tokens import secret_hash
from oubliette.store import audit, containers, projects, requests, tokens
from oubliette.store.database import Tx
from tests.api.agent_world import (
    CONTAINER,
    FOREIGN_CONTAINER,
    FOREIGN_WORKSPACE,
    OTHER_CONTAINER,
    OTHER_WORKSPACE,
    Agents,
    Wire,
    calling,
    open_agents,
)
from tests.api.world import OTHER_PROJECT, PROJECT

PROMISED_SECONDS = 1.0


async def lend(agents: Agents, scope: str, *, renewed: bool = True, who: str = "admin") -> Json:
    """As an admin does; ``renewed``: the project's containers have been made anew since."""
    shape = await agents.doors.tool("project", who, action="update", project_id=PROJECT, agent_scope=scope)
    if renewed:
        await agents.doors.world.store.write(_made_anew)
    return shape


def _made_anew(tx: Tx) -> None:
    project = projects.get(tx, PROJECT)
    assert project is not None
    for one in (CONTAINER, OTHER_CONTAINER):
        containers.update(tx, one, spec={AGENT_GRANT: project.agent_grant})


@asynccontextmanager
async def open_watched(path: Path) -> AsyncIterator[Agents]:
    """With the services that doors share, as the daemon runs them: tokens are watched, the audit trail is written."""
    async with open_agents(path) as agents:
        await agents.nursery.start(agents.desk.shared.run)
        yield agents


async def refused(wire: Wire, tool: str, stamp: str, code: str, says: str = "", **arguments: Any) -> None:
    failed, text = await wire.call(tool, stamp, **arguments)
    assert failed, text
    assert text.startswith(f"{code}: "), text
    assert says in text, text


async def did(wire: Wire, tool: str, stamp: str, **arguments: Any) -> Json:
    failed, text = await wire.call(tool, stamp, **arguments)
    assert not failed, text
    return dict(json.loads(text))


async def actions(wire: Wire) -> dict[str, set[str]]:
    tools = (await wire.ask("tools/list"))["result"]["tools"]
    return {tool["name"]: set(tool["inputSchema"]["properties"].get("action", {}).get("enum", ())) for tool in tools}


async def test_the_list_of_tools_is_what_the_scope_may(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        alone = await actions(wire)
        assert not {"project", "container", "token"} & set(alone)
        await lend(agents, "project:ro")
        readers = await actions(wire)
        assert alone["session"] - {"spawn", "message", "interrupt", "end", "cancel", "merge"} <= readers["session"]
        assert readers["project"] == {"list", "get", "options"}
        assert not {"exec", "start", "stop"} & readers["container"]
        await lend(agents, "project")
        writers = await actions(wire)
        assert {"exec", "start", "stop"} <= writers["container"]
        assert {"get", "update", "delete"} <= writers["project"]
        assert "create" not in writers["project"]
        await lend(agents, "admin")
        admins = await actions(wire)
        assert "create" in admins["project"]
        assert admins["token"] == {"list"}
        await lend(agents, "none")
        assert await actions(wire) == alone


async def test_a_reading_scope_looks_at_the_project_and_changes_nothing_of_others(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        stranger, _ = await agents.session(workspace_id=OTHER_WORKSPACE)
        foreign, _ = await agents.session(project_id=OTHER_PROJECT, workspace_id=FOREIGN_WORKSPACE)
        mine, stamp = await agents.session()
        await refused(wire, "session", stamp, "not_found", action="get", session_id=stranger)
        await lend(agents, "project:ro")
        assert (await did(wire, "session", stamp, action="get", session_id=stranger))["session_id"] == stranger
        assert (await did(wire, "project", stamp, action="get"))["project_id"] == PROJECT
        listed = await did(wire, "session", stamp, action="list", project_id=PROJECT)
        assert {one["session_id"] for one in listed["sessions"]} == {stranger, mine}
        own = await did(wire, "session", stamp, action="list")
        assert [one["session_id"] for one in own["sessions"]] == [mine], "what it may by itself it does by itself"
        for action in ("interrupt", "end", "cancel"):
            await refused(wire, "session", stamp, "permission_denied", ":ro", action=action, session_id=stranger)
        say = {"action": "message", "message": "say hi", "session_id": stranger}
        await refused(wire, "session", stamp, "permission_denied", ":ro", **say)
        await refused(wire, "session", stamp, "not_found", action="get", session_id=foreign)
        child = await did(wire, "session", stamp, action="spawn", message="say hi")
        assert (await agents.doors.world.row(child["session_id"])).parent_id == mine


async def test_a_writing_scope_works_on_its_project_in_the_sessions_name(tmp_path: Path) -> None:
    async with open_watched(tmp_path) as agents, agents.wire() as wire:
        stranger, _ = await agents.session(workspace_id=OTHER_WORKSPACE)
        mine, stamp = await agents.session()
        await lend(agents, "project")
        elsewhere = {"action": "spawn", "message": "say hi", "workspace_id": OTHER_WORKSPACE, "model": "scripted"}
        root = await did(wire, "session", stamp, **elsewhere)
        row = await agents.doors.world.row(root["session_id"])
        assert (row.parent_id, row.depth, row.workspace_id) == (None, 0, OTHER_WORKSPACE)
        assert row.created_by == {"kind": "session", "id": mine, "name": mine}
        await agents.doors.world.settle(root["session_id"])
        again = await did(wire, "session", stamp, **elsewhere)
        assert again["created"], "from inside always a new one"
        await agents.doors.world.settle(again["session_id"])
        by_token = await agents.doors.tool("session", "project", **elsewhere)
        assert by_token["created"], "a token never resumes what an agent has started"
        await did(wire, "session", stamp, action="cancel", session_id=stranger)
        assert (await did(wire, "container", stamp, action="exec", command="echo"))["exit_code"] == 0
        await refused(wire, "project", stamp, "not_found", action="get", project_id=OTHER_PROJECT)
        await refused(wire, "project", stamp, "permission_denied", action="update", agent_scope="admin")
        await refused(wire, "project", stamp, "permission_denied", action="update", network="bridge")
        with trio.fail_after(10):
            while True:
                noted, _ = await agents.doors.world.store.read(partial(audit.list_page, limit=50))
                done = {(one.action, one.outcome): one.principal for one in noted}
                if ("session.cancel", "ok") in done and ("container.exec", "ok") in done:
                    break
                await trio.sleep(0.02)
        assert done["session.cancel", "ok"] == {"kind": "session", "id": mine, "name": mine}


async def test_what_it_starts_outside_its_tree_is_no_child_and_has_no_caller(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session()
        await lend(agents, "project")
        root = {"action": "spawn", "message": "say hi", "model": "scripted", "project_id": PROJECT}
        for where in ("new", "fork"):
            await refused(wire, "session", stamp, "invalid_argument", "for children", **root, workspace=where)
        tools = [{"name": "open", "description": "x", "input_schema": {"type": "object"}}]
        asked = {**root, "caller_id": "ide", "caller_tools": tools}
        await refused(wire, "session", stamp, "permission_denied", "", **asked)
        targets = [{"project_id": PROJECT}]
        planned = {"action": "create", "name": "x", "cron_expr": "@daily", "message": "x", "targets": targets}
        await refused(wire, "schedule", stamp, "permission_denied", "not for agents", **planned)
        own = {
            "action": "update",
            "session_id": (await did(wire, "session", stamp, action="list"))["sessions"][0]["session_id"],
        }
        await refused(wire, "session", stamp, "permission_denied", "same tree", **own, max_cost_usd=5)


async def test_its_own_children_get_no_more_than_it_has_whatever_the_scope(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session(autonomy="medium", tools_disallowed=["webfetch"])
        await lend(agents, "admin")
        free = {"action": "spawn", "message": "say hi", "autonomy_level": "off"}
        await refused(wire, "session", stamp, "permission_denied", "autonomy", **free)
        child = await did(wire, "session", stamp, action="spawn", message="sleep")
        row = await agents.doors.world.row(child["session_id"])
        assert (str(row.autonomy), row.settings["tools_disallowed"]) == ("medium", ["webfetch"])
        say = {"action": "message", "message": "say hi", "session_id": child["session_id"]}
        await refused(wire, "session", stamp, "permission_denied", "autonomy", **say, autonomy_level="off")


async def test_no_scope_frees_a_session_above_in_its_own_tree(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        above, stamp = await agents.session(autonomy="medium")
        child = await did(wire, "session", stamp, action="spawn", message="sleep")
        _, below = await agents.at_work(child["session_id"])
        await lend(agents, "admin")
        say = {"action": "message", "message": "go on", "session_id": above}
        for freedom in ({"autonomy_level": "off"}, {"tools_allowed": ["bash"]}, {"timeout_minutes": 600}):
            await refused(wire, "session", below, "permission_denied", "its own tree", **say, **freedom)
        assert (await did(wire, "session", below, **say))["queue_position"] == 1


async def test_even_an_admins_scope_makes_no_token_lends_nothing_on_and_answers_no_ask_of_its_own(
    tmp_path: Path,
) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        mine, stamp = await agents.session()
        stranger = await agents.doors.world.new("ask")
        await lend(agents, "admin")
        child = await did(wire, "session", stamp, action="spawn", message="ask")
        for one in (child["session_id"], stranger):
            await agents.doors.world.until(one, "waiting")
        [own] = await agents.doors.world.store.read(partial(requests.pending, session_id=child["session_id"]))
        [other] = await agents.doors.world.store.read(partial(requests.pending, session_id=stranger))
        make = {"action": "create", "name": "x", "scope": "admin"}
        await refused(wire, "token", stamp, "permission_denied", "not for agents", **make)
        await refused(wire, "token", stamp, "permission_denied", "not for agents", action="revoke", name="laptop")
        listed = await did(wire, "token", stamp, action="list")
        assert "agent" in {one["kind"] for one in listed["tokens"]}
        for project_id in (PROJECT, OTHER_PROJECT):
            lending = {"action": "update", "project_id": project_id, "agent_scope": "admin"}
            await refused(wire, "project", stamp, "permission_denied", "does not lend on", **lending)
        yes = {"action": "answer", "reply": "once"}
        await refused(wire, "session", stamp, "permission_denied", "same tree", **yes, request_id=own.request_id)
        assert (await did(wire, "session", stamp, **yes, request_id=other.request_id))["accepted"]
        await refused(wire, "session", stamp, "invalid_argument", "itself", action="end", session_id=mine)
        both = [stranger, mine]
        await refused(wire, "session", stamp, "invalid_argument", "itself", action="wait", session_ids=both)
        found = await did(wire, "project", stamp, action="get", project_id=OTHER_PROJECT)
        assert found["project_id"] == OTHER_PROJECT


@pytest.mark.parametrize("scope", ["project", "admin"])
async def test_no_scope_moves_the_bounds_of_its_own_project(tmp_path: Path, scope: str) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session()
        await lend(agents, scope)
        bounds: tuple[dict[str, object], ...] = (
            {"limits": {"max_cost_usd_per_day": None}},
            {"autonomy": "off"},
            {"permissions": {"bash": "allow"}},
            {"disabled_tools": []},
        )
        for bound in bounds:
            asked = {"action": "update", "project_id": PROJECT, **bound}
            await refused(wire, "project", stamp, "permission_denied", "own project", **asked)
        told = await did(wire, "project", stamp, action="update", project_id=PROJECT, description="tidied")
        assert told["description"] == "tidied"


async def test_it_counts_only_in_containers_that_were_made_for_it(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        foreign, far = await agents.session(project_id=OTHER_PROJECT, workspace_id=FOREIGN_WORKSPACE)
        _, stamp = await agents.session()
        async with agents.wire() as wire:
            await lend(agents, "admin", renewed=False)
            await refused(wire, "project", stamp, "permission_denied", action="get")
            await agents.doors.world.store.write(_made_anew)
            async with agents.wire() as newer:
                await did(newer, "session", stamp, action="get", session_id=foreign)
                await refused(newer, "session", far, "not_found", "_session", action="list")
        async with agents.wire(FOREIGN_CONTAINER) as wire:
            await refused(wire, "project", far, "permission_denied", action="get")
            await refused(wire, "session", stamp, "not_found", "_session", action="list")


@pytest.mark.parametrize("how", ["revoked", "behind the daemon's back", "expired", "taken back", "narrowed"])
async def test_it_ends_within_a_second_and_so_does_what_goes_on_by_it(tmp_path: Path, how: str) -> None:
    async with open_watched(tmp_path) as agents, agents.wire() as wire:
        stranger, _ = await agents.session(workspace_id=OTHER_WORKSPACE)
        _, stamp = await agents.session()
        await agents.doors.add_token("granter", "admin")
        await lend(agents, "project", who="granter")
        await wire.say(calling(77, stamp, action="wait", session_ids=[stranger], wait_seconds=40))
        await trio.testing.wait_all_tasks_blocked(0.05)
        began = trio.current_time()
        match how:
            case "revoked":
                await agents.doors.tool("token", action="revoke", name="granter")
            case "behind the daemon's back":
                revoke = partial(tokens.revoke, token_id="tok_api_granter", at=clock.now())
                await agents.doors.world.store.write(revoke)
            case "expired":
                await agents.doors.world.store.write(_expire)
            case "taken back":
                await lend(agents, "none", renewed=False)
            case "narrowed":
                await lend(agents, "project:ro", renewed=False)
        answer = await wire.hear()
        took = trio.current_time() - began
        assert answer["id"] == 77
        assert answer["result"]["content"][0]["text"].startswith("unauthenticated: ")
        assert took < 5 * PROMISED_SECONDS
        code = "permission_denied" if how == "narrowed" else "not_found"
        await refused(wire, "session", stamp, code, action="cancel", session_id=stranger)
        assert await did(wire, "session", stamp, action="list"), "what is its own it may go on doing"


def _expire(tx: Tx) -> None:
    tx.run("UPDATE tokens SET expires_at = created_at WHERE kind = 'agent'")


async def test_the_loan_is_no_key_at_any_door(tmp_path: Path) -> None:
    """Nobody knows its secret; and a row of that kind whose secret is known opens nothing either."""
    async with open_agents(tmp_path) as agents:
        doors = agents.doors
        await lend(agents, "admin")
        listed = (await doors.tool("token", action="list"))["tokens"]
        [loan] = [one for one in listed if one["kind"] == "agent"]
        assert "secret" not in loan
        known = "oub_" + "a" * 64
        set_hash = partial(_know, token_id=loan["token_id"], digest=secret_hash(known))
        await doors.world.store.write(set_hash)
        session = await doors.world.new("say hi")
        async with doors.client(known) as client:
            for path in ("/v1/events", f"/v1/sessions/{session}/events"):
                assert (await client.get(path)).status_code == 401, path
            for path in ("/v1/tools/project", "/v1/tools/token", "/mcp"):
                assert (await client.post(path, json={"action": "list"})).status_code == 401, path


def _know(tx: Tx, token_id: str, digest: bytes) -> None:
    tx.run("UPDATE tokens SET secret_hash = ? WHERE token_id = ?", digest, token_id)


async def test_a_tool_that_is_switched_off_by_its_name_is_so_by_its_reading_half_too(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session()
        assert await did(wire, "session_read", stamp, action="list")
        await agents.doors.tool("project", action="update", project_id=PROJECT, disabled_tools=["oubliette_session"])
        for tool in ("session", "session_read"):
            await refused(wire, tool, stamp, "permission_denied", "This project", action="list")
        _, bare = await agents.session(tools_disallowed=["oubliette_workspace"])
        await refused(wire, "workspace_read", bare, "permission_denied", "This session", action="list")


@pytest.mark.parametrize("scope", ["none", "admin"])
async def test_a_tool_that_the_project_has_switched_off_is_refused_and_not_only_hidden(
    tmp_path: Path, scope: str
) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session()
        await lend(agents, scope)
        await agents.doors.tool("project", action="update", project_id=PROJECT, disabled_tools=["oubliette_s*"])
        await refused(wire, "session", stamp, "permission_denied", "This project", action="list")
        failed, _ = await wire.call("project", stamp, action="get", project_id=PROJECT)
        assert failed is (scope == "none")
