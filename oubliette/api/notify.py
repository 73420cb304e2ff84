"""News for MCP clients that did not ask just now: log notifications and ``resources/updated``.

The publisher never waits for the SDK: each client has a small outbox, in which news of the same thing is one entry,
and one task that empties it. Whether the client may still see the thing is asked again at each send.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from mcp.server.connection import Connection

from oubliette.api.frames import THIN
from oubliette.api.resources import Ref, touched_by
from oubliette.api.tools.reply import fit
from oubliette.core import access
from oubliette.core.events import event_shape
from oubliette.core.model import EventRow, EventType, Json, SessionStatus
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.log import get_logger
from oubliette.session.feed import Feed

log = get_logger(__name__)

STUCK_SECONDS: Final = 5
"""A notification that is not taken for so long ends the client's GET stream; else it would freeze its whole session."""
_OUTBOX: Final = 256
_LOG_CHARACTERS: Final = 8_000
LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
_ASKS: Final = frozenset({EventType.PERMISSION_REQUEST, EventType.QUESTION, EventType.CALLER_TOOL_REQUEST})


def may_see(principal: Principal, project_id: str) -> bool:
    try:
        access.check(principal, "resources.read", project_id)
    except RequestError:
        return False
    return True


MaySee = Callable[[Principal, Ref], Awaitable[bool]]


@dataclass(eq=False)
class Interest:
    """What one client wants to hear of. Entries of the outbox: key -> (project, what to send); without a project it is
    a ``Ref`` whose places are looked up when it is sent."""

    principal: Principal
    look_up: MaySee
    refs: set[Ref] = field(default_factory=set)
    followed: set[str] = field(default_factory=set)
    level: str = "info"
    logs: bool = False
    """Whether it takes log notifications: handshake clients do."""
    outbox: OrderedDict[object, tuple[str | None, Any]] = field(default_factory=OrderedDict)
    closed: bool = False
    _wake: trio.Event = field(default_factory=trio.Event)

    def is_told_of(self, session_id: str) -> bool:
        """Whether log notifications of that session go to it: it spawned, messaged or subscribed to it."""
        subscribed = any(ref.id == session_id and ref.kind in ("session", "events") for ref in self.refs)
        return self.logs and (session_id in self.followed or subscribed)

    def put(self, key: object, project_id: str | None, item: Any) -> None:
        """News; an older entry of the same key is replaced, at the limit the oldest entry is forgotten."""
        self.outbox.pop(key, None)
        if len(self.outbox) >= _OUTBOX:
            self.outbox.popitem(last=False)
        self.outbox[key] = (project_id, item)
        self._wake.set()

    def close(self) -> None:
        self.closed = True
        self._wake.set()

    async def next(self) -> Any:
        """What to send now, if the client may still see it; waits for something. None: closed."""
        while not self.closed:
            while self.outbox:
                _, (project_id, item) = self.outbox.popitem(last=False)
                if project_id is None:
                    if await self.look_up(self.principal, item) and not self.closed:
                        return item
                elif may_see(self.principal, project_id):
                    return item
            await self._wake.wait()
            self._wake = trio.Event()
        return None


class Notifier:
    """Follows the feed on behalf of all MCP clients."""

    def __init__(self, look_up: MaySee) -> None:
        """``look_up(principal, ref)``: whether that principal may read a thing now."""
        self._look_up = look_up
        self._interests: set[Interest] = set()
        self._clients: dict[str, Interest] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, feed: Feed, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: hosts one sending task per handshake client. Missed events are not made up for: what a client
        hears makes it look, and then it sees everything."""
        async with trio.open_nursery() as self._nursery:
            with feed.subscribe(lambda _event: bool(self._interests)) as subscription:
                task_status.started()
                while batch := await subscription.next_batch():
                    for item in batch:
                        if isinstance(item, EventRow):
                            self._offer(item)
            self.close()
            self._nursery.cancel_scope.cancel(reason="the feed was closed")

    def close(self) -> None:
        """End every subscription cleanly (shutdown)."""
        for interest in list(self._interests):
            interest.close()

    def end_principal(self, principal_id: str) -> None:
        """Its token is no longer good."""
        for interest in list(self._interests):
            if interest.principal.id == principal_id:
                interest.close()
                self._interests.discard(interest)
        for key, interest in list(self._clients.items()):
            if interest.closed:
                del self._clients[key]

    def _offer(self, row: EventRow) -> None:
        refs = list(touched_by(row))
        for interest in self._interests:
            for ref in refs:
                if ref in interest.refs:
                    interest.put(ref, row.project_id, ref)
            if row.type in THIN and interest.is_told_of(row.session_id):
                note = _log_note(row)
                if LEVELS.index(note["level"]) >= LEVELS.index(interest.level):
                    interest.put((row.session_id, row.index), row.project_id, note)

    def schedule_changed(self, schedule_id: str) -> None:
        """A schedule, or a run of it, is another than before."""
        ref = Ref("schedule", schedule_id)
        for interest in self._interests:
            if ref in interest.refs:
                interest.put(ref, None, ref)

    @contextmanager
    def listening(self, principal: Principal, refs: set[Ref]) -> Iterator[Interest]:
        """The interest of one ``subscriptions/listen`` stream."""
        interest = Interest(principal, self._look_up, refs)
        self._interests.add(interest)
        try:
            yield interest
        finally:
            self._interests.discard(interest)

    def client(
        self, protocol_session: str, principal: Principal, connection: Connection, close_stream: Callable[[], None]
    ) -> Interest:
        """The interest of a handshake client; made when first asked for, gone with its connection."""
        known = self._clients.get(protocol_session)
        if known is not None:
            return known
        interest = self._clients[protocol_session] = Interest(principal, self._look_up, logs=True)
        self._interests.add(interest)

        def forget() -> None:
            interest.close()
            self._interests.discard(interest)
            if self._clients.get(protocol_session) is interest:
                del self._clients[protocol_session]

        connection.exit_stack.callback(forget)
        if self._nursery is not None:
            self._nursery.start_soon(self._send, interest, connection, close_stream, name="mcp notifications")
        return interest

    async def _send(self, interest: Interest, connection: Connection, close_stream: Callable[[], None]) -> None:
        while (item := await interest.next()) is not None:
            method, params = _notification(item)
            with trio.move_on_after(STUCK_SECONDS) as patience:
                await connection.notify(method, params)
            if patience.cancelled_caught:
                log.info("an MCP client does not read its stream; it was closed", principal=interest.principal.id)
                close_stream()
                interest.outbox.clear()


def _notification(item: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(item, Ref):
        return "notifications/resources/updated", {"uri": item.uri}
    return "notifications/message", item


def _log_note(row: EventRow) -> Json:
    paused = row.type is EventType.STATUS and row.body["status"]["to"] == SessionStatus.PAUSED
    level = "error" if row.type is EventType.ERROR else "notice" if paused or row.type in _ASKS else "info"
    name = "oubliette.caller_tool" if row.type is EventType.CALLER_TOOL_REQUEST else "oubliette.session"
    return {"level": level, "logger": name, "data": fit(event_shape(row), _LOG_CHARACTERS)}
