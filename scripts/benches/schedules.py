"""How late schedules are: from the planned moment until the run and its message are on disk and told of."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import trio

from benches.report import Table, ms
from oubliette import clock
from oubliette.core.model import EventRow, EventType
from oubliette.schedule.requests import ScheduleArgs, TargetArgs
from tests.schedule.world import ADMIN, PROJECT, HandClock, Place, open_place

MANY = 500
ALONE = 5
LEAD_SECONDS = 1.0
"""How long before the minute everything is in place."""


class SoonClock(HandClock):
    """Real time, moved so that a new minute begins in a moment: schedules know no less than minutes."""

    def __init__(self) -> None:
        super().__init__(clock.now())
        self._ahead = timedelta()

    def minute_begins_in(self, seconds: float) -> datetime:
        """Move; returns the moment."""
        minute = (self.now() + timedelta(minutes=1)).replace(second=0, microsecond=0)
        self._ahead += minute - timedelta(seconds=seconds) - self.now()
        return minute

    def now(self) -> datetime:
        return clock.now() + self._ahead

    async def sleep_until(self, at: datetime) -> None:
        await trio.sleep(max(0.0, (at - self.now()).total_seconds()))


@dataclass
class Late:
    """Seconds from the planned moment, for each run; and the slowest of the reads made meanwhile."""

    runs: list[float] = field(default_factory=list)
    slowest_read: float = 0.0

    @property
    def p99(self) -> float:
        return sorted(self.runs)[max(0, round(len(self.runs) * 0.99) - 1)]


async def bench_schedules(table: Table, root: Path) -> None:
    """Schedules that are due at once beside one that is due alone, on the same disk."""
    alone = []
    for number in range(ALONE):
        alone += (await _late(root / f"alone-{number}", 1)).runs
    crowd = await _late(root / "crowd", MANY)
    one = statistics.median(alone)
    table.add("a schedule alone: planned to on disk", ms(one))
    table.add(
        f"{MANY} schedules in one second: planned to on disk, p50",
        ms(statistics.median(crowd.runs)),
        f"one alone: {ms(one)}",
    )
    table.add(f"{MANY} schedules in one second: planned to on disk, p99", ms(crowd.p99), f"one alone: {ms(one)}")
    table.add(f"the slowest read of a schedule while {MANY} begin", ms(crowd.slowest_read))


async def _late(root: Path, number: int) -> Late:
    root.mkdir()
    hand = SoonClock()
    late = Late()
    async with open_place(root, at=hand) as place:
        minute = hand.minute_begins_in(30)
        ids = [await _create(place, index) for index in range(number)]
        if hand.minute_begins_in(LEAD_SECONDS) != minute:
            raise RuntimeError(f"{number} schedules were not made within 30 s")
        # The clock was moved while the scheduler slept; a change makes it look again.
        await _create(place, number, enabled=False)
        with place.sessions.feed.subscribe(_queued) as news, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_again_and_again, place, ids[0], late)
                while len(late.runs) < number:
                    told = len(await news.next_batch())
                    late.runs += [(hand.now() - minute).total_seconds()] * told
                nursery.cancel_scope.cancel("all have begun")
    return late


async def _create(place: Place, index: int, *, enabled: bool = True) -> str:
    targets = [TargetArgs(PROJECT)]
    args = ScheduleArgs(f"bench {index}", "* * * * *", "say hi", targets, enabled=enabled, model="scripted")
    return str((await place.schedules.create(ADMIN, args))["schedule_id"])


def _queued(event: EventRow) -> bool:
    return event.type is EventType.TURN_QUEUED


async def _read_again_and_again(place: Place, schedule_id: str, late: Late) -> None:
    while True:
        began = trio.current_time()
        await place.schedules.get(ADMIN, schedule_id)
        late.slowest_read = max(late.slowest_read, trio.current_time() - began)
        await trio.sleep(0.01)
