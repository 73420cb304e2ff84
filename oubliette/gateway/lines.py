"""Requests that do not fit into their tree's budget wait in line, one line for each tree, in the order they came.

Only the first of a line looks whether it fits now; what comes later does not overtake it. It looks again when something
has changed (``changed``), and every few seconds besides: a day that turns and a project whose limit was raised are
noticed without anybody telling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
import trio

from oubliette.core.budget import Held, Later
from oubliette.errors import OublietteError
from oubliette.gateway.metering import Ticket

LOOK_AGAIN_SECONDS = 5.0

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Line:
    """``present``: requests that wait, or look whether they have to."""

    project_id: str
    waiting: deque[object] = field(default_factory=deque)
    present: int = 0
    held: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Lines:
    """All lines. ``run`` is a service: it says of a tree whose line has emptied that nothing waits any more."""

    def __init__(
        self, reserve: Callable[[Ticket], Awaitable[Ticket | Later | Held]], release: Callable[[str], Awaitable[None]]
    ) -> None:
        self._reserve = reserve
        self._release = release
        self._lines: dict[str, _Line] = {}
        self._emptied: set[str] = set()
        self._wake = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Free held trees whose last waiting request has left unanswered."""
        self._wake.set()  # started again, it may find some
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._emptied:
                root_id = self._emptied.pop()
                if root_id in self._lines:  # somebody came meanwhile, and finds out how it stands
                    continue
                try:
                    await self._release(root_id)
                except OublietteError as error:
                    log.warning("tree_not_released", root_id=root_id, error=error.message)
                    self._emptied.add(root_id)
                    await trio.sleep(LOOK_AGAIN_SECONDS)

    async def through(self, ticket: Ticket, waits: Callable[[], None] = lambda: None) -> Ticket:
        """The ticket with its reservation, as soon as the request fits. ``waits`` is called when it has to wait for
        that, and may raise.

        Raises what ``reserve`` raises. Cancelled, it leaves the line and has reserved nothing.
        """
        line = self._lines.setdefault(ticket.root_id, _Line(ticket.project_id))
        line.present += 1
        try:
            if not line.waiting:
                verdict = await self._reserve(ticket)
                if isinstance(verdict, Ticket):
                    line.held = False
                    return verdict
                line.held = isinstance(verdict, Held)
            waits()
            return await self._wait(line, ticket)
        finally:
            line.present -= 1
            if not line.present:
                del self._lines[ticket.root_id]
                if line.held:
                    self._emptied.add(ticket.root_id)
                    self._wake.set()

    async def _wait(self, line: _Line, ticket: Ticket) -> Ticket:
        me = object()
        line.waiting.append(me)
        try:
            while True:
                changed = line.changed
                if line.waiting[0] is me:
                    verdict = await self._reserve(ticket)
                    if isinstance(verdict, Ticket):
                        line.held = False
                        return verdict
                    line.held = isinstance(verdict, Held)
                    with trio.move_on_after(LOOK_AGAIN_SECONDS):
                        await changed.wait()
                else:
                    await changed.wait()
        finally:
            line.waiting.remove(me)
            line.wake()

    def waiting(self, root_id: str | None = None) -> int:
        """How many requests wait, in all or of one tree."""
        return sum(len(line.waiting) for root, line in self._lines.items() if root_id in (None, root))

    def changed(self, *, root_id: str | None = None, project_id: str | None = None) -> None:
        """Something that one tree, or every tree of a project, is weighed by has changed."""
        for root, line in self._lines.items():
            if root == root_id or line.project_id == project_id:
                line.wake()
