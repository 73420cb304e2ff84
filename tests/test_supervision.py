from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing

from oubliette.supervision import FIRST_PAUSE_SECONDS, STANDS_SECONDS, Supervisor


class Failing:
    """A service that fails whenever it is told to."""

    def __init__(self) -> None:
        self.starts = 0
        self.fail = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        self.starts += 1
        task_status.started(f"start {self.starts}")
        await self.fail.wait()
        self.fail = trio.Event()
        raise ValueError("a bug")


def started_again(service: Failing, known: int) -> bool:
    return service.starts > known


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(1000):
        while not condition():
            await trio.sleep(0.1)


async def test_a_service_that_fails_starts_again_and_is_named_until_it_stands(
    autojump_clock: trio.testing.MockClock,
) -> None:
    supervisor, service = Supervisor(), Failing()
    async with trio.open_nursery() as nursery:
        assert await nursery.start(supervisor.of("clockwork", service.run)) == "start 1"
        assert supervisor.failing == []
        service.fail.set()
        await until(lambda: service.starts == 2)
        assert supervisor.failing == ["clockwork"]
        await trio.sleep(STANDS_SECONDS + 1)
        assert supervisor.failing == []
        nursery.cancel_scope.cancel()


async def test_the_pauses_grow_and_a_long_run_makes_them_short_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    supervisor, service = Supervisor(), Failing()
    pauses = []
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.of("clockwork", service.run))
        for _ in range(8):
            known = service.starts
            failed_at = trio.current_time()
            service.fail.set()
            await until(partial(started_again, service, known))
            pauses.append(round(trio.current_time() - failed_at))
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
        await trio.sleep(STANDS_SECONDS)
        known, failed_at = service.starts, trio.current_time()
        service.fail.set()
        await until(lambda: service.starts > known)
        assert trio.current_time() - failed_at == pytest.approx(FIRST_PAUSE_SECONDS, abs=0.2)
        nursery.cancel_scope.cancel()


async def test_a_service_that_cannot_start_at_all_is_an_error_of_the_start() -> None:
    async def broken(*, task_status: trio.TaskStatus[None]) -> None:
        raise ValueError("no ground to stand on")

    supervisor = Supervisor()
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="no ground")):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.of("clockwork", broken))
    assert supervisor.failing == []


async def test_a_service_that_returns_is_over() -> None:
    async def brief(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    supervisor = Supervisor()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.of("brief", brief))
    assert supervisor.failing == []
