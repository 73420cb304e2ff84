"""The doors over a real store, the real session tree and fake agents, served by the real Hypercorn on a free port."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import httpx2
import trio
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from oubliette import clock
from oubliette.api.api import run_api
from oubliette.api.services import Services
from oubliette.config import Config
from oubliette.core.model import Json
from oubliette.core.principals import TokenRow
from oubliette.core.tokens import secret_hash
from oubliette.errors import ContainerExited
from oubliette.home import Home
from oubliette.project.projects import Neighbours, Projects
from oubliette.runtime.base import ExecResult
from oubliette.schedule.owners import run_owners
from oubliette.schedule.scheduler import Scheduler
from oubliette.schedule.schedules import Schedules
from oubliette.store import tokens
from tests.session.world import PROJECT, WORKSPACE, World, open_world

__all__ = ["PROJECT", "WORKSPACE", "Doors", "Sse", "open_doors", "read_sse"]

T = TypeVar("T")
MODERN = "2026-07-28"
LEGACY = "2025-11-25"
OTHER_PROJECT = "7b1c0000-0000-4000-8000-00000000000f"


@dataclass
class Doors:
    """Open doors with a token for every kind of caller."""

    url: str
    world: World
    services: Services
    secrets: dict[str, str]
    shutdown: trio.Event
    served: trio.Event
    """Set when the server has returned."""

    def headers(self, who: str = "admin", **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secrets.get(who, who)}", **more}

    def client(self, who: str = "admin", **more: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, headers=self.headers(who), timeout=60, trust_env=False, verify=False, **more
        )

    async def tool(self, tool: str, who: str = "admin", **arguments: Any) -> Json:
        """A tool over HTTP; the result must be one."""
        answer = await self.call(tool, who, **arguments)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def call(self, tool: str, who: str = "admin", **arguments: Any) -> httpx.Response:
        async with self.client(who) as client:
            return await client.post(f"/v1/tools/{tool}", json=arguments)

    @asynccontextmanager
    async def mcp(
        self, who: str = "admin", mode: str = "legacy", path: str = "/mcp", **more: Any
    ) -> AsyncIterator[Client]:
        """The SDK's own client, in the handshake era (``legacy``) or at 2026-07-28."""
        async with httpx2.AsyncClient(headers=self.headers(who), timeout=60, trust_env=False, verify=False) as http:
            transport = streamable_http_client(self.url + path, http_client=http)
            async with Client(transport, mode=MODERN if mode == "modern" else mode, cache=None, **more) as client:
                yield client

    async def add_token(
        self, name: str, scope: str, *, expires_at: datetime | None = None, kind: str = "client"
    ) -> str:
        """Its secret; the name is good for ``headers`` too."""
        secret = "oub_" + clock.fresh_hex(64)
        row = TokenRow(
            f"tok_api_{name}", name, scope, kind, clock.now(), {"kind": "local", "id": "local"}, expires_at=expires_at
        )
        await self.world.store.write(lambda tx: tokens.create(tx, row, secret_hash(secret)))
        self.secrets[name] = secret
        return secret


@asynccontextmanager
async def open_doors(
    path: Path,
    *,
    server: Mapping[str, Any] | None = None,
    defaults: Json | None = None,
    adjust: Callable[[Services], Services] = lambda s: s,
) -> AsyncIterator[Doors]:
    config = Config.model_validate({"server": {"address": "127.0.0.1:0", **(server or {})}})
    async with open_world(path, defaults=defaults) as world, trio.open_nursery() as nursery:
        projects = await _projects(path, config, world, nursery)
        schedules = await _schedules(config, world, nursery)
        services = adjust(
            Services(
                config=config,
                store=world.store,
                feed=world.feed,
                tree=world.tree,
                projects=projects,
                containers=FakeContainers(world),
                schedules=schedules,
                version="0.1.0",
                about=lambda: {"runtimes": [{"name": "fake"}], "versions": {"oubliette": "0.1.0"}},
            )
        )
        shutdown = trio.Event()
        served = trio.Event()
        addresses = await nursery.start(_serve, services, shutdown, served)
        doors = Doors(addresses[0], world, services, {}, shutdown, served)
        await doors.add_token("admin", "admin")
        await doors.add_token("auditor", "admin:ro")
        await doors.add_token("project", f"project:{PROJECT}")
        await doors.add_token("reader", f"project:{PROJECT}:ro")
        await doors.add_token("stranger", f"project:{OTHER_PROJECT}")
        yield doors
        shutdown.set()
        with trio.fail_after(10):
            await doors.served.wait()
        nursery.cancel_scope.cancel("the doors are closed")


