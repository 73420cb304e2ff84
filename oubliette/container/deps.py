"""What a container's owner needs, handed over by the composition root, and the numbers of its patience."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import trio

from oubliette.container.layout import Ground
from oubliette.container.ready import AgentLauncher, Listen
from oubliette.core.model import ContainerRow, Json
from oubliette.runtime.base import Runtime
from oubliette.store.database import Store

ContainerCode = Literal[
    "container_starting", "container_ready", "container_lost", "agent_restarted", "hibernated", "woken"
]
STARTS_AT_ONCE = 8
"""Containers of a daemon that are being started side by side. A morning's schedules may want hundreds: begun together,
none of them would be up within its patience."""

Notify = Callable[[ContainerRow, ContainerCode, Json], None]
"""Told of each change once its row is written. Must not block."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Seconds, unless the name says otherwise."""

    relay_start: float = 30.0
    """How long a started container's relay may take to dial."""
    relay_gone: float = 20.0
    """How long a relay may stay away while its container runs."""
    look: float = 0.5
    """How often the engine is asked meanwhile whether it still runs."""
    stop_grace: float = 8.0
    """Between SIGTERM and SIGKILL for a container; more than its relay's own grace for what runs inside."""
    agent_grace: float = 3.0
    agent_steady: float = 60.0
    """An agent that ran for so long has recovered from whatever made it end before."""
    agent_failures: int = 5
    """In a row; then the container has failed."""
    backoff_first: float = 0.25
    backoff_last: float = 30.0
    memory_look: float = 15.0
    memory_share: float = 0.5
    """An idle agent that uses more of the container's memory is restarted."""
    memory_least_bytes: int = 1 << 30
    """... but not for using less than this."""
    tools_look: float = 1.0
    """After a client of the agent's tools has left: before it is seen whether the agent has lost them."""
    hibernate: float | None = None
    """None: what the project or the configuration says."""
    crash_pause: float = 5.0
    """Before an owner that crashed goes on."""


@dataclass(frozen=True, slots=True)
class OwnerDeps:
    """The same for all owners of a daemon."""

    store: Store
    runtime: Runtime
    listen: Listen
    launcher: AgentLauncher
    toolkit: Callable[[], Awaitable[os.PathLike[str]]]
    """The toolkit's directory; may take as long as fetching it takes."""
    ground: Ground
    notify: Notify
    now: Callable[[], datetime]
    fresh_hex: Callable[[int], str]
    tuning: Tuning = Tuning()
    starting: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(STARTS_AT_ONCE))
    """Held from a container's making to its relay's first word."""
