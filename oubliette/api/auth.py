"""Who calls: from the Authorization header of each request to a Principal, with the limits that guard the door."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

import trio

from oubliette.api.errors import unauthenticated
from oubliette.api.live import Live
from oubliette.core.access import parse_scope
from oubliette.core.limits import BAD_TOKENS_PER_SECOND
from oubliette.core.principals import Principal, TokenRow
from oubliette.core.tokens import secret_hash
from oubliette.errors import OublietteError, RequestError
from oubliette.log import get_logger
from oubliette.store import tokens
from oubliette.store.database import Store, Tx

log = get_logger(__name__)

TOKEN: Final = re.compile(r"oub_[0-9a-f]{64}")
FRESH_SECONDS: Final = 1.0
"""How long a looked-up token is believed; what revokes it in this process is known at once."""
WATCH_SECONDS: Final = 0.4
"""How often the tokens with something going on are looked at again."""
TOUCH_SECONDS: Final = 30
"""How often ``last_used_at`` is written."""
_REMEMBERED: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class RateLimiter:
    """Token buckets by key: ``per_second`` sustained, ``burst`` at once. Idle ones are forgotten."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = max(burst, 1.0)
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key: str) -> float:
        """0 when there was room, else the seconds until there is."""
        now = trio.current_time()
        bucket = self._refilled(key, now)
        if bucket.level >= 1:
            bucket.level -= 1
            return 0.0
        return (1 - bucket.level) / self._per_second

    def empty(self, key: str) -> bool:
        """Whether ``take`` would refuse."""
        return self._refilled(key, trio.current_time()).level < 1

    def _refilled(self, key: str, now: float) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._burst, now)
            if len(self._buckets) > _REMEMBERED:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        bucket.level = min(self._burst, bucket.level + (now - bucket.at) * self._per_second)
        bucket.at = now
        return bucket


class Auth:
    """Looks tokens up, remembers them for a second, and ends what goes on in the name of those that end."""

    def __init__(
        self, store: Store, live: Live, *, per_second: float, burst: float, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._live = live
        self._now = now
        self._rate = RateLimiter(per_second, burst)
        self._bad = RateLimiter(BAD_TOKENS_PER_SECOND, BAD_TOKENS_PER_SECOND)
        self._known: OrderedDict[bytes, tuple[TokenRow | None, float]] = OrderedDict()
        self._used: dict[str, datetime] = {}

    async def principal(self, authorization: list[str], address: str) -> Principal:
        """The principal of a request. Raises RequestError unauthenticated, or rate_limited after many bad tokens."""
        if not authorization:
            raise unauthenticated("This needs a token.")
        scheme, _, secret = authorization[0].strip().partition(" ")
        secret = secret.strip()
        if len(authorization) > 1 or scheme.lower() != "bearer" or not TOKEN.fullmatch(secret):
            raise self._refused(address, "The Authorization header holds no token of this daemon.")
        digest = secret_hash(secret)
        if digest not in self._known and self._bad.empty(address):
            raise self._refused(address, "The token is not known.")
        row = await self._row(digest)
        if row is None or row.kind == "agent":
            raise self._refused(address, "The token is not known.")
        if row.revoked_at is not None:
            raise self._refused(address, "The token was revoked.")
        now = self._now()
        if row.expires_at is not None and row.expires_at <= now:
            raise self._refused(address, "The token has expired.")
        scope = parse_scope(row.scope)
        self._used[row.token_id] = now
        return Principal("token", row.token_id, row.name, scope)

    def _refused(self, address: str, message: str) -> RequestError:
        seconds = self._bad.take(address)
        if seconds > 0:
            return RequestError(
                "rate_limited",
                "Too many bad tokens from this address.",
                hint="Wait, then send a good one.",
                retryable=True,
                retry_after_ms=max(1, round(seconds * 1000)),
            )
        return unauthenticated(message, "Make one with: oubliette token create")

    def admit(self, principal: Principal) -> None:
        """Count one request. Raises RequestError rate_limited."""
        seconds = self._rate.take(principal.id)
        if seconds > 0:
            raise RequestError(
                "rate_limited",
                "This token sends too many requests.",
                hint="Slow down, or raise server.rate_limit in the config.",
                retryable=True,
                retry_after_ms=max(1, round(seconds * 1000)),
            )

    async def _row(self, digest: bytes) -> TokenRow | None:
        found = self._known.get(digest)
        if found is not None and trio.current_time() - found[1] < FRESH_SECONDS:
            return found[0]
        row = await self._store.read(partial(tokens.by_hash, secret_hash=digest))
        if row is None:
            self._known.pop(digest, None)
            return None
        self._known[digest] = (row, trio.current_time())
        self._known.move_to_end(digest)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return row

    def revoked(self, token_id: str, *, at_once: bool = True) -> None:
        """A token was revoked in this process: nothing is believed of it any more, and what it does ends now (else
        at the next look, within a second)."""
        for digest, (row, _) in list(self._known.items()):
            if row is not None and row.token_id == token_id:
                del self._known[digest]
        if at_once:
            self._live.end_principal(token_id)

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: end what goes on for tokens revoked elsewhere or expired; note when tokens were used."""
        task_status.started()
        touch_at = trio.current_time() + TOUCH_SECONDS
        try:
            while True:
                await trio.sleep(WATCH_SECONDS)
                try:
                    await self._end_dead()
                    if trio.current_time() >= touch_at:
                        touch_at = trio.current_time() + TOUCH_SECONDS
                        await self._touch()
                except OublietteError:
                    log.exception("tokens could not be looked at")
        finally:
            with trio.move_on_after(1, shield=True):
                await self._touch()

    async def _end_dead(self) -> None:
        ids = [one for one in self._live.principals() if one.startswith("tok_")]
        if not ids:
            return
        now = self._now()
        rows = await self._store.read(partial(_by_ids, ids=ids))
        for token_id, row in zip(ids, rows, strict=True):
            expired = row is not None and row.expires_at is not None and row.expires_at <= now
            if row is None or row.revoked_at is not None or expired:
                self._live.end_principal(token_id)

    async def _touch(self) -> None:
        used, self._used = self._used, {}
        if used:
            await self._store.write(partial(_touch_all, used=used))


def _by_ids(tx: Tx, ids: list[str]) -> list[TokenRow | None]:
    return [tokens.get(tx, one) for one in ids]


def _touch_all(tx: Tx, used: dict[str, datetime]) -> None:
    for token_id, at in used.items():
        tokens.touch(tx, token_id, at)
