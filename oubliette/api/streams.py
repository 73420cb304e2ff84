"""Event streams of sessions (SSE): everything after a cursor exactly once, then live, without anybody waiting for a
slow reader.

A stream subscribes first and reads the store second, so nothing falls between; what arrives both ways is told apart
by its cursor. A backlog that overflows is read from the store again. Only a client that takes nothing for a long time
is dropped.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

import trio

from oubliette.agent.base import AgentDelta
from oubliette.api.frames import Cursor, Frames, frame
from oubliette.api.metrics import STREAM_EVENTS, STREAMS_DROPPED
from oubliette.api.shared import Shared
from oubliette.core.limits import KIB
from oubliette.core.model import EventRow, EventType, Json
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.session.feed import Feed, Subscription
from oubliette.store import events, sessions, trees
from oubliette.store.database import Tx

RETRY_MS: Final = 2000
COMMENT_SECONDS: Final = 15
DROP_SECONDS: Final = 15
"""A client that has not taken one piece of at most 64 KiB in that time is told so and dropped."""
_PAGE: Final = 500
_PIECE_BYTES: Final = 64 * KIB
_COMMENT: Final = b":\n\n"

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
        """For a tree's subscription: the whole tree, because what is below is only known once the store was read."""
        return row.root_id == self.args.root_id

    def below_me(self, row: EventRow) -> bool:
        """Whether the event is of this stream; learns of new children from the event that announces them."""
        if not self.args.children:
            return True
        mine = self.args.is_root or row.session_id in self.below
        child = row.body.get("child") if mine and row.type is EventType.CHILD_SPAWNED else None
        if isinstance(child, dict):
            self.below.add(str(child.get("session_id")))
        return mine

    def wants_deltas(self, session_id: str) -> bool:
        return self.args.deltas and session_id in self.below

    def subscribe(self, feed: Feed) -> AbstractContextManager[Subscription]:
        if not self.args.children:
            return feed.subscribe_session(self.args.session_id, deltas=self.args.deltas)
        return feed.subscribe(self.wants, deltas=self.wants_deltas)

    def read(self, tx: Tx) -> list[EventRow]:
        if not self.args.children:
            return events.read(tx, self.args.session_id, self.at, _PAGE)
        self.below.update(one.session_id for one in trees.below(tx, self.args.root_id, self.args.session_id))
        below = None if self.args.is_root else self.below
        return events.read_tree(tx, self.args.root_id, below, self.at, _PAGE)

    def take(self, items: Sequence[Live]) -> list[bytes]:
        """Frames of what was not sent yet."""
        found = []
        for item in items:
            if isinstance(item, tuple):
                found.append(self.frames.delta(*item))
            elif self.place(item) > self.at and self.below_me(item):
                self.at = self.place(item)
                found.append(self.frames.event(item, self.args.cursor))
        return found

    def finished(self, tx: Tx) -> bool:
        """Whether the session (for a tree: and all below it) has ended and everything of it was sent."""
        row = sessions.get(tx, self.args.session_id)
        if row is None:
            return True
        still_open = row.open
        if self.args.children and not still_open:
            still_open = any(one.open for one in trees.below(tx, self.args.root_id, self.args.session_id))
        return not still_open and not self.read(tx)

    def gap(self, tx: Tx) -> Json | None:
        """When the cursor is ahead of the log or older than what is kept: what is missing. Moves the cursor into the
        log."""
        oldest, newest = 0, -1
        if self.args.children:
            root = sessions.get(tx, self.args.root_id)
            newest = root.last_seq if root is not None else -1
            first = events.read_tree(tx, self.args.root_id, None, -1, 1)
            oldest = first[0].seq if first else 0
        elif sessions.get(tx, self.args.session_id) is not None:
            oldest, newest = events.bounds(tx, self.args.session_id)
        was = self.at
        if was > newest:
            self.at = newest
        elif was < oldest - 1:
            self.at = oldest - 1
        else:
            return None
        return {"session_id": self.args.session_id, "since": was, "oldest": oldest, "newest": newest, "at": self.at}


def at_end(tx: Tx, args: StreamArgs) -> bool:
    """Whether a client that has everything up to its cursor has nothing more to come for."""
    reader = _Reader(args, Frames(), -1 if args.since is None else args.since)
    return args.since is not None and reader.gap(tx) is None and reader.finished(tx)


@trio.as_safe_channel
async def session_stream(
    shared: Shared, frames: Frames, principal: Principal, args: StreamArgs, comment_seconds: float = COMMENT_SECONDS
) -> AsyncGenerator[bytes, None]:
    """The bytes of one session's stream. Ends by itself: at the end of the log, at shutdown, with its token."""
    reader = _Reader(args, frames, -1 if args.since is None else args.since)
    try:
        with shared.live.stream(principal), reader.subscribe(shared.services.feed) as subscription:
            gap = await shared.services.store.read(reader.gap)
            yield f"retry: {RETRY_MS}\n\n".encode() + (frame("gap", gap) if gap is not None else b"")
            behind = True
            sent_at = trio.current_time()
            while not subscription.closed:
                arrived, check_end = [_COMMENT], True
                if behind:
                    page = await shared.services.store.read(reader.read)
                    behind = len(page) == _PAGE
                    arrived, check_end = reader.take(page), not behind
                else:
                    with trio.move_on_after(comment_seconds):
                        batch = await subscription.next_batch()
                        if _missed_some(subscription):
                            behind = True
                            continue
                        arrived = reader.take(batch)
                        check_end = any(isinstance(one, EventRow) and one.type is EventType.STATUS for one in batch)
                        if not arrived and trio.current_time() - sent_at >= comment_seconds:
                            arrived = [_COMMENT]  # what the rest of the tree does must not keep this one silent
                if arrived:
                    sent_at = trio.current_time()
                for piece in pieces(arrived):
                    asked = trio.current_time()
                    yield piece
                    if trio.current_time() - asked > DROP_SECONDS:
                        STREAMS_DROPPED.inc()
                        yield frame("dropped", {"session_id": args.session_id, "reason": "slow"})
                        return
                STREAM_EVENTS.inc(sum(1 for one in arrived if not one.startswith(b":")))
                if check_end and await shared.services.store.read(reader.finished):
                    yield frame("end", {"session_id": args.session_id})
                    return
    except RequestError as error:  # what was checked before the answer began, and changed since
        yield frame("dropped", {"session_id": args.session_id, "reason": error.code})


def _missed_some(subscription: Subscription) -> bool:
    """Whether the backlog overflowed since this was last asked."""
    missed, subscription.overflowed = subscription.overflowed, False
    return missed


def pieces(frames: Sequence[bytes]) -> Iterator[bytes]:
    """Many small frames as few writes: each at most 64 KiB, or one frame."""
    held: list[bytes] = []
    size = 0
    for one in frames:
        if held and size + len(one) > _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
        held.append(one)
        size += len(one)
    if held:
        yield b"".join(held)
