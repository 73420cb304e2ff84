"""Ending a sandbox: asked first, then killed, and nothing of it left, also when its shim was killed before it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import trio

from oubliette.errors import EngineError
from oubliette.runtime import cgroup, linux
from oubliette.runtime.bubblewrap_state import Box, ProcessId, Run
from oubliette.runtime.sandbox_network import READY_SECONDS
from oubliette.runtime.sandbox_shim import START_SECONDS

LAUNCH_SECONDS = START_SECONDS + READY_SECONDS + 10
"""The shim's own bounds (sandbox, network) and some for a busy host."""
GONE_SECONDS = 10.0
"""How long the processes of a killed sandbox may take to be gone."""
SHIM_SECONDS = 5.0
"""How long the shim may take to clean up after the end."""
HANDLER_SECONDS = 1.0
"""How long a program that was just started may take until it can be asked to stop."""
POLL_SECONDS = 0.01


async def end_sandbox(box: Box, grace_seconds: float) -> None:
    """SIGTERM to the first process, SIGKILL after the grace: with it the kernel ends everything inside.

    Returns when nothing of it runs. Raises EngineError when it cannot be killed.
    """
    run = await _begun(box)
    if run is not None and run.init is not None:
        descriptor = await trio.to_thread.run_sync(_open, run.init, run.init_runs)
        if descriptor is not None:
            try:
                await _end_init(box, run.init, descriptor, grace_seconds)
            finally:
                os.close(descriptor)
    with trio.move_on_after(SHIM_SECONDS):
        while await trio.to_thread.run_sync(box.shim_lives):  # noqa: ASYNC110  (it is another process)
            await trio.sleep(POLL_SECONDS)
    await _clean_up(box)


async def _begun(box: Box) -> Run | None:
    """The present run; waits for one that is just being started to have a first process."""
    run = await trio.to_thread.run_sync(box.run)
    with trio.move_on_after(LAUNCH_SECONDS):
        while (run is None or run.init is None) and await trio.to_thread.run_sync(box.shim_lives):
            await trio.sleep(POLL_SECONDS)
            run = await trio.to_thread.run_sync(box.run)
    return run


async def _end_init(box: Box, init: ProcessId, descriptor: int, grace_seconds: float) -> None:
    with trio.move_on_after(grace_seconds):
        if grace_seconds > 0 and await _listens(init, descriptor):
            _signal(descriptor, signal.SIGTERM)
            await trio.lowlevel.wait_readable(descriptor)
            return
    _signal(descriptor, signal.SIGKILL)
    with trio.move_on_after(GONE_SECONDS) as limit:
        await trio.lowlevel.wait_readable(descriptor)
    if limit.cancelled_caught:
        raise EngineError(f"stop container {box.spec.name}: it is still there {GONE_SECONDS:g} s after SIGKILL")


async def _listens(init: ProcessId, descriptor: int) -> bool:
    """Wait for the first process to have a handler for SIGTERM: just started, it may not have got there. The kernel
    gives the first process of a namespace no signal without one, so asking would only wait for the grace to pass."""
    with trio.move_on_after(HANDLER_SECONDS):
        while not linux.catches(init.pid, signal.SIGTERM):
            with trio.move_on_after(POLL_SECONDS):
                await trio.lowlevel.wait_readable(descriptor)
                return False
        return True
    return False


async def _clean_up(box: Box) -> None:
    """What the shim does at the end, if it was killed before it could."""
    run = await trio.to_thread.run_sync(box.run)
    if run is None:
        return
    descriptors = await trio.to_thread.run_sync(_open_helpers, run)
    try:
        for descriptor in descriptors:
            _signal(descriptor, signal.SIGKILL)
        with trio.move_on_after(GONE_SECONDS):
            for descriptor in descriptors:
                await trio.lowlevel.wait_readable(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    with trio.move_on_after(SHIM_SECONDS):
        # What was just killed may not be reaped yet.
        while not await trio.to_thread.run_sync(cgroup.remove_groups, [*run.groups]):  # noqa: ASYNC110
            await trio.sleep(POLL_SECONDS)
    await trio.to_thread.run_sync(box.note_end, None)


def _open_helpers(run: Run) -> list[int]:
    """Descriptors of those helpers that still run, and of what runs below the monitor: a sandbox of which the shim did
    not live to note the first process would go on without it."""
    found: list[int | None] = []
    for name, helper in run.helpers.items():
        if name == "monitor" and run.helper_runs(name):
            found += [_open(ProcessId(pid, 0), lambda: True) for pid in linux.children(helper.pid)]
        found.append(_open(helper, partial(run.helper_runs, name)))
    return [descriptor for descriptor in found if descriptor is not None]


def _open(identity: ProcessId, is_it: Callable[[], bool]) -> int | None:
    """A descriptor of the very process, not of another one that was given its number. None when it has ended."""
    try:
        descriptor = linux.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if is_it():
        return descriptor
    os.close(descriptor)
    return None


def _signal(descriptor: int, number: signal.Signals) -> None:
    """To a process that may have ended meanwhile."""
    try:
        linux.pidfd_signal(descriptor, number)
    except ProcessLookupError:
        return
