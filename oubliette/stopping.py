"""Signals and the end: one asks to stop, a second insists, and a watchdog thread insists when nothing else does."""

from __future__ import annotations

import os
import signal
import threading

import structlog
import trio

log = structlog.get_logger(__name__)

STOP_SECONDS = 30.0
"""From the first signal to the end, all tiers together."""
EXIT_STUCK = 70
EXIT_SECOND_SIGNAL = 130


async def run_signals(stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """The first SIGTERM or SIGINT sets ``stop``; a second one ends the process at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            if stop.is_set():
                log.warning("second signal: ending at once", signal=number)
                os._exit(EXIT_SECOND_SIGNAL)
            log.info("stopping", signal=number)
            stop.set()


def start_watchdog() -> threading.Timer:
    """End the process when stopping takes too long, saying which tasks still run. A thread: the loop may be stuck."""
    root = trio.lowlevel.current_root_task()
    timer = threading.Timer(STOP_SECONDS, _give_up, [root])
    timer.daemon = True
    timer.start()
    return timer


def _give_up(root: trio.lowlevel.Task | None) -> None:
    log.error("still not stopped; ending by force", seconds=STOP_SECONDS, tasks=task_names(root))
    os._exit(EXIT_STUCK)


def task_names(root: trio.lowlevel.Task | None) -> list[str]:
    """The tree of tasks, one indented line each. Only reads; called from another thread as a last resort."""
    if root is None:
        return []
    lines: list[str] = []
    waiting = [(root, 0)]
    while waiting:
        task, depth = waiting.pop()
        lines.append("  " * depth + task.name)
        waiting += [(child, depth + 1) for nursery in task.child_nurseries for child in nursery.child_tasks]
    return lines
