"""Long calls: how long one may take, and the progress that keeps its client patient."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from oubliette.api.tools.registry import Call
from oubliette.core.limits import MAX_WAIT_SECONDS, MAX_WAIT_WITH_PROGRESS_SECONDS, PROGRESS_SECONDS

T = TypeVar("T")
FIRST_LOOK_SECONDS: Final = 0.02
LAST_LOOK_SECONDS: Final = 0.5


def patience(call: Call, asked_seconds: float) -> float:
    """How long this call may wait: clients without progress give up sooner, and a time-out is a result."""
    return min(asked_seconds, MAX_WAIT_SECONDS if call.progress is None else MAX_WAIT_WITH_PROGRESS_SECONDS)


async def until(look: Callable[[], Awaitable[T]], good: Callable[[T], bool], seconds: float) -> T:
    """Look at something that changes behind the store until it is good, at most so long; returns the last look."""
    pause = FIRST_LOOK_SECONDS
    found = await look()
    with trio.move_on_after(seconds):
        while not good(found):
            await trio.sleep(pause)
            pause = min(pause * 1.5, LAST_LOOK_SECONDS)
            found = await look()
    return found


async def with_progress(call: Call, total_seconds: float, what: str, work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work``, telling the client every ten seconds that it goes on."""
    progress = call.progress
    if progress is None:
        return await work()
    results: list[T] = []
    failure: Exception | None = None

    async def tick() -> None:
        started = trio.current_time()
        while True:
            await trio.sleep(PROGRESS_SECONDS)
            waited = trio.current_time() - started
            await progress(round(waited, 1), total_seconds, f"{what}, {waited:.0f} s")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        try:
            results.append(await work())
        except Exception as error:  # noqa: BLE001 - carried out of the nursery as it is, not in a group
            failure = error
        nursery.cancel_scope.cancel(reason="the work is done")
    if failure is not None:
        raise failure
    return results[0]
