"""Event streams of sessions (SSE): everything after a cursor exactly once, then live, without anybody waiting for a
slow reader.

A stream subscribes first and reads the store second, so nothing falls between; what arrives both ways is told apart
by its cursor. A backlog that overflows is read from the store again. Only a client that takes nothing for a long time
is dropped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from oubliette.agent.base import AgentDelta
from oubliette.api.frames import Cursor, Frames, frame
from oubliette.api.metrics import STREAM_EVENTS, STREAMS_DROPPED
from oubliette.api.shared import Shared
from oubliette.core.events import event_shape
from oubliette.core.limits import KIB
from oubliette.core.model import EventRow, EventType, Json, Principal
from oubliette.errors import RequestError
from oubliette.session.feed import Feed, Subscription
from oubliette.store import events, sessions
from oubliette.store.database import Tx

RETRY_MS: Final = 2000
COMMENT_SECONDS: Final = 15
DROP_SECONDS: Final = 15
"""A client that has not taken one piece of at most 64 KiB in that time is told so and dropped."""
_PAGE: Final = 500
_PIECE_BYTES: Final = 64 * KIB

Live = EventRow | tuple[str, int, AgentDelta]


@dataclass(frozen=True, slots=True)
class StreamArgs:
    """What a client asked for. ``since`` None: from the start."""

    session_id: str
    root_id: str
    is_root: bool
    since: int | None
    children: bool
    deltas: bool

    @property
    def cursor(self) -> Cursor:
        return "seq" if self.children else "index"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a log stands for a stream: what is kept, and whether more can come."""

    oldest: int
    newest: int
    open: bool


def position(tx: Tx, args: StreamArgs) -> Position:
    """Raises RequestError not_found."""
    row = sessions.get(tx, args.session_id)
    if row is None:
        raise RequestError("not_found", "The session is gone.")
    if not args.children:
        oldest, newest = events.bounds(tx, args.session_id)
        return Position(oldest, newest, row.open)
    root = sessions.get(tx, args.root_id)
    still_open = row.open or any(one.open for one in sessions.subtree(tx, args.session_id))
    newest = root.last_seq if root is not None else -1
    if not args.is_root:
        last = [events.read_tree(tx, args.root_id, [one], -1, 1) for one in ()]
        newest = newest if not last else newest
    return Position(0, newest, still_open)


@dataclass(slots=True)
class _Reader:
    """One stream's view of the log. ``at`` is the newest cursor that was sent."""

    args: StreamArgs
    frames: Frames
    at: int
    below: set[str] = field(default_factory=set)

    def place(self, row: EventRow) -> int:
        return row.index if self.args.cursor == "index" else row.seq

    def wants(self, row: EventRow) -> bool:
        """For a tree's subscription: quick, and it learns new children from the event that announces them."""
        if row.root_id != self.args.root_id:
            return False
        if self.args.is_root:
            return True
        if row.session_id not in self.below:
            return False
        child = row.body.get("child") if row.type is EventType.CHILD_SPAWNED else None
        if isinstance(child, dict):
            self.below.add(str(child.get("session_id")))
        return True

    def wants_deltas(self, session_id: str) -> bool:
        return self.args.deltas and session_id in self.below

    def subscribe(self, feed: Feed) -> AbstractContextManager[Subscription]:
        if not self.args.children:
            return feed.subscribe_session(self.args.session_id, deltas=self.args.deltas)
        return feed.subscribe(self.wants, deltas=self.wants_deltas)

    def read(self, tx: Tx) -> list[EventRow]:
        if not self.args.children:
            return events.read(tx, self.args.session_id, self.at, _PAGE)
        self.below.update(one.session_id for one in sessions.subtree(tx, self.args.session_id))
        below = None if self.args.is_root else self.below
        return events.read_tree(tx, self.args.root_id, below, self.at, _PAGE)

    def take(self, items: Sequence[Live]) -> list[bytes]:
        """Frames of what was not sent yet."""
        found = []
        for item in items:
            if isinstance(item, tuple):
                found.append(self.frames.delta(*item))
            elif self.place(item) > self.at:
                self.at = self.place(item)
                found.append(self.frames.event(item, self.args.cursor))
        return found


@trio.as_safe_channel
async def session_stream(
    shared: Shared, frames: Frames, principal: Principal, args: StreamArgs, comment_seconds: float = COMMENT_SECONDS
) -> AsyncIterator[bytes]:
    """The bytes of one session's stream. Ends by itself: at the end of the log, at shutdown, with its token."""
    store = shared.services.store
    reader = _Reader(args, frames, -1 if args.since is None else args.since)
    with shared.live.stream(principal), reader.subscribe(shared.services.feed) as subscription:
        here = await store.read(partial(position, args=args))
        yield f"retry: {RETRY_MS}\n\n".encode() + _gap(reader, here)
        behind = True
        while not subscription.closed:
            arrived: list[bytes] = []
            looked = trio.current_time()
            if behind or subscription.overflowed:
                subscription.overflowed = False
                page = await store.read(reader.read)
                behind = len(page) == _PAGE
                arrived = reader.take(page)
                check_end = not behind
            else:
                with trio.move_on_after(comment_seconds):
                    batch = await subscription.next_batch()
                    if subscription.overflowed:
                        continue
                    arrived = reader.take(batch)
                    check_end = any(isinstance(item, EventRow) and item.type is EventType.STATUS for item in batch)
                if not arrived and trio.current_time() - looked >= comment_seconds:
                    arrived, check_end = [b":\n\n"], True
            for piece in _pieces(arrived):
                asked = trio.current_time()
                yield piece
                if trio.current_time() - asked > DROP_SECONDS:
                    STREAMS_DROPPED.inc()
                    yield frame("dropped", {"reason": "slow", args.cursor: reader.at})
                    return
            STREAM_EVENTS.inc(len(arrived))
            if check_end:
                here = await store.read(partial(position, args=args))
                if not here.open and here.newest <= reader.at:
                    yield frame("end", {"session_id": args.session_id, args.cursor: reader.at})
                    return
