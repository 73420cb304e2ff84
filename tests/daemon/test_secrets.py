"""A planted key is nowhere that the agent, a client, a log or ``ps`` could show it."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

import pytest

from tests.daemon.harness import open_daemon
from tests.gateway.upstream import open_upstream

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

SEARCH = "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\\\0' '\\\\n'; find / -xdev -type f -size -64k"


async def test_a_planted_key_is_nowhere(tmp_path: Path) -> None:
    key = f"sk-ant-{secrets.token_hex(24)}"
    home = tmp_path / "home"
    home.mkdir()
    async with open_upstream("anthropic") as upstream:
        config = {
            "server": {"address": "127.0.0.1:0"},
            "runtime": "bubblewrap",
            "credentials": {
                "providers": {
                    "credentials": {"mine": {"provider": "anthropic", "api_key": key, "base_url": upstream.url}}
                }
            },
            "models": {"models": {"opus": {"model": "claude-opus-4-6", "provider": "mine"}}},
        }
        async with open_daemon(home, config) as daemon:
            project = await daemon.call("project", action="create", name="secrets")
            spawned = await daemon.call(
                "session",
                action="spawn",
                project_id=project["project_id"],
                message="look\n@say hello",
                new_session=True,
            )
            await daemon.settle(spawned["session_id"])
            asked = [request for request in upstream.requests if key in json.dumps(request.headers)]
            assert asked, "the gateway adds the key on its way out"
            result = await daemon.call(
                "container",
                action="exec",
                project_id=project["project_id"],
                command=f"{SEARCH} ! -path '/proc/*' -exec cat {{}} + 2>/dev/null | head -c 30000000; true",
                timeout_seconds=60,
                max_output_bytes=30_000_000,
                max_chars=40_000_000,
            )
            assert key not in json.dumps(result)
            shown = await daemon.call("project", action="get", project_id=project["project_id"], detail="full")
            assert key not in json.dumps(shown)
            assert key not in json.dumps(await daemon.events(spawned["session_id"]))
            listing = subprocess.run(["ps", "axeww"], capture_output=True, check=True).stdout.decode(errors="replace")
            assert key not in listing
        for path in [daemon.log, *(home / "data" / "logs").rglob("*"), *(home / "run").rglob("*")]:
            if path.is_file():
                assert key not in path.read_text(errors="replace"), path
        assert key.encode() not in (home / "data" / "oubliette.db").read_bytes()
