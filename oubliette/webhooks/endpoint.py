"""One receiver: its notices are sent side by side, four at most, and it holds up nobody but itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Literal

import trio

from oubliette.config.server import Webhook
from oubliette.core.notices import body_of, signature, signing_key
from oubliette.errors import OublietteError
from oubliette.log import get_logger
from oubliette.store import webhooks
from oubliette.store.database import Store, Tx
from oubliette.store.webhooks import NoticeRow
from oubliette.webhooks.post import Answer, NotDelivered, Poster

log = get_logger(__name__)

DELAYS_SECONDS: Final = (5, 30, 120, 600, 3_600, 6 * 3_600, 24 * 3_600)
"""Between one attempt and the next; after the last of them a notice is given up, 31 hours after it was made."""
JITTER: Final = 0.2
"""Each delay is longer by up to this part of itself, so that receivers that were down are not all asked at once."""
LONGEST_RETRY_AFTER_SECONDS: Final = 6 * 3_600
SIDE_BY_SIDE: Final = 4
MAX_WAITING: Final = 10_000
"""Notices that wait for one receiver; the oldest are forgotten first."""
WARN_AFTER: Final = 3
"""Failures in a row after which the log warns."""
DOWN_FOR: Final = timedelta(minutes=5)
"""A receiver that took nothing for so long was down. One that takes some notices and refuses others is not: bringing
those forward each time would use up their attempts within minutes."""
_EVER: Final = datetime.min.replace(tzinfo=UTC)
LEASE: Final = timedelta(seconds=60)
"""A notice whose sender died is sent again after this."""
LOOK_SECONDS: Final = 60
"""The longest sleep while notices wait: the clock may be set, or the machine may have slept."""
TROUBLE_SECONDS: Final = 30
"""How long to leave the store alone when it fails."""
GONE: Final = 410

Count = Callable[[str, Literal["delivered", "failed", "given_up", "forgotten"], int], None]


@dataclass(frozen=True, slots=True)
class Tools:
    """What every receiver is served with. ``count(receiver, what, how many)`` is told of everything that happens."""

    store: Store
    poster: Poster
    now: Callable[[], datetime]
    user_agent: str
    count: Count = lambda _name, _what, _how_many: None
    chance: Callable[[], float] = random.random


class Endpoint:
    """A receiver of the configuration."""

    def __init__(self, name: str, config: Webhook, tools: Tools) -> None:
        self.name = name
        self._config = config
        self._tools = tools
        self._key = signing_key(config.secret.get_secret_value())
        self._wake = trio.Event()
        self._flying: set[str] = set()
        self._failures = 0
        self._refused_since: datetime | None = _EVER
        """None: it took the last one. At a start nobody knows, so that what waits from before comes with the first."""
        self._gone = False

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is due until cancelled, or until the receiver says that it is gone for good."""
        async with trio.open_nursery() as nursery:
            while not self._gone:
                self._wake = trio.Event()
                try:
                    seconds = await self._begin(nursery)
                except OublietteError:
                    log.exception("webhook notices could not be read", endpoint=self.name)
                    seconds = TROUBLE_SECONDS
                with trio.move_on_after(seconds):
                    await self._wake.wait()
            nursery.cancel_scope.cancel(reason="the receiver is gone")

    async def _begin(self, nursery: trio.Nursery) -> float:
        """Start what is due as far as there is room; how long nothing else will be due."""
        store, at = self._tools.store, self._tools.now()
        if len(self._flying) >= SIDE_BY_SIDE:
            return float("inf")
        due = await store.read(partial(webhooks.next_due, endpoint=self.name))
        if due is None:
            return float("inf")
        if due > at:
            return min((due - at).total_seconds(), LOOK_SECONDS)
        room = SIDE_BY_SIDE - len(self._flying)

        def unit(tx: Tx) -> tuple[int, list[NoticeRow]]:
            forgotten = webhooks.trim(tx, self.name, MAX_WAITING)
            return forgotten, webhooks.claim(tx, self.name, at, room, LEASE)

        forgotten, claimed = await store.write(unit)
        if forgotten:
            log.error("webhook notices were forgotten: too many wait", endpoint=self.name, forgotten=forgotten)
            self._tools.count(self.name, "forgotten", forgotten)
        for row in claimed:
            self._flying.add(row.notice_id)
            nursery.start_soon(self._send, row)
        return 0 if claimed else LOOK_SECONDS

    async def _send(self, row: NoticeRow) -> None:
        """One attempt, and what comes of it."""
        try:
            if row.attempt > len(DELAYS_SECONDS) + 1:  # the last one's sender died
                await self._given_up(row, "its last attempt was cut off")
                return
            try:
                answer = await self._post(row)
            except NotDelivered as error:
                await self._failed(row, error.message, None)
                return
            if answer.taken:
                await self._taken(row)
            elif answer.status == GONE:
                await self._end()
            else:
                await self._failed(row, f"the answer was {answer.status}", answer.retry_after_seconds)
        except OublietteError:  # of the store: the lease runs out, and it is sent again
            log.exception("the outcome of a webhook notice could not be kept", endpoint=self.name)
        finally:
            self._flying.discard(row.notice_id)
            self._wake.set()

    async def _post(self, row: NoticeRow) -> Answer:
        body = body_of(row.notice_id, row.type, row.at, row.project_id, row.about, row.attempt)
        seconds = int(self._tools.now().timestamp())
        headers = [
            ("content-type", "application/json"),
            ("user-agent", self._tools.user_agent),
            ("webhook-id", row.notice_id),
            ("webhook-timestamp", str(seconds)),
            ("webhook-signature", signature([self._key], row.notice_id, seconds, body)),
        ]
        return await self._tools.poster.post(self._config.url, headers, body, allow_private=self._config.allow_private)

    async def _taken(self, row: NoticeRow) -> None:
        since, failures = self._refused_since, self._failures
        self._refused_since, self._failures = None, 0
        self._tools.count(self.name, "delivered", 1)
        await self._tools.store.write(partial(webhooks.finish, notice_id=row.notice_id))
        if since is not None and self._tools.now() - since >= DOWN_FOR:
            waiting = await self._tools.store.write(lambda tx: webhooks.hasten(tx, self.name, self._tools.now(), LEASE))
            if waiting or failures:
                log.info("a webhook receiver is back", endpoint=self.name, waiting=waiting)

    async def _failed(self, row: NoticeRow, why: str, retry_after_seconds: float | None) -> None:
        self._failures += 1
        self._refused_since = self._refused_since or self._tools.now()
        self._tools.count(self.name, "failed", 1)
        if row.attempt > len(DELAYS_SECONDS):
            await self._given_up(row, why)
            return
        seconds = DELAYS_SECONDS[row.attempt - 1] * (1 + JITTER * self._tools.chance())
        if retry_after_seconds is not None:
            seconds = max(seconds, min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))
        due_at = self._tools.now() + timedelta(seconds=seconds)
        level = log.warning if self._failures == WARN_AFTER else log.info
        level(
            "a webhook notice was not delivered",
            endpoint=self.name,
            notice_id=row.notice_id,
            attempt=row.attempt,
            why=why,
            again_in_seconds=round(seconds),
            failures_in_a_row=self._failures,
        )
        await self._tools.store.write(partial(webhooks.put_off, notice_id=row.notice_id, due_at=due_at))

    async def _given_up(self, row: NoticeRow, why: str) -> None:
        log.error(
            "a webhook notice was given up",
            endpoint=self.name,
            notice_id=row.notice_id,
            kind=row.type,
            session_id=row.about.get("session_id"),
            attempts=min(row.attempt, len(DELAYS_SECONDS) + 1),
            why=why,
        )
        self._tools.count(self.name, "given_up", 1)
        await self._tools.store.write(partial(webhooks.finish, notice_id=row.notice_id))

    async def _end(self) -> None:
        """410 Gone: as Standard Webhooks asks, nothing is sent there any more; until the next start, for it may err."""
        waiting = await self._tools.store.write(partial(webhooks.remove_endpoint, name=self.name))
        self._gone = True  # not before: it ends this task, and a receiver whose row stays would gather notices unsent
        log.warning(
            "a webhook receiver says it is gone (410): nothing is sent there until the daemon starts again",
            endpoint=self.name,
            forgotten=waiting,
        )
        self._tools.count(self.name, "forgotten", waiting)
