"""Cancel sweep: run an operation again and again, cancelled at its 1st, 2nd, 3rd... step, and look at what is left.

An operation that holds its promises only when it is left alone shows here, at the step where it does not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

MOST_STEPS = 2000
"""An operation of more steps is not for a sweep; also what ends one that never comes to its end."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How one run ended. ``step`` counts from 1; ``cancelled`` False: it came to its end all the same."""

    step: int
    cancelled: bool


Operation = Callable[[], Awaitable[object]]
Check = Callable[[Cut], Awaitable[None]]
Subject = Callable[[], AbstractAsyncContextManager[tuple[Operation, Check]]]


class _CancelAtStep(trio.abc.Instrument):
    """Cancels ``scope`` before the ``step``-th time that ``task``, or a task below it, gets to run."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.count = 0
        self.task: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._is_below(task):
            self.count += 1
            if self.count == self.step:
                self.scope.cancel(f"sweep: step {self.step}")

    def _is_below(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task is not self.task:
            nursery = task.parent_nursery
            task = nursery.parent_task if nursery is not None else None
        return task is not None and self.task is not None


async def cancel_sweep(subject: Subject, *, seconds_each: float = 30, every: int = 1) -> int:
    """Sweep over ``subject``, which gives a fresh operation and the check for what it leaves. Returns the number of
    runs that were cut. ``every`` > 1 takes every n-th step of an operation that is long.

    The check runs outside the cancelled scope, and so does the subject's own clean-up.
    """
    step = 1
    while step <= MOST_STEPS:
        with trio.fail_after(seconds_each):
            async with subject() as (operation, check):
                cutter = _CancelAtStep(step)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_run_cut, operation, cutter)
                await check(Cut(step, cutter.scope.cancelled_caught))
        if cutter.count < step:
            return (step - 1) // every
        step += every
    raise AssertionError(f"the operation has more than {MOST_STEPS} steps")


async def _run_cut(operation: Operation, cutter: _CancelAtStep) -> None:
    cutter.task = trio.lowlevel.current_task()
    trio.lowlevel.add_instrument(cutter)
    try:
        with cutter.scope:
            await operation()
    finally:
        trio.lowlevel.remove_instrument(cutter)


@asynccontextmanager
async def always(operation: Operation, check: Check) -> AsyncIterator[tuple[Operation, Check]]:
    """A subject's context for what needs no setting up."""
    yield operation, check
