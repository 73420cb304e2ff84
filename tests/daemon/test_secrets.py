"""A planted secret is nowhere that the agent, a client, a log, the engine or ``ps`` could show it."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from oubliette.gateway.models import Wire
from tests.daemon.harness import Daemon, Json, open_daemon
from tests.gateway.upstream import Provider, open_provider

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

HUNT = Path(__file__).with_name("hunt_inside.py").read_text()


MARK = secrets.token_hex(12)
"""In each secret that no container holds: one search inside finds them all."""


def _secret(beginning: str) -> str:
    return beginning + MARK + secrets.token_hex(12)


def _in_base64(word: str) -> list[str]:
    """What stands in the base64 of anything that holds the word: its three alignments, without the edges."""
    return [base64.b64encode(b"." * shift + word.encode())[4:-4].decode() for shift in range(3)]


@dataclass(frozen=True)
class Planted:
    """Every secret, by where it was given to the daemon."""

    key: str
    """Of a provider, in the config."""
    header: str
    """An alias's extraHeaders, in the config."""
    filed: str
    """A provider's key that the config takes from a file."""
    github: str
    """Of the config."""
    environment: str
    """Of the daemon; nobody uses it."""
    project_github: str
    """Given to ``project create``."""
    mcp_header: str
    """Of a project's MCP server: the agent has to have it, nobody else."""
    mcp_variable: str

    def everywhere(self) -> dict[str, str]:
        """Those that no container holds."""
        return {
            "key": self.key,
            "header": self.header,
            "filed": self.filed,
            "github": self.github,
            "environment": self.environment,
            "project_github": self.project_github,
        }

    def shown_nowhere(self) -> dict[str, str]:
        """Those that no result, log or list of processes may show."""
        return self.everywhere() | {"mcp_header": self.mcp_header, "mcp_variable": self.mcp_variable}

    def in_no_database(self) -> dict[str, str]:
        """The config's are in the config alone."""
        project = ("project_github", "mcp_header", "mcp_variable")
        return {name: value for name, value in self.shown_nowhere().items() if not name.startswith(project)}


def assert_not_in(text: str, planted: dict[str, str], where: object) -> None:
    leaked = [name for name, secret in planted.items() if secret in text]
    assert not leaked, f"{leaked} shown by {where}"


@dataclass
class World:
    daemon: Daemon
    provider: Provider
    planted: Planted
    runtime: str


