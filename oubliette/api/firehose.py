"""The stream of everything (``/v1/events``): states, asks, children and runs of all that a token may see; no texts.

One task turns each event into bytes once and hands them to every reader. A ring of recent ones lets a client that
was away for a moment resume; for longer absences there is ``event: gap``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from oubliette import clock
from oubliette.api.frames import THIN, frame, thin_shape
from oubliette.api.metrics import STREAM_EVENTS, STREAMS_DROPPED
from oubliette.api.shared import Shared
from oubliette.api.streams import COMMENT_SECONDS, DROP_SECONDS, RETRY_MS, pieces
from oubliette.core import access
from oubliette.core.limits import STREAM_BACKLOG_EVENTS
from oubliette.core.model import EventRow
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.session.feed import Feed

RING: Final = 2_000


@dataclass(frozen=True, slots=True)
class Entry:
    number: int
    project_id: str
    bytes: bytes


class Listener:
    """One reader's bounded backlog. ``lost``: something had to be left out."""

    def __init__(self, wants: Callable[[str], bool]) -> None:
        self._wants = wants
        self._entries: deque[Entry] = deque()
        self._wake = trio.Event()
        self.lost = False
        self.closed = False

    def offer(self, entry: Entry) -> None:
        if self._wants(entry.project_id):
            if len(self._entries) >= STREAM_BACKLOG_EVENTS:
                self._entries.popleft()
                self.lost = True
            self._entries.append(entry)
            self._wake.set()

    def close(self) -> None:
        self.closed = True
        self._wake.set()

    async def next_batch(self) -> list[Entry]:
        """What has come since the last call; waits for something. Empty: it was closed."""
        while not self._entries and not self.closed:
            await self._wake.wait()
            self._wake = trio.Event()
        batch = list(self._entries)
        self._entries.clear()
        return batch


class Firehose:
    """The ring and its listeners. ``run`` is the one task that reads the feed."""

    def __init__(self) -> None:
        self._boot = clock.fresh_hex(8)
        self._ring: deque[Entry] = deque(maxlen=RING)
        self._next = 0
        self._listeners: set[Listener] = set()

    async def run(self, feed: Feed, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service; ends when the feed is closed."""
        with feed.subscribe(lambda event: event.type in THIN) as subscription:
            self._skip()  # started again after a failure: what came meanwhile was missed
            task_status.started()
            while batch := await subscription.next_batch():
                if subscription.overflowed:
                    subscription.overflowed = False
                    self._skip()
                for item in batch:
                    if isinstance(item, EventRow):
                        self._add(item)
        for listener in self._listeners:
            listener.close()

    def _add(self, row: EventRow) -> None:
        number = self._next
        self._next += 1
        entry = Entry(number, row.project_id, frame(row.type.value, thin_shape(row), f"{self._boot}-{number}"))
        self._ring.append(entry)
        for listener in self._listeners:
            listener.offer(entry)

    def _skip(self) -> None:
        """Something was missed: nobody can resume from before it."""
        self._ring.clear()
        self._next += 1
        for listener in self._listeners:
            listener.lost = True

    @contextmanager
    def listen(self, wants: Callable[[str], bool], since: str | None) -> Iterator[Listener]:
        """Entries of projects that ``wants`` is true for, after the cursor ``since`` when the ring still reaches back
        so far (else ``lost`` is set at once)."""
        listener = Listener(wants)
        if since is not None:
            number = self._number(since)
            oldest = self._ring[0].number if self._ring else self._next
            listener.lost = number is None or number < oldest - 1 or number >= self._next
            if not listener.lost and number is not None:
                for entry in self._ring:
                    if entry.number > number:
                        listener.offer(entry)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def _number(self, cursor: str) -> int | None:
        boot, _, number = cursor.partition("-")
        return (
            int(number) if boot == self._boot and number.isascii() and number.isdigit() and len(number) < 16 else None
        )


def sees(principal: Principal) -> Callable[[str], bool]:
    """Which projects' events this principal may see."""

    def wants(project_id: str) -> bool:
        try:
            access.check(principal, "events.stream", project_id)
        except RequestError:
            return False
        return True

    return wants


@trio.as_safe_channel
async def everything(
    shared: Shared,
    firehose: Firehose,
    principal: Principal,
    since: str | None,
    comment_seconds: float = COMMENT_SECONDS,
) -> AsyncGenerator[bytes, None]:
    """The bytes of one reader's stream of everything. Ends at shutdown and with its token."""
    try:
        with shared.live.stream(principal), firehose.listen(sees(principal), since) as listener:
            yield f"retry: {RETRY_MS}\n\n".encode()
            while not listener.closed:
                batch: list[Entry] = []
                with trio.move_on_after(comment_seconds):
                    batch = await listener.next_batch()
                arrived = [entry.bytes for entry in batch] or [b":\n\n"]
                if listener.lost:
                    listener.lost = False
                    arrived.insert(0, frame("gap", {"reason": "events were missed; list what you follow again"}))
                for piece in pieces(arrived):
                    asked = trio.current_time()
                    yield piece
                    if trio.current_time() - asked > DROP_SECONDS:
                        STREAMS_DROPPED.inc()
                        yield frame("dropped", {"reason": "slow"})
                        return
                STREAM_EVENTS.inc(len(batch))
    except RequestError as error:  # what was checked before the answer began, and changed since
        yield frame("dropped", {"reason": error.code})
