"""Work on places that goes on when its call ends: one task per place at a time, in a nursery of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
import trio

log = structlog.get_logger(__name__)

Work = Callable[[], Awaitable[None]]


class Background:
    """Runs work by key. What is queued behind running work of the same key follows it."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._queued: dict[str, list[tuple[Work, trio.Event]]] = {}

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

    def start(self, key: str, work: Work) -> trio.Event:
        """Start work (after what runs for that key); no checkpoint. Returns the event of its end, however it ends."""
        if self._nursery is None:
            raise RuntimeError("Projects.run is not running")
        done = trio.Event()
        waiting = self._queued.get(key)
        if waiting is not None:
            waiting.append((work, done))
            return done
        self._queued[key] = [(work, done)]
        self._nursery.start_soon(self._drain, key, name=f"work on {key}")
        return done

    async def idle(self, key: str) -> None:
        """Wait until nothing runs or waits for that key."""
        while waiting := self._queued.get(key):
            await waiting[-1][1].wait()

    async def _drain(self, key: str) -> None:
        waiting = self._queued[key]
        try:
            while waiting:
                work, done = waiting[0]
                try:
                    await work()
                except Exception:
                    # A boundary: one place's trouble must not end the others. The row keeps its state, and the next
                    # start takes it up again.
                    log.exception("work on a place failed", place=key)
                finally:
                    done.set()
                waiting.pop(0)
        finally:
            del self._queued[key]
            for _, done in waiting:
                done.set()
