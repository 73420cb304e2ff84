from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.sweep import Check, Cut, Operation, always, cancel_sweep


async def test_every_step_is_cut_once_and_the_last_run_is_whole() -> None:
    reached: list[int] = []
    cuts: list[Cut] = []

    async def operation() -> None:
        for number in range(3):
            reached.append(number)
            await trio.lowlevel.checkpoint()

    async def check(cut: Cut) -> None:
        cuts.append(cut)

    assert await cancel_sweep(lambda: always(operation, check)) == len(cuts) - 1
    assert [cut.step for cut in cuts] == list(range(1, len(cuts) + 1))
    assert [cut.cancelled for cut in cuts] == [True] * (len(cuts) - 1) + [False]
    assert reached[-3:] == [0, 1, 2]


async def test_a_leak_at_one_step_is_found() -> None:
    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        held: list[str] = []

        async def operation() -> None:
            await trio.lowlevel.checkpoint()
            held.append("resource")
            await trio.lowlevel.checkpoint()  # the bug: nothing gives it back from here
            held.clear()

        async def check(cut: Cut) -> None:
            assert not held, f"held after a cancel at step {cut.step}"

        yield operation, check

    with pytest.raises(AssertionError, match="held after a cancel at step"):
        await cancel_sweep(subject)


async def test_steps_of_child_tasks_are_cut_too() -> None:
    interrupted: list[int] = []

    async def child(number: int) -> None:
        try:
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            interrupted.append(number)
            raise

    async def operation() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, 1)
            nursery.start_soon(child, 2)

    async def check(cut: Cut) -> None:
        pass

    assert await cancel_sweep(lambda: always(operation, check)) > 4
    assert set(interrupted) == {1, 2}


async def test_an_operation_that_never_ends_is_reported() -> None:
    async def check(cut: Cut) -> None:
        assert cut.cancelled

    async def operation() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match="more than"):
        await cancel_sweep(lambda: always(operation, check), every=100)
