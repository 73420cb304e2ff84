"""Create, start, exec and remove cut at every step: what is left can be removed by name, and then nothing is left."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from oubliette.runtime.docker_api import EngineApi
from tests.runtime.contract import Kit, processes_with, until_gone
from tests.runtime.test_contract import marker, open_files
from tests.sweep import Check, Cut, Operation, cancel_sweep

SECONDS = 600


def network_of(kit: Kit) -> dict[str, Any]:
    """An engine's containers get a network in these sweeps, because that is one thing more to be left."""
    if kit.runtime.name != "docker":
        return {}
    return {"network": "bridge", "network_name": f"oubliette-{kit.instance}"}


async def nothing_is_left(kit: Kit, cut: Cut) -> None:
    assert await kit.runtime.list(kit.labels) == [], f"a container is left by a cancel at step {cut.step}"
    if kit.runtime.name == "docker":
        filters = json.dumps({"label": [f"{key}={value}" for key, value in kit.labels.items()]})
        left = await EngineApi(os.environ).call("GET", "/networks", what="list", params={"filters": filters})
        assert left == [], f"a network is left by a cancel at step {cut.step}"


async def sweep(kit: Kit, subject: Any, *, every: int = 1) -> None:
    """The sweep, with the descriptors counted before and after."""
    await nothing_is_left(kit, Cut(0, cancelled=False))
    before = open_files()
    with trio.fail_after(SECONDS):
        cuts = await cancel_sweep(subject, every=every)
    assert cuts > 1
    assert open_files() <= before


async def test_a_create_cut_anywhere_can_be_removed_by_name(kit: Kit) -> None:
    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        spec = kit.spec(**network_of(kit))

        async def operation() -> None:
            await kit.runtime.create(spec)

        async def check(cut: Cut) -> None:
            there = await kit.runtime.inspect(spec.name)
            assert there is not None or cut.cancelled
            await kit.runtime.remove(spec.name)
            await nothing_is_left(kit, cut)

        yield operation, check

    await sweep(kit, subject)


async def test_a_create_cut_anywhere_can_be_done_again(kit: Kit) -> None:
    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        spec = kit.spec()

        async def operation() -> None:
            await kit.runtime.create(spec)

        async def check(cut: Cut) -> None:
            await kit.runtime.create(spec)
            assert (await kit.info(spec.name)).state == "created"
            await kit.runtime.remove(spec.name)
            await nothing_is_left(kit, cut)

        yield operation, check

    await sweep(kit, subject)


async def test_a_start_cut_anywhere_can_be_removed_by_name(kit: Kit) -> None:
    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        time = marker()
        name = await kit.create(["sleep", time], **network_of(kit))

        async def operation() -> None:
            await kit.runtime.start(name)

        async def check(cut: Cut) -> None:
            await kit.runtime.remove(name)
            assert not processes_with(time), f"it runs on after a cancel at step {cut.step}"
            await nothing_is_left(kit, cut)

        yield operation, check

    # Every second step of an engine's: each run takes it most of a second.
    await sweep(kit, subject, every=2 if kit.runtime.name == "docker" else 1)


async def test_a_remove_cut_anywhere_can_be_done_again(kit: Kit) -> None:
    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        time = marker()
        name = await kit.run(["sleep", time], **network_of(kit))

        async def operation() -> None:
            await kit.runtime.remove(name)

        async def check(cut: Cut) -> None:
            await kit.runtime.remove(name)
            assert await kit.runtime.inspect(name) is None
            assert not processes_with(time), f"it runs on after a cancel at step {cut.step}"
            await nothing_is_left(kit, cut)

        yield operation, check

    await sweep(kit, subject, every=2 if kit.runtime.name == "docker" else 1)


async def test_a_command_cut_anywhere_does_not_run_on(kit: Kit) -> None:
    with trio.fail_after(60):
        name = await kit.run()

    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        time = marker()

        async def operation() -> None:
            # Ends at its time where no cancel comes, so that the sweep has a last run.
            await kit.runtime.exec(name, ["sh", "-c", f": {time}; sleep 5"], timeout_seconds=0.3)

        async def check(cut: Cut) -> None:
            with trio.move_on_after(1):  # a process that was just killed is seen for a moment still
                await until_gone(time)
            assert not processes_with(time), f"it runs on after a cancel at step {cut.step}"

        yield operation, check

    before = open_files()
    with trio.fail_after(SECONDS):
        await cancel_sweep(subject, every=3 if kit.runtime.name == "docker" else 1)
    assert open_files() <= before


async def test_a_stop_cut_anywhere_can_be_done_again(kit: Kit) -> None:
    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        time = marker()
        name = await kit.run(["sleep", time])

        async def operation() -> None:
            await kit.runtime.stop(name, 0)

        async def check(cut: Cut) -> None:
            await kit.runtime.stop(name, 0)
            assert (await kit.info(name)).state == "exited"
            assert not processes_with(time)
            await kit.runtime.remove(name)

        yield operation, check

    await sweep(kit, subject)
