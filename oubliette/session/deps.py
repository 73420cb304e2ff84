"""What a session needs from the rooms below it, handed over by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from oubliette.agent.base import Agent
from oubliette.config import Config
from oubliette.runtime.base import Exec
from oubliette.session.feed import Feed
from oubliette.store.database import Store


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
    cut_model: Callable[[str], None]
    """(session_id): end its running model requests; new ones are refused by its rows."""
    model_settled: Callable[[str], Awaitable[None]]
    """(session_id): returns when no model request of it is unsettled."""
    now: Callable[[], datetime]
    fresh_hex: Callable[[int], str]
    message_id: Callable[[], str]
    """A fresh id in the agent's own scheme."""
