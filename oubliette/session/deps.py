"""What a session needs from the rooms below it, handed over by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from oubliette.agent.base import Agent
from oubliette.config import Config
from oubliette.core.model import Json, SessionRow
from oubliette.runtime.base import Exec
from oubliette.session.callers import Callers
from oubliette.session.feed import Feed
from oubliette.session.snapshots import SnapshotDesk
from oubliette.store.database import Store

if TYPE_CHECKING:
    from oubliette.session.caller_entries import CallerEntries


class ReadyContainer(Protocol):
    """A container whose agent answers; valid while leased."""

    @property
    def agent(self) -> Agent: ...

    @property
    def exec(self) -> Exec:
        """Run a command inside."""

    def directory(self, workspace_id: str) -> str:
        """Where that workspace is inside."""

    async def kill_session(self, mark: str) -> int:
        """Kill every process inside that carries the agent session's mark; returns how many were found."""

    async def put_file(self, name: str, data: bytes) -> None:
        """Write a file that the inside can only read, beside the agent's configuration."""


@dataclass(frozen=True, slots=True)
class Deps:
    """Callables and services of a session; nothing in here is owned by it."""

    store: Store
    feed: Feed
    config: Config
    lease: Callable[[str, str], AbstractAsyncContextManager[ReadyContainer]]
    """(project_id, workspace_id): waits until the container is ready, starting it when needed."""
    place_ready: Callable[[str, str], Awaitable[None]]
    """(project_id, workspace_id): waits while the clone runs; raises RequestError when it failed."""
    results: Callable[[SessionRow], Awaitable[Sequence[Json]]]
    """What lies in a session's results folder: [{path, bytes}]; starts nothing. Raises OublietteError, OSError."""
    kill_marked: Callable[[str, str, str], Awaitable[int]]
    """(project_id, workspace_id, agent session): kill what carries its mark, if the container runs. Raises
    OublietteError."""
    cut_model: Callable[[str], None]
    """(session_id): end its running model requests; new ones are refused by its rows."""
    model_settled: Callable[[str], Awaitable[None]]
    """(session_id): returns when no model request of it is unsettled."""
    callers: Callers
    caller_entries: CallerEntries
    now: Callable[[], datetime]
    fresh_hex: Callable[[int], str]
    message_id: Callable[[], str]
    """A fresh id in the agent's own scheme."""
    budget_changed: Callable[[str], None] = lambda _root_id: None
    """(root_id): another limit of the tree is written; what waits for it may look again."""
    snapshots: SnapshotDesk = field(default_factory=SnapshotDesk)
    public_text: Callable[[str], str] = str
    """An error's words as callers may read them: without the host's paths."""
