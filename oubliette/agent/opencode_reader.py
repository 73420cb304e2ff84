"""The one reader of an agent process's event stream, and what it does when something may have been missed.

The stream has no memory: what happens while it is cut must be taken from the histories. Nor is it there at once:
OpenCode says ``server.connected`` before it begins to listen to itself (up to 0.4 s before, seen on a busy machine),
and what happens between is lost too. So a connection counts from its second event on, and one is provoked when a turn
waits. Every durable has a stable source, so telling one twice is harmless; leaving one out is not.
"""

from __future__ import annotations

import structlog
import trio

from oubliette.agent.opencode_feed import Feeds, SessionFeed
from oubliette.agent.opencode_http import AgentHttp, parse_json
from oubliette.agent.opencode_parts import object_at, text_at
from oubliette.agent.opencode_queries import AgentQueries, is_over
from oubliette.errors import AgentError, RemoteWireError
from oubliette.wire.sse import SseParser

log = structlog.get_logger(__name__)

LOST_SECONDS = 10.0
"""So long may the event stream be away before the process is declared lost."""
HEAD_SECONDS = 5.0
SILENCE_SECONDS = 35.0
"""OpenCode sends a heartbeat every 10 s."""
RETRY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PROVOKE_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
SETTLE_SECONDS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
"""Pauses before each look at a turn that may be over; the last look decides."""
WATCH_SECONDS = 15.0
QUIET_SECONDS = 20.0
"""A turn that says nothing for so long is looked at: an idle that was never sent must not hang it for ever."""
_SYNC = '"payload":{"type":"sync"'
_HEAD = 600
"""Where in an event its type must be: every event of importance is sent a second time as ``sync``, unread by us."""


