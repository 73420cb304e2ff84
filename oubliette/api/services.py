"""What the doors need from the rest of the daemon; the composition root fills it in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

from oubliette import clock
from oubliette.config import Config
from oubliette.core.model import Json
from oubliette.core.principals import Principal
from oubliette.project.projects import Projects
from oubliette.schedule.schedules import Schedules
from oubliette.session.callers import Callers
from oubliette.session.feed import Feed
from oubliette.session.merges import Merges
from oubliette.session.requests import MessageArgs, SpawnArgs
from oubliette.session.update import UpdateArgs
from oubliette.store.database import Store, Tx
from oubliette.supervision import Supervisor

if TYPE_CHECKING:
    from oubliette.container.ready import ReadyContainer


class Sessions(Protocol):
    """The session tree, as far as callers reach it."""

    @property
    def callers(self) -> Callers: ...

    @property
    def merges(self) -> Merges: ...

    async def spawn(
        self, principal: Principal, args: SpawnArgs, *, remember: Callable[[Tx, Json], None] | None = None
    ) -> Json: ...

    async def message(
        self, principal: Principal, args: MessageArgs, *, remember: Callable[[Tx, Json], None] | None = None
    ) -> Json: ...

    async def wait(
        self, principal: Principal, session_ids: Sequence[str], any_one: bool, timeout_seconds: float
    ) -> Json: ...

    async def update(self, principal: Principal, args: UpdateArgs) -> Json: ...

    async def interrupt(self, principal: Principal, session_id: str) -> Json: ...

    async def end(self, principal: Principal, session_id: str, how: Literal["completed", "cancelled"]) -> Json: ...

    async def answer(
        self,
        principal: Principal,
        request_id: str,
        reply: str | None,
        answers: dict[str, list[str]] | None,
        message: str | None = None,
    ) -> Json: ...


class Containers(Protocol):
    """The container owners, as far as callers reach them. Waiting may be cancelled; the owner goes on."""

    def lease(self, project_id: str, workspace_id: str) -> AbstractAsyncContextManager[ReadyContainer]: ...

    async def start(
        self, project_id: str, workspace_id: str, *, recreate: bool = False, force: bool = False
    ) -> None: ...

    async def stop(self, project_id: str, workspace_id: str, *, force: bool = False) -> None: ...

    async def status(self, project_id: str, workspace_id: str) -> Json: ...

    async def logs(self, project_id: str, workspace_id: str, *, tail: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Services:
    """Nothing in here is owned by the doors."""

    config: Config
    store: Store
    feed: Feed
    tree: Sessions
    projects: Projects
    containers: Containers
    schedules: Schedules
    version: str
    readiness: Callable[[], str | None] = lambda: None
    """None when ready, else the reason that ``/ready`` gives."""
    about: Callable[[], Json] = dict
    """``runtimes`` and ``versions`` for ``project options``."""
    supervisor: Supervisor = field(default_factory=Supervisor)
    now: Callable[[], datetime] = clock.now