@dataclass
class FakeContainers:
    """Containers whose commands are scripted: ``echo`` answers, ``sleep`` goes on until let go."""

    world: World
    started: list[tuple[str, str, bool]] = field(default_factory=list)
    stopped: list[tuple[str, str]] = field(default_factory=list)
    let_go: trio.Event = field(default_factory=trio.Event)
    ran: list[tuple[Sequence[str], str | None]] = field(default_factory=list)
    error: Json | None = None
    hangs: bool = False

    @asynccontextmanager
    async def lease(self, project_id: str, workspace_id: str) -> AsyncIterator[Any]:
        await trio.lowlevel.checkpoint()
        yield self

    def directory(self, workspace_id: str) -> str:
        return f"/workspaces/{workspace_id}"

    async def exec(self, argv: Sequence[str], *, cwd: str | None = None, **limits: Any) -> ExecResult:
        self.ran.append((argv, cwd))
        text = " ".join(argv)
        if "sleep" in text:
            with trio.move_on_after(limits["timeout_seconds"]) as patience:
                await self.let_go.wait()
            if patience.cancelled_caught:
                return ExecResult(137, b"", b"", 0, 0, timed_out=True)
        if "broken" in text:
            raise ContainerExited("the container is gone: /secret/host/path")
        out = text.encode() * (1000 if "much" in text else 1)
        await trio.lowlevel.checkpoint()
        return ExecResult(0, out[: limits["max_output_bytes"]], b"warned", len(out), 6)

    async def start(self, project_id: str, workspace_id: str, *, recreate: bool = False, force: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.error is not None:
            raise ContainerExited("start it: /secret/host/path")
        self.started.append((project_id, workspace_id, recreate))

    async def stop(self, project_id: str, workspace_id: str, *, force: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.stopped.append((project_id, workspace_id))

    async def status(self, project_id: str, workspace_id: str) -> Json:
        await trio.lowlevel.checkpoint()
        shape: Json = {"project_id": project_id, "workspace_id": workspace_id, "state": "absent"}
        return {**shape, "state": "failed", "error": self.error} if self.error is not None else shape

    async def logs(self, project_id: str, workspace_id: str, *, tail: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"line\n" * tail


async def _projects(path: Path, config: Config, world: World, nursery: trio.Nursery) -> Projects:
    async def nothing(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    neighbours = Neighbours(
        end_sessions=world.tree.end_project, remove_containers=nothing, warm=nothing, hide=lambda _secret: None
    )
    home = Home(path / "home")
    home.root.mkdir(exist_ok=True)
    projects = Projects(world.store, config, home, neighbours, owner=None, host_env=dict(os.environ))
    await nursery.start(projects.run)
    return projects


async def _schedules(config: Config, world: World, nursery: trio.Nursery) -> Schedules:
    async def never(_moment: datetime) -> None:
        await trio.sleep_forever()

    scheduler = Scheduler(
        world.store, world.feed, config, world.tree, now=clock.now, sleep_until=never, fresh_hex=clock.fresh_hex
    )
    await nursery.start(scheduler.run)
    await nursery.start(run_owners, world.store)
    return Schedules(world.store, config, scheduler, now=clock.now, fresh_hex=clock.fresh_hex)


async def _serve(
    services: Services,
    shutdown: trio.Event,
    served: trio.Event,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    await run_api(services, shutdown=shutdown, task_status=task_status)
    served.set()


async def eventually(look: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
    """Look again and again, as a client from outside must, until what it sees is good. The caller sets the limit."""
    while True:
        found = await look()
        if good(found):
            return found
        await trio.sleep(0.05)


@dataclass
class Sse:
    event: str
    data: Any
    id: str | None


class read_sse:  # noqa: N801 - reads like the generator that it must not be: tests leave it half read
    """The events of a stream as a browser would see them."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    def __aiter__(self) -> read_sse:
        return self

    async def __anext__(self) -> Sse:
        kind, data, cursor = "message", list[str](), None
        async for line in self._lines:
            if not line:
                if data:
                    return Sse(kind, json.loads("\n".join(data)), cursor)
                kind, data, cursor = "message", [], None
            elif line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
            elif line.startswith("id: "):
                cursor = line[4:]
        raise StopAsyncIteration