class EventReader:
    """Feeds ``feeds`` from the agent's ``/global/event``; ``run`` ends when that cannot be had again."""

    def __init__(self, http: AgentHttp, feeds: Feeds, nursery: trio.Nursery) -> None:
        self._http = http
        self._queries = AgentQueries(http)
        self._feeds = feeds
        self._nursery = nursery
        self._connections = 0
        self._live = False

    async def run(self, started: trio.Event) -> str:
        """Read until the stream is gone for good; says why. ``started`` is set when the first event is there."""
        failing_since: float | None = None
        attempt = 0
        while True:
            before = self._connections
            detail = await self._read_one(started)
            if self._connections > before:
                failing_since, attempt = None, 0
            now = trio.current_time()
            failing_since = now if failing_since is None else failing_since
            if now - failing_since > LOST_SECONDS:
                return detail
            log.debug("agent event stream cut", detail=detail, attempt=attempt)
            await trio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1

    async def _read_one(self, started: trio.Event) -> str:
        """One connection, to its end; says how it ended."""
        parser = SseParser()
        try:
            async with self._http.stream("/global/event", seconds=HEAD_SECONDS) as answer:
                while True:
                    with trio.move_on_after(SILENCE_SECONDS) as silence:
                        piece = await answer.receive()
                    if silence.cancelled_caught:
                        return f"the agent's event stream was silent for {SILENCE_SECONDS:g} s"
                    if not piece:
                        return "the agent closed its event stream"
                    for event in parser.feed(piece):
                        self._take(event.data, started)
        except (AgentError, RemoteWireError) as error:
            return str(error)

    def _take(self, data: str, started: trio.Event) -> None:
        if data.find(_SYNC, 0, _HEAD) >= 0:
            return
        try:
            payload = object_at(parse_json(data), "payload")
        except (ValueError, RecursionError):
            return
        kind, given = text_at(payload, "type"), object_at(payload, "properties")
        if kind == "server.connected":
            self._connected(started)
            return
        if not self._live:
            self._live = True
            for feed in self._feeds.running():
                feed.hold()
                self._nursery.start_soon(self._catch_up, feed)
        session_feed = self._feeds.get(text_at(given, "sessionID"))
        if session_feed is not None:
            session_feed.hear(kind, given)
            self.look(session_feed)

    def _connected(self, started: trio.Event) -> None:
        self._connections += 1
        self._live = False
        started.set()
        waiting = self._feeds.running()
        if waiting:
            self._nursery.start_soon(self._provoke, waiting[0].directory)

    async def _provoke(self, directory: str) -> None:
        """Make OpenCode send anything: without a screen nobody sees a toast. Else there is a heartbeat in 10 s."""
        try:
            for pause in PROVOKE_SECONDS:
                await trio.sleep(pause)
                if self._live:
                    return
                toast = {"message": "connected", "variant": "info"}
                await self._http.call("POST", "/tui/show-toast", query={"directory": directory}, body=toast)
        except AgentError as error:
            log.debug("no event provoked", error=str(error))

    # --- turns that may be over

    def look(self, feed: SessionFeed) -> None:
        """Start looking after that session's turn when its events left a doubt, or an ask that needs nobody."""
        answerable, feed.mapper.answerable = feed.mapper.answerable, []
        for reference in answerable:
            self._nursery.start_soon(self._allow, feed, reference)
        if feed.mapper.needs_settling and not feed.settling:
            feed.settling = True
            self._nursery.start_soon(self._settle, feed)
        self._feeds.drop_unused(feed)

    async def _allow(self, feed: SessionFeed, reference: str) -> None:
        try:
            path = f"/permission/{reference}/reply"
            await self._http.call("POST", path, query={"directory": feed.directory}, body={"reply": "once"})
        except AgentError as error:
            log.warning("granted call not allowed", agent_session=feed.session_id, error=str(error))

    async def _settle(self, feed: SessionFeed) -> None:
        try:
            for pause in SETTLE_SECONDS:
                await trio.sleep(pause)
                if not feed.mapper.needs_settling:
                    return
                if await self._decide(feed, last=pause == SETTLE_SECONDS[-1]):
                    return
        except AgentError as error:
            log.debug("turn not settled", agent_session=feed.session_id, error=str(error))
        finally:
            feed.settling = False
            self._feeds.drop_unused(feed)

    async def _decide(self, feed: SessionFeed, *, last: bool) -> bool:
        """Whether the doubt is gone. The status is asked before the history, so that an idle's history is whole."""
        message_id = feed.mapper.turn
        running = await self._queries.is_running(feed.session_id, feed.directory)
        if message_id is None or feed.mapper.turn != message_id:
            return True
        if running:
            feed.mapper.needs_settling = False
            return True
        history = await self._queries.history(feed.session_id, feed.directory, message_id)
        if feed.mapper.turn != message_id:
            return True
        if not (last or is_over(history, message_id, failed=feed.mapper.failed)):
            return False
        feed.tell(feed.mapper.settle(history, running=False))
        return True

    async def watch(self) -> None:
        """Look after turns that have been silent for long."""
        while True:
            await trio.sleep(WATCH_SECONDS)
            for feed in self._feeds.running():
                if trio.current_time() - feed.heard_at > QUIET_SECONDS:
                    feed.mapper.needs_settling = True
                    self.look(feed)

    # --- what was missed

    async def _catch_up(self, feed: SessionFeed) -> None:
        message_id = feed.mapper.turn
        try:
            if message_id is not None:
                await self.absorb(feed, message_id)
        except AgentError as error:
            log.warning("events of an agent session may be missing", agent_session=feed.session_id, error=str(error))
        finally:
            feed.resume()
            if message_id is not None and feed.mapper.turn == message_id:
                feed.mapper.needs_settling = True  # an idle may have been among what was missed
            self.look(feed)

    async def absorb(self, feed: SessionFeed, message_id: str) -> None:
        """Tell what the history and the lists of asks have and was not told yet."""
        history = await self._queries.history(feed.session_id, feed.directory, message_id)
        permissions, questions = await self._queries.asks(feed.session_id, feed.directory)
        if feed.mapper.turn == message_id:
            feed.tell(feed.mapper.absorb(history))
            feed.tell(feed.mapper.absorb_asks(permissions, questions))