@pytest.fixture(params=["bubblewrap", "docker"])
async def world(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[World]:
    planted = Planted(
        key=_secret("sk-ant-api03-"),
        header=_secret("team-"),
        filed=_secret("sk-proj-"),
        github=_secret("ghp_"),
        environment=_secret("env-"),
        project_github=_secret("github_pat_"),
        mcp_header="Bearer mcp-" + secrets.token_hex(20),
        mcp_variable="variable-" + secrets.token_hex(20),
    )
    home = tmp_path / "home"
    home.mkdir()
    filed = tmp_path / "key"
    filed.write_text(planted.filed)
    filed.chmod(0o600)
    environment = {"OUBLIETTE_PLANTED": planted.environment}
    if request.param == "docker":
        environment["DOCKER_HOST"] = engine_host
    async with open_provider(key=planted.key) as provider:
        config = {
            "server": {"address": "127.0.0.1:0"},
            "runtime": request.param,
            "log": {"level": "debug"},
            "credentials": {
                "providers": {
                    "credentials": {
                        "mine": {
                            "provider": "anthropic",
                            "api_key": planted.key,
                            "base_url": provider.base_url(Wire.ANTHROPIC),
                        },
                        "other": {
                            "provider": "openai",
                            "api_key": f"{{file:{filed}}}",
                            "base_url": provider.base_url(Wire.OPENAI),
                        },
                    }
                },
                "github": {"credentials": {"me": {"token": planted.github}}, "default": "me"},
            },
            "models": {
                "models": {
                    "opus": {
                        "model": "claude-opus-4-6",
                        "provider": "mine",
                        "extraHeaders": {"X-Team-Token": planted.header},
                    },
                    "five": {"model": "gpt-5.4", "provider": "other"},
                },
                "defaults": {"session_model": "opus"},
            },
        }
        async with open_daemon(home, config, environment=environment) as daemon:
            yield World(daemon, provider, planted, str(request.param))


def _ps() -> str:
    return subprocess.run(["ps", "axeww"], capture_output=True, check=True).stdout.decode(errors="replace")


async def _hunt(daemon: Daemon, project_id: str, words: list[str]) -> Json:
    result = await daemon.call(
        "container",
        action="exec",
        project_id=project_id,
        command=["python3", "-c", HUNT, *(word[::-1] for word in words)],
        timeout_seconds=100,
        wait_seconds=40,
        max_chars=200_000,
    )
    while result["state"] == "running":
        result = await daemon.call(
            "container", action="exec", project_id=project_id, exec_id=result["exec_id"], wait_seconds=40
        )
    assert result["exit_code"] == 0, result
    return dict(json.loads(result["stdout"]))


async def _engine_view(engine: str, project_id: str) -> str:
    """What the engine tells of that project's containers and networks, and what they have printed."""
    told = []
    transport = httpx.AsyncHTTPTransport(uds=engine.removeprefix("unix://"))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=30) as client:
        listed = (await client.get("/containers/json", params={"all": 1})).json()
        ours = [one["Id"] for one in listed if project_id in json.dumps(one["Labels"])]
        assert ours
        for id_ in ours:
            told.append((await client.get(f"/containers/{id_}/json")).text)
            told.append((await client.get(f"/containers/{id_}/logs", params={"stdout": 1, "stderr": 1})).text)
        told.append((await client.get("/networks")).text)
    return "\n".join(told)


