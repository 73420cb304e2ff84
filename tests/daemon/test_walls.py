"""From inside a container, with everything it can reach: nothing but that container is touched."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.harness import Daemon, open_daemon

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

HOSTILE = Path(__file__).with_name("hostile_inside.py").read_text()
RSS_GROWTH_BYTES = 150 << 20


@pytest.fixture(params=["bubblewrap", "docker"])
async def daemon(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[Daemon]:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"DOCKER_HOST": engine_host} if request.param == "docker" else {}
    config = {"server": {"address": "127.0.0.1:0"}, "runtime": request.param}
    async with open_daemon(home, config, environment=environment) as daemon:
        yield daemon


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


async def test_a_hostile_container_reaches_nothing_but_itself(daemon: Daemon, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("here")
    bystander = await daemon.call("project", action="create", name="bystander")
    hostile = await daemon.call("project", action="create", name="hostile")
    for project in (bystander, hostile):
        await daemon.call("container", action="start", project_id=project["project_id"], wait_seconds=40)
    spawned = await daemon.call(
        "session", action="spawn", project_id=hostile["project_id"], message="@say awake", model="scripted"
    )
    await daemon.settle(spawned["session_id"])
    before = _resident_bytes(daemon.process.pid)
    result = await daemon.call(
        "container",
        action="exec",
        project_id=hostile["project_id"],
        command=["python3", "-c", HOSTILE, str(victim)],
        timeout_seconds=170,
        wait_seconds=40,
        max_chars=200_000,
    )
    while result["state"] == "running":
        result = await daemon.call(
            "container", action="exec", project_id=hostile["project_id"], exec_id=result["exec_id"], wait_seconds=40
        )
    assert result["exit_code"] == 0, result
    found = json.loads(result["stdout"])
    for place in ("/run/oubliette", "/opt/oubliette", "/usr", "/etc"):
        assert found[f"write {place}"].startswith("refused"), found
        assert found[f"link {place}"].startswith("refused"), found
    assert found["replace socket"].startswith("refused")
    assert found["unlink socket"].startswith("refused")
    assert found["read root's files"].startswith("refused")
    for name, said in found["hellos"].items():
        assert said.startswith(("closed", "silent", "HTTP/1.1 4", "{")), (name, said)
    gateway = found["gateway"]
    assert " 200 " in gateway.pop("right") + " "
    for name, status in gateway.items():
        assert " 4" in status, (name, status)

    assert _resident_bytes(daemon.process.pid) - before < RSS_GROWTH_BYTES
    for project in (bystander, hostile):
        spawned = await daemon.call(
            "session",
            action="spawn",
            project_id=project["project_id"],
            message="@say still here",
            model="scripted",
            new_session=True,
        )
        done = await daemon.settle(spawned["session_id"])
        assert done["final_text"] == "still here"
    await daemon.call("project", action="delete", project_id=hostile["project_id"], force=True)
    assert (victim / "precious").read_text() == "here"
