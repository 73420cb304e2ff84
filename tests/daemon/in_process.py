"""The real daemon inside the process of a test or a measurement, so that its tasks and rows can be looked at."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

from oubliette.config import load_config
from oubliette.daemon import Running, run_tiers
from oubliette.home import Home
from tests.daemon.harness import write_config

Json = dict[str, Any]
LEAVE_SECONDS = 60


class Client:
    """Tools by POST, as the CLI calls them."""

    def __init__(self, running: Running) -> None:
        self.http = httpx.AsyncClient(
            base_url=running.url, headers={"authorization": f"Bearer {running.secret}"}, timeout=120
        )

    async def call(self, tool: str, **arguments: Any) -> Json:
        response = await self.http.post(f"/v1/tools/{tool}", json=arguments)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def spawn(self, project_id: str, message: str, **more: Any) -> Json:
        return await self.call(
            "session",
            action="spawn",
            project_id=project_id,
            message=message,
            model="scripted",
            new_session=True,
            **more,
        )

    async def settle(self, *session_ids: str, seconds: float = 150) -> list[Json]:
        """Wait until all of them rest; their entries of ``wait``."""
        with trio.fail_after(seconds):
            while True:
                result = await self.call("session", action="wait", session_ids=list(session_ids), wait_seconds=20)
                if result["done"]:
                    return list(result["sessions"])


@asynccontextmanager
async def inside(
    root: Path, runtime: str, *, defaults: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """The daemon in this process, on a home of its own. At the end its projects go, and their containers with them."""
    config_text: Json = {"server": {"address": "127.0.0.1:0"}, "runtime": runtime, "defaults": dict(defaults or {})}
    write_config(root, config_text)
    home = Home(root)
    config, _ = load_config(home.config_file, os.environ)
    home.create()
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        running: Running = await nursery.start(
            partial(run_tiers, home, config, {**os.environ, **(environ or {})}, stop)
        )
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(LEAVE_SECONDS):
                client = Client(running)
                for project in (await client.call("project", action="list"))["projects"]:
                    await client.call("project", action="delete", project_id=project["project_id"], force=True)
                    await running.services.projects.idle(project["project_id"])
                await client.http.aclose()
            stop.set()


async def ready_project(client: Client, name: str = "bench") -> Json:
    """A project whose container and agent are up, and warm."""
    project = await client.call("project", action="create", name=name)
    spawned = await client.spawn(project["project_id"], "@say warm")
    await client.settle(spawned["session_id"])
    return project
