"""Who listens to which session of the agent, and what each of them is told. Synchronous: it never waits for anybody."""

from __future__ import annotations

import math
from collections.abc import Iterable

import structlog
import trio

from oubliette.agent.base import AgentDelta, AgentDurable, AgentEvent, AgentIdle, AgentLost
from oubliette.agent.opencode_events import EventMapper
from oubliette.core.model import Json

log = structlog.get_logger(__name__)

MAX_WAITING_DELTAS = 256
"""A listener that lags further gets no previews."""
MAX_WAITING = 20_000
"""A listener that lags further is given up: it can have everything from the agent's history."""

Send = trio.MemorySendChannel[AgentEvent]


class SessionFeed:
    """One session of the agent, for as long as somebody listens or a turn runs."""

    def __init__(self, session_id: str, directory: str) -> None:
        self.session_id = session_id
        self.directory = directory
        self.mapper = EventMapper()
        self.over = trio.Event()
        """The turn that ran last has ended, or never began."""
        self.over.set()
        self.settling = False
        self.heard_at = trio.current_time()
        self._listeners: set[Send] = set()
        self._held: list[tuple[str, Json]] | None = None

    @property
    def used(self) -> bool:
        return bool(self._listeners) or self.mapper.turn is not None

    def listen(self) -> tuple[Send, trio.MemoryReceiveChannel[AgentEvent]]:
        """A new listener's two ends."""
        send, receive = trio.open_memory_channel[AgentEvent](math.inf)
        self._listeners.add(send)
        return send, receive

    def leave(self, send: Send) -> None:
        self._listeners.discard(send)
        send.close()

    def begin(self, message_id: str) -> None:
        """A turn begins, or is followed from here on."""
        self.mapper.begin(message_id)
        self.over = trio.Event()
        self.heard_at = trio.current_time()

    def forget(self, message_id: str) -> None:
        """That turn is not followed (any more)."""
        if self.mapper.turn == message_id:
            self.mapper.forget(message_id)
            self.over.set()

    # --- events of the agent

    def hear(self, kind: str, given: Json) -> None:
        """One event of OpenCode's for this session. While events are held it waits for ``resume``."""
        self.heard_at = trio.current_time()
        if self._held is not None:
            self._held.append((kind, given))
        else:
            self.tell(self.mapper.feed(kind, given))

    def hold(self) -> None:
        """Keep what is heard back, until the history was looked at: what happened before must be told before."""
        if self._held is None:
            self._held = []

    def resume(self) -> None:
        """Go on with what was held."""
        held, self._held = self._held, None
        for kind, given in held or ():
            self.tell(self.mapper.feed(kind, given))

    def tell(self, events: Iterable[AgentEvent]) -> None:
        """To all listeners, in order."""
        for event in events:
            for send in tuple(self._listeners):
                self._tell_one(send, event)
            if isinstance(event, AgentIdle | AgentLost):
                self.over.set()

    def _tell_one(self, send: Send, event: AgentEvent) -> None:
        waiting = send.statistics().current_buffer_used
        if isinstance(event, AgentDelta) and waiting >= MAX_WAITING_DELTAS:
            return
        try:
            if waiting >= MAX_WAITING and isinstance(event, AgentDurable):
                send.send_nowait(AgentLost("the listener fell too far behind"))
                self.leave(send)
                log.warning("listener of an agent session given up", agent_session=self.session_id, waiting=waiting)
            else:
                send.send_nowait(event)
        except trio.BrokenResourceError:
            self._listeners.discard(send)  # it has closed its end and will leave

    def lose(self, detail: str) -> None:
        """The agent is gone: the last word to everybody."""
        self.tell([AgentLost(detail)])
        for send in tuple(self._listeners):
            self.leave(send)
        if self.mapper.turn is not None:
            self.forget(self.mapper.turn)


class Feeds:
    """All sessions of one agent process that matter at the moment."""

    def __init__(self) -> None:
        self._feeds: dict[str, SessionFeed] = {}

    def get(self, session_id: str) -> SessionFeed | None:
        return self._feeds.get(session_id)

    def open(self, session_id: str, directory: str) -> SessionFeed:
        """The session's feed, made when there is none."""
        feed = self._feeds.get(session_id)
        if feed is None:
            feed = self._feeds[session_id] = SessionFeed(session_id, directory)
        return feed

    def drop_unused(self, feed: SessionFeed) -> None:
        if not feed.used and self._feeds.get(feed.session_id) is feed:
            del self._feeds[feed.session_id]

    def running(self) -> list[SessionFeed]:
        """Those with a turn."""
        return [feed for feed in self._feeds.values() if feed.mapper.turn is not None]

    def all(self) -> list[SessionFeed]:
        return list(self._feeds.values())
