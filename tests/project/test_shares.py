"""Places for long work: of one key only some, so that others have theirs."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from oubliette.project.shares import Shares


async def test_one_key_takes_its_share_and_never_all_places() -> None:
    shares = Shares(3, 2)
    at_work: list[str] = []
    go_on = trio.Event()

    async def work(key: str) -> None:
        async with shares.of(key):
            at_work.append(key)
            await go_on.wait()
        at_work.remove(key)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for key in ("slow", "slow", "slow", "slow", "other", "third"):
                nursery.start_soon(work, key)
                await wait_all_tasks_blocked()
            assert at_work == ["slow", "slow", "other"]
            go_on.set()
    assert at_work == []


async def test_who_stops_waiting_leaves_nothing_behind() -> None:
    shares = Shares(1, 1)
    async with shares.of("a"):
        for key in ("a", "b"):
            with trio.move_on_after(0.01) as scope:
                async with shares.of(key):
                    raise AssertionError("there was no room")
            assert scope.cancelled_caught
    with trio.fail_after(5):
        for key in ("a", "b"):
            async with shares.of(key):
                pass
    assert shares._queues == {}
