from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.config import Config
from oubliette.core.principals import LOCAL, Principal, Scope
from oubliette.home import Home
from oubliette.project.projects import Neighbours, Projects
from oubliette.store.database import Store, open_store

ADMIN = LOCAL


def project_principal(project_id: str, *, read_only: bool = False) -> Principal:
    return Principal("token", "tok_p", "ci", Scope("project", read_only, project_id=project_id))


@dataclass
class World:
    """Projects on a real store and real directories; the neighbours write down what they were asked."""

    store: Store
    home: Home
    config: Config
    projects: Projects
    asked: list[tuple[str, ...]] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    before_containers_are_removed: Callable[[], None] = lambda: None


OpenWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def open_world(tmp_path: Path) -> OpenWorld:
    """Open it as often as needed: each time is a start of the daemon on the same home."""

    @asynccontextmanager
    async def opened(config: dict[str, Any] | None = None, *, run: bool = True) -> AsyncIterator[World]:
        home = Home(tmp_path / "home")
        home.create()
        given = Config.model_validate({"git": {"allow_local": True}, **(config or {})})
        asked: list[tuple[str, ...]] = []
        hidden: set[str] = set()

        async def end_sessions(project_id: str) -> None:
            await trio.lowlevel.checkpoint()
            asked.append(("end", project_id))

        async def remove_containers(project_id: str, workspace_id: str | None) -> None:
            await trio.lowlevel.checkpoint()
            here.before_containers_are_removed()
            asked.append(("remove", project_id, workspace_id or "-"))

        async def warm(project_id: str, workspace_id: str) -> None:
            await trio.lowlevel.checkpoint()
            asked.append(("warm", project_id, workspace_id))

        neighbours = Neighbours(end_sessions, remove_containers, warm, hidden.add)
        async with open_store(home.database, publish=lambda _: None) as store, trio.open_nursery() as nursery:
            projects = Projects(store, given, home, neighbours, owner=None, host_env={"PATH": os.environ["PATH"]})
            here = World(store, home, given, projects, asked, hidden)
            if run:
                await nursery.start(projects.run)
            yield here
            nursery.cancel_scope.cancel("the world ends")

    return opened


@pytest.fixture
async def world(open_world: OpenWorld) -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened
