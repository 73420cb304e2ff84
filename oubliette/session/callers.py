"""Tools of callers: an agent's call goes to the client that declared the tool, and its answer back to the agent.

Rows are the truth about who offers what and how each call was settled; what an answer says is only handed on, because
the agent's own log keeps it. A call waits in the task of the agent's stream and is woken by what the store commits, so
whatever settles it (an answer, the end of its turn, a token that ends) reaches it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog
import trio

from oubliette.config import Config
from oubliette.core.caller_results import CallerResult
from oubliette.core.caller_tools import full_name
from oubliette.core.model import EventRow, EventType, Json, RequestRow
from oubliette.core.principals import Principal
from oubliette.errors import OublietteError, RequestError
from oubliette.session import caller_units
from oubliette.session.caller_units import Asked
from oubliette.session.feed import Feed
from oubliette.store import caller_tools, requests, tokens
from oubliette.store.database import Store, Tx

log = structlog.get_logger(__name__)

LAST_WRITE_SECONDS = 2.0
"""How long the end of a broken call may take to be written down."""
LONGEST_SLEEP_SECONDS = 60.0
"""The wall clock may be set, and a machine that sleeps does not count the time."""
TROUBLE_SECONDS = 1.0
"""After the store could not be read."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The agents' door, as far as it lists callers' tools."""

    changed: Callable[[str, str], None]
    """(project_id, caller_id): what is listed under that id is another now. Never blocks."""
    shown: Callable[[str, str, str, Sequence[str]], Awaitable[None]]
    """(project_id, workspace_id, caller_id, names): waits, for a while, until the agent there has a list that holds
    these."""


class _Waiting:
    """One call that waits. When ``settled``, ``result`` is the answer; without one ``why`` says how it ended."""

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.result: CallerResult | None = None
        self.why = ""

    def answer(self, result: CallerResult) -> None:
        self.result = result
        self.settled.set()

    def end(self, resolution: Json) -> None:
        """Settled in the store; an answer comes by ``answer``."""
        if resolution.get("how") != "answered":
            self.why = str(resolution.get("message") or "The turn has ended.")
            self.settled.set()


class Callers:
    """One for the daemon. ``run`` must be running for calls to end before their time."""

    def __init__(
        self,
        store: Store,
        feed: Feed,
        config: Config,
        *,
        now: Callable[[], datetime],
        fresh_hex: Callable[[int], str],
    ) -> None:
        self.listing: Listing | None = None
        """Set while the agents' door is open."""
        self._store = store
        self._feed = feed
        self._seconds = config.defaults.agent.caller_tool_timeout_seconds
        self._now = now
        self._fresh_hex = fresh_hex
        self._look = trio.Event()
        """Set when the tokens of callers are to be looked at."""
        self._waiting: dict[str, _Waiting] = {}
        self._calls: Counter[str] = Counter()
        self._clocks: dict[str, Callable[[bool], None]] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: first ends the calls that a daemon before has left open, then follows what settles calls."""
        left = await self._store.write(partial(caller_units.cancel_left_over, at=self._now()))
        if left:
            log.info("calls of caller tools were left open", count=left)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            with self._feed.subscribe(_concerns) as subscription:
                task_status.started()
                while batch := await subscription.next_batch():
                    if subscription.overflowed:
                        subscription.overflowed = False
                        await self._look_at_all()
                    for event in batch:
                        if isinstance(event, EventRow):
                            self._hear(event)
            nursery.cancel_scope.cancel("the feed was closed")

    def _hear(self, event: EventRow) -> None:
        if event.type is EventType.REQUEST_RESOLVED:
            waiting = self._waiting.get(event.body["request"]["request_id"])
            if waiting is not None:
                waiting.end(event.body["resolution"])
            return
        self._look.set()
        if self.listing is not None:
            self.listing.changed(event.project_id, event.body["data"]["caller_id"])

    async def _look_at_all(self) -> None:
        """Events were missed."""
        self._look.set()
        while True:
            try:
                found = await self._store.read(partial(_requests, ids=list(self._waiting)))
                break
            except OublietteError:
                log.exception("calls of caller tools could not be looked at")
                await trio.sleep(TROUBLE_SECONDS)
        for row in found:
            waiting = self._waiting.get(row.request_id)
            if waiting is not None and row.resolution is not None:
                waiting.end(row.resolution)

    # --- for the agent

    async def call(self, session_id: str, caller_id: str, name: str, arguments: Json) -> CallerResult:
        """Ask the caller and wait for its answer. Cancelled: the call is taken back.

        Raises RequestError: the session may not call that, nobody has answered in time, the call was ended."""
        whole = full_name(caller_id, name)
        asked = Asked(f"req_{self._fresh_hex(24)}", session_id, caller_id, name, arguments, self._seconds)
        waiting = self._waiting[asked.request_id] = _Waiting()
        opened = False
        try:
            await self._store.write(partial(caller_units.open_call, asked=asked, at=self._now()))
            opened = True
            with self._clock_stands(session_id):
                with trio.move_on_after(self._seconds):
                    await waiting.settled.wait()
                if not waiting.settled.is_set():
                    await self._expire(asked.request_id, whole, waiting)
        finally:
            del self._waiting[asked.request_id]
            if opened and not waiting.settled.is_set():
                with trio.move_on_after(LAST_WRITE_SECONDS, shield=True):
                    await self._take_back(asked.request_id)
        if waiting.result is None:
            raise RequestError("cancelled", f"The call of {whole} was ended.", hint=waiting.why)
        return waiting.result

    async def _expire(self, request_id: str, whole: str, waiting: _Waiting) -> None:
        said = f"Nobody answered the call of {whole} in {self._seconds:g} s."
        won, _ = await self._store.write(
            partial(caller_units.expire_call, request_id=request_id, message=said, at=self._now())
        )
        if won:
            waiting.settled.set()
            raise RequestError("timed_out", said, hint="Go on without it, or try once more.", retryable=True)
        await waiting.settled.wait()

    async def _take_back(self, request_id: str) -> None:
        said = "The agent does not wait for it any more."
        try:
            await self._store.write(
                partial(caller_units.cancel_call, request_id=request_id, message=said, at=self._now())
            )
        except OublietteError as error:
            log.warning("the end of a caller tool's call was not noted", request=request_id, error=str(error))

    # --- the clock of the turn

    @contextmanager
    def clock(self, session_id: str, stand_still: Callable[[bool], None]) -> Iterator[None]:
        """While a turn of that session is driven: ``stand_still`` is told when calls wait and when none does."""
        self._clocks[session_id] = stand_still
        stand_still(self._calls[session_id] > 0)
        try:
            yield
        finally:
            if self._clocks.get(session_id) is stand_still:
                del self._clocks[session_id]
            stand_still(False)

    @contextmanager
    def _clock_stands(self, session_id: str) -> Iterator[None]:
        self._count(session_id, 1)
        try:
            yield
        finally:
            self._count(session_id, -1)

    def _count(self, session_id: str, more: int) -> None:
        self._calls[session_id] += more
        waits = self._calls[session_id] > 0
        if not waits:
            del self._calls[session_id]
        if session_id in self._clocks:
            self._clocks[session_id](waits)

    # --- for the caller

    async def respond(self, principal: Principal, session_id: str, request_id: str, result: CallerResult) -> Json:
        """Answer a call. One winner: the loser gets ``accepted: false`` and how it was settled. Raises RequestError."""
        reply = "error" if result.is_error else "result"
        with trio.CancelScope(shield=True):
            won, row = await self._store.write(
                partial(
                    caller_units.answer_call,
                    session_id=session_id,
                    request_id=request_id,
                    principal=principal,
                    reply=reply,
                    at=self._now(),
                )
            )
            waiting = self._waiting.get(request_id)
            if won and waiting is not None:
                waiting.answer(result)
        return {**(row.resolution or {}), "accepted": won, "session_id": row.session_id}

    async def _watch(self) -> None:
        """Take back what those offer whose tokens are gone, revoked or expired."""
        with self._store.hear(tokens.TOPIC, lambda _subject: self._look.set()):
            while True:
                self._look = trio.Event()
                try:
                    seconds = await self._end_dead()
                except OublietteError:
                    log.exception("the tokens of callers could not be looked at")
                    seconds = TROUBLE_SECONDS
                with trio.move_on_after(min(seconds, LONGEST_SLEEP_SECONDS)):
                    await self._look.wait()

    async def _end_dead(self) -> float:
        """In how many seconds the next of them expires."""
        ended, expiry = await self._store.read(partial(caller_tools.ended_principals, at=self._now()))
        for principal_id in ended:
            gone = await self._store.write(partial(caller_units.withdraw, principal_id=principal_id, at=self._now()))
            log.info("caller tools withdrawn with their token", principal=principal_id, declarations=gone)
        return (expiry - self._now()).total_seconds() if expiry is not None else math.inf


def _concerns(event: EventRow) -> bool:
    if event.type is EventType.SYSTEM:
        return event.body.get("code") == "caller_tools_changed"
    return event.type is EventType.REQUEST_RESOLVED


def _requests(tx: Tx, ids: Sequence[str]) -> list[RequestRow]:
    return [row for row in (requests.get(tx, one) for one in ids) if row is not None]
