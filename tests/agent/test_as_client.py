"""OpenCode as a client of the daemon's own MCP door: results and errors arrive readable, as the model will see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from oubliette.agent.toolkit import Toolkit
from oubliette.core.model import EventType
from tests.agent.fake_model import open_fake_model, script
from tests.agent.rig import MODELS, Rig, open_rig, start
from tests.api.world import Doors, open_doors

pytestmark = pytest.mark.agent


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    place = tmp_path / "daemon"
    place.mkdir()
    async with open_doors(place) as opened:
        yield opened


@pytest.fixture
async def client(toolkit: Toolkit, tmp_path: Path, doors: Doors) -> AsyncIterator[Rig]:
    """An OpenCode that knows the daemon as a remote MCP server named ``gogols``."""
    server = {"type": "remote", "url": f"{doors.url}/mcp", "headers": doors.headers(), "enabled": True}
    async with open_fake_model() as model:
        process = start(toolkit, tmp_path / "agent", model.port, models=MODELS, mcp={"gogols": server})
        try:
            async with open_rig(process, model, MODELS) as rig:
                yield rig
        finally:
            process.kill()


CALLS: list[tuple[str, dict[str, object], str]] = [
    ("session", {"action": "get", "session_id": "gogol_20260101_000000_00000000"}, "not_found"),
    ("session", {"action": "get"}, "session_id"),
    ("session", {"action": "dance"}, "unknown_action"),
    ("session", {"action": "spawn", "message": 7, "project_id": "x"}, "invalid_argument"),
    ("session", {"action": "spawn", "message": "hi", "colour": "red"}, "colour"),
    ("session", {"action": "wait", "session_ids": "nonsense"}, "session_ids"),
    ("project", {"action": "create", "name": "x" * 300}, "name"),
    ("project", {"action": "get", "project_id": "../../etc"}, "is not an id"),
    ("container", {"action": "exec", "project_id": "nope"}, "not_found"),
    ("token", {"action": "create", "name": "t", "scope": "emperor"}, "scope"),
]


async def test_every_error_reaches_the_model_as_one_readable_sentence(client: Rig, doors: Doors) -> None:
    directory = client.process.directory("work")
    session = await client.session(directory)
    steps = [{"call": [[f"gogols_{tool}", arguments]]} for tool, arguments, _ in CALLS]
    turn = await client.turn(session, directory, script(*steps, {"say": "done"}))
    results = [body["tool"] for body in turn.bodies(EventType.TOOL_RESULT)]
    assert len(results) == len(CALLS)
    for (tool, arguments, word), result in zip(CALLS, results, strict=True):
        said = str(result.get("output") or result.get("error") or result)
        assert word in said, (tool, arguments, said)
        assert "schema" not in said.lower(), (tool, arguments, said)
    assert turn.idle.final_text == "done"


async def test_a_result_reaches_the_model_with_the_ids_it_needs(client: Rig, doors: Doors) -> None:
    directory = client.process.directory("work")
    session = await client.session(directory)
    made = {"call": [["gogols_project", {"action": "create", "name": "by the agent"}]]}
    turn = await client.turn(session, directory, script(made, {"say": "done"}))
    [result] = [body["tool"] for body in turn.bodies(EventType.TOOL_RESULT)]
    listed = await doors.tool("project", action="list")
    [project] = [one for one in listed["projects"] if one["name"] == "by the agent"]
    assert project["project_id"] in result["output"]
