"""Retries: a write that carries a ``request_key`` happens once per (principal, tool, action, key) in 24 hours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import trio

from oubliette.api.tools.fields import WriteArgs
from oubliette.core.limits import REQUEST_KEY_HOURS
from oubliette.core.model import Json, Principal
from oubliette.errors import RequestError
from oubliette.store import request_keys
from oubliette.store.database import Store, Tx

_PRESENTATION: Final = {"request_key", "detail", "max_chars", "wait_seconds"}
"""What changes how a call is answered and not what it does."""


class RequestKeys:
    """Runs an effect once per key. Two calls with one key at the same time: the second waits for the first's result."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now
        self._running: dict[tuple[str, str, str, str], tuple[trio.Lock, int]] = {}

    async def once(
        self,
        principal: Principal,
        tool: str,
        action: str,
        args: WriteArgs,
        effect: Callable[[], Awaitable[Json]],
        *,
        unkept: frozenset[str] = frozenset(),
    ) -> Json:
        """The effect's result, or the first one with ``deduplicated``. Raises RequestError key_reused.

        ``unkept`` members are shown once and never stored. The caller shields this: a result that nobody waits for
        any more is remembered all the same.
        """
        place = (principal.id, tool, action, args.request_key or "")
        digest = _digest(args)
        lock, users = self._running.get(place, (trio.Lock(), 0))
        self._running[place] = (lock, users + 1)
        try:
            async with lock:
                known = await self._store.read(partial(self._find, place=place))
                if known is not None:
                    if known[0] != digest:
                        raise RequestError(
                            "key_reused",
                            f"This request_key belongs to another {tool} {action}.".replace("  ", " "),
                            hint="Use a new key for other arguments.",
                            field="request_key",
                        )
                    return {**known[1], "deduplicated": True}
                result = await effect()
                kept = {name: value for name, value in result.items() if name not in unkept}
                await self._store.write(partial(self._remember, place=place, digest=digest, result=kept))
                return result
        finally:
            lock, users = self._running.pop(place)
            if users > 1:
                self._running[place] = (lock, users - 1)

    def _find(self, tx: Tx, place: tuple[str, str, str, str]) -> tuple[str, Json] | None:
        return request_keys.find(tx, *place)

    def _remember(self, tx: Tx, place: tuple[str, str, str, str], digest: str, result: Json) -> None:
        at = self._now()
        request_keys.purge(tx, at - timedelta(hours=REQUEST_KEY_HOURS))
        request_keys.remember(tx, *place, digest, result, at)


def _digest(args: WriteArgs) -> str:
    text = json.dumps(args.model_dump(mode="json", exclude=_PRESENTATION), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
