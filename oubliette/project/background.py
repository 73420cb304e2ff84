"""Work on places that goes on when its call ends: one task per place at a time, in a nursery of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
import trio

log = structlog.get_logger(__name__)

Work = Callable[[], Awaitable[object]]


class _Task:
    __slots__ = ("done", "scope", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.scope = trio.CancelScope()
        self.done = trio.Event()


class Background:
    """Runs work by key; what is started for a key that has work follows it."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._queues: dict[str, list[_Task]] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """While open, work may be started; leaving cancels it (its rows say what is left to do)."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel("projects stop")

    def start(self, key: str, work: Work, *, instead: bool = False) -> None:
        """Start work (after what runs for that key); no checkpoint. ``instead``: what runs and waits is cancelled."""
        if self._nursery is None:
            raise RuntimeError("Projects.run is not running")
        task = _Task(work)
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = [task]
            self._nursery.start_soon(self._drain, key, name=f"work on {key}")
            return
        if instead:
            self._cancel(queue)
        queue.append(task)

    async def stop(self, key: str) -> None:
        """Cancel what runs and waits for the key, and wait for its end."""
        self._cancel(self._queues.get(key, []))
        await self.idle(key)

    async def idle(self, key: str) -> None:
        """Wait until nothing runs or waits for the key."""
        while queue := self._queues.get(key):
            await queue[-1].done.wait()

    def _cancel(self, queue: list[_Task]) -> None:
        for task in queue:
            task.scope.cancel("something else is to be done")

    async def _drain(self, key: str) -> None:
        queue = self._queues[key]
        try:
            while queue:
                with queue[0].scope:
                    try:
                        await queue[0].work()
                    except Exception:
                        # A boundary: one place's trouble must not end the others. Its row keeps its state, and the
                        # next start takes it up again.
                        log.exception("work on a place failed", place=key)
                queue.pop(0).done.set()
        finally:
            del self._queues[key]
            for task in queue:
                task.done.set()
