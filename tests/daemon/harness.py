"""The real daemon as a process of its own, as a user starts it, and small clients for its doors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.runtime.ordinary_user import USER, as_ordinary_user

Json = dict[str, Any]
START_SECONDS = 60
STOP_SECONDS = 35


def toolkit_cache() -> Path:
    """One unpacked agent for all tests of this machine."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = base / "oubliette-test-toolkit"
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_config(home: Path, config: Mapping[str, Any]) -> None:
    (home / "config").mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    file = home / "config" / "oubliette.jsonc"
    file.write_text(json.dumps(config))
    file.chmod(0o600)
    toolkit = home / "toolkit"
    if not toolkit.exists():
        toolkit.symlink_to(toolkit_cache())


def share_toolkit(home: Path) -> None:
    """For a user who cannot reach root's cache: the same files under another name."""
    (home / "toolkit").unlink()
    subprocess.run(["cp", "-al", str(toolkit_cache()), str(home / "toolkit")], check=True)


@dataclass
class Daemon:
    home: Path
    process: subprocess.Popen[bytes]
    url: str
    token: str
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    async def call(self, tool: str, *, timeout_seconds: float = 60, **arguments: Any) -> Json:
        """POST /v1/tools/<tool>; the result object. An error is an AssertionError with its text."""
        status, body = await self.try_call(tool, timeout_seconds=timeout_seconds, **arguments)
        assert status == 200, (tool, arguments, status, body)
        return body

    async def try_call(self, tool: str, *, timeout_seconds: float = 60, **arguments: Any) -> tuple[int, Json]:
        async with httpx.AsyncClient(timeout=timeout_seconds) as client:
            response = await client.post(f"{self.url}/v1/tools/{tool}", json=arguments, headers=self.headers())
        return response.status_code, response.json()

    async def settle(self, session_id: str, *, timeout_seconds: float = 90) -> Json:
        """Wait until the session is settled or waits for somebody; its entry of ``wait``."""
        with trio.fail_after(timeout_seconds):
            while True:
                result = await self.call("session", action="wait", session_ids=[session_id], wait_seconds=20)
                if result["done"]:
                    return dict(result["sessions"][0])

    async def events(self, session_id: str) -> list[Json]:
        found: list[Json] = []
        since = -1
        while True:
            page = await self.call("session", action="events", session_id=session_id, since_index=since)
            found += page["events"]
            since = page["last_index"]
            if not page["more"]:
                return found

    async def until(self, session_id: str, wanted: Any, *, timeout_seconds: float = 60) -> Json:
        """The first event for which ``wanted(event)`` is true, by long polling."""
        since = -1
        with trio.fail_after(timeout_seconds):
            while True:
                page = await self.call(
                    "session", action="events", session_id=session_id, since_index=since, wait_seconds=10
                )
                for event in page["events"]:
                    if wanted(event):
                        return dict(event)
                since = page["last_index"]

    def terminate(self) -> int:
        """SIGTERM and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def start(home: Path, *, environment: Mapping[str, str] | None = None, ordinary_user: bool = False) -> Daemon:
    """Start the daemon on a free port; ``ready`` waits for it."""
    log = home / "daemon.log"
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "LANG", "HOME", "DOCKER_HOST"}}
    env = {**kept, **(environment or {}), "PYTHONUNBUFFERED": "1"}
    argv = [sys.executable, "-m", "oubliette", "--dir", str(home), "serve"]
    if ordinary_user:
        argv = as_ordinary_user(argv, own=home)
        env["HOME"] = str(home)
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            cwd="/",
        )
    return Daemon(home, process, "", "", log, environment or {})


async def ready(daemon: Daemon) -> Daemon:
    """Wait for its address file and ``/ready``."""
    announced = daemon.home / "run" / "daemon.json"
    with trio.move_on_after(START_SECONDS):
        while True:
            assert daemon.process.poll() is None, f"the daemon ended at once:\n{tail(daemon.log)}"
            if announced.exists():
                try:
                    told = json.loads(announced.read_text())
                except ValueError:
                    told = {}
                if told.get("pid") == daemon.process.pid:
                    daemon.url = told["url"]
                    daemon.token = (daemon.home / "run" / "cli-token").read_text().strip()
                    async with httpx.AsyncClient(timeout=2) as client:
                        answer = await client.get(f"{daemon.url}/ready")
                    if answer.status_code == 200:
                        return daemon
            await trio.sleep(0.05)
    raise AssertionError(f"the daemon was not ready in {START_SECONDS} s:\n{tail(daemon.log)}")


def tail(path: Path, lines: int = 60) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


@asynccontextmanager
async def open_daemon(
    home: Path,
    config: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    ordinary_user: bool = False,
) -> AsyncIterator[Daemon]:
    """A running daemon; at the end its projects are deleted, so that no container stays behind, and it is stopped."""
    write_config(home, config)
    if ordinary_user:
        share_toolkit(home)
        for path in (home, home / "toolkit", home / "config", home / "config" / "oubliette.jsonc"):
            os.chown(path, USER, USER)
    daemon = await ready(start(home, environment=environment, ordinary_user=ordinary_user))
    try:
        yield daemon
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(90):
            if daemon.process.poll() is not None:
                # A test has ended it; only a daemon knows its containers.
                daemon = await ready(start(home, environment=environment, ordinary_user=ordinary_user))
            await _delete_projects(daemon)
        if daemon.process.poll() is None:
            daemon.terminate()
        if daemon.process.poll() is None:
            daemon.kill()


async def _delete_projects(daemon: Daemon) -> None:
    """Returns when they are gone, and their containers with them."""
    asked: set[str] = set()
    while projects := (await daemon.call("project", action="list", limit=100))["projects"]:
        for project in projects:
            if project["project_id"] not in asked:
                asked.add(project["project_id"])
                await daemon.call("project", action="delete", project_id=project["project_id"], force=True)
        await trio.sleep(0.05)
