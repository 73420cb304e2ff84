"""The one task that creates, starts, watches, stops and removes the container of one place.

Everybody else leaves orders and waits for an event: cancelling who waits cancels nothing here, and the owner being
cancelled (shutdown) tears nothing down. Intent row, effect, result row; what a crash leaves between them is settled by
the next adoption.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import structlog
import trio

from oubliette.container import directories
from oubliette.container.deps import OwnerDeps
from oubliette.container.layout import Place, container_name
from oubliette.container.life import Life
from oubliette.container.ready import ReadyContainer
from oubliette.core.model import ContainerRow, ContainerState
from oubliette.errors import ContainerExited, OublietteError, RequestError, RuntimeUnavailable
from oubliette.runtime.base import Progress, Runtime
from oubliette.store import containers

log = structlog.get_logger(__name__)

OrderKind = Literal["stop", "hibernate", "recreate", "remove"]


class Attempt:
    """One way to readiness, shared by all who wait for it."""

    def __init__(self) -> None:
        self.decided = trio.Event()
        self.error: OublietteError | None = None

    def decide(self, error: OublietteError | None) -> None:
        self.error = error
        self.decided.set()


@dataclass(slots=True)
class Order:
    kind: OrderKind
    force: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    error: OublietteError | None = None


class Owner:
    """Everything about one place's container; ``run`` is its task."""

    def __init__(self, place: Place, deps: OwnerDeps) -> None:
        self.place = place
        self.deps = deps
        self.row: ContainerRow | None = None
        self.progress: Progress | None = None
        self.ready: ReadyContainer | None = None
        self.removed = False
        self.leases = 0
        self.idle_since = trio.current_time()
        self.leases_changed = trio.Event()
        self.renew = False
        """Make a new generation at the next start, whatever there is."""
        self.outdated = False
        """It would be made otherwise by now: it hibernates as soon as nobody has leased it, and is made anew."""
        self._loaded = trio.Event()
        self._attempt: Attempt | None = None
        self._orders: deque[Order] = deque()
        self._wake = trio.Event()
        self._life: Life | None = None
        self._life_scope: trio.CancelScope | None = None

    # --- for everybody

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[ReadyContainer]:
        """Wait until it is ready, and keep it from hibernating. Raises OublietteError when it cannot be had."""
        self._count(1)
        try:
            yield await self._ready()
        finally:
            self._count(-1)

    async def obey(self, kind: OrderKind, *, force: bool = False) -> None:
        """Leave an order and wait until it is carried out. What is being started ends for it."""
        if self.removed:
            return
        order = Order(kind, force)
        self._orders.append(order)
        self._wake.set()
        if self._life_scope is not None:
            self._life_scope.cancel(f"order: {kind}")
        await order.done.wait()
        if order.error is not None:
            raise order.error

    def outdate(self) -> None:
        """What it is made from has changed: it goes once nobody works in it, and the next one is another."""
        self.outdated = True
        self._changed()

    def want(self) -> Attempt:
        """Begin to start it, unless that is under way."""
        if self._attempt is None:
            self._attempt = Attempt()
            self._wake.set()
        return self._attempt

    def take_over(self, row: ContainerRow | None) -> None:
        """The row as the store has it, before ``run`` has looked for itself."""
        self.row = row
        self._loaded.set()

    async def running(self) -> ReadyContainer | None:
        """The container if it is ready; one that was and is being taken over, or given a new agent, is waited for.
        Starts nothing."""
        was_ready = self.row is not None and self.row.state is ContainerState.READY
        if self.ready is None and was_ready and self._attempt is not None:
            await self._attempt.decided.wait()
        return self.ready

    async def _ready(self) -> ReadyContainer:
        while True:
            ready = self.ready
            if self.removed:
                raise RequestError("not_found", "This container is being removed.")
            if ready is None or self._orders:
                attempt = self.want()
                await attempt.decided.wait()
                if attempt.error is not None:
                    raise attempt.error
            # Asked because a dead agent is known here only after its tools are killed: too late for the next turn.
            elif (self._life is None or await self._life.agent_lives()) and self.ready is ready:
                return ready

    def _count(self, more: int) -> None:
        self.leases += more
        self.idle_since = trio.current_time()
        self._changed()

    def _changed(self) -> None:
        self.leases_changed.set()
        self.leases_changed = trio.Event()

    # --- for its life

    async def save(self, **changes: Any) -> ContainerRow:
        """Write columns of the row; a changed state is a new ``since``."""
        row = self.row
        if row is None:
            raise AssertionError("an owner without a row has nothing to save")
        if changes.get("state", row.state) is not row.state:
            changes["since"] = self.deps.now()
        await self.deps.store.write(partial(containers.update, container_id=row.container_id, **changes))
        self.row = replace(row, **changes)
        return self.row

    def now_ready(self, ready: ReadyContainer) -> None:
        """The agent answers: whoever waits may go on."""
        self.ready = ready
        self._count(0)
        self._decide(None)

    def not_ready(self) -> None:
        """The agent has gone and will come back: whoever comes now waits."""
        self.ready = None
        self.want()

    # --- the task

    async def run(self) -> None:
        """Carry out orders until the container is removed. A failed start is its waiters' error, not the end."""
        if not self._loaded.is_set():
            find = partial(containers.for_place, project_id=self.place.project_id, workspace_id=self.place.workspace_id)
            self.take_over(await self.deps.store.read(find))
        while not self.removed:
            if self._orders:
                order = self._orders[0]
                try:
                    await self._carry_out(order)
                except OublietteError as error:
                    log.warning("order failed", order=order.kind, place=self.place.key, error=str(error))
                    order.error = error
                self._orders.remove(order)
                order.done.set()
            elif self._attempt is not None:
                await self._bring_up()
            else:
                self._wake = trio.Event()
                await self._wake.wait()
        for order in self._orders:
            order.done.set()

    def crashed(self) -> None:
        """``run`` has raised: a bug. Whoever waits is told."""
        self.ready = None
        error = OublietteError(
            "The container's owner failed inside Oubliette.", hint="The daemon's log has the details."
        )
        self._decide(error)
        while self._orders:
            order = self._orders.popleft()
            order.error = error
            order.done.set()

    def runtime_of(self, row: ContainerRow) -> Runtime:
        """Raises RuntimeUnavailable when it was made with another runtime than is in use now."""
        if row.runtime == self.deps.runtime.name:
            return self.deps.runtime
        raise RuntimeUnavailable(
            f"container {row.container_id} was made with {row.runtime}, and {self.deps.runtime.name} is in use now",
            hint=f"Make {row.runtime} work again, or give the container up: container stop with force.",
        )

    def name_of(self, row: ContainerRow) -> str:
        return container_name(self.deps.ground.instance, row.container_id)

    async def _bring_up(self) -> None:
        failure: OublietteError | None = None
        life = Life(self)
        with trio.CancelScope() as scope:
            self._life, self._life_scope = life, scope
            try:
                await life.run()
            except OublietteError as error:
                failure = error
            finally:
                self._life = self._life_scope = None
                self.ready = None
                self.progress = None
                life.over()
        if failure is not None:
            await self._came_down(failure)
            self._decide(failure)
            # Whatever was asked for does not exist: nothing is kept of it.
            self.removed = self.row is None
        elif not scope.cancelled_caught:
            self._orders.appendleft(Order("hibernate"))
        elif any(order.kind != "recreate" for order in self._orders):
            self._decide(ContainerExited(f"the container of {self.place.key} was stopped"))

    async def _came_down(self, failure: OublietteError) -> None:
        """Say what became of it, and make sure that nothing of it runs on."""
        row = self.row
        if row is None:
            return
        lost = isinstance(failure, ContainerExited)
        log.warning("container lost" if lost else "container failed", container=row.container_id, error=str(failure))
        state = ContainerState.LOST if lost else ContainerState.FAILED
        row = await self.save(state=state, error=failure.as_json())
        if lost:
            self.deps.notify(row, "container_lost", {"message": str(failure)})
        if not row.spec:
            return
        try:
            await self.runtime_of(row).stop(self.name_of(row), self.deps.tuning.stop_grace)
        except OublietteError as error:
            log.warning("container not stopped", container=row.container_id, error=str(error))

    async def _carry_out(self, order: Order) -> None:
        row = self.row
        if row is None:
            if order.kind == "remove":
                self.removed = True
                self._decide(RequestError("not_found", "This container was removed."))
            return
        if order.kind == "hibernate":
            row = await self.save(state=ContainerState.HIBERNATED, error=None)
            await self.runtime_of(row).stop(self.name_of(row), self.deps.tuning.stop_grace)
            self.deps.notify(row, "hibernated", {})
        elif order.kind == "remove":
            await self._remove(row, order)
        else:
            self.renew = self.renew or order.kind == "recreate"
            row = await self.save(state=ContainerState.STOPPED, error=None)
            if self._can_be_reached(row, order):
                await self.runtime_of(row).stop(self.name_of(row), self.deps.tuning.stop_grace)
            else:
                await self._give_up(row)

    async def _remove(self, row: ContainerRow, order: Order) -> None:
        row = await self.save(state=ContainerState.STOPPED, error=None)
        if self._can_be_reached(row, order):
            await self.runtime_of(row).remove(self.name_of(row))
        await self.deps.store.write(partial(containers.delete, container_id=row.container_id))
        await trio.to_thread.run_sync(directories.forget, self.deps.ground, row.container_id)
        self.row = None
        self.removed = True
        self._decide(RequestError("not_found", "This container was removed."))

    def _can_be_reached(self, row: ContainerRow, order: Order) -> bool:
        """False: it was never made, or the caller answers for what its runtime may still hold."""
        return bool(row.spec) and not (order.force and row.runtime != self.deps.runtime.name)

    async def _give_up(self, row: ContainerRow) -> None:
        """Nothing of it can be stopped by us any more; the next start makes a new one in the runtime of now."""
        log.warning("container given up", container=row.container_id, runtime=row.runtime)
        await self.save(state=ContainerState.ABSENT, spec={})

    def _decide(self, error: OublietteError | None) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.decide(error)
