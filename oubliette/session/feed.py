"""Live events: from the store's commit to whoever watches, without anybody waiting for a slow reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from oubliette.agent.base import AgentDelta
from oubliette.core.limits import STREAM_BACKLOG_EVENTS
from oubliette.core.model import EventRow


class Subscription:
    """One watcher's bounded backlog. ``overflowed`` set: events were missed, read them from the store again."""

    def __init__(self, wants: Callable[[EventRow], bool], deltas: Callable[[str], bool]) -> None:
        self._wants = wants
        self.wants_deltas = deltas
        self._items: deque[EventRow | tuple[str, int, AgentDelta]] = deque()
        self._wake = trio.Event()
        self.overflowed = False
        self.closed = False

    def offer(self, event: EventRow) -> None:
        if not self._wants(event):
            return
        if len(self._items) >= STREAM_BACKLOG_EVENTS:
            self.overflowed = True
            self._items.clear()
        self._items.append(event)
        self._wake.set()

    def offer_delta(self, session_id: str, turn: int, delta: AgentDelta) -> None:
        if self.wants_deltas(session_id) and len(self._items) < STREAM_BACKLOG_EVENTS:
            self._items.append((session_id, turn, delta))
            self._wake.set()

    def close(self) -> None:
        self.closed = True
        self._wake.set()

    async def next_batch(self) -> Sequence[EventRow | tuple[str, int, AgentDelta]]:
        """What has arrived since the last call; waits for something. Empty: the subscription was closed."""
        while not self._items and not self.closed:
            await self._wake.wait()
            self._wake = trio.Event()
        batch = list(self._items)
        self._items.clear()
        return batch


class Feed:
    """All subscriptions of this daemon. ``publish`` is given to the store."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._by_session: dict[str, set[Subscription]] = {}

    def publish(self, events: Sequence[EventRow]) -> None:
        """Called by the store after each commit, in order. Never blocks."""
        for event in events:
            for subscription in self._by_session.get(event.session_id, ()):
                subscription.offer(event)
            for subscription in self._subscriptions:
                subscription.offer(event)

    def publish_delta(self, session_id: str, turn: int, delta: AgentDelta) -> None:
        """A preview, for those who asked for previews."""
        for subscription in self._watching(session_id):
            subscription.offer_delta(session_id, turn, delta)

    def wants_deltas(self, session_id: str) -> bool:
        return any(subscription.wants_deltas(session_id) for subscription in self._watching(session_id))

    def _watching(self, session_id: str) -> Iterator[Subscription]:
        yield from self._by_session.get(session_id, ())
        yield from self._subscriptions

    @contextmanager
    def subscribe_session(self, session_id: str, *, deltas: bool = False) -> Iterator[Subscription]:
        """Events of one session (the cheap and common case)."""
        subscription = Subscription(lambda _event: True, lambda _session_id: deltas)
        watchers = self._by_session.setdefault(session_id, set())
        watchers.add(subscription)
        try:
            yield subscription
        finally:
            watchers.discard(subscription)
            if not watchers:
                self._by_session.pop(session_id, None)

    @contextmanager
    def subscribe(
        self, wants: Callable[[EventRow], bool], *, deltas: Callable[[str], bool] = lambda _session_id: False
    ) -> Iterator[Subscription]:
        """Events for which ``wants`` is true (a tree, a project, everything), and previews of the sessions for which
        ``deltas`` is. Both must be quick."""
        subscription = Subscription(wants, deltas)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every subscription cleanly (shutdown)."""
        for subscription in [*self._subscriptions, *(s for group in self._by_session.values() for s in group)]:
            subscription.close()
