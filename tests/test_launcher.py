"""The agent's configuration as the daemon writes it."""

from __future__ import annotations

import json

from oubliette import clock
from oubliette.config import Config
from oubliette.core.limits import MAX_WAIT_WITH_PROGRESS_SECONDS
from oubliette.core.model import ContainerRow, ContainerState, PlaceState, ProjectRow
from oubliette.core.principals import LOCAL
from oubliette.launcher import CONFIG_FILE, OpenCodeLauncher


async def test_the_agent_has_our_server_beside_those_of_its_project() -> None:
    at = clock.now()
    servers = {"docs": {"type": "remote", "url": "https://docs.example", "timeout_ms": 7000}, "oubliette": {"url": "x"}}
    project = ProjectRow("p", "shop", PlaceState.READY, at, at, LOCAL.as_json(), "w", settings={"mcp_servers": servers})
    row = ContainerRow("c", "p", "w", "bubblewrap", 1, "key", ContainerState.READY, at)
    files = await OpenCodeLauncher(Config.model_validate({})).files(row, project)
    told = json.loads(files[CONFIG_FILE])["mcp"]
    assert told["docs"]["timeout"] == 7000
    own = told["oubliette"]
    assert own["command"] == ["python3", "-ISB", "/opt/oubliette/python/oubliette_client"]
    assert own["timeout"] > MAX_WAIT_WITH_PROGRESS_SECONDS * 1000