async def test_a_planted_secret_is_nowhere(world: World, engine_host: str) -> None:
    daemon, planted = world.daemon, world.planted
    servers: dict[str, Json] = {
        "docs": {
            "type": "remote",
            "url": "http://127.0.0.1:9/mcp",
            "headers": {"Authorization": planted.mcp_header},
        },
        "local": {
            "type": "local",
            "command": ["true"],
            "environment": {"TOKEN": planted.mcp_variable},
            "enabled": False,
        },
    }
    results: list[object] = []
    project = await daemon.call(
        "project", action="create", name="secrets", github_token=planted.project_github, mcp_servers=servers
    )
    project_id = project["project_id"]
    results.append(project)

    # a turn that works, seen while its tool runs, and two that fail in words that hold the key
    message = '@tool bash {"command": "env; read line < wait || true", "description": "look"}\n@say hello'
    await daemon.call("container", action="exec", project_id=project_id, command="mkfifo /workspaces/*/wait")
    spawned = await daemon.call("session", action="spawn", project_id=project_id, message=message, new_session=True)
    session_id = spawned["session_id"]
    await daemon.until(session_id, lambda event: event["type"] == "tool_call")
    lists = [_ps()]
    await daemon.call("container", action="exec", project_id=project_id, command="echo go > /workspaces/*/wait")
    done = await daemon.settle(session_id)
    assert (done["outcome"], done["final_text"]) == ("completed", "hello")
    assert {asked.key for asked in world.provider.asked} == {planted.key}, "the gateway adds the key on its way out"
    assert {asked.headers["x-team-token"] for asked in world.provider.asked} == {planted.header}
    assert planted.mcp_header not in json.dumps([asked.headers for asked in world.provider.asked])
    refused = (
        (Wire.ANTHROPIC, "opus", f"The key {planted.key} and the team {planted.header}"),
        (Wire.OPENAI, "five", f"The key {planted.filed}"),
    )
    for wire, model, who in refused:
        world.provider.fail_next(wire, 403, f"{who} may not do this.")
        await daemon.call("session", action="message", session_id=session_id, message="@say no", model=model)
        failed = await daemon.settle(session_id)
        assert failed["outcome"] == "failed"
        assert "may not do this" in failed["error"]["message"]
        results.append(failed)

    # inside the container
    [config_file] = (daemon.home / "run" / "c").glob("*/opencode.json")
    agent_config = json.loads(config_file.read_text())
    capability = agent_config["provider"]["oubliette-anthropic"]["options"]["apiKey"]
    hunted = await _hunt(daemon, project_id, [MARK, *_in_base64(MARK), planted.mcp_header, capability])
    looked_at = hunted["looked_at"]
    assert looked_at["files"] >= 50, looked_at
    assert min(looked_at["environments"], looked_at["command lines"], looked_at["memories"]) >= 2, looked_at
    *places, mcp_places, capability_places = hunted["found"].values()
    assert not any(places), places
    for known in (mcp_places, capability_places):
        assert "/run/oubliette/opencode.json" in known, "the hunt finds what is there"
    assert not [place for place in mcp_places if place.startswith(("environ", "cmdline"))]

    # what clients can ask for
    calls: list[tuple[str, Json]] = [
        ("project", {"action": "get", "project_id": project_id, "detail": "full"}),
        ("project", {"action": "list"}),
        ("project", {"action": "options"}),
        ("session", {"action": "get", "session_id": session_id, "detail": "full"}),
        ("session", {"action": "list", "project_id": project_id}),
        ("session", {"action": "events", "session_id": session_id, "max_chars": 1_000_000}),
        ("container", {"action": "status", "project_id": project_id, "detail": "full"}),
        ("container", {"action": "logs", "project_id": project_id, "max_chars": 1_000_000}),
        ("token", {"action": "list"}),
    ]
    shown = {f"{tool} {arguments['action']}": await daemon.call(tool, **arguments) for tool, arguments in calls}
    got = shown["project get"]
    assert got["mcp_servers"]["docs"]["headers"] == {"Authorization": "***"}
    assert got["mcp_servers"]["local"]["environment"] == {"TOKEN": "***"}
    assert got["credentials"]["github_token_set"] is True
    wrong = {"docs": {**servers["docs"], "headers": {"Authorization": [planted.mcp_header]}}}
    results.append(await daemon.try_call("project", action="update", project_id=project_id, mcp_servers=wrong))
    results.append(
        await daemon.try_call("project", action="update", project_id=project_id, github_token=[planted.github])
    )
    results.append(shown)
    results.append(await daemon.events(session_id))
    async with httpx.AsyncClient(headers=daemon.headers()) as client:
        results.extend([(await client.get(daemon.url + path)).text for path in ("/health", "/ready", "/metrics")])
    for result in results:
        assert_not_in(json.dumps(result), planted.shown_nowhere(), str(result)[:2000])

    # what the host and the engine show of it; the daemon's own environment is its operator's
    lists.append(_ps())
    listed = {name: secret for name, secret in planted.shown_nowhere().items() if not name.startswith("environment")}
    for listing in lists:
        assert_not_in(listing, listed, "ps")
    if world.runtime == "docker":
        assert_not_in(await _engine_view(engine_host, project_id), planted.shown_nowhere(), "the engine")

    _assert_files_are_clean(daemon, planted)
    daemon.terminate()
    _assert_files_are_clean(daemon, planted)


def _assert_files_are_clean(daemon: Daemon, planted: Planted) -> None:
    """The home, with the agent's own state, the logs and the database; the config file is where the secrets are from.

    The database holds what projects were given, and the agent's config its servers' headers: both for their owner only.
    """
    home = daemon.home
    seen = 0
    for directory, _, names in os.walk(home):
        for path in (Path(directory) / name for name in names):
            if path.is_symlink() or not path.is_file() or path == home / "config" / "oubliette.jsonc":
                continue
            text = path.read_bytes().decode("latin-1")
            database, agent_config = path.name.startswith("oubliette.db"), path.name == "opencode.json"
            secret = planted.in_no_database() if database else planted.shown_nowhere()
            if agent_config:
                secret = planted.everywhere()
            if database:
                assert path.stat().st_mode & 0o077 == 0, path
            assert_not_in(text, secret, path)
            seen += 1
    assert seen > 10
    assert daemon.log.stat().st_size > 0
