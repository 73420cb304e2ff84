"""The wall clock, as far as schedules need one: what it shows, and sleeping until it shows something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import trio

from oubliette import clock


@dataclass(frozen=True, slots=True)
class Wall:
    """``now``: aware, UTC. ``sleep_until`` may return earlier than that moment, never much later."""

    now: Callable[[], datetime]
    sleep_until: Callable[[datetime], Awaitable[None]]


async def _sleep_until(at: datetime) -> None:
    """By the monotonic clock: whoever sleeps looks at the wall clock again now and then, for it may be set."""
    await trio.sleep(max(0.0, (at - clock.now()).total_seconds()))


REAL = Wall(clock.now, _sleep_until)
