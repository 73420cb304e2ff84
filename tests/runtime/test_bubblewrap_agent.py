"""The real agent under the real filter: OpenCode starts, makes a session and runs git, in every kind of sandbox."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from oubliette.agent.opencode_config import opencode_process
from oubliette.agent.toolkit import ensure_toolkit
from oubliette.runtime.base import Mount, Resources
from oubliette.runtime.bubblewrap import Bubblewrap
from tests.runtime.contract import Kit, cleaned

SECONDS = 120
TOOLKIT = "OUBLIETTE_TEST_TOOLKIT"
"""A toolkit that is there already: root gives the ordinary user's tests its own."""
PORT = 4096

pytestmark = [pytest.mark.engine, pytest.mark.agent]


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Kit]:
    async with cleaned(Kit(Bubblewrap(tmp_path / "sandboxes"), tmp_path, walls=True)) as kit:
        yield kit


async def toolkit_path() -> Path:
    """The cached one; fetched from npm where it is not there yet."""
    if TOOLKIT in os.environ:
        return Path(os.environ[TOOLKIT])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (await ensure_toolkit(cache / "oubliette-test-toolkit", lambda _what, _done, _total: None)).path


ASK = """
import base64, json, sys, time, urllib.request
def ask(path, timeout, data=None):
    key = base64.b64encode(b"opencode:password").decode()
    headers = {"Authorization": "Basic " + key, "content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:4096{path}", data, headers)
    return json.load(urllib.request.urlopen(request, timeout=timeout))
while True:
    try:
        health = ask("/global/health", 0.5)
        break
    except OSError:
        time.sleep(0.05)
session = ask("/session?directory=/workspaces/w", 30, b'{"title": "a title"}')
shell = ask(f"/session/{session['id']}/shell?directory=/workspaces/w", 60,
            json.dumps({"agent": "build", "model": {"providerID": "x", "modelID": "y"},
                        "command": "git init -q . && git status --short --branch && id -u"}).encode())
print(json.dumps({"health": health, "directory": session["directory"], "shell": shell}))
"""


@pytest.mark.parametrize("network", ["none", "bridge"])
async def test_the_agent_comes_up_and_works_behind_all_walls(own: Kit, network: str) -> None:
    toolkit = await toolkit_path()
    argv, env = opencode_process("password", port=PORT)
    run = own.directory("run")
    (run / "opencode.json").write_text("{}")
    mounts = [
        Mount(own.directory("workspace"), "/workspaces/w", read_only=False),
        Mount(own.directory("state"), "/state", read_only=False),
        Mount(own.directory("cache"), "/cache", read_only=False),
        Mount(run, "/run/oubliette"),
        Mount(toolkit, "/opt/oubliette"),
    ]
    with trio.fail_after(SECONDS):
        name = await own.run(
            argv, env=env, mounts=mounts, network=network, resources=Resources(memory_bytes=2 << 30, cpus=2, pids=512)
        )
        answer = json.loads(await own.python(name, ASK, timeout_seconds=SECONDS))
        assert answer["health"]["healthy"]
        assert answer["directory"] == "/workspaces/w"
        said = json.dumps(answer["shell"])
        assert "No commits yet on" in said
        assert str(own.uid) in said
