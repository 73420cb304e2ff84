"""One thing for all tests of a module: pytest-trio's own fixtures end with each test, and a daemon takes seconds."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

import trio

T = TypeVar("T")
ENTER_SECONDS = 120
LEAVE_SECONDS = 120


@contextmanager
def entered_in_a_thread(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Enter an async context in a Trio loop of its own and leave it at the end; what fails there is raised here.

    What it gives is used from another loop: plain values and locks of its own only.
    """
    told: queue.Queue[tuple[T, trio.lowlevel.TrioToken, trio.Event] | BaseException] = queue.Queue()
    failed: list[BaseException] = []

    async def live() -> None:
        over = trio.Event()
        async with make() as value:
            told.put((value, trio.lowlevel.current_trio_token(), over))
            await over.wait()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:
            failed.append(error)
            told.put(error)

    thread = threading.Thread(target=run, name="shared", daemon=True)
    thread.start()
    first = told.get(timeout=ENTER_SECONDS)
    if isinstance(first, BaseException):
        raise first
    value, token, over = first
    try:
        yield value
    finally:
        if not failed:
            trio.from_thread.run_sync(over.set, trio_token=token)
        thread.join(LEAVE_SECONDS)
        assert not thread.is_alive(), f"it was not left in {LEAVE_SECONDS} s"
        if failed:
            raise failed[0]
