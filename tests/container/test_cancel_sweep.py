"""The daemon stopped at every step of an owner, one after another: the next one always finds its way."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from oubliette.container.registry import Containers
from tests.container.fakes import QUICK, World, world
from tests.container.pretended import PretendedLauncher, PretendedRuntime

Work = Callable[[Containers], Awaitable[None]]


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope at the nth step that any task of an owner, or of its relay's host, makes."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.step = step
        self.count = 0
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith(("container ", "oubliette.")):
            self.count += 1
            if self.count == self.step:
                self._scope.cancel(f"step {self.step}")


async def start(served: Containers) -> None:
    await served.start("p1", "w1")


async def recreate(served: Containers) -> None:
    await served.start("p1", "w1")
    await served.start("p1", "w1", recreate=True)


async def stop(served: Containers) -> None:
    await served.start("p1", "w1")
    await served.stop("p1", "w1")


async def remove(served: Containers) -> None:
    await served.start("p1", "w1")
    await served.remove("p1", "w1")


async def hibernate(served: Containers) -> None:
    async with served.lease("p1", "w1") as ready:
        pass
    await ready.lost.wait()
    await trio.sleep(0.02)


@pytest.mark.parametrize("work", [start, recreate, stop, remove, hibernate])
async def test_a_daemon_that_ends_at_any_step_strands_nothing(tmp_path: Path, work: Work) -> None:
    step = 1
    tuning = replace(QUICK, look=0.01, hibernate=0.01 if work is hibernate else 600)
    async with trio.open_nursery() as engine, world(tmp_path, tuning=tuning) as w:
        w.runtime = runtime = PretendedRuntime(tmp_path, engine)
        w.launcher = PretendedLauncher()
        descriptors = 0
        while await cancelled_at(w, step, work):
            await check(w, runtime)
            # Store connections and the event loop's own are opened once, in the first round.
            open_now = len(os.listdir("/proc/self/fd"))
            descriptors = descriptors or open_now
            assert open_now <= descriptors + 3, f"descriptors after step {step}"
            step += 1
        assert step > 60, "the sweep went through the whole work"
        engine.cancel_scope.cancel("the test is over")


async def cancelled_at(w: World, step: int, work: Work) -> bool:
    """Whether the work was long enough to be cancelled there."""
    with trio.fail_after(10), trio.CancelScope() as daemon:
        instrument = CancelAtStep(step, daemon)
        trio.lowlevel.add_instrument(instrument)
        try:
            async with w.daemon() as served:
                await work(served)
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.count >= step


async def check(w: World, runtime: PretendedRuntime) -> None:
    """The next daemon leases the container; there is exactly one; removed, nothing is left."""
    with trio.fail_after(10):
        async with w.daemon() as served:
            async with served.lease("p1", "w1") as ready:
                row = await w.row()
                assert row.container_id == ready.row.container_id
                assert [len(tags) for tags in runtime.agents.values()] == [1]
                (box,) = runtime.running()
                assert box.spec.labels["dev.oubliette.container"] == row.container_id
                assert len(runtime.boxes) == 1
            await served.remove("p1", "w1")
        assert (runtime.boxes, await w.rows()) == ({}, [])
        assert os.listdir(w.home.run / "c") == []
