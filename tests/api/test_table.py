"""The table of tools: what is listed for whom, what it costs to read, what a schema may not contain."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import jsonschema
import pytest
import trio

from oubliette.api import mcp_private
from oubliette.api.mcp import INSTRUCTIONS
from oubliette.api.tools.fields import Args
from oubliette.api.tools.registry import Action, Registry, Tool
from oubliette.api.tools.schema import ToolSchema
from oubliette.api.tools.table import TOOLS
from oubliette.core import access
from oubliette.core.principals import Principal, Scope
from oubliette.store import requests
from tests.api.rpc import open_rpc
from tests.api.world import PROJECT, WORKSPACE, Doors

REGISTRY = Registry(TOOLS)
PRINCIPALS = {
    "admin": Principal("token", "tok_1", "a", Scope("admin")),
    "auditor": Principal("token", "tok_2", "b", Scope("admin", read_only=True)),
    "project": Principal("token", "tok_3", "c", Scope("project", project_id=PROJECT)),
    "reader": Principal("token", "tok_4", "d", Scope("project", read_only=True, project_id=PROJECT)),
    "agent": Principal("session", "gogol_1", "e", Scope("session", project_id=PROJECT, session_id="gogol_1")),
}
FORBIDDEN = {"oneOf", "anyOf", "allOf", "not", "$ref", "$defs", "if", "dependentSchemas", "prefixItems"}


def listed(who: str, *, split: bool = False) -> dict[str, ToolSchema]:
    return {schema.name: schema for schema in REGISTRY.tools(PRINCIPALS[who], split=split)}


def actions(who: str) -> set[str]:
    return {
        f"{name}.{action}".removesuffix(".")
        for name, schema in listed(who).items()
        for action in schema.input["properties"].get("action", {"enum": [""]})["enum"]
    }


def tokens(who: str) -> float:
    """A pessimistic estimate: JSON of schemas has more than four characters to a token."""
    annotations = {"readOnlyHint": True, "destructiveHint": False, "openWorldHint": False}
    shown = [
        {"name": schema.name, "description": schema.description, "inputSchema": schema.input}
        # The agents' door lists no more than that.
        | ({} if who == "agent" else {"outputSchema": schema.output, "annotations": annotations})
        for schema in listed(who).values()
    ]
    return len(json.dumps(shown)) / 4


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in keys_of(item)}
    return {key for item in value for key in keys_of(item)} if isinstance(value, list) else set()


def test_lists_stay_small_enough_to_be_read_by_models() -> None:
    assert tokens("project") < 6_000
    assert tokens("agent") < 2_500
    assert len(INSTRUCTIONS) < 2_000
    for who in PRINCIPALS:
        for schema in listed(who).values():
            assert len(schema.description) < 2_000


@pytest.mark.parametrize("who", list(PRINCIPALS))
def test_schemas_are_flat_and_nothing_in_results_is_required(who: str) -> None:
    for split in (False, True):
        for schema in listed(who, split=split).values():
            assert schema.input["type"] == schema.output["type"] == "object"
            assert not keys_of(schema.input) & FORBIDDEN
            assert not keys_of(schema.output) & FORBIDDEN
            named = "action" in schema.input["properties"]
            assert schema.input.get("required") == (["action"] if named else None)
            assert "required" not in schema.output
            assert "error" in schema.output["properties"]
            jsonschema.Draft202012Validator.check_schema(schema.input)
            jsonschema.Draft202012Validator.check_schema(schema.output)
            for name, shape in schema.input["properties"].items():
                assert isinstance(shape["type"], str) or name in ("command", "result")


def test_every_action_that_an_argument_is_for_is_named_with_a_star_where_it_is_needed() -> None:
    shapes = listed("admin")["session"].input["properties"]
    assert shapes["message"]["description"].startswith("spawn*, message*: ")
    assert shapes["delivery"]["description"].startswith("message: ")
    assert next(iter(shapes)) == "action"
    assert list(shapes)[-3:] == ["detail", "max_chars", "request_key"]
    assert "prompt" not in shapes
    assert "active" not in shapes["status"]["enum"]


def test_what_a_principal_may_never_do_is_not_listed() -> None:
    assert actions("admin") == {action.key for tool in TOOLS for action in tool.actions}
    for who, principal in PRINCIPALS.items():
        assert all(access.may_ever(principal, action) for action in actions(who))
    assert not any(action.startswith("token.") for action in actions("project") | actions("auditor"))
    assert "session.spawn" not in actions("reader") | actions("auditor")
    assert actions("reader") == {
        "project.get",
        "project.list",
        "project.options",
        "container.status",
        "container.list",
        "session.get",
        "session.list",
        "session.tree",
        "session.events",
        "session.diff",
        "session.wait",
        "workspace.list",
        "workspace.read",
        "workspace.files",
        "config_limits",
        "schedule.get",
        "schedule.list",
        "schedule.history",
        "schedule.preview",
    }
    assert {action.partition(".")[0] for action in actions("agent")} == {"session", "workspace", "config_limits"}
    assert "session.answer" not in actions("agent")


def test_parameters_that_a_principal_cannot_use_are_left_out() -> None:
    admin, project = (listed(who)["project"].input["properties"] for who in ("admin", "project"))
    assert {"model", "network", "agent_scope", "github_token"} <= set(admin)
    assert not {"model", "network", "agent_scope", "github_token", "protected_paths"} & set(project)
    assert "autonomy" in project
    agent = listed("agent")["session"].input["properties"]
    assert not {"project_id", "max_cost_usd", "attachments"} & set(agent)


def test_split_tools_are_honest_about_what_they_change() -> None:
    schemas = listed("admin", split=True)
    assert schemas["session_read"].read_only
    assert not schemas["session"].read_only
    reads = schemas["session_read"].input["properties"]["action"]["enum"]
    assert {"wait", "get", "list", "tree", "events"} <= set(reads)
    assert not set(reads) & set(schemas["session"].input["properties"]["action"]["enum"])
    assert not set(schemas["session_read"].input["properties"]) & {"request_key", "message"}
    assert all(schema.read_only for schema in listed("reader").values())
    assert all(schema.read_only == (not schema.destructive) for schema in schemas.values())


def test_an_action_that_the_permission_table_does_not_know_cannot_be_registered() -> None:
    async def nothing(call: Any, args: Any) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {}

    tool = Tool("session", "", [], [Action("session", "levitate", Args, nothing)])
    with pytest.raises(KeyError, match=r"session\.levitate"):
        Registry([tool])


def test_the_sdk_is_the_one_whose_private_parts_we_looked_at() -> None:
    assert importlib.metadata.version("mcp") == mcp_private.PINNED


async def test_tools_list_shows_each_token_its_own_over_both_eras(doors: Doors) -> None:
    with trio.fail_after(30):
        for modern in (False, True):
            for who in ("admin", "project", "reader"):
                async with open_rpc(doors, who, modern=modern) as rpc:
                    tools = (await rpc.ask("tools/list"))["result"]["tools"]
                    assert {tool["name"] for tool in tools} == set(listed(who))
                    for tool in tools:
                        assert tool["inputSchema"] == listed(who)[tool["name"]].input
                        assert tool["outputSchema"] == listed(who)[tool["name"]].output


async def test_split_is_asked_for_in_the_url(doors: Doors) -> None:
    with trio.fail_after(30):
        async with doors.client("project") as http:
            for path, names in (("/mcp?tools=split", {"session", "session_read"}), ("/mcp", {"session"})):
                async with open_rpc(doors, "project", modern=True) as rpc:
                    answer = await http.post(path, headers=rpc.headers("tools/list"), json=rpc.body("tools/list", {}))
                    found = {tool["name"] for tool in answer.json()["result"]["tools"] if "session" in tool["name"]}
                    assert found == names
        async with open_rpc(doors, "project") as rpc:
            assert not (await rpc.call("session_read", action="list"))["isError"]
            refused = await rpc.call("session_read", action="spawn", message="x")
            assert refused["structuredContent"]["error"]["code"] == "unknown_action"


async def test_a_token_reaches_its_own_project_and_nothing_of_others(doors: Doors) -> None:
    session = await doors.world.new("say hello")
    asking = await doors.world.new("ask")
    await doors.world.until(asking, "waiting")
    [request] = await doors.world.store.read(lambda tx: requests.pending(tx, asking))
    foreign = (
        ("session", {"action": "get", "session_id": session}),
        ("session", {"action": "events", "session_id": session}),
        ("session", {"action": "wait", "session_ids": [session]}),
        ("session", {"action": "cancel", "session_id": session}),
        ("session", {"action": "message", "session_id": session, "message": "x"}),
        ("session", {"action": "spawn", "project_id": PROJECT, "message": "x"}),
        ("project", {"action": "get", "project_id": PROJECT}),
        ("project", {"action": "delete", "project_id": PROJECT, "force": True}),
        ("container", {"action": "exec", "project_id": PROJECT, "command": "id"}),
        ("container", {"action": "list", "project_id": PROJECT}),
        ("container", {"action": "status", "workspace_id": WORKSPACE}),
        ("session", {"action": "list", "project_id": PROJECT}),
        ("session", {"action": "list", "workspace_id": WORKSPACE}),
        ("session", {"action": "spawn", "workspace_id": WORKSPACE, "message": "x"}),
        ("session", {"action": "answer", "request_id": request.request_id, "reply": "once"}),
    )
    named = ("session_id", "project_id", "workspace_id", "request_id")
    with trio.fail_after(30):
        for tool, arguments in foreign:
            answer = await doors.call(tool, "stranger", **arguments)
            assert answer.status_code == 404, (arguments, answer.text)
            gone = {name: ("no_such" if name in named else value) for name, value in arguments.items()}
            gone = {**gone, "session_ids": ["no_such"]} if "session_ids" in gone else gone
            unknown = await doors.call(tool, "stranger", **gone)
            same = [{k: v for k, v in one.json()["error"].items() if k != "request_id"} for one in (answer, unknown)]
            assert same[0] == same[1], "unknown and foreign look alike"
        async with doors.client("stranger") as client:
            assert (await client.get(f"/v1/sessions/{session}/events")).status_code == 404
        assert (await doors.tool("session", "reader", action="get", session_id=session))["session_id"] == session
        denied = await doors.call("session", "reader", action="cancel", session_id=session)
        assert denied.status_code == 403
        assert denied.json()["error"]["code"] == "permission_denied"
        assert "write access" in denied.json()["error"]["hint"]
