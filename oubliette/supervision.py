"""Keeping services alive: one that fails is logged, started again after a while, and named until it stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
import trio

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
STANDS_SECONDS = 60.0
"""A service that has run for so long since its last failure is well again, and its next pause is the first one."""

log = structlog.get_logger(__name__)

Service = Callable[..., Awaitable[Any]]
"""``async def run(*, task_status)``: ``started()`` once it serves, then until it is cancelled."""


class Supervisor:
    """Runs services and knows which of them are failing."""

    def __init__(self) -> None:
        self._failing: set[str] = set()

    @property
    def failing(self) -> list[str]:
        """Names of services that have failed and do not stand yet."""
        return sorted(self._failing)

    async def supervise(
        self, name: str, service: Service, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run ``service`` until cancelled; for ``nursery.start``. One that cannot even start for the first time raises:
        then there is nothing that has worked before and should again. Returns if the service does."""
        started = False
        pause = FIRST_PAUSE_SECONDS

        class Status:
            """The first ``started`` is the caller's; those of later starts are nobody's."""

            def started(self, value: Any = None) -> None:
                nonlocal started
                if not started:
                    started = True
                    task_status.started(value)

        while True:
            begun = trio.current_time()
            try:
                if name not in self._failing:
                    await service(task_status=Status())
                    return
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._well_again, name)
                    await service(task_status=Status())
                    nursery.cancel_scope.cancel("the service has returned")
                self._failing.discard(name)
                return
            except Exception:  # the boundary of one service's work
                if not started:
                    raise
                log.exception("a service failed; it starts again", service=name, pause_seconds=pause)
            self._failing.add(name)
            if trio.current_time() - begun >= STANDS_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _well_again(self, name: str) -> None:
        await trio.sleep(STANDS_SECONDS)
        self._failing.discard(name)
        log.info("a service that had failed stands again", service=name)

    def of(self, name: str, service: Service) -> Callable[..., Awaitable[None]]:
        """``service`` under supervision, to be given to ``nursery.start``."""
        return partial(self.supervise, name, service)
