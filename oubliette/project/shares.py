"""Places for work that takes long, shared so that nobody's slow work keeps everybody else's waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio


@dataclass(slots=True)
class _Queue:
    slots: trio.Semaphore
    users: int = 0


class Shares:
    """``total`` at once, and of one key (a project: its agents decide how long theirs takes) at most ``each``."""

    def __init__(self, total: int, each: int) -> None:
        self._all = trio.Semaphore(total)
        self._each = each
        self._queues: dict[str, _Queue] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Hold a place; first come, first served among those of the key, and among the keys."""
        queue = self._queues.setdefault(key, _Queue(trio.Semaphore(self._each)))
        queue.users += 1
        try:
            async with queue.slots, self._all:
                yield
        finally:
            queue.users -= 1
            if not queue.users:
                del self._queues[key]
