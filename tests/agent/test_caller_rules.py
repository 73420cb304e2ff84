"""Which MCP servers' tools a session sees: its own callers' and the project's, whoever adds others while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oubliette.agent.base import AgentSessionSpec
from oubliette.agent.permissions import matches, session_rules
from oubliette.core.model import Autonomy
from tests.agent.fake_model import script
from tests.agent.rig import Rig, write

OWN = ["ide_open_file"]
SERVERS = ["docs", "my.notes"]
ECHO = {"type": "local", "command": ["python3", str(Path(__file__).with_name("echo_mcp.py"))], "enabled": True}


def action(tool: str, **spec: Any) -> str:
    """What OpenCode would do: the last rule that matches decides; a tool with a whole denial is not shown at all."""
    given: dict[str, Any] = {"caller_tools": OWN, "mcp_servers": SERVERS, **spec}
    rules = session_rules(AgentSessionSpec(title="t", directory="/w", **given))
    fitting = (rule for rule in reversed(rules) if matches(rule["permission"], tool) and matches(rule["pattern"], "x"))
    return next(fitting)["action"]


@pytest.mark.parametrize("autonomy", list(Autonomy))
def test_own_tools_are_called_unasked_and_those_of_others_are_not_there(autonomy: Autonomy) -> None:
    assert action("ide_open_file", autonomy=autonomy) == "allow"
    assert action("oubliette_session", autonomy=autonomy) == "allow"
    for foreign in ("ide_selection", "desk_open_file", "x_y"):
        assert action(foreign, autonomy=autonomy) == "deny"
    others = "ask" if autonomy is Autonomy.LOW else "allow"
    assert {action(one, autonomy=autonomy) for one in ("docs_search", "my_notes_add", "apply_patch")} == {others}
    assert action("external_directory", autonomy=autonomy) == ("allow" if autonomy in ("off", "high") else "ask")


def test_a_permission_for_everything_opens_nothing_of_others() -> None:
    asked = {"*": "ask"}
    assert action("ide_open_file", permissions=asked) == "ask"
    assert action("docs_search", permissions=asked) == "ask"
    assert action("desk_open_file", permissions=asked) == "deny"
    assert action("ide_selection", permissions={"ide_*": "allow"}) == "deny"
    assert action("ide_open_file", permissions={"ide_*": "ask"}) == "ask"
    assert action("docs_search", permissions={"docs_s*": "ask"}) == "ask"
    assert action("docs_read", permissions={"docs_s*": "ask"}) == "allow"


def test_a_list_of_allowed_tools_holds_for_them_as_well() -> None:
    assert action("ide_open_file", tools_allowed=["read"]) == "deny"
    assert action("ide_open_file", tools_allowed=["read", "ide_*"]) == "allow"
    assert action("ide_selection", tools_allowed=["read", "ide_*"]) == "deny"
    assert action("ide_selection", tools_allowed=["ide_selection"]) == "deny"
    assert action("ide_open_file", tools_allowed=["ide_open_file"]) == "allow"
    assert action("docs_search", tools_allowed=["docs_search"]) == "allow"
    assert action("desk_selection", tools_allowed=["*"]) == "deny"
    assert action("docs_search", tools_allowed=["*"]) == "allow"
    assert action("ide_open_file", tools_disallowed=["ide_open_file"]) == "deny"


def test_a_pattern_for_tools_of_several_servers_holds_for_each_of_the_project_and_for_nobody_else() -> None:
    asked = {"*_delete*": "ask"}
    for tool in ("docs_delete", "docs_page_delete_all", "my_notes_delete"):
        assert action(tool, permissions=asked) == "ask", tool
    assert action("docs_search", permissions=asked) == "allow"
    assert action("desk_delete", permissions=asked) == "deny"
    assert action("docs_search", tools_allowed=["*_search"]) == "allow"
    assert action("docs_add", tools_allowed=["*_search"]) == "deny"
    assert action("desk_search", tools_allowed=["*_search"]) == "deny"


def test_a_pattern_without_an_underscore_opens_nothing_of_others() -> None:
    for pattern in ("desk*", "desk?open*", "d*"):
        assert action("desk_open_file", permissions={pattern: "allow"}) == "deny", pattern
        assert action("desk_open_file", tools_allowed=[pattern]) == "deny", pattern
    assert action("docs_search", permissions={"d*": "ask"}) == "ask"
    assert action("docs_search", tools_allowed=["doc*"]) == "allow"
    assert action("webfetch", tools_allowed=["web*"]) == "allow"
    assert action("ide_open_file", tools_allowed=["ide*"]) == "allow"
    assert action("ide_selection", tools_allowed=["ide*"]) == "deny"


async def test_a_server_that_is_added_while_a_turn_runs_is_seen_by_its_own_session_alone(own_rig: Rig) -> None:
    rig, directory = own_rig, own_rig.process.directory("w")
    await rig.agent.add_mcp_server(directory, "docs", ECHO)
    spec = AgentSessionSpec(title="t", directory=directory, mcp_servers=["docs"])
    plain, own = (
        await rig.agent.create_session(spec),
        await rig.session(directory, mcp_servers=["docs"], caller_tools=["ide_echo"]),
    )
    async with rig.agent.events(plain, directory) as stream:
        turns = script({"call": [["bash", {"command": "until [ -e go ]; do sleep 0.05; done"}]]}, {"say": "x"})
        await rig.agent.prompt(plain, directory, rig.prompt(turns))
        async for event in stream:
            if type(event).__name__ == "AgentDurable":
                break
        await rig.agent.add_mcp_server(directory, "ide", ECHO)
        assert (await rig.turn(own, directory, script({"say": "x"}))).idle.error is None
        write(directory, "go", "")
        async for event in stream:
            if type(event).__name__ == "AgentIdle":
                break
    assert {"docs_echo", "ide_echo"} <= rig.model.of(own)[-1].tools
    running = rig.model.of(plain)[-1].tools
    assert "docs_echo" in running
    assert "ide_echo" not in running


async def test_a_server_is_looked_at_taken_away_and_added_again(own_rig: Rig) -> None:
    rig, directory = own_rig, own_rig.process.directory("w")
    assert await rig.agent.mcp_servers(directory) == {}
    await rig.agent.add_mcp_server(directory, "ide", ECHO)
    assert await rig.agent.mcp_servers(directory) == {"ide": True}
    await rig.agent.remove_mcp_server(directory, "ide")
    assert await rig.agent.mcp_servers(directory) == {"ide": False}
    await rig.agent.remove_mcp_server(directory, "nobody")
    await rig.agent.add_mcp_server(directory, "ide", ECHO)
    assert await rig.agent.mcp_servers(directory) == {"ide": True}
